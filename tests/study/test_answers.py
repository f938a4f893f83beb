"""Once the queue is through, the study answers every claim: shown on made numbers for each run of study/queue.yaml."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gcond.study import judge, pages, tables
from gcond.study.__main__ import QUEUE
from gcond.study.artefacts import Catalogue
from gcond.study.figure_runs import choose
from gcond.study.methods import facts
from gcond.study.queue import AS_RECORDED, Queue, described, read
from gcond.sweep.plan import planned
from tests.study.test_pages import SENTENCES

BEST = {"baseline": 2e-3, "pcgrad": 2e-3, "cagrad": 4e-3, "gradnorm": 1e-3, "baseline_integrated": 5e-4,
        "gcond_sequential": 5e-4, "gcond_stochastic": 5e-4}  # fmt: skip
ARMS = {"gcond_sequential": -0.06, "baseline_integrated": -0.06, "gcond_stochastic": -0.04}  # what they do to a loss
FIGURES = facts("figures")["figures"]
EPOCHS = ("best_val", "last_val", "best_test", "last_test")
LOGGED = ["norm_jump", "resolved_norm", "cosine_min", "cosine_min_late", "cosine_min_plateau", "cosine_step_resolved",
          "resolved", "correction", "correction_median", "conflicts", "zone_weak", "zone_main", "zone_critical",
          "early_val_l1", "activation_std", "probe:cosine/all", "probe:cosine/head", "probe:cosine/body",
          "probe:cosine/encoder", "probe:noise/l1/1", "probe:noise/l1/8"]  # fmt: skip
LAMBDAS = {"l1_ssim": "l1:0.85,ssim:0.15", "l1": "l1:1", "ssim": "ssim:1",
           "l1_ssim_flipped": "l1:0.35,ssim:0.15,flipped:0.5",
           "l1_ssim_class": "l1:0.65,ssim:0.2,class:0.15"}  # fmt: skip
WEIGHTS = {"cagrad": (0.422 / 0.85, 0.156 / 0.15), "gradnorm": (1.54 / 0.85, 0.458 / 0.15)}


@pytest.fixture(scope="module")
def queued():
    """The runs of the queue, as if the tuning seed had chosen BEST."""
    queue = Queue(read(QUEUE), lambda overrides: [(str(described(each)), "") for each in overrides])
    grid = queue.runs(tables.read(Path("nowhere")))
    grid = grid[grid.block.str.startswith("rates-")]
    loss = [abs(np.log(float(run.lr) / BEST[run.strategy])) for run in grid.itertuples()]
    recorded = grid[["hash", "data_checksum"]].assign(arithmetic="m", best_val_l1=loss, best_val_ssim=loss)
    runs = queue.runs(recorded)
    assert not runs.waiting.any()
    return runs


def rows(runs):
    """runs.csv: a loss is .3, changed by the arm, a rate beside its best, the seed, and noise."""
    draw = np.random.default_rng(0)
    for place, overrides in enumerate(runs.drop_duplicates("hash").overrides):
        run = described(overrides)
        given = tables.overrides(run["setting"])
        weights = given.get("loss.tasks", "").strip("{}") or LAMBDAS[given.get("loss", "l1_ssim")]
        weights = {name: float(value) for name, _, value in (part.partition(":") for part in weights.split(","))}
        best = BEST.get(run["strategy"], 1e-3)
        mean = 0.3 * (1 + ARMS.get(run["strategy"], 0) + 0.1 * abs(np.log(run["lr"] / best)) + 0.01 * (run["seed"] % 7))
        losses = {f"{epoch}_{task}": mean + 0.001 * draw.standard_normal()
                  for epoch in EPOCHS for task in {"l1", "ssim", "top1", *weights}}  # fmt: skip
        variant = [
            run["setting"],
            f"optimizer.lr={run['lr']}" * (run["lr"] != 2e-3),
            f"strategy.model_mode={run['model_mode']}" * (run["model_mode"] != "train"),
        ]
        settings = dict(text.split("=", 1) for text in overrides)
        windows = int(settings.get("scale.steps_per_epoch", 96)) * 10
        yield {
            **dict.fromkeys((*tables.ABOUT, *tables.SETTINGS), ""), **run, "scale": "study", "name": f"run{place}",
            "arithmetic": "m", "status": "done", "started": f"{place:04}", "data_checksum": run["dataset"],
            "micro_batch": 16, "accumulation_steps": given.get("scale.accumulation_steps", 4), "steps": windows,
            "flip_strength": given.get("loss.reconstruction.flip_strength", 1.0),
            "variant": ",".join(filter(None, variant)), **losses,
            **{f"lambda_{task}": weight for task, weight in weights.items()},
        }  # fmt: skip


def digest(run):
    l1, ssim = WEIGHTS.get(run.strategy, (1.0, 1.0))
    return dict.fromkeys(LOGGED, 0.5) | {"weight_l1": l1, "weight_ssim": ssim}


def log(results, name, kind):
    """Of the records that claims read: patients' losses, and validation after each epoch."""
    if kind == "groups":
        return pd.DataFrame([{"at": "best", "split": split, "group": group, "l1": 0.3, "ssim": 0.3 + 0.01 * group}
                             for split in ("val", "test") for group in range(6)])  # fmt: skip
    if kind == "validation":
        return pd.DataFrame({"step": [96, 192], "val_l1": [0.4, 0.3]})
    return pd.DataFrame({"kind": []})


@pytest.fixture(scope="module")
def study(queued, tmp_path_factory):
    """The folder of the made runs."""
    folder = tmp_path_factory.mktemp("results") / "study"
    folder.mkdir()
    pd.DataFrame(rows(queued)).to_csv(folder / "runs.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "log", log)
        yield folder


@pytest.fixture(scope="module")
def found(study):
    """Findings of every claim; of each contrast for one measure, at the best epoch, to save time."""

    def narrow(contrast):
        epochs = judge._listed(contrast.get("epoch", ""))
        return {"measure": judge._listed(contrast["measure"])[:1], "epoch": [x for x in epochs if x in judge.DECIDING]}

    claims = {name: claim | {"contrasts": [one | narrow(one) for one in claim.get("contrasts", ())]}
              for name, claim in facts("claims").items()}  # fmt: skip
    runs = tables.runs(study)
    runs = pd.concat([runs, pd.DataFrame([digest(run) for run in runs.itertuples()])], axis="columns")
    return judge.judge(claims, runs, study)


def test_runs_are_one_exactly_where_their_configs_are(queued):
    """`described` against composing each, of one data set, seed and two strategies."""
    some = queued[(queued.dataset == "headneck") & (queued.seed == 11)].drop_duplicates("overrides")
    some = some[some.strategy.isin(["baseline", "gcond_stochastic"])]
    names = [run.folder.hash for run in planned([list(each) for each in some.overrides])]
    assert len(set(names)) == some.hash.nunique() == len(set(zip(names, some.hash, strict=True)))


def test_the_recorded_runs_are_the_queues(queued):
    """But for the rates, which the real tuning seed chose."""
    known = [name for name in AS_RECORDED if name != "lr"]
    recorded = tables.finished(Path(__file__).parents[2] / "results" / "study")
    asked = pd.DataFrame([described(each) for each in queued.overrides])
    found = recorded[known].merge(asked[known].drop_duplicates(), "left", indicator=True)
    assert (found._merge == "both").all()


def test_every_claim_is_answered_or_needs_more_than_training(found):
    measured = {claim for artefact in Catalogue().artefacts.values() if artefact.then for claim in artefact.claims}
    apart = {name for name, claim in facts("claims").items() if not judge.has_scale(claim)}
    assert set(facts("claims")) - set(found.claim) <= measured | apart == {"O7", "O9", "S1", "S2", "M1", "M2", "G1"}


@pytest.mark.parametrize("name", SENTENCES)
def test_a_sentence_of_the_first_page_still_names_one_finding(found, name):
    pages.finding(SENTENCES[name], found)  # refuses several


@pytest.mark.parametrize("name", [name for name, spec in FIGURES.items() if "arms" in spec])
def test_no_arm_of_a_figure_is_missing(study, name):
    """Of those that are measured on finished weights nothing is there."""
    if "after" in FIGURES[name]:
        with pytest.raises(ValueError, match="nothing to draw"):
            choose(name, FIGURES[name], study)
    else:
        chosen = choose(name, FIGURES[name], study)
        known = ["no run on photographs"] if name in ("conflict", "conflict_half") else []
        assert [words for words in chosen.missing if not words.startswith("fewer seeds")] == known
        assert set(FIGURES[name]["arms"]) == set(chosen.arms) - set(FIGURES[name].get("controls", ()))


def test_table2_is_of_the_seeds_that_most_methods_have(study, monkeypatch):
    asked = []
    monkeypatch.setattr(pages, "_table2", lambda results, scale, lr, **choices: asked.append((lr, choices)) or [])
    pages._tables2(study.parent, study.name)
    assert asked == [(lr, {"seeds": [11, 42, 2025]}) for lr in ("own", 2e-4)]  # not 1, 2 and 3, which five arms have


def test_no_finding_hides_another_in_its_cell_of_a_page(found):
    place = ["claim", "dataset", "model", "lr", "mode", "n", "group", "label", "ours", "theirs", "measure", "epoch"]
    assert found[found.duplicated(place, keep=False)][place].empty


def test_every_setting_of_the_queue_is_asked_for(queued):
    """By a contrast, or by what looks at static weights and single tasks."""
    asked = {tables.setting(settings) for claim in facts("claims").values() for one in claim.get("contrasts", ())
             for settings in (one.get("with", {}), one.get("with", {}) | one.get("ours_with", {}))}  # fmt: skip
    settings = {described(each)["setting"] for each in queued.overrides}
    assert {each for each in settings - asked if "loss.tasks=" not in each} == {"loss=l1", "loss=ssim"}


@pytest.mark.parametrize(("claim", "label", "comparisons"), [
    ("A1", "thresholds -1, -.4, .1", 1), ("A2", "momentum 0.99", 1), ("B1", "", 14), ("B1", "both at 5e-4", 2),
    ("O3", "once per window", 3), ("O4", "windows of 24 x 16", 4), ("O5", "bfloat16 buffers", 2),
    ("C1", "strength 0.5", 17), ("C1", "strength 0.5, both at 5e-4", 2),
    ("C1", "strength 0.5, weights .225, .40, .375", 2),
    ("O4", "windows of 1 x 16 against 4 x 16, equal images", 4), ("O1", "as published", 6),
    ("O1", "at GCond's best rate", 2), ("O1", "its best rate", 2), ("V1", "", 2),
    ("O8", "against single tasks", 26), ("O9", "frozen at l1:1.54 ssim:0.458, baseline", 2)])  # fmt: skip
def test_what_the_blocks_are_made_for_is_found(found, claim, label, comparisons):
    own = found[(found.claim == claim) & (found.label == label) & (found.group != "patients")]
    arms = own.drop_duplicates(["dataset", "ours", "theirs", "lr"])
    assert (own.n >= 3).all()
    assert len(arms) == comparisons, arms[["dataset", "ours", "theirs", "lr", "measure"]].to_string()


def test_methods_are_held_against_static_weights_in_both_settings(found):
    own = found[found.label.str.startswith("nearest of ") & (found.lr == "best")]
    assert set(own[own.claim == "C1"].label.str.split(",").str[0]) == {"nearest of 6 static weights"}
    methods = own.groupby(["claim", "dataset"]).ours.nunique()
    assert methods.to_dict() == {("C1", "headneck"): 6, ("O8", "headneck"): 12, ("O8", "imagenet84"): 12}


def test_arms_are_compared_at_the_rate_that_the_tuning_seed_chose_or_at_one(found):
    assert set(found.lr) == {"paper", "best", "5e-4"}  # none at the scale's own, as if it were each arm's
    tuned = found[(found.claim == "O2") & (found.group == "") & (found.label == "")]
    assert (tuned.n >= 3).all()
    assert len(tuned) == 2 * 10


def test_resolving_is_judged_equal_over_seeds_and_over_patients(found):
    own = tables.of_paper_model(found[found.claim == "O11"])
    places = set(zip(own.dataset, own.lr, own.group, strict=True))
    assert places == set(product(("headneck", "imagenet84"), ("paper", "5e-4"), ("", "patients")))
    assert (own.n == 6).all()
    own = own[own.group == ""]  # patients decide nothing
    assert set(own[own.theirs == "baseline_integrated"].verdict) == {"holds"}  # so they were made
    assert judge.verdicts(facts("claims"), found).set_index("claim").verdict["O11"] == "contradicted"  # by stochastic

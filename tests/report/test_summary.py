"""results/README.md of made-up studies: each branch of its sentences, and that none says more than its interval."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from report import fake_controls
from scipy import stats

from gcond.report.statistics import Effect
from gcond.report.summary import forest, gap, hypotheses
from gcond.report.summary.page import page
from gcond.report.summary.say import ABOVE, BELOW, FEW, OPEN, against, place, whether
from gcond.report.summary.section import evidence_of

SEEDS = (11, 42, 2025, 1, 2, 3)
RATE = "optimizer.lr=0.0002"  # as the record has it
MODE = "strategy.model_mode=eval"


def noise(*key: object, size: float = 0.004) -> float:
    return size * math.sin(sum(map(ord, "".join(map(str, key)))))


def study(results, levels: dict[tuple[str, str], float], seeds=SEEDS, scale="sample", steps=None, probes=None):
    """(strategy, variant) -> L1 level on CT, with noise by seed; 1 - SSIM is half of it. Steps and probes by values."""
    keys = [("ct", strategy, seed, variant) for strategy, variant in levels for seed in seeds]
    runs = [fake_controls.run(key, levels[key[1], key[3]] + noise(*key)) for key in keys]
    rows = [row for key in keys for row in fake_controls.steps(key, **(steps or {}).get((key[1], key[3]), {}))]
    noted = [row for key in keys for row in fake_controls.probes(key, (probes or {}).get((key[1], key[3]), {}))]
    fake_controls.write(results, scale, runs, rows if steps else [], noted)
    return results


def losses(levels, strategy: str, variant: str) -> np.ndarray:
    """L1 of the seeds of `study`."""
    return np.array([
        levels[strategy, variant] + noise("ct", strategy, seed, variant) + fake_controls.SPREAD.get(seed, 0.0)
        for seed in SEEDS
    ])  # fmt: skip


UPDATE_DOES_IT = {
    ("baseline", ""): 0.4,
    ("baseline_integrated", ""): 0.4,
    ("gcond_stochastic", ""): 0.4,
    ("baseline", RATE): 0.5,
    ("baseline_integrated", RATE): 0.45,
    ("gcond_stochastic", RATE): 0.45,
}


def interval(low: float, high: float, n: int = 6) -> Effect:
    return Effect(n, (low + high) / 2, low, high, math.nan)


def test_words_follow_from_the_interval_alone():
    cases = {BELOW: (-3, -1), ABOVE: (1, 3), OPEN: (-1, 3)}
    for expected, ends in cases.items():
        assert place(interval(*ends)) == expected
        assert place(interval(*ends, n=5)) == FEW
    assert place(interval(-3, 0)) == OPEN  # zero is not excluded
    assert place(Effect(6, 1.0, math.nan, math.nan, math.nan)) == FEW
    assert [against(interval(*ends)) for ends in cases.values()] == [
        "lies below", "lies above", "cannot be told apart from"]  # fmt: skip
    assert [whether(interval(*ends), ABOVE) for ends in cases.values()] == [
        "no, the other way round", "yes", "cannot be told"]  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return page(study(tmp_path_factory.mktemp("results"), UPDATE_DOES_IT))


def answer(words: str, question: str) -> str:
    (line,) = [line for line in words.splitlines() if line.startswith(f"- **{question}")]
    return line


def row(words: str, *starts: str) -> list[str]:
    """Cells of the one row of a table that starts so."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in words.splitlines() if line[:1] == "|"]
    (own,) = [cells for cells in rows if tuple(cells[: len(starts)]) == starts]
    return own


def test_a_gain_that_the_update_makes_at_one_rate_only(told):
    own = row(told, "CT, sample, rate 1e-3", "L1")
    gap, update, on_top, n = row(told, "CT, sample, rate 2e-4 (the paper's)", "L1")[2:]
    assert not any("**" in cell for cell in own)
    assert gap.startswith("**-9.8 % [")
    assert update.startswith("**-")
    assert "**" not in on_top
    assert n == "6"
    assert "![what each change does](figures/overview.png)" in told


def test_the_top_counts_where_the_update_alone_has_the_gain(told, tmp_path):
    """By hand: two losses at two rates; the gain is there at one, in both losses, and the update has all of it."""
    gains = answer(told, "Does GCond reconstruct better than Baseline?")
    assert "a lower loss in 2 of the 4 comparisons below that have enough seeds (-9.8 %), a higher one in 0;" in gains
    cause = answer(told, "Are resolved conflicts the cause?")
    assert "In 2 of these 2 its way of smoothing the gradient alone has it too" in cause
    assert "on top of it lowers the loss in 0 of 4 and raises it in 0." in cause
    glance = told.split("## At a glance")[1].split("## ")[0]
    assert len(re.findall(r"^\| CT, sample, .*\| 6 +\|$", glance, re.M)) == 6  # with each arm at its best rate
    resolved = UPDATE_DOES_IT | {("baseline_integrated", RATE): 0.5, ("gcond_stochastic", ""): 0.45}
    other = page(study(tmp_path, resolved))
    assert "in 2 of the 4 comparisons" in answer(other, "Does GCond reconstruct better")
    assert "a higher one in 2;" in answer(other, "Does GCond reconstruct better")
    assert "In 0 of these 2 its way" in answer(other, "Are resolved conflicts the cause?")
    assert "lowers the loss in 2 of 4 and raises it in 2." in answer(other, "Are resolved conflicts the cause?")


def test_the_top_says_what_the_update_does_and_how_much_there_is_to_resolve(tmp_path):
    """Values as made up: steps four times as long; a conflict in half of the first two bins of four and a tenth of
    the others; cosines of .4 and .1, at every seed's own shift, which is 0 in the mean of SPREAD."""
    both = {(strategy, rate): own for (strategy, mode), own in STEPS.items() if not mode for rate in ("", RATE)}
    told = page(study(tmp_path, UPDATE_DOES_IT, steps=both, probes=PROBES))
    update = answer(told, "What does its update do?")
    steps = pd.read_csv(tmp_path / "sample" / "steps.csv").query("variant.isna()")
    size = steps.groupby("strategy").step_rms_over_lr.mean()
    expected = size["baseline_integrated"] / size["baseline"]
    assert f"its steps are {expected:.2f} times as long as Baseline's (RMS; 2 settings, n = 6)" in update
    assert "Baseline's L1 at rate 1e-3 lies below GCond stochastic's at rate 2e-4 (-" in update
    own = steps[steps.strategy == "gcond_stochastic"].groupby("seed").conflicts.mean()
    work = answer(told, "How much is there to resolve?")
    assert f"finds a conflict in {100 * own.mean():.1f} % of its steps (2 settings, n = 6)" in work
    assert "below -.8: 0." in work
    probes = pd.read_csv(tmp_path / "sample" / "probes.csv").groupby("name").value.mean()
    agree = answer(told, "Do the tasks conflict?")
    assert "They agree, on average" in agree
    for name in ("cosine/all", "cosine_disjoint/all", "self_cosine/l1/all"):
        assert f"{probes[name]:+.2f} [" in agree


def test_the_top_names_the_span_of_several_settings(tmp_path):
    steps = {
        ("gcond_stochastic", ""): {"conflicts": 0.1, "correction": 0.01},
        ("gcond_stochastic", RATE): {"conflicts": 0.3, "correction": 0.01},
    }
    told = page(study(tmp_path, UPDATE_DOES_IT, steps=steps))
    work = answer(told, "How much is there to resolve?")
    assert "finds a conflict in 10.0 % to 30.0 % of its steps (2 settings, n = 6)" in work
    assert "what it changes of the gradient: 1.0 %." in work


def test_the_top_says_how_many_runs_beat_what_needs_no_training(tmp_path):
    """The made-up trivial predictor has an L1 of .49 everywhere."""
    text = page(study(tmp_path, UPDATE_DOES_IT))
    runs = pd.read_csv(tmp_path / "sample" / "runs.csv")
    runs = runs[~runs.strategy.str.startswith("trivial:")]
    better = {block: sum(runs[f"best_{block}_l1"] < 0.49) for block in ("val", "test")}
    assert len(runs) == 36
    assert 0 < better["val"] < 36
    said = f"{better['val']} of 36 runs on validation and {better['test']} of 36 runs on test (CT, sample)."
    assert said in text.split("## At a glance")[1].split("\n## ")[0]


def test_its_numbers_are_scipys(told):
    arms = ("baseline", "gcond_stochastic", "baseline_integrated")
    loss = {name: losses(UPDATE_DOES_IT, name, RATE) for name in arms}
    for ours, theirs, row in (
        ("gcond_stochastic", "baseline", "the gap: GCond stochastic against Baseline"),
        ("baseline_integrated", "baseline", "the update alone"),
        ("gcond_stochastic", "baseline_integrated", "resolution on top of it, stochastic"),
    ):
        test = stats.ttest_rel(loss[ours], loss[theirs])
        ends = [100 * end / loss["baseline"].mean() for end in test.confidence_interval(0.95)]
        mean = 100 * (loss[ours] - loss[theirs]).mean() / loss["baseline"].mean()
        line = next(line for line in told.splitlines() if line.startswith(f"| {row}"))
        assert f"{mean:+.1f} % [{ends[0]:+.1f}, {ends[1]:+.1f}]" in line
        assert re.search(r"\| 6 +\|", line)


def test_a_gap_in_eval_mode_has_a_row_of_its_own_with_its_own_parts(tmp_path):
    both = f"{RATE},{MODE}"
    levels = UPDATE_DOES_IT | {
        ("baseline", both): 0.6,
        ("baseline_integrated", both): 0.6,
        ("gcond_stochastic", both): 0.5,
    }
    told = page(study(tmp_path, levels))
    gap, update, on_top, _ = row(told, "CT, sample, rate 2e-4 (the paper's), eval mode", "L1")[2:]
    assert "**" not in update
    assert on_top.startswith("**-")
    difference = losses(levels, "gcond_stochastic", both) - losses(levels, "baseline", both)
    assert gap.startswith(f"**{100 * difference.mean() / losses(levels, 'baseline', RATE).mean():+.1f} % [")
    assert "| the gap with both in eval mode, stochastic" in told


def test_peers_and_gcond_against_them_where_a_peer_ran(tmp_path):
    levels = UPDATE_DOES_IT | {("pcgrad", RATE): 0.5, ("cagrad", RATE): 0.55, ("gcond_sequential", RATE): 0.45}
    told = page(study(tmp_path, levels))
    peers = answer(told, "And the peers?")
    assert "against Baseline: a lower loss in 0 and a higher one in 2 of 4 comparisons." in peers  # CAGrad's two losses
    assert "GCond against them: a lower loss in 8 and a higher one in 0 of 8 comparisons." in peers
    assert "resolves nothing: a lower loss in 0 and a higher one in 0 of 4 comparisons." in peers
    ours = answer(told, "GCond sequential against the peers.")  # at one rate only
    assert re.search(r"L1 is lower: PCGrad \(-[^;]* and CAGrad \(-[^;]*\) \(n = 6\)\. 1 - SSIM is lower", ours)

    loss = {name: losses(levels, name, RATE) for name in ("baseline", "cagrad", "baseline_integrated")}
    row = next(line for line in told.split("## The methods of Table 2")[1].splitlines() if line.startswith("| CAGrad"))
    for cell, other in ((1, "baseline"), (3, "baseline_integrated")):
        low, high = stats.ttest_rel(loss["cagrad"], loss[other]).confidence_interval(0.95)
        base = loss[other].mean() / 100
        mean = (loss["cagrad"] - loss[other]).mean() / base
        expected = f"**{mean:+.1f} % [{low / base:+.1f}, {high / base:+.1f}]**"
        assert row.split("|")[cell + 1].strip() == expected
    integrated = next(line for line in told.split("## The methods of Table 2")[1].splitlines()
                      if line.startswith("| Baseline integrated"))  # fmt: skip
    assert [cell.strip() for cell in integrated.split("|")[4:6]] == ["-", "-"]


def test_five_seeds_conclude_nothing(tmp_path):
    words = page(study(tmp_path, UPDATE_DOES_IT, SEEDS[:5]))
    assert "- No comparison of GCond with Baseline has enough seeds for a conclusion." in words
    assert "What does its update do?" not in words
    assert not re.search(r"lies (below|above)|lowers the loss|raises the loss", words.split("## How to read")[0])
    (exact,) = [each for each in judged(tmp_path) if each.verdict not in ("undecided", "not run")]
    assert exact.hypothesis.text == "Trivial predictors beat many short runs"  # a count, of the runs there are


def test_a_larger_scale_with_three_seeds_stands_beside_one_with_six(tmp_path):
    """It neither hides the smaller one's conclusions nor draws any."""
    study(tmp_path, UPDATE_DOES_IT)
    other = {key: value + (0.1 if key == ("baseline", RATE) else 0) for key, value in UPDATE_DOES_IT.items()}
    study(tmp_path, other, SEEDS[:3], scale="sample_gpu")
    text = page(tmp_path)
    few, enough = (row(text, f"CT, {scale}, rate 2e-4 (the paper's)", "L1") for scale in ("sample_gpu", "sample"))
    assert enough[2].startswith("**-")
    assert few[-1] == "3"
    assert "**" not in "".join(few)
    assert "a lower loss in 2 of the 4 comparisons" in text  # three seeds do not count
    assert text.index(", scale sample\n") < text.index(", scale sample_gpu\n")


def test_a_scale_that_is_no_evidence_gives_no_number(tmp_path):
    words = page(study(tmp_path, UPDATE_DOES_IT, scale="mini"))
    assert "**No training run at a scale that is evidence is recorded**" in words
    assert "Not run: no two arms of O1 at a scale that is evidence. `make reproduce-o1 SCALE=sample SEEDS=10`" in words
    assert "## In short" not in words
    assert not re.search(r"\d %", words.split("## The gap of Table 2")[1].split("## What a pilot")[0])
    assert {each.verdict for each in judged(tmp_path)} == {"not run"}
    assert not forest.draw(evidence_of(tmp_path))


def judged(results):
    return hypotheses.judge_all(results, evidence_of(results))


def verdicts(results) -> dict[str, str]:
    return {each.hypothesis.text: each.verdict for each in judged(results)}


STEPS = {
    ("baseline", ""): {"step_rms_over_lr": 0.2, "conflicts": lambda at: 0.5 if at < 2 else 0.1},
    ("baseline_integrated", ""): {"step_rms_over_lr": 0.8},
    ("gcond_stochastic", ""): {"zone_critical": 0.0, "conflicts": lambda at: 0.5 if at < 2 else 0.1},
    ("baseline", MODE): {"conflicts": 0.5},
}
PROBES = {
    ("baseline", ""): {
        "cosine/all": 0.4, "cosine_disjoint/all": 0.1, "self_cosine/l1/all": 0.1, "cosine/body": 0.2,
        "cosine/encoder": 0.6}
}  # fmt: skip
MADE = {
    ("baseline", ""): 0.4,
    ("baseline_integrated", ""): 0.4,
    ("gcond_stochastic", ""): 0.4,
    ("baseline", MODE): 0.41,
}


def test_hypotheses_that_the_made_study_supports(tmp_path):
    more = {key: level for key, level in UPDATE_DOES_IT.items() if key[1]}
    steps = {(strategy, rate): own for (strategy, mode), own in STEPS.items() if not mode for rate in ("", RATE)}
    found = verdicts(study(tmp_path, MADE | more, steps=STEPS | steps, probes=PROBES))
    supported = [text for text, verdict in found.items() if verdict == "holds"]
    assert supported == [
        "The update alone (EMA, beta1 = 0) reproduces GCond's gain at learning rate 2e-4",
        "It at least doubles the step at equal learning rate",
        "At a learning rate fitted to the run the gain is gone",
        "eval mode does not produce the gain",
        "eval mode makes conflicts look stronger",
        "On CT the conflict is never critical",
        "On CT the conflict is transient",
        "The conflict sits in the decoder body, not in the encoder",
        "The L1 gradient is mostly noise at small windows",
        "Tasks that share their samples show a higher cosine",
        "Trivial predictors beat many short runs",  # Baseline at the small rate: 6 runs of 42
    ]
    assert found["On photographs there is no conflict"] == "not run"


def test_hypotheses_that_another_study_contradicts(tmp_path):
    levels = dict(MADE) | {("baseline", ""): 0.5, ("gcond_stochastic", ""): 0.4, ("baseline", MODE): 0.4}
    levels |= {("baseline", RATE): 0.5, ("baseline_integrated", RATE): 0.5, ("gcond_stochastic", RATE): 0.4}
    late = {"conflicts": lambda at: 0.1 if at < 2 else 0.5}
    steps = {
        ("baseline", ""): {"step_rms_over_lr": 0.2} | late,
        ("baseline_integrated", ""): {"step_rms_over_lr": 0.3},
        ("gcond_stochastic", ""): {"zone_critical": lambda at: 0.01 * (at == 3)} | late,
        ("baseline", MODE): {"conflicts": 0.05},
    }
    probes = {
        ("baseline", ""): {
            "cosine/all": 0.1, "cosine_disjoint/all": 0.4, "self_cosine/l1/all": 0.9, "cosine/body": 0.6,
            "cosine/encoder": 0.2}
    }  # fmt: skip
    results = study(tmp_path, levels, steps=steps, probes=probes)
    found = verdicts(results)
    assert {text for text, verdict in found.items() if verdict != "contradicted"} == {
        "On photographs there is no conflict",
        "In the mild zone the choice of the winner has no effect",
        "Trivial predictors beat many short runs",
    }
    words = page(results)
    line = next(line for line in words.splitlines() if "never critical" in line)
    assert "ct: runs of GCond stochastic that ever reach the critical zone, of 6" in line


def test_the_figure_holds_every_change_at_every_rate_with_its_interval(tmp_path):
    evidence = evidence_of(study(tmp_path, UPDATE_DOES_IT))
    drawing = forest.draw(evidence)
    assert [axes.get_title() for axes in drawing.axes] == ["ct: L1", "ct: 1 - SSIM"]
    own, paper, best = gap.settings(evidence[0], "ct")
    assert (own.short, paper.short, best.short) == ("rate 1e-3", "rate 2e-4", "best of 2 rates")
    spans = [sorted(line.get_xdata()) for line in drawing.axes[0].get_lines() if line.get_linewidth() == 1.6]
    found = gap.changes(paper.evidence, "ct", "l1")[gap.TRAIN.gap].effect
    assert [found.low, found.high] in [list(span) for span in spans if len(span) == 2]
    assert sum(len(span) == 2 for span in spans) == 3 * 3
    low, high = drawing.axes[0].get_xlim()
    dots = np.concatenate([line.get_xdata() for line in drawing.axes[0].get_lines() if line.get_markersize() == 2.5])
    assert low < dots.min() <= dots.max() < high


def test_a_learning_rate_has_one_colour_in_all_panels_of_the_figure(tmp_path):
    """CT at two rates, photographs at the second alone."""
    arms = ("baseline", "baseline_integrated", "gcond_stochastic")
    keys = [("ct", arm, seed, rate) for arm in arms for seed in SEEDS for rate in ("", RATE)]
    keys += [("photos", arm, seed, RATE) for arm in arms for seed in SEEDS]
    fake_controls.write(tmp_path, "sample", [fake_controls.run(key, 0.4 + noise(*key)) for key in keys], [], [])
    drawing = forest.draw(evidence_of(tmp_path))
    (legend,) = drawing.legends
    colours = {
        text.get_text(): line.get_color() for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    assert list(colours) == ["rate 1e-3", "rate 2e-4", "best of 2 rates"]
    for axes in drawing.axes:
        drawn = {line.get_color() for line in axes.get_lines() if line.get_linewidth() == 1.6}
        expected = {*colours.values()} if axes.get_title().startswith("ct") else {colours["rate 2e-4"]}
        assert drawn == expected, axes.get_title()


def contradicting(results, strategies: dict[str, dict[str, float]], on_test: dict[str, dict[str, float]]):
    """Three tasks on CT, with a conflict in every fourth step of GCond; strategy -> losses, and those that differ on
    test."""
    runs, steps = [], []
    for strategy, own in strategies.items():
        for seed in SEEDS:
            key = ("ct", strategy, seed, fake_controls.FLIPPED)
            values = {
                f"{block}_{task}": value + noise(*key, task)
                for block in ("best_val", "last_val", "best_test", "last_test")
                for task, value in (own | (on_test.get(strategy, {}) if "test" in block else {})).items()
            }
            runs.append(fake_controls.run(key, 0.5, **values))
            zones = {"zone_main": 0.5} if strategy.startswith("gcond") else {}
            steps += fake_controls.steps(key, conflicts=0.25, **zones)
    fake_controls.write(results, "sample", runs, steps)
    return page(results)


def test_where_tasks_conflict_the_update_and_the_resolution_are_told_apart(tmp_path):
    """The update takes a fifth off every loss; resolving adds a fifth to flipped on validation and takes a fifth off it
    on test: of the weighted sum (.28 + .06 + .24 = .58 of Baseline's .725) 8 % more, and 8 % less."""
    base = {"l1": 1.0, "ssim": 0.5, "flipped": 0.6}
    update = {task: 0.8 * value for task, value in base.items()}
    words = contradicting(
        tmp_path,
        {
            "baseline": base,
            "baseline_integrated": update,
            "gcond_stochastic": update | {"flipped": 1.2 * update["flipped"]},
        },
        on_test={"gcond_stochastic": {"flipped": 0.8 * update["flipped"]}},
    )
    line = answer(words, "And where tasks contradict each other?")
    assert "CT, L1 against its inverted image: GCond stochastic finds a conflict in 25.0 %" in line
    weighted, tested = re.findall(
        r"Weighted sum, which all minimise, on (?:validation|test): ([^.]*(?:\.\d[^.]*)*)\.", line
    )
    assert re.search(r"against Baseline lowers it \(-1[234]\.\d %", weighted)
    assert re.search(r"the update alone lowers it \(-(19|20)\.\d %", weighted)
    assert re.search(r"resolving conflicts on top of it raises it \(\+[789]\.\d %", weighted)
    assert re.search(r"resolving conflicts on top of it lowers it \(-[789]\.\d %", tested)
    # The mean image: .75 * (.35 + .15 + .5); Baseline's .725 and .725 +- noise, the others' sums are below it.
    assert "needs no training, have 18 of 18 runs on validation and 18 of 18 runs on test." in line
    assert re.search(r"trade-off: L1 [-+]0\.\d % .*, 1 - SSIM [-+]0\.\d % .*, flipped \+(19|20)\.\d % ", line)
    assert re.search(r"\| GCond stochastic +\| Baseline integrated +\|", words)
    assert "make reproduce-conflict SCALE=sample" not in words.split("## Where tasks do conflict")[1].split("## ")[0]


def test_where_no_tasks_conflict_the_command_is_named(tmp_path):
    words = page(study(tmp_path, UPDATE_DOES_IT))
    assert "`make reproduce-conflict SCALE=sample SEEDS=10` makes it" in words.split("## Where tasks do conflict")[1]

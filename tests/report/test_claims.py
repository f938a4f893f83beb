"""Verdicts of made runs by hand, and that the committed pages are those of the committed numbers."""

import csv
import itertools
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from report import fake_controls
from scipy import stats

from gcond.engine import batches
from gcond.report.__main__ import main
from gcond.report.claims import CLAIMS, QUESTIONS, classes
from gcond.report.claims.evidence import MODE, Arm, overrides, read, tune, variant
from gcond.report.claims.factorial import STRATEGY, changes
from gcond.report.claims.judge import Finding, compare, conjunction, number
from gcond.report.claims.page import _from, judge_all, page, tidy_csv
from gcond.report.records import COLUMNS, KEY, frame, write_csv
from gcond.report.statistics import Effect, paired
from gcond.report.throughput import COLUMNS as COSTS
from gcond.report.throughput import KEY as COSTS_KEY

RESULTS = Path(__file__).parents[2] / "results"
SEEDS = (11, 42, 2025, 1, 2, 3, 4, 5, 6, 7)
ABOUT = {"model": "mobilenetv3_small", "variant": "", "status": "done", "commit": "c", "device": "CPU", "steps": 500}
METHODS = ("baseline", "pcgrad", "cagrad", "gradnorm", "gcond_sequential", "gcond_stochastic")


def noise(strategy: str, seed: int) -> float:
    """Small, fixed, and not the same for two strategies."""
    return 0.001 * math.sin(seed + 7 * sum(map(ord, strategy)))


def run(dataset: str, strategy: str, seed: int, l1: float, ssim: float | None = None, **more: object):
    ssim = l1 if ssim is None else ssim
    numbers = {f"{block}_{metric}": value for block in ("best_val", "last_val", "best_test", "last_test")
               for metric, value in (("l1", l1), ("ssim", ssim))}  # fmt: skip
    return ABOUT | {"dataset": dataset, "strategy": strategy, "seed": seed} | numbers | more


def table2(levels: dict[str, float], seeds=SEEDS, datasets=("photos", "ct"), **more: object):
    return [
        run(dataset, strategy, seed, level + noise(strategy, seed), **more)
        for dataset in datasets
        for strategy, level in levels.items()
        for seed in seeds
    ]


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


class Judged(dict):
    def __init__(self, results: Path, scale: str):
        self.results, self.scale = results, scale

    def __missing__(self, name: str):
        claim = next(claim for claim in (*CLAIMS, *QUESTIONS) if claim.id == name)
        (self[name],) = judge_all(self.results, self.scale, (claim,))
        return self[name]


@pytest.fixture
def judge(results):
    """Record runs and other tables of a scale; claim id -> its row, judged when it is asked for."""

    def judge(rows, scale="sample", **tables):
        write_csv(results / scale / "runs.csv", frame(rows, COLUMNS), KEY)
        for name, table in tables.items():
            pd.DataFrame(table).to_csv(results / scale / f"{name}.csv", index=False)
        return Judged(results, scale)

    return judge


def levels(gcond: float = 0.4, **more: float) -> dict[str, float]:
    return dict.fromkeys(METHODS, 0.5) | {"gcond_sequential": gcond, "gcond_stochastic": gcond} | more


def test_every_claim_and_question_has_a_row_and_a_way_to_run_it():
    assert [claim.id for claim in CLAIMS] == (
        ["T2a", "T2b", "T2c", "S1", "S2", "M1", "M2", "D1", "D2", "D3", "D4", "I1", "I2", "A1", "A2", "V1", "B1", "G1"]
    )  # fmt: skip
    assert [claim.id for claim in QUESTIONS] == [*(f"O{number}" for number in range(1, 11)), "C1"]
    for claim in (*CLAIMS, *QUESTIONS):
        assert claim.needs
        assert claim.question == claim.text.endswith("?")


# Verdicts


def test_gcond_below_all_others_holds(judge):
    rows = judge(table2(levels()))
    assert rows["T2a"].verdict == "holds"
    assert rows["T2a"].found.shown.effect.n == 10
    assert rows["T2a"].found.shown.effect.mean == pytest.approx(-20, abs=1)  # percent of .5
    assert len([found for found in rows["T2a"].found.findings if found.block == "best_val"]) == 2 * 2 * 2 * 4
    assert rows["T2c"].verdict == "holds"
    assert rows["T2b"].verdict == "undecided"
    assert rows["S1"].verdict == rows["D1"].verdict == rows["B1"].verdict == rows["O7"].verdict == "not run"


def test_one_comparison_that_fails_decides_a_conjunction(judge):
    rows = judge(table2(levels(gradnorm=0.3)))
    assert rows["T2a"].verdict == "contradicted"
    assert "GradNorm" in rows["T2a"].found.shown.about
    rows = judge(table2(levels(gradnorm=0.4)))
    assert rows["T2a"].verdict == "undecided"
    assert "GradNorm" in rows["T2a"].found.shown.about


def test_the_claims_of_table_2_are_judged_at_the_scales_rate_and_at_the_papers(judge):
    def at(lr: str, **more: float):
        return table2(levels(**more), variant=f"optimizer.lr={lr}")

    rows = judge(table2(levels()) + at("0.0002"))
    assert rows["T2a"].verdict == "holds"
    assert len([found for found in rows["T2a"].found.findings if found.block == "best_val"]) == 2 * 2 * 2 * 2 * 4
    rows = judge(table2(levels()) + at("0.0002", pcgrad=0.3))
    assert rows["T2a"].verdict == "contradicted"
    assert re.fullmatch(r"\w+ .+, at learning rate 2e-4: GCond \w+ vs PCGrad", rows["T2a"].found.shown.about)
    said = "At the scale's learning rate 1e-3 holds; at learning rate 2e-4 contradicted (the verdict is of both)."
    assert said in rows["T2a"].found.words
    rows = judge(table2(levels()) + at("0.004", pcgrad=0.3))  # a rate of the tuning grid
    assert rows["T2a"].verdict == "holds"
    rows = judge(table2(levels()) + [row for row in at("0.0002") if row["strategy"] != "cagrad"])
    assert rows["T2a"].verdict == "undecided"
    assert any(
        "GCond stochastic against CAGrad on ct, at learning rate 2e-4" in line for line in rows["T2a"].found.words
    )


def test_three_seeds_are_undecided_however_large_the_gap(judge):
    rows = judge(table2(levels(), SEEDS[:3]))
    assert [rows[name].verdict for name in ("T2a", "T2b", "T2c")] == ["undecided"] * 3
    assert "Fewer than 6 seeds (n = 3) are always undecided." in rows["T2a"].found.words


def test_a_missing_comparison_keeps_a_conjunction_from_holding(judge):
    without = {name: level for name, level in levels().items() if name != "cagrad"}
    rows = judge(table2(without))
    assert rows["T2a"].verdict == "undecided"
    assert any("CAGrad on ct" in line for line in rows["T2a"].found.words)
    rows = judge(table2(levels(), datasets=("ct",)))
    assert rows["T2a"].verdict == "undecided"
    assert any(line == "Not run: photographs." for line in rows["T2a"].found.words)
    rows = judge(table2(levels(gradnorm=0.3), datasets=("ct",)))
    assert rows["T2a"].verdict == "contradicted"


def test_peers_that_trade_l1_for_ssim(judge):
    rows = [
        run(dataset, strategy, seed, l1 + noise(strategy, seed), ssim + noise(strategy, seed))
        for dataset in ("photos", "ct")
        for strategy, l1, ssim in (
            ("baseline", 0.5, 0.5), ("pcgrad", 0.6, 0.4), ("cagrad", 0.6, 0.4), ("gradnorm", 0.5, 0.4))
        for seed in SEEDS
    ]  # fmt: skip
    assert judge(rows)["T2b"].verdict == "holds"
    found = judge(rows)["T2b"].found
    assert any("ct 1 - SSIM: PCGrad (-20.0 %), CAGrad (-20.0 %), GradNorm (-20.0 %)" in line for line in found.words)


def test_different_modes_are_not_equivalent(judge):
    assert judge(table2(levels(gcond_stochastic=0.45)))["T2c"].verdict == "contradicted"  # 10 % apart


def test_last_epoch_that_disagrees_is_told(judge):
    rows = table2(levels())
    for row in rows:
        if row["strategy"].startswith("gcond"):
            row |= {"last_val_l1": 0.7 + noise("x", row["seed"]), "last_val_ssim": 0.7}
    found = judge(rows)["T2a"].found
    assert found.verdict == "holds"
    last = next(line for line in found.words if line.startswith("Validation, last epoch"))
    assert "32 contradict" in last
    assert last.endswith("Judged by it, the claim would be: contradicted.")
    assert next(line for line in found.words if line.startswith("Test")).count("Judged") == 0


def test_pairs_of_different_devices_or_lengths_are_dropped_and_counted(judge, results):
    rows = table2(levels())
    for row in rows:
        if row["strategy"] == "pcgrad" and row["seed"] in (1, 2):
            row["device"] = "GPU"
        if row["strategy"] == "pcgrad" and row["seed"] == 3:
            row["steps"] = 9
        if row["strategy"] == "pcgrad" and row["seed"] == 4:
            row["commit"] = "d"
    judge(rows)
    found = compare(read(results, "sample"), "ct", Arm("pcgrad"), Arm("baseline"), "l1", "higher")
    assert found.effect.n == 7
    assert found.remarks == (
        "1 pair dropped: runs of different length (PCGrad, Baseline)",
        "2 pairs dropped: runs on different devices (PCGrad, Baseline)",
        "1 pair of runs from different commits, kept (PCGrad, Baseline)",
    )


def test_failed_runs_and_other_variants_take_no_part(judge, results):
    rows = table2(levels())
    rows += [run("ct", "baseline", seed, 9.0, variant="optimizer.lr=0.1") for seed in SEEDS]
    rows += [run("ct", "pcgrad", 99, 9.0, status="failed"), run("ct", "baseline", 98, 0.5)]
    judge(rows)
    found = compare(read(results, "sample"), "ct", Arm("pcgrad"), Arm("baseline"), "l1")
    assert (found.effect.n, found.effect.missing) == (10, (98,))
    assert found.remarks == ("seeds without a partner: 98 (PCGrad, Baseline)",)


def test_contradictions_are_corrected_for_the_number_of_comparisons():
    def finding(mean):
        values = pd.Series({seed: mean + 0.1 * (place % 2) for place, seed in enumerate(SEEDS)})
        return Finding("", paired(values, 0 * values), region=(-math.inf, 0.0))

    weak = Finding("", Effect(9, 2.1, 0.02, 4.18, math.nan), region=(-math.inf, 0.0))
    assert conjunction([weak]) == "contradicted"
    assert conjunction([weak] + [finding(-1.0)] * 20) == "undecided"
    assert conjunction([finding(1.0)] + [finding(-1.0)] * 20) == "contradicted"
    assert conjunction([finding(-1.0)] * 20) == "holds"
    assert conjunction([finding(-1.0)] * 20, ["something"]) == "undecided"


# Scales


def test_each_row_is_of_the_largest_scale_at_which_it_was_run_and_never_of_two(judge, results):
    small = table2(levels(gcond=0.6)) + table2({"gcond_pure": 0.7})
    judge(small, "mini")
    rows = judge(table2(levels()), "sample")
    assert (rows["T2a"].verdict, rows["T2a"].found.source) == ("holds", "sample")
    assert (rows["I1"].verdict, rows["I1"].found.source) == ("mini, not evidence", "mini")  # pure: at mini only
    text = page(judge_all(results, "sample"), "sample")
    assert re.search(r"\| I1 .*\| mini, not evidence \| .*\| mini \| claims.csv \|", text)
    mini = Judged(results, "mini")
    assert (mini["T2a"].verdict, mini["T2a"].found.source) == ("mini, not evidence", "mini")
    assert "**holds**" not in page(judge_all(results, "mini"), "mini").split("## Claims")[1]
    assert _from("sample", mini["T2a"].found) == "../mini/tables/table2.md"
    # half of the seeds at one scale, half at another: no six seeds
    half = results.parent / "half"
    for scale, seeds in (("sample", SEEDS[:5]), ("sample_gpu", SEEDS[5:])):
        write_csv(half / scale / "runs.csv", frame(table2(levels(), seeds), COLUMNS), KEY)
    row = Judged(half, "sample_gpu")["T2a"]
    assert (row.verdict, row.found.source, row.found.shown.effect.n) == ("undecided", "sample_gpu", 5)


def test_a_larger_scale_with_too_few_seeds_stands_below_a_smaller_one_with_enough(judge, results):
    """By hand: GCond 20 % below Baseline in six seeds of the smaller scale, 20 % above in three of the larger."""
    judge(table2(levels(gcond=0.6), SEEDS[:3]), "sample_gpu")
    judge(table2(levels(), SEEDS[:6]), "sample")
    rows = judge_all(results, "sample_gpu")
    (row,) = [row for row in rows if row.claim.id == "T2a"]
    assert (row.verdict, row.found.source, row.found.shown.effect.n) == ("holds", "sample", 6)
    (larger,) = row.larger
    assert (larger.source, larger.verdict, larger.shown.effect.n) == ("sample_gpu", "undecided", 3)
    text = page(rows, "sample_gpu")
    assert re.search(r"\| T2a .*\| \*\*holds\*\* \| .*\| sample \|", text)
    assert text.split("### T2a")[1].index("*Sample.*") < text.split("### T2a")[1].index("*Sample_gpu (undecided).*")
    # with enough seeds the larger one decides
    write_csv(results / "sample_gpu" / "runs.csv", frame(table2(levels(gcond=0.6), SEEDS[:6]), COLUMNS), KEY)
    row = Judged(results, "sample_gpu")["T2a"]
    assert (row.verdict, row.found.source, row.larger) == ("contradicted", "sample_gpu", ())


def test_a_scale_that_is_no_evidence_does_not_hide_what_is(judge, results):
    """D4: the quadratic's verdict stands in the row, mini's probes below it; a scale that is evidence takes the row."""
    (results / "toy").mkdir(parents=True)
    shutil.copy(RESULTS / "toy" / "noise.csv", results / "toy")
    key = {"dataset": "ct", "model": ABOUT["model"], "strategy": "baseline", "variant": "", "epoch": 1, "step": 50}
    probes = [key | {"seed": seed, "name": name, "value": value} for seed in SEEDS[:6]
              for name, value in (("noise/l1/1", 8.0), ("noise/l1/8", 1.0))]  # fmt: skip
    row = judge(table2({"baseline": 0.5}, SEEDS[:6]), "mini", probes=probes)["D4"]
    assert (row.verdict, row.found.source, row.more.source) == ("holds", "toy problem", "mini")
    assert "*Mini (mini, not evidence).*" in page([row], "mini")
    row = judge(table2({"baseline": 0.5}, SEEDS[:6]), "sample", probes=probes)["D4"]
    assert (row.found.source, row.more.source) == ("sample", "toy problem")


def test_commands_are_targets_of_the_makefile_and_count_their_runs():
    """Ten seeds times what the experiments of the target sweep."""
    root = RESULTS.parent
    makefile = (root / "Makefile").read_text()
    for claim in (*CLAIMS, *QUESTIONS):
        words = [part.split() for part in claim.command.split(";") if part]
        assert all(make == "make" for make, *_ in words)
        names = list(dict.fromkeys(word for _, *rest in words for word in rest if "=" not in word))
        if names:
            shown = subprocess.run(["make", "-n", *names], cwd=root, capture_output=True, text=True)
            assert shown.returncode == 0, (claim.id, names, shown.stderr)
        counted = re.match(r"(\d+) runs", claim.needs)
        if counted:
            experiments = [found for name in names for found in _experiments(makefile, name.removeprefix("reproduce-"))]
            assert int(counted[1]) == 10 * sum(map(_arms, experiments)), claim.id


def _experiments(makefile: str, artefact: str) -> list[str]:
    found = re.search(rf"^RUNS_{artefact} *:= (.*)$", makefile, re.M)
    return found[1].split() if found else [artefact]


def _arms(experiment: str) -> int:
    params = yaml.safe_load((RESULTS.parent / "conf" / "experiment" / f"{experiment}.yaml").read_text())
    values = {key: value for key, value in params["hydra"]["sweeper"]["params"].items() if key != "seed"}
    return math.prod(len(str(value).split(",")) for value in values.values())


# Questions


def test_factorial_finds_the_effects_that_were_put_in(judge):
    """EMA -10, eval mode +2, no resolution effect, EMA x eval +4, in percent of Baseline's .5."""
    rows = []
    for (resolution, update), mode in itertools.product(STRATEGY, ("train", "eval")):
        level = 0.5 - 0.05 * (update == "ema") + 0.01 * (mode == "eval")
        level += 0.02 * (update == "ema" and mode == "eval")
        name = STRATEGY[resolution, update]
        text = "strategy.model_mode=eval" if mode == "eval" else ""
        rows += [run("ct", name, seed, level + noise(name + mode, seed), variant=text) for seed in SEEDS]
    found = judge(rows)["O1"].found
    effects = {each.about: each.effect for each in found.findings if each.block == "best_val"}
    assert effects["ct L1: EMA update (beta1 = 0), mean of 6"].mean == pytest.approx(-8, abs=0.3)  # -10 and -6
    assert effects["ct L1: eval mode, mean of 6"].mean == pytest.approx(4, abs=0.3)  # 2 and 6
    assert effects["ct L1: EMA update (beta1 = 0) x eval mode, mean of 3"].mean == pytest.approx(4, abs=0.5)
    assert effects["ct L1: sequential resolution, mean of 4"].mean == pytest.approx(0, abs=0.3)
    assert effects["ct L1: share of the gap that EMA alone gives"].mean == pytest.approx(100, abs=3)
    assert found.shown.about == "ct L1: Baseline integrated vs Baseline"
    assert found.verdict == ""
    assert not any("Arms not run" in line for line in found.words)


def test_factorial_with_arms_missing_says_which(judge):
    found = judge(table2({"baseline": 0.5, "baseline_integrated": 0.45, "gcond_stochastic": 0.45}))["O1"].found
    effects = {each.about: each.effect.mean for each in found.findings if each.block == "best_val"}
    assert effects["ct L1: Baseline integrated vs Baseline"] == pytest.approx(-10, abs=0.3)
    assert effects["ct L1: GCond stochastic vs Baseline integrated"] == pytest.approx(0, abs=0.3)
    assert not any("eval mode" in about or "mean of" in about for about in effects)
    missing = next(line for line in found.words if line.startswith("Arms not run on ct"))
    assert "GCond pure" in missing
    assert "Baseline (strategy.model_mode=eval)" in missing


def test_every_change_of_a_part_of_the_factorial_is_scipys_paired_t_interval(judge):
    """Arms with different seeds, at two rates; each change has the seeds that its two arms share."""
    generator = np.random.default_rng(7)
    seeds = {"baseline": SEEDS[:8], "baseline_integrated": SEEDS[:7], "gcond_stochastic": SEEDS[1:8]}
    losses = {
        (strategy, rate): {seed: generator.normal(0.5, 0.02) for seed in own}
        for rate in ("", "optimizer.lr=2e-4")
        for strategy, own in seeds.items()
    }
    rows = [
        run("ct", strategy, seed, loss, variant=rate)
        for (strategy, rate), own in losses.items()
        for seed, loss in own.items()
    ]
    found = {each.about: each.effect for each in judge(rows)["O1"].found.findings if each.block == "best_val"}
    pairs = {
        "Baseline integrated vs Baseline": ("baseline_integrated", "baseline", 7),
        "GCond stochastic vs Baseline": ("gcond_stochastic", "baseline", 7),
        "GCond stochastic vs Baseline integrated": ("gcond_stochastic", "baseline_integrated", 6),
    }
    for rate, where in (("", "ct L1"), ("optimizer.lr=2e-4", "ct L1, at learning rate 2e-4")):
        for name, (ours, theirs, n) in pairs.items():
            a, b, base = (losses[strategy, rate] for strategy in (ours, theirs, "baseline"))
            shared = sorted(set(a) & set(b))
            scale = 100 / np.mean([base[seed] for seed in shared])
            test = stats.ttest_rel([a[seed] for seed in shared], [b[seed] for seed in shared])
            interval = test.confidence_interval(0.95)
            effect = found[f"{where}: {name}"]
            assert effect.n == len(shared) == n
            assert (effect.low, effect.high) == pytest.approx((scale * interval.low, scale * interval.high))
            assert effect.mean == pytest.approx(scale * np.mean([a[seed] - b[seed] for seed in shared]))
    shown = judge(rows)["O1"].found
    assert [each.about for each in (shown.shown, *shown.beside)] == [
        "ct L1: Baseline integrated vs Baseline",
        "ct L1, at learning rate 2e-4: Baseline integrated vs Baseline",
    ]


def test_tuning_takes_each_arm_at_its_best_rate(judge, results):
    rows = table2({"baseline": 0.5, "gcond_stochastic": 0.4})
    for rate, ours, theirs in (("1e-4", 0.45, 0.6), ("1e-2", 0.48, 0.4)):
        for strategy, level in (("gcond_stochastic", ours), ("baseline", theirs)):
            rows += table2({strategy: level}, variant=f"optimizer.lr={rate}")
    found = judge(rows)["O2"].found
    first = found.findings[0]
    assert first.about == "photos L1: GCond stochastic vs Baseline (each tuned)"
    assert first.effect.mean == pytest.approx(0, abs=0.5)  # .4 and .4
    best = tune(read(results, "sample"))
    assert best.tried == {(d, s): 3 for d in ("ct", "photos") for s in ("baseline", "gcond_stochastic")}
    assert set(best.runs.variant) == {""}


def test_data_without_a_baseline_have_no_front(judge):
    assert judge(table2({"pcgrad": 0.4}, datasets=("ct",)))["O8"].found is None


def test_training_losses_are_compared_within_train_mode(judge, results):
    """Baseline's tail is .4, the update takes off .1, which is 25 % of it; eval mode's is another quantity."""
    rows = []
    for seed in SEEDS[:6]:
        tails = {"": (0.4, 0.3), f"{MODE}=eval": (0.8, 0.1)}
        for text, pair in tails.items():
            for strategy, tail in zip(("baseline", "baseline_integrated"), pair, strict=True):
                rows.append(run("ct", strategy, seed, 0.5, variant=text, train_l1_tail=tail + 0.001 * (seed % 5)))
    judge(rows)
    found = changes(read(results, "sample"), "ct", "l1", "train")
    assert [change.name for change in found] == ["Baseline integrated vs Baseline"]
    (only,) = found.values()
    base = sum(0.4 + 0.001 * (seed % 5) for seed in SEEDS[:6]) / 6
    assert only.effect.mean == pytest.approx(-10 / base)
    assert only.effect.n == 6


def test_static_weights_and_single_tasks(judge):
    """Static points at (L1, 1 - SSIM) = (.3, .6), (.6, .3) and Baseline (.5, .5): a method at (.4, .4) is 20 % of .5
    ahead of Baseline, the nearest; one at (.7, .7) is 40 % behind it. Alone, L1 reaches .32 and 1 - SSIM .25."""
    rows = []
    for seed in SEEDS[:6]:
        for weights, l1, ssim in (("{l1:0.95,ssim:0.05}", 0.3, 0.6), ("{l1:0.05,ssim:0.95}", 0.6, 0.3)):
            rows.append(run("ct", "baseline", seed, l1, ssim, variant=f"loss.tasks={weights},optimizer.lr=2e-3"))
        rows.append(run("ct", "baseline", seed, 0.1, variant="loss.tasks={l1:0.9,ssim:0.9}"))  # no point of the front
        for task in ("l1", "ssim"):
            alone = {"l1": (0.32, 0.9), "ssim": (0.9, 0.25)}[task]
            rows.append(run("ct", "baseline", seed, *alone, variant=f"loss={task}"))
        for strategy, level in (("baseline", 0.5), ("gcond_stochastic", 0.4), ("pcgrad", 0.7)):
            rows.append(run("ct", strategy, seed, level))
    found = {each.about: each.effect for each in judge(rows)["O8"].found.findings if each.block == "best_val"}
    settings = "ahead of the front of 3 static settings"  # Baseline's own is one
    assert found[f"ct: GCond stochastic {settings}"].mean == pytest.approx(100 * (0.5 - 0.4) / 0.5)
    assert found[f"ct: PCGrad {settings}"].mean == pytest.approx(100 * (0.5 - 0.7) / 0.5)
    for label, level in (("Baseline", 0.5), ("GCond stochastic", 0.4), ("PCGrad", 0.7)):
        by_hand = 50 * ((level - 0.32) / 0.32 + (level - 0.25) / 0.25)
        assert found[f"ct: {label}, Delta-m"].mean == pytest.approx(by_hand)
        assert found[f"ct: {label}, Delta-m"].n == 6


def bins(strategy: str, seed: int, **columns: object) -> list[dict[str, object]]:
    key = {"dataset": "ct", "model": ABOUT["model"], "strategy": strategy, "seed": seed, "variant": ""}
    rows = []
    for number_ in range(10):
        row = key | {"bin": number_, "first_step": 10 * number_ + 1, "last_step": 10 * (number_ + 1)}
        rows.append(row | {name: value(number_) if callable(value) else value for name, value in columns.items()})
    return rows


def test_dynamics_and_frequency_of_conflicts(judge):
    steps = []
    for seed in SEEDS[:6]:
        level = 1 + 0.01 * noise("a", seed)
        common = {"cosine_steps": 5, "conflicts": 0.25, "resolved": 0.2, "correction": 0.01 * level}
        common |= {"zone_weak": 0.2, "zone_main": 0.0, "zone_critical": 0.0, "cosine_step_resolved": 0.3 * level}
        collinear = lambda place, level=level: 0.2 if place < 2 else (0.95 if place < 8 else 0.93) * level  # noqa: E731
        for name, jump, norm, cosine, published in (
            ("baseline", 1.0, 1.0, 0.3, math.nan),
            ("pcgrad", 2.0, 1.0, -0.95 * level, math.nan),
            ("gradnorm", 2.0, 1.0, 0.3, math.nan),
            ("cagrad", 1.0, 0.5, 0.3, math.nan),
            ("gcond_sequential", 0.5, 1.0, 0.3, 1.0),
            ("gcond_stochastic", 0.5, 1.0, collinear, 1.0),
        ):
            own = {"norm_jump": jump * (1 + noise(name, seed)), "resolved_norm": norm * (1 + noise(name + "n", seed))}
            own |= {"cosine_min": cosine, "cosine_resolved_min": 0.0, "published_cosine": published}
            steps += bins(name, seed, **common, **own)
    rows = judge(table2(levels(), SEEDS[:6]), steps=steps)
    assert rows["D1"].verdict == "holds"
    jumps = next(found for found in rows["D1"].found.findings if "PCGrad" in found.about)
    assert jumps.effect.mean == pytest.approx(100, abs=1)
    assert rows["D2"].verdict == "holds"
    assert any("would have shown +1.00" in line for line in rows["D2"].found.words)
    often = {found.about: found.effect.mean for found in rows["O6"].found.findings}
    assert often["ct, GCond stochastic: steps with a conflict"] == pytest.approx(25)
    assert often["ct, GCond stochastic: median correction"] == pytest.approx(1, abs=0.01)
    assert often["ct, GCond stochastic: times in the weak zone"] == pytest.approx(0.2)
    assert rows["O6"].found.shown.about == "ct, GCond stochastic: steps with a conflict"
    left = [found for found in rows["O10"].found.findings if found.about.startswith("ct, GCond stochastic: cosine of")]
    assert left[0].effect.mean == pytest.approx(0.3, abs=0.01)


def test_probes_stand_beside_their_own_reliability(judge):
    key = {"dataset": "ct", "model": ABOUT["model"], "strategy": "baseline", "variant": "", "epoch": 1, "step": 50}
    names = {"cosine/encoder": 0.4, "cosine_disjoint/encoder": 0.1, "self_cosine/l1/encoder": 0.05}
    names |= {"self_cosine/ssim/encoder": 0.5, "noise/l1/1": 8.0, "noise/l1/4": 2.0, "noise/l1/8": 1.0}
    names |= {"sign_agreement/1": 0.6, "sign_agreement/8": 1.0}
    probes = [
        key
        | {"seed": seed, "micro_batches": 8, "batch_size": 16, "name": name}
        | {"value": value * (1 + noise(name, seed))}
        for seed in SEEDS[:6]
        for name, value in names.items()
    ]
    rows = judge(table2({"baseline": 0.5}, SEEDS[:6]), probes=probes)
    assert rows["D4"].verdict == "holds"
    line = next(line for line in rows["O10"].found.words if "encoder" in line)
    assert re.search(r"shared samples \+0.40 .*disjoint samples \+0.10 .*l1 with itself on other samples \+0.05 ", line)
    for probe in probes:
        if probe["name"] == "noise/l1/8":
            probe["value"] = 4.0 * (1 + noise("x", probe["seed"]))  # K x variance is 4 times that of K = 1
    assert judge(table2({"baseline": 0.5}, SEEDS[:6]), probes=probes)["D4"].verdict == "contradicted"


def test_windows_at_frozen_weights_come_before_probes(judge):
    """The probes contradict; windows hold, and a sign that is right always is no finding."""
    name = {"dataset": "ct", "model": ABOUT["model"], "strategy": "baseline", "variant": ""}
    names = {f"scaled_noise/{task}/{k}": 1.0 for task in ("l1", "ssim") for k in (8, 24)}
    names |= {"sign_agreement/1": 1.0, "sign_agreement/24": 1.0}
    names |= {"sign_agreement_disjoint/1": 0.5, "sign_agreement_disjoint/24": 0.9}
    about = {"micro_batches": 72, "batch_size": 16, "standard_error": 0.1}

    def rows(**more):
        return [
            name | about | {"seed": seed, "state": state, "step": 0, "mode": mode, "group": group, "name": what}
            | {"value": value if value == 1 and "sign" in what else value * (1 + noise(what, seed)) + 9 * other}
            for seed in SEEDS[:6]
            for state in ("initial", "last")
            for mode, group, other in (("train", "all", 0), ("eval", "all", 1), ("train", "head", 1))
            for what, value in (names | more).items()
        ]  # fmt: skip

    probes = [
        name | {"seed": seed, "epoch": 1, "step": 50, "micro_batches": 8, "batch_size": 16, "name": what, "value": 8.0}
        for seed in SEEDS[:6]
        for what in ("noise/l1/1", "noise/l1/8")
    ]
    runs = table2({"baseline": 0.5}, SEEDS[:6])
    found = judge(runs, probes=probes, windows=rows())["D4"]
    assert found.verdict == "holds"
    assert len(found.found.findings) == 2 * 3
    (rise,) = [each for each in found.found.findings if "last" in each.about and "other samples" in each.about]
    assert rise.effect.mean == pytest.approx(40, abs=1)
    assert rise.about == "ct, Baseline, last weights: windows whose sign is right, other samples, K = 24 less K = 1"
    assert any(line.startswith("Right in every window, at K = 1 already") for line in found.found.words)
    assert found.found.where == "tables/windows.md"
    assert judge(runs, windows=rows(**{"scaled_noise/l1/24": 3.0}))["D4"].verdict == "contradicted"
    assert judge(runs, windows=rows(**{"sign_agreement_disjoint/24": 0.3}))["D4"].verdict == "contradicted"
    assert judge(runs, windows=rows(**{"sign_agreement_disjoint/24": 0.5}))["D4"].verdict == "undecided"


# Results that belong to no scale


def cost(method: str, against: str, ratio: float, width: float = 0.01, **more: object) -> dict[str, object]:
    row = {"device": "CPU, made", "precision": "fp32", "batches": "1", "cap": "16GB", "model": "mobilenetv3_small"}
    row |= {"dataset": "ct", "image_size": 256, "patch_size": 32, "accumulation_steps": 24, "micro_batch": 1}
    row |= {"method": method, "against": against, "rounds": 9, "ratio": ratio, "step_seconds": ratio}
    return row | {"ratio_low": ratio - width, "ratio_high": ratio + width} | more


def costs(stochastic: float, half: float, peer: float = 1.5, **more: object) -> list[dict[str, object]]:
    rows = [cost("baseline", "baseline", 1.0, 0.0), cost("gcond_stochastic", "baseline", stochastic)]
    rows += [cost(name, "baseline", peer) for name in ("pcgrad", "cagrad", "gradnorm")]
    rows += [
        cost("gcond_stochastic", "gcond_sequential_per_task", half),
        cost("gcond_stochastic", "gcond_sequential", 0.6),
    ]
    return [row | more for row in rows]


@pytest.mark.parametrize(
    ("rows", "first", "second"),
    [
        (costs(1.01, 0.52), "holds", "holds"),
        (costs(1.01, 0.70), "contradicted", "holds"),
        (costs(1.2, 0.545), "undecided", "contradicted"),
        (costs(1.01, 0.52, peer=0.9), "holds", "contradicted"),
        (costs(1.01, 0.52, rounds=5), "undecided", "undecided"),
        (costs(1.3, 0.7) + costs(1.0, 0.5, device="A GPU"), "holds", "holds"),  # devices are not mixed
        (costs(1.0, 0.5) + costs(1.3, 0.7, device="A GPU", rounds=3), "holds", "holds"),
        (costs(1.0, 0.5, device="A GPU", rounds=3), "undecided", "undecided"),
    ],
)
def test_costs(judge, results, rows, first, second):
    write_csv(results / "bench" / "table3.csv", frame(rows, COSTS), COSTS_KEY)
    found = judge([])
    assert (found["S1"].verdict, found["S2"].verdict) == (first, second)
    assert found["S1"].found.source.startswith("benchmark: ")


def test_too_few_rounds_on_a_gpu_are_told_beside_what_the_cpu_decides(judge, results):
    few = costs(1.3, 0.7, peer=1.8, device="A GPU", rounds=3)
    write_csv(results / "bench" / "table3.csv", frame(costs(1.0, 0.5) + few, COSTS), COSTS_KEY)
    found = judge([])
    for claim, shown in (("S1", "gcond_sequential_per_task 0.70 [0.69, 0.71]"), ("S2", "pcgrad / baseline 1.80")):
        assert found[claim].found.source == "benchmark: CPU, made"
        (told,) = [line for line in found[claim].found.words if "A GPU, 3 rounds, which decide nothing" in line]
        assert shown in told


def plan(strategy: str, peak: int, micro_batch: float = 4, **more: object) -> dict[str, object]:
    row = {"budget": "", "model": "mobilenetv3_small", "strategy": strategy, "form": "", "graph": "freed", "tasks": 2}
    return row | {"accumulation_steps": 24, "micro_batch": micro_batch, "peak": peak, "one": 5e9} | more


def plans(
    window: int = 0, peer: int = 150, fits: float = math.nan, ours: float = 80, ours_third: int = 110, unit: int = 100
) -> list[dict[str, object]]:
    """Peaks of `unit` with two tasks; with three `ours_third` and `peer`."""
    rows = [plan("gcond_stochastic", unit), plan("gcond_stochastic", window or unit, accumulation_steps=2)]
    rows += [plan("gcond_stochastic", ours_third, tasks=3)]
    for name in ("pcgrad", "cagrad", "gradnorm"):
        rows += [plan(name, unit, graph="kept"), plan(name, peer, graph="kept", tasks=3)]
    base = {"model": "convnextv2_base", "budget": "16GB"}
    return [*rows, plan("gcond_stochastic", 0, ours, **base), plan("pcgrad", 0, fits, **base)]


RESNET = [  # other encoders have peaks of their own, and plans for two tasks alone
    plan(name, peak, model="resnet50", accumulation_steps=steps)
    for name, peak in (("gcond_stochastic", 900), ("pcgrad", 950))
    for steps in (4, 24)
]


@pytest.mark.parametrize(
    ("rows", "first", "second"),
    [
        (plans(), "holds", "holds"),
        (plans(window=120), "contradicted", "holds"),
        (plans(peer=105), "contradicted", "holds"),  # less than GCond's
        (plans(ours_third=1002, peer=1009, unit=1000), "contradicted", "holds"),  # .9 %: less than counts as growth
        (plans(ours_third=1002, peer=1011, unit=1000), "holds", "holds"),
        (plans(fits=9), "holds", "contradicted"),
        (plans(ours=12), "holds", "contradicted"),
        (plans()[:-4], "undecided", "not run"),
        ([*plans(), *RESNET], "holds", "holds"),
        (
            [*plans(), *RESNET, plan("gcond_stochastic", 990, model="resnet50", accumulation_steps=8)],
            "contradicted",
            "holds",
        ),
    ],
)
def test_memory(judge, results, rows, first, second):
    (results / "bench").mkdir(parents=True)
    pd.DataFrame(rows).to_csv(results / "bench" / "memory.csv", index=False)
    found = judge([])
    assert (found["M1"].verdict, found["M2"].verdict) == (first, second)


def test_the_two_halves_of_the_memory_claim_are_told_apart(judge, results):
    (results / "bench").mkdir(parents=True)
    pd.DataFrame(plans(ours_third=1002 << 20, peer=1009 << 20, unit=1000 << 20)).to_csv(
        results / "bench" / "memory.csv", index=False
    )
    found = judge([])["M1"].found
    assert found.words[0] == "The first half holds, the second does not hold."
    assert "pcgrad, cagrad, gradnorm +0.9 % (9 MB)" in found.words[1]
    assert "GCond stochastic +0.2 % (2 MB)" in found.words[1]
    assert found.shown.about == "pcgrad: growth of the peak from 2 to 3 tasks"


def test_gradops_follows_its_tests_and_the_trade_off(judge, results):
    for name in ("methods.md", "toy/tradeoff.csv"):
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(RESULTS / name, results / name)
    assert judge([])["G1"].verdict == "holds"
    text = (results / "methods.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| `gradops_alpha` | Gram"))
    (results / "methods.md").write_text(text.replace(line, line.replace("| yes | yes |", "| yes | **no** [1] |", 1)))
    assert judge([])["G1"].verdict == "contradicted"
    (results / "methods.md").unlink()
    assert judge([])["G1"].verdict == "undecided"


def test_buffers_are_told_from_single_steps_where_no_run_has_them(judge, results):
    (results / "bench").mkdir(parents=True)
    shutil.copy(RESULTS / "bench" / "precision.csv", results / "bench")
    row = judge([])["O5"]
    assert row.found.source.startswith("single steps: ")
    assert "bfloat16 buffers" in row.found.shown.about
    runs = table2({"gcond_stochastic": 0.4}) + table2(
        {"gcond_stochastic": 0.404}, variant="+strategy.conductor.buffer_dtype=bfloat16"
    )
    row = judge(runs)["O5"]
    assert (row.found.source, row.more.source[:12]) == ("sample", "single steps")
    assert row.found.shown.effect.mean == pytest.approx(1.0, abs=0.01)


# Words and files


def test_numbers_as_printed():
    effect = Effect(6, -3.14159, -4.0, -2.25, 0.03)
    assert number(effect, "%") == "-3.1 % [-4.0, -2.2]"
    assert number(effect, "cosine") == "-3.14 [-4.00, -2.25]"
    assert number(Effect(1, 0.5, math.nan, math.nan, math.nan), "ratio") == "0.50"
    assert number(Effect(0, math.nan, math.nan, math.nan, math.nan), "%") == "no number"


def test_variants_are_taken_apart_and_put_together():
    text = "optimizer.build.betas=[0.9,0.95],optimizer.lr=1e-3"
    assert overrides(text) == {"optimizer.build.betas": "[0.9,0.95]", "optimizer.lr": "1e-3"}
    assert variant(overrides(text)) == text
    assert overrides("") == {}


def test_command_writes_every_recorded_scale_and_prints_the_largest(judge, results, capsys):
    judge(table2(levels(), SEEDS[:3]), "mini")
    judge(table2(levels()), "sample")
    assert main(["claims", "--results", str(results)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^T2a  holds ", printed, re.M)
    assert re.search(r"^S1   not run .*\n +Command: make reproduce-table3", printed, re.M)
    assert sorted(path.parent.name for path in results.rglob("CLAIMS.md")) == ["mini", "sample"]
    rows = list(csv.DictReader((results / "sample" / "claims.csv").open()))
    assert {row["id"] for row in rows} == {claim.id for claim in (*CLAIMS, *QUESTIONS)}
    assert {row["verdict"] for row in rows if row["id"] == "T2a"} == {"holds"}
    (results / "sample" / "CLAIMS.md").unlink()
    assert main(["claims", "--results", str(results), "--scale", "mini"]) == 0
    assert not (results / "sample" / "CLAIMS.md").exists()


def test_bad_input_is_named(judge, results, capsys):
    assert main(["claims", "--results", str(results)]) == 2
    judge(table2(levels(), SEEDS[:3]), "mini")
    (results / "mini" / "steps.csv").write_text("dataset,bin\nct,0\n")
    assert main(["claims", "--results", str(results), "--scale", "paper"]) == 2
    assert main(["claims", "--results", str(results)]) == 2
    errors = capsys.readouterr().err
    assert "no runs.csv" in errors
    assert "`--scale`: expected one that is recorded (mini), found 'paper'" in errors
    assert "steps.csv lacks the columns model, seed, strategy, variant" in errors


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/CLAIMS.md")), ids=lambda path: path.parent.name)
def test_committed_page_is_that_of_the_committed_numbers(path):
    """If it is not, `make claims OUT=results` writes it anew."""
    rows = judge_all(RESULTS, path.parent.name)
    assert page(rows, path.parent.name) == path.read_text()
    assert tidy_csv(rows) == (path.parent / "claims.csv").read_text()


# C1


def test_where_tasks_conflict_each_method_is_set_against_baseline(judge):
    """By hand: L1 -10 %, 1 - SSIM 0, flipped +20 % in every pair of seeds."""
    runs, steps, probes = fake_controls.conflicting()
    row = judge(runs, steps=steps, probes=probes)["C1"]
    assert row.verdict == ""
    assert row.found.shown.about == "ct: GCond stochastic vs Baseline, mean over three losses"
    assert row.found.shown.effect.mean == pytest.approx(10 / 3)
    assert row.found.shown.block == "best_val"
    (beside,) = row.found.beside
    assert (beside.about, beside.block) == (
        "ct: GCond stochastic vs Baseline, mean over three losses, on test",
        "best_test",
    )
    text = " ".join(row.found.words)
    assert "(ct L1 -10.0 % [" not in text
    assert "L1 -10.0 % [-12.5, -7.5]; 1 - SSIM +0.0 %" in text
    assert "ct: MGDA, steps with a conflict 100.0 %" in text
    assert judge(table2(levels()))["C1"].verdict == "not run"


# B1


def classified(top1: dict[str, float], labels: str = "") -> list[dict]:
    """GCond's L1 and 1 - SSIM are lower than the others'; GradNorm watches the encoder."""
    rows = []
    for strategy, share in top1.items():
        choices = {"loss": "l1_ssim_class", "scale.accumulation_steps": "6"} | (
            {"loss.labels": labels} if labels else {}
        )
        choices |= {"strategy.conductor.resolver.group": "encoder"} if strategy == "gradnorm" else {}
        level = 0.4 if strategy.startswith("gcond") else 0.5
        for seed in SEEDS:
            wobble = noise(strategy, seed)
            more = {f"{block}_top1": share + wobble for block in ("best_val", "last_val", "best_test")}
            rows.append(run("ct", strategy, seed, level + wobble, variant=variant(choices), **more))
    return rows


TOP1 = {"baseline": 0.5, "pcgrad": 0.5, "cagrad": 0.5, "gradnorm": 0.5, "gcond_sequential": 0.6,
        "gcond_stochastic": 0.6}  # fmt: skip


def test_b1_is_judged_on_accuracy_and_reconstruction_and_a_stand_in_cannot_confirm_it(judge):
    row = judge(classified(TOP1))["B1"]
    assert row.verdict == "undecided"
    words = " ".join(row.found.words)
    assert "Not run: ImageNet's own classes (loss.labels=dataset)." in words
    assert "Chance is 25 % top-1" in words
    assert "ct, top-1 on validation: GCond stochastic 60." in words
    best = [found for found in row.found.findings if found.block == "best_val"]
    assert len(best) == 2 * 4 * 3
    assert {found.verdict for found in best} == {"holds"}
    (top1,) = [found for found in best if found.about == "ct top-1: GCond stochastic vs GradNorm"]
    assert top1.effect.mean == pytest.approx(20, abs=1)
    assert judge(classified(TOP1, "dataset"))["B1"].verdict == "holds"
    assert judge(classified(TOP1 | {"cagrad": 0.7}))["B1"].verdict == "contradicted"


def test_chance_is_that_of_the_turns():
    assert classes.TURNS == batches.TURNS

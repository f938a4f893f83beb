"""Findings and verdicts, held to scipy, to numbers by hand, and to some that were recorded before there was a judge."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gcond.study import judge, tables
from gcond.study.methods import facts

RESULTS = Path(__file__).resolve().parents[2] / "results"
SIX = [0.3, -1.2, 0.8, 2.0, 0.1, 0.9]


def table(**columns):
    """Runs as `tables.runs` returns them; a column is one value for all of them or a list."""
    n = max(len(each) for each in columns.values() if isinstance(each, list))
    plain = {"scale": "sample", "dataset": "ct", "model": "mobilenetv3_small", "strategy": "baseline", "setting": "",
             "model_mode": "train", "lr": 2e-4, "own_lr": False, "arithmetic": "", "device": "CPU", "steps": 500,
             "accumulation_steps": 4, "micro_batch": 16,
             "data_checksum": "", "seed": list(range(n)), "best_val_l1": 0.5, "best_val_ssim": 0.5,
             "lambda_l1": 0.85, "lambda_ssim": 0.15, "name": "run"}  # fmt: skip
    return pd.DataFrame({name: value if isinstance(value, list) else [value] * n
                         for name, value in (plain | columns).items()})  # fmt: skip


def finding(**own):
    about = {"claim": "X", "scale": "sample", "n": 6, "wants": "< 0", "effect": -1.0, "low": -2.0, "against": 1.0}
    return dict.fromkeys(judge.COLUMNS, "") | about | own


# Intervals.


def test_the_interval_is_scipys():
    found = judge.interval(SIX, factor=-2)
    ends = stats.ttest_1samp(np.array(SIX) * -2, 0).confidence_interval(0.95)
    assert found["effect"] == pytest.approx(-2 * np.mean(SIX))
    assert (found["low"], found["high"]) == pytest.approx((ends.low, ends.high))


@pytest.mark.parametrize("values", [SIX, [1.0, 1.0, 1.0], [-3.0], [5.0, -5.0], [0.0, 0.0]])
def test_the_sign_flip_p_counts_all_patterns(values):
    sums = [abs(np.dot(signs, values)) for signs in product((1, -1), repeat=len(values))]
    by_hand = np.mean([each >= abs(sum(values)) - 1e-12 for each in sums])
    assert judge.sign_flip(values) == pytest.approx(by_hand)
    if len(values) > 2:
        test = stats.permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf)
        assert judge.sign_flip(values) == pytest.approx(test.pvalue)


def test_beyond_24_seeds_the_sign_flip_p_is_drawn():
    values = np.random.default_rng(1).normal(0.35, 1, 30)
    normal = 2 * stats.norm.sf(abs(values.sum()) / math.sqrt((values**2).sum()))
    assert judge.sign_flip(values) == pytest.approx(normal, abs=0.01)
    assert judge.sign_flip(np.ones(30)) == pytest.approx(1 / 20_001)


# Verdicts.


@pytest.mark.parametrize(
    ("low", "high", "n", "wants", "expected"),
    [
        (-3, -1, 6, "< 0", "holds"),
        (-3, -1, 5, "< 0", "undecided"),
        (-3, 1, 6, "< 0", "undecided"),
        (1, 3, 6, "< 0", "contradicted"),
        (1, 3, 6, "> 2", "undecided"),
        (2.5, 3, 6, "> 2", "holds"),
        (0.9, 1.1, 6, "in [0.8, 1.25]", "holds"),
        (1.3, 1.5, 6, "in [0.8, 1.25]", "contradicted"),
        (math.nan, math.nan, 6, "< 0", "undecided"),
        (2.1, 4, 6, "equal within 2", "contradicted"),
        (-3, -1, 6, "", ""),
    ],
)
def test_a_verdict_needs_the_whole_interval_and_six_seeds(low, high, n, wants, expected):
    assert judge.verdict({"n": n, "effect": (low + high) / 2, "low": low, "high": high}, wants) == expected


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.3, 2.0])
def test_equal_is_two_one_sided_tests(scale):
    values = scale * np.array(SIX)
    worst = max(stats.ttest_1samp(values, bound, alternative=side).pvalue
                for bound, side in ((-1.5, "greater"), (1.5, "less")))  # fmt: skip
    assert (judge.verdict(judge.interval(values), "equal within 1.5") == "holds") == (worst < 0.05)


def test_p_against_is_the_t_test_at_the_nearest_bound_and_other_words_are_refused():
    with pytest.raises(ValueError, match="wants"):
        judge.verdict(judge.interval(SIX), "less than 0")
    values = np.array(SIX) + 3
    assert judge.against(judge.interval(values), "< 1") == pytest.approx(stats.ttest_1samp(values, 1).pvalue)
    assert judge.against(judge.interval(values), "in [1, 9]") == 1
    logs = judge.interval(values / 10)
    percent = logs | {end: 100 * math.expm1(logs[end]) for end in ("effect", "low", "high")}
    assert judge.against(percent, "< 0", "log") == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


@pytest.mark.parametrize(
    ("p_values", "verdicts", "expected"),
    [
        ([0.02, 1.0], ["contradicted", "holds"], "contradicted"),
        ([0.03, 1.0], ["contradicted", "holds"], "undecided"),  # after Holm .06
        ([0.01, 0.04], ["contradicted", "contradicted"], "contradicted"),
        ([1.0, 1.0], ["holds", "holds"], "holds"),
        ([1.0, 1.0], ["holds", "undecided"], "undecided"),
    ],
)
def test_a_conjunction_is_corrected_for_the_number_of_looks(p_values, verdicts, expected):
    found = pd.DataFrame({"against": p_values, "verdict": verdicts})
    assert judge.conjunction(found) == expected
    assert judge.conjunction(found, complete=False) == ("contradicted" if expected == "contradicted" else "undecided")


# Contrasts.

GCOND = table(strategy="gcond_sequential", best_val_l1=[0.4, 0.5, 0.7], seed=[1, 2, 3])
BASE = table(best_val_l1=[0.5, 0.5, 0.9, 9.0], seed=[1, 2, 3, 4])


def test_percent_is_of_the_mean_over_common_seeds():
    found = judge.compare(GCOND, BASE)
    assert found["n"] == 3
    assert found["dropped"] == 0
    assert found["effect"] == pytest.approx(100 * np.mean([-0.1, 0, -0.2]) / np.mean([0.5, 0.5, 0.9]))
    of = table(best_val_l1=[2.0, 4.0], seed=[2, 3])
    assert judge.compare(GCOND, BASE, of)["effect"] == pytest.approx(-0.1 * 100 / 3)
    assert judge.compare(GCOND, BASE, how="diff")["effect"] == pytest.approx(-0.1)
    ratio = np.mean(np.log([0.4 / 0.5, 1, 0.7 / 0.9]))
    assert judge.compare(GCOND, BASE, how="log")["effect"] == pytest.approx(100 * math.expm1(ratio))


@pytest.mark.parametrize("change", [{"device": "GPU"}, {"steps": 499}, {"data_checksum": "x"}, {"arithmetic": "f"}])
def test_a_pair_shares_machine_images_and_length(change):
    theirs = BASE.copy()
    for name, value in change.items():
        theirs.loc[theirs.seed == 2, name] = value
    found = judge.compare(GCOND, theirs)
    assert found["n"] == 2
    assert found["dropped"] == 1
    assert found["effect"] == pytest.approx(100 * np.mean([-0.1, -0.2]) / 0.7)


def test_a_seed_on_two_machines_counts_once_and_one_run_twice_is_refused():
    again = [pd.concat([rows, rows[rows.seed == 1].assign(arithmetic="f")]) for rows in (GCOND, BASE)]
    again[0].loc[again[0].arithmetic == "f", "best_val_l1"] = 0.2
    with pytest.raises(ValueError, match="one run a seed"):
        judge.compare(pd.concat([GCOND, GCOND]), BASE)
    found = judge.compare(*again, how="diff")
    assert found["n"] == 3
    assert found["effect"] == pytest.approx(np.mean([np.mean([-0.1, -0.3]), 0, -0.2]))


def test_accuracies_differ_by_points():
    ours, theirs = (table(best_val_top1=values) for values in ([0.06, 0.09], [0.05, 0.06]))
    assert judge.compare(ours, theirs, measure="top1")["effect"] == pytest.approx(2)
    assert [judge.unit("top1", how) for how in ("percent", "diff", "log")] == ["points", "points", "%"]


def test_means_over_the_tasks():
    ours = table(best_val_l1=[0.2, 0.4], best_val_ssim=[0.6, 0.6])
    theirs = table(best_val_l1=[0.4, 0.4], best_val_ssim=[0.5, 0.5])
    assert judge.compare(ours, theirs, measure="mean3")["effect"] == pytest.approx((-25 + 20) / 2)
    assert judge.compare(ours, theirs, measure="mean")["effect"] == pytest.approx(100 * (0.9 / 0.9 - 1))
    for own in (ours, ours.assign(lambda_l1=0.5, lambda_ssim=0.5)):  # the weights are those of theirs
        weighted = judge.compare(own, theirs, measure="weighted")["effect"]
        assert weighted == pytest.approx(100 * (0.85 * -0.1 + 0.15 * 0.1) / 0.415)


def test_a_distance_has_no_sign_and_a_second_training_is_averaged_by_seed():
    other = table(best_val_l1=[0.6, 0.4, 1.0], seed=[1, 2, 3])
    found = judge.compare(BASE, other, how="distance")
    assert found["effect"] == pytest.approx(100 * 0.1 / np.mean([0.6, 0.4, 1.0]))
    ends = stats.ttest_1samp([-0.15, 0.05, -0.25], 0).confidence_interval()
    found = judge.compare(GCOND, BASE, how="diff", again=other)
    assert (found["low"], found["high"]) == pytest.approx((ends.low, ends.high))


def test_a_run_without_a_finite_number_takes_no_part():
    broken = GCOND.assign(best_val_l1=[0.4, math.nan, 0.7])
    assert judge.compare(broken, BASE)["n"] == 2
    assert judge.compare(GCOND, BASE, measure="unheard_of")["n"] == 0


def test_over_patients_each_counts_once():
    losses = pd.DataFrame({"a1": [1.0, 2, 3], "a2": [3.0, 2, 5], "b1": [2.0, 4, 4], "b2": [2.0, 4, 6]}, list("pqr"))
    ours, theirs = (table(seed=[1, 2], log=[f"{arm}1", f"{arm}2"]) for arm in "ab")
    found = judge.over_patients(ours, theirs, None, losses)
    by_patient = np.array([(-1 + 1) / 2, -2, -1])
    ends = stats.ttest_1samp(100 * by_patient / np.mean([2, 4, 5]), 0).confidence_interval()
    assert (found["n"], found["low"], found["high"]) == pytest.approx((3, ends.low, ends.high))


def test_patients_decide_no_verdict():
    rows = [finding(wants="", n=1, ours="seeds"), finding(wants="", n=40, group="patients")]
    assert judge.verdicts({"X": {}}, pd.DataFrame(rows)).ours[0] == "seeds"


# Rates.


def rates(strategy, scores, seeds, **columns):
    return pd.concat([table(strategy=strategy, lr=lr, seed=list(seeds), best_val_l1=[score] * len(seeds), **columns)
                      for lr, score in scores.items()], ignore_index=True)  # fmt: skip


def test_each_arm_at_its_best_rate():
    runs = pd.concat([rates("a", {1e-3: 0.3, 2e-4: 0.2, 1e-4: 0.4}, (1, 2)), rates("b", {1e-3: 0.1, 2e-4: 0.2}, (1, 2)),
                      rates("b", {1e-4: 0.0}, (1,)), rates("c", {5e-4: 0.9}, (1,)),
                      rates("a", {2e-4: 0.1}, (1, 2), dataset="photos")], ignore_index=True)  # fmt: skip
    best = tables.at_rate(runs, "best").groupby(["dataset", "strategy"]).lr.unique()
    assert {key: list(value) for key, value in best.items()} == {
        ("ct", "a"): [2e-4],
        ("ct", "b"): [1e-3],  # 1e-4 has fewer seeds
        ("ct", "c"): [5e-4],  # the only one run
    }  # nothing of photos, where nothing was tuned
    assert list(tables.at_rate(runs, "paper").lr.unique()) == [2e-4]
    assert list(tables.at_rate(runs, "5e-4").strategy) == ["c"]
    assert tables.at_rate(runs.assign(own_lr=runs.lr == 1e-4), "own").lr.eq(1e-4).all()


def test_the_tuning_seed_chooses_and_does_not_count():
    seed = tables.TUNING_SEED
    runs = pd.concat([rates("a", {1e-3: 0.2, 2e-4: 0.3}, (seed,)), rates("a", {2e-4: 0.1}, (1, 2)),
                      rates("a", {1e-3: 0.5}, (1,))], ignore_index=True)  # fmt: skip
    best = tables.at_rate(tables.tuned(runs), "best")
    assert list(zip(best.lr, best.seed, strict=True)) == [(1e-3, 1)]
    assert list(tables.at_rate(tables.tuned(runs), "paper").seed) == [1, 2]
    with_ssim = tables.tuned(runs.assign(best_val_ssim=[0.9, 0.0, 0.5, 0.5, 0.5]))  # .3 * .85 < .2 * .85 + .9 * .15
    assert set(tables.at_rate(with_ssim, "best").lr) == {2e-4}


def test_other_settings_and_arms_that_borrow_have_the_rate_that_was_tuned():
    """Though they were run at another one, too, with a lower loss; an arm whose grid is not whole has no best rate."""
    grid = rates("baseline", {1e-3: 0.2, 2e-4: 0.3, 1e-4: 0.4}, (tables.TUNING_SEED,))
    elsewhere = rates("baseline", {1e-3: 0.9, 2e-4: 0.1}, (tables.TUNING_SEED,), arithmetic="b")  # not the whole grid
    grid = pd.concat([grid, rates("cagrad", {1e-3: 0.2, 2e-4: 0.1}, (tables.TUNING_SEED, 1))])
    others = [rates("gcond_pure", {1e-3: 0.5, 2e-4: 0.1}, (1, 2)), rates("pcgrad", {1e-3: 0.5, 2e-4: 0.1}, (1,)),
              rates("baseline", {1e-3: 0.5, 2e-4: 0.1}, (1,), setting="loss=l1"),
              rates("baseline", {2e-4: 0.1}, (1,), model_mode="eval")]  # fmt: skip
    runs = tables.tuned(pd.concat([elsewhere, grid, *others], ignore_index=True))
    for lr in ("best", "own"):  # tuned, there is no rate of the scale
        best = tables.at_rate(runs, lr)
        assert list(zip(best.strategy, best.lr, best.seed, strict=True)) == [
            ("gcond_pure", 1e-3, 1), ("gcond_pure", 1e-3, 2), ("baseline", 1e-3, 1)]  # fmt: skip
    found = judge.judge({"X": {"contrasts": [{"ours": "gcond_pure", "theirs": "", "measure": "l1", "as": "single",
                                              "epoch": "best_val", "lr": ["own", "best"]}]}}, runs)  # fmt: skip
    assert list(zip(found.lr, found.n, strict=True)) == [("best", 2)]


# Claims.


def test_data_alone_adds_findings():
    runs = pd.concat([GCOND, BASE.assign(seed=[1, 2, 3, 4]), GCOND.assign(strategy="mine")], ignore_index=True)
    contrast = {"ours": ["gcond_sequential"], "theirs": "baseline", "measure": "l1", "epoch": "best_val", "lr": "paper"}
    claims = {"X": {"contrasts": [contrast | {"wants": "< 0"}]}}
    assert len(judge.judge(claims, runs)) == 1
    claims["X"]["contrasts"][0]["ours"] = ["gcond_sequential", "mine"]
    assert list(judge.judge(claims, runs).ours) == ["gcond_sequential", "mine"]
    claims["Y"] = {"contrasts": [contrast | {"ours": "all", "theirs": None, "as": "single"}]}
    found = judge.judge(claims, runs)
    assert list(found[found.claim == "Y"].ours) == ["baseline", "gcond_sequential", "mine"]
    assert list(judge.verdicts(claims, found).verdict) == ["undecided", ""]
    assert list(judge.verdicts({"Z": {}}, found).verdict) == ["not run"]


def test_a_claim_is_decided_by_the_largest_scale_with_six_seeds():
    rows = [finding(scale="study", n=3, high=1.0, verdict="undecided"), finding(high=-0.5, verdict="holds")]
    found = judge.verdicts({"X": {}}, pd.DataFrame(rows)).iloc[0]
    assert (found.verdict, found.scale) == ("holds", "sample")


def test_a_claim_needs_each_of_its_labels_and_arms_against_themselves_count():
    one = {"ours": "a", "theirs": "same", "measure": "l1", "dataset": "ct", "wants": "< 0"}
    row = finding(ours="a", theirs="a", measure="l1", dataset="ct", high=-1.0, verdict="holds")
    claims = {"X": {"contrasts": [one | {"label": "p"}, one | {"label": "q"}]}}
    found = pd.DataFrame([row | {"label": "p"}, row | {"label": "q"}])
    assert judge.verdicts(claims, found).verdict[0] == "holds"
    assert judge.verdicts(claims, found[:1]).verdict[0] == "undecided"


def test_a_claim_of_the_paper_is_judged_at_its_rate():
    rows = [finding(lr="paper", high=-0.5, verdict="holds"), finding(lr="best", low=1.0, high=2.0, verdict="undecided")]
    found = [dict(row, claim=name) for name in ("X", "O1") for row in rows]
    assert list(judge.verdicts({"X": {}, "O1": {}}, pd.DataFrame(found)).verdict) == ["holds", "undecided"]


def test_the_weakest_comparison_stands_for_a_claim():
    ends = {"a": (-0.5, "holds"), "b": (0.2, "undecided"), "c": (1.0, "undecided")}
    rows = [finding(ours=ours, high=high, verdict=verdict) for ours, (high, verdict) in ends.items()]
    found = judge.verdicts({"X": {}}, pd.DataFrame(rows)).iloc[0]
    assert (found.ours, found.verdict) == ("c", "undecided")
    worst = finding(ours="d", effect=0.3, low=0.1, high=0.5, verdict="contradicted", against=0.001)
    assert judge.verdicts({"X": {}}, pd.DataFrame([*rows, worst])).ours[0] == "d"


def test_larger_rate_and_as_published_cross_settings():
    runs = pd.concat([table(lr=[1e-3], best_val_l1=0.4), table(lr=[2e-4], best_val_l1=0.5),
                      table(lr=[2e-4], strategy="gcond_stochastic", model_mode="eval", best_val_l1=0.3)],
                     ignore_index=True)  # fmt: skip
    claims = {"O1": facts("claims")["O1"] | {"special": {}}}
    found = judge.judge(claims, runs)
    found = found[(found.measure == "l1") & (found.epoch == "best_val") & (found.lr == "paper")].set_index("label")
    assert found.effect["larger rate"] == pytest.approx(-20)
    assert found.effect["as published"] == pytest.approx(-40)


def test_the_committed_findings_are_those_of_the_committed_runs():
    """Of O1 every fourth contrast, to save time."""
    claims = {name: claim | {"special": {}} for name, claim in facts("claims").items() if claim.get("contrasts")}
    claims["O1"] = claims["O1"] | {"contrasts": claims["O1"]["contrasts"][::4]}
    found = judge.judge(claims, tables.runs(RESULTS / "sample"), RESULTS / "sample")
    committed = judge.read(RESULTS / "findings.csv")
    both = found.merge(committed[committed.scale == "sample"], "left", [name for name in judge.TEXT if name != "unit"])
    assert len(both) == len(found) > 500
    for name in ("n", "effect", "low", "high", "p"):
        np.testing.assert_allclose(both[f"{name}_x"], both[f"{name}_y"], rtol=1e-5, err_msg=name)


def test_recorded_numbers():
    """As they were measured, by other code, before there was a judge."""
    found = judge.read(RESULTS / "findings.csv").query("scale == 'sample' and dataset == 'ct' and mode == 'train'")
    found = found.set_index(["claim", "ours", "theirs", "lr", "measure", "epoch"])[["effect", "low", "high", "p"]]
    for row, numbers in {
        ("T2a", "gcond_sequential", "baseline", "own", "l1", "last_val"): (1.42318, -1.82358, 4.66994, 0.34375),
        ("T2b", "cagrad", "baseline", "paper", "l1", "best_test"): (0.483322, 0.0381198, 0.928525, 0.0625),
        ("D1", "gcond_stochastic", "baseline", "own", "norm_jump", ""): (65.5728, 40.3157, 95.3761, 0.03125),
        ("O2", "gcond_stochastic", "baseline", "best", "ssim", "best_val"): (0.802409, -0.410499, 2.01532, 0.15625),
        ("O6", "gcond_stochastic", "", "own", "conflicts", ""): (8.8, 7.07944, 10.5206, math.nan),
        ("C1", "gcond_stochastic", "baseline", "own", "mean3", "best_val"): (0.791372, 0.655161, 0.927583, 0.03125),
    }.items():
        assert list(found.loc[[row]].iloc[0]) == pytest.approx(numbers, rel=2e-5, nan_ok=True), row


def test_findings_of_chosen_seeds_count_these_alone():
    found = judge.findings(RESULTS, ["O6"], "sample", [11, 42])
    shown = {"dataset": "ct", "ours": "gcond_sequential", "measure": "conflicts", "lr": "own"}
    row = found[(found[list(shown)] == list(shown.values())).all(axis="columns")].iloc[0]
    runs = tables.runs(RESULTS / "sample")
    own = runs[(runs.dataset == "ct") & (runs.strategy == "gcond_sequential") & runs.own_lr & (runs.setting == "")]
    own = own[(own.model == row.model) & (own.model_mode == "train")].set_index("seed")
    assert (row.n, row.effect) == (2, pytest.approx(own.conflicts[[11, 42]].mean()))

"""Findings that no contrast expresses: by hand on small tables, and as they were recorded before there was a judge."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from gcond.study import bench, costs, judge, special, tables
from gcond.study.methods import facts
from tests.study.test_judge import table

RESULTS = Path(__file__).resolve().parents[2] / "results"


def arm(strategy, l1, ssim=0.5, setting="", **columns):
    """Runs of one arm, a seed a number; all epochs alike."""
    n = len(l1)
    losses = {f"{epoch}_{loss}": values for epoch in special.EPOCHS for loss, values in
              (("l1", l1), ("ssim", ssim if isinstance(ssim, list) else [ssim] * n))}  # fmt: skip
    weights = tables.overrides(setting).get("loss.tasks", "{l1:0.85,ssim:0.15}").strip("{}").split(",")
    lambdas = {f"lambda_{part.split(':')[0]}": float(part.split(":")[1]) for part in weights}
    return table(strategy=[strategy] * n, setting=setting, **losses, **lambdas, **columns)


def only(found, **wanted):
    (row,) = [row for row in found if all(row.get(name) == value for name, value in wanted.items())]
    return row


# What was recorded.


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Of scales that no further runs are added to."""
    folder = tmp_path_factory.mktemp("results")
    for name in ("mini", "sample", "toy", "bench.csv", "methods.csv"):
        (folder / name).symlink_to(RESULTS / name)
    claims = {name: {"special": claim["special"]} for name, claim in facts("claims").items() if "special" in claim}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "facts", lambda name: claims)
        return judge.findings(folder).to_dict("records")


# columns | n, effect, low, high | verdict
RECORDED = """
claim=S1; theirs=gcond_sequential_per_task; model=convnext_tiny | 7, 0.510876, 0.502674, 0.526188 | holds
claim=S2; ours=gcond_stochastic; model=convnext_tiny | 7, 1.01864, 0.991206, 1.05974 | undecided
claim=M1; ours=pcgrad; label=a third task, graph kept; unit=% | 1, 0.882793, nan, nan | contradicted
claim=M1; model=mobilenetv3_small; label=K = 2, 8, 24, largest against smallest | 1, 0, nan, nan | holds
claim=M1; model=resnet50; label=K = 2, 4, 8, 24, largest against smallest | 1, 0, nan, nan | holds
claim=M1; ours=gcond_stochastic; label=a third task, graph freed; unit=MB | 1, 22.3867, nan, nan |
claim=M2; ours=gcond_stochastic | 1, 45, nan, nan | contradicted
claim=M2; ours=pcgrad, cagrad | 1, 5.98308, nan, nan | contradicted
claim=O5; ours=gcond_sequential; mode=eval; label=bfloat16 buffers; measure=written_distance | 96, 0.627878, nan, nan |
claim=D4; scale=mini; dataset=ct; ours=baseline; measure=sign_agreement | 3, 4.16667, -13.7611, 22.0944 | undecided
claim=D4; label=last weights, K = 24; measure=scaled_noise/l1 | 6, 1.04258, 0.897507, 1.18766 | holds
claim=D4; label=last weights, K = 24; measure=sign_agreement_disjoint | 6, 5.46753, -17.7542, 28.6893 | undecided
claim=G1; measure=unexplained_share | 7, -22.5827, nan, nan | holds
claim=O7; label=height; unit=correlation | 6, 0.304377, 0.0600799, 0.548675 |
claim=O7; label=rotation; theirs=pixels | 6, -0.0449732, -0.0615417, -0.0284047 |
claim=O9; scale=mini; ours=gcond_sequential; measure=share_kept/l1; epoch=best_val | 3, 0.821311, 0.385076, 1.85271 |
claim=O9; scale=sample; theirs=gcond_sequential; lr=own; measure=l1; epoch=best_test | 6, -0.362397, -2.83718, 2.11239 |
"""


@pytest.mark.parametrize("line", RECORDED.strip().splitlines())
def test_recorded_findings_stay(recorded, line):
    columns, numbers, verdict = (part.strip() for part in line.split("|"))
    found = only(recorded, **dict(part.split("=", 1) for part in columns.split("; ")))
    assert [found[end] for end in ("n", "effect", "low", "high")] == pytest.approx(
        [float(number) for number in numbers.split(", ")], rel=6e-6, nan_ok=True
    )
    assert found["verdict"] == verdict


def test_verdicts_of_benchmarks_plans_and_tests(recorded):
    verdicts = judge.verdicts(facts("claims"), pd.DataFrame(recorded)).set_index("claim").verdict
    assert verdicts[["D4", "S1", "S2", "M1", "M2", "G1"]].to_list() == [
        "undecided", "holds", "undecided", "contradicted", "contradicted", "holds"
    ]  # fmt: skip


# By hand.


def test_the_interval_of_a_ratio_is_where_a_t_test_of_its_numerator_less_r_denominators_turns():
    a, b = np.array([1.0, 1.4, 0.7, 1.3, 0.9]), np.array([2.0, 2.3, 1.6, 2.2, 2.1])
    found = special.ratio(a, b)

    def beyond(r):
        return stats.ttest_1samp(a - r * b, 0).pvalue - 0.05

    assert found["effect"] == pytest.approx(a.mean() / b.mean())
    assert found["low"] == pytest.approx(optimize.brentq(beyond, 0, found["effect"]))
    assert found["high"] == pytest.approx(optimize.brentq(beyond, found["effect"], 2))
    assert math.isnan(special.ratio(a, np.array([1.0, -1.0, 1.0, -1.0, 0.1]))["low"])


def test_the_nearest_static_weights_are_chosen_on_the_mean_and_both_losses_are_compared_with_them():
    even, other = "loss.tasks={l1:0.5,ssim:0.5}", "loss.tasks={l1:0.2,ssim:0.8}"
    frozen = "loss.tasks={l1:0.9,ssim:0.2}"
    runs = [arm("baseline", [1.0, 1.0], 1.0), arm("baseline", [1.2, 1.2], [0.7, 0.9], even),
            arm("baseline", [1.5, 1.5], 0.6, other), arm("baseline", [0.1, 0.1], 0.1, frozen),
            arm("pcgrad", [1.1, 1.2], 0.7)]  # fmt: skip
    found = special.against_static(pd.concat(runs).reset_index(drop=True), RESULTS, {})
    # ahead of the paper's weights by max(-15, 30), of even ones by max(5, 10), of the others by max(35, -10)
    l1 = only(found, ours="pcgrad", measure="l1", epoch="best_test")
    ssim = only(found, ours="pcgrad", measure="ssim", epoch="best_test")
    assert l1["label"] == "nearest of 3 static weights, l1:0.5 ssim:0.5"
    assert (l1["effect"], ssim["effect"]) == pytest.approx((-5, -10))


def test_static_weights_are_compared_at_the_seeds_that_all_of_them_have():
    even, other = "loss.tasks={l1:0.5,ssim:0.5}", "loss.tasks={l1:0.2,ssim:0.8}"
    runs = [arm("baseline", [1.0, 1.0], 1.0), arm("baseline", [1.2, 9.0], 0.7, even),
            arm("baseline", [1.5], 0.6, other), arm("pcgrad", [1.1, 5.0], 0.7)]  # fmt: skip
    found = special.against_static(pd.concat(runs).reset_index(drop=True), RESULTS, {})
    l1 = only(found, ours="pcgrad", measure="l1", epoch="best_test")
    assert (l1["n"], l1["effect"]) == (1, pytest.approx(-10))


def test_delta_m_is_the_mean_of_the_relative_changes_and_mean_the_change_of_the_mean():
    runs = [arm("baseline", [2.0, 2.0], 9.0, "loss=l1"), arm("baseline", [9.0, 9.0], 0.5, "loss=ssim"),
            arm("pcgrad", [2.2, 2.6], 0.4)]  # fmt: skip
    found = special.against_static(pd.concat(runs).reset_index(drop=True), RESULTS, {})
    own = {row["measure"]: row["effect"] for row in found if row["ours"] == "pcgrad" and row["epoch"] == "best_val"}
    assert own == pytest.approx({"delta_m": (20 - 20) / 2, "mean": 100 * (2.8 - 2.5) / 2.5})


def weighing(strategy, l1, ssim):
    return arm(strategy, [0.5, 0.5], weight_l1=l1, weight_ssim=ssim)


def test_static_weights_are_lambda_times_the_mean_weight_and_train_with_the_methods_update():
    runs = [weighing("cagrad", [0.4, 0.6], [1.0, 1.0]), weighing("gcond_stochastic", [1.0, 1.0], [2.0, 2.0]),
            weighing("pcgrad", [1.001, 1.0], [1.0, 1.005]), arm("baseline", [0.5, 0.5])]  # fmt: skip
    runs = pd.concat(runs).reset_index(drop=True).assign(own_lr=True)
    assert special.static_weights(runs, ["ct"]) == [
        ["dataset=ct", "strategy=baseline_integrated", "loss.tasks={l1:0.85,ssim:0.3}"],
        ["dataset=ct", "strategy=baseline", "loss.tasks={l1:0.425,ssim:0.15}"],
    ]
    with pytest.raises(ValueError, match="reproduce-table2"):
        special.static_weights(runs, ["imagenet256"])


def test_a_recorded_setting_within_one_percent_stands_for_the_frozen_weights():
    near = "loss.tasks={l1:0.384,ssim:0.15}"
    runs = [weighing("cagrad", [0.45, 0.45], [1.0, 1.0]), arm("baseline", [0.6, 0.8]),
            arm("baseline", [0.55, 0.6], 0.5, near)]  # fmt: skip
    runs = pd.concat(runs).reset_index(drop=True)
    found = special.frozen_weights(runs, RESULTS, {})
    kept = only(found, measure="share_kept/l1", epoch="best_val")
    differs = only(found, theirs="cagrad", measure="l1", epoch="best_val")
    assert kept["label"] == "frozen at l1:0.384 ssim:0.15, baseline"
    assert (kept["effect"], differs["effect"]) == pytest.approx((0.125 / 0.2, 15))


def test_the_larger_network_catches_up_at_the_first_epoch_below_baselines_last(monkeypatch):
    curves = {"a": [0.9, 0.6, 0.5], "b": [0.9, 0.8, 0.6], "c": [0.9, 0.9, 0.9]}

    def log(results, name, kind):
        return pd.DataFrame({"step": [10, 20, 40], "val_l1": curves[name]})

    monkeypatch.setattr(tables, "log", log)
    base = arm("baseline", [1.0, 1.0], log=["b", "b"], activation_std=[2.0, 4.0])
    ours = arm("gcond_stochastic", [1.0, 1.0], log=["a", "c"], activation_std=[3.0, 10.0])
    runs = pd.concat([base, ours]).reset_index(drop=True).assign(model="convnextv2_base")
    claim = facts("claims")["V1"]["special"]["larger_network"]
    found = special.larger_network(runs, RESULTS, claim)
    reached, spread = (only(found, measure=measure) for measure in ("steps_to_its_last_l1", "activation_std"))
    assert (reached["effect"], spread["effect"]) == pytest.approx(((20 / 40 + 2) / 2, (1.5 + 2.5) / 2))
    assert reached["label"] == "1 of 2 runs never reach it"


def test_cuda_decides_where_it_has_rounds_enough(tmp_path):
    about = {"bench": "table3", "precision": "fp32", "model": "m", "dataset": "ct", "strategy": "gcond_stochastic",
             "against": "gcond_sequential_per_task", "quantity": "time", "unit": "ratio"}  # fmt: skip
    cpu = about | {"device": "CPU", "value": 0.7, "low": 0.69, "high": 0.71, "n": 9}
    gpu = about | {"device": "H200", "value": 0.5, "low": 0.49, "high": 0.51, "n": 3}
    for rounds, deciding in ((3, "CPU"), (6, "H200")):
        bench.add(tmp_path, [cpu, gpu | {"n": rounds}])
        found = costs.step_time(pd.DataFrame(), tmp_path, facts("claims")["S1"]["special"]["step_time"])
        assert [row["label"] for row in found if row["wants"]] == [f"Table 3, fp32, {deciding}"]


def test_without_results_there_are_no_findings(tmp_path):
    assert judge.findings(tmp_path).empty

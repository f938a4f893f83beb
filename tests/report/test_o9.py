"""O9: made-up methods whose weights and losses are known, beside static runs with those weights."""

import pandas as pd
import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from report import fake_controls

from gcond.config import CONFIG
from gcond.report.__main__ import main
from gcond.report.claims.evidence import Arm, read
from gcond.report.claims.frozen import LAMBDAS, averages, differs, frozen, kept, lambdas_of, static, sweeps
from gcond.report.pages import page as page_module
from gcond.sweep.plan import plan

SEEDS = (11, 42)
CAGRAD = Arm("cagrad")
STATIC = "loss.tasks={l1:0.386,ssim:0.163}"  # .85 x .454, .15 x 1.084


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    monkeypatch.setattr(page_module, "save", lambda figure, base: [])


def record(results, arms, weights, seeds=SEEDS, dataset="ct"):
    """`arms`: (strategy, variant) -> level of the loss; `weights`: strategy -> of L1 and of SSIM, or a function of the
    bin."""
    runs = [
        fake_controls.run((dataset, strategy, seed, variant), level)
        for (strategy, variant), level in arms.items()
        for seed in seeds
    ]
    steps = [
        row
        for strategy, (l1, ssim) in weights.items()
        for seed in seeds
        for row in fake_controls.steps((dataset, strategy, seed, ""), weight_l1=l1, weight_ssim=ssim)
    ]
    fake_controls.write(results, "sample", runs, steps)
    return read(results, "sample")


def usual(results, **more):
    arms = {("baseline", ""): 0.5, ("cagrad", ""): 0.4, ("baseline", STATIC): 0.45}
    return record(results, arms, {"cagrad": (0.454, 1.084)}, **more)


def test_the_average_is_over_steps_and_seeds_times_the_lambda(tmp_path):
    usual(tmp_path)
    steps = pd.read_csv(tmp_path / "sample" / "steps.csv", keep_default_na=False)
    own = (steps.seed == 11) & (steps.bin == 9)
    steps.loc[own, "last_step"] = steps.first_step[own] + 9  # the last bin has 10 steps, the others 50
    steps.loc[own, "weight_ssim"] = 20.0
    steps.to_csv(tmp_path / "sample" / "steps.csv", index=False)
    evidence = read(tmp_path, "sample")
    found = frozen(evidence, "ct", CAGRAD)
    first = (9 * 50 * 1.084 + 10 * 20.0) / 460
    assert found.weights.ssim.to_dict() == pytest.approx({11: first, 42: 1.084})
    assert found.arm.variant == f"loss.tasks={{l1:0.386,ssim:{0.15 * (first + 1.084) / 2:.3g}}}"


def test_a_recorded_arm_within_a_percent_stands_for_the_average_and_the_nearest_wins(tmp_path):
    arms = {("baseline", ""): 0.5, ("cagrad", ""): 0.4}
    for l1 in ("0.383", "0.388", "0.3"):
        arms["baseline", f"loss.tasks={{l1:{l1},ssim:0.163}}"] = 0.4
    arms |= {("baseline", "loss=l1"): 0.4, ("baseline", f"{STATIC},optimizer.lr=0.1"): 0.4}
    evidence = record(tmp_path, arms, {"cagrad": (0.454, 1.084)})
    assert frozen(evidence, "ct", CAGRAD).arm.variant == "loss.tasks={l1:0.388,ssim:0.163}"
    far = record(tmp_path / "far", arms, {"cagrad": (0.48, 1.084)})  # .408: no arm within a percent
    assert frozen(far, "ct", CAGRAD).arm.variant == "loss.tasks={l1:0.408,ssim:0.163}"


def test_weights_near_one_are_the_run_that_resolves_nothing_with_the_same_update(tmp_path):
    arms = {
        ("baseline", ""): 0.5,
        ("baseline_integrated", ""): 0.42,
        ("pcgrad", ""): 0.48,
        ("gcond_sequential", ""): 0.4,
    }
    weights = {"pcgrad": (1.0, 1.009), "gcond_sequential": (1.0, 1.001), "graddrop": (None, None)}
    evidence = record(tmp_path, arms, weights)
    found = {each.method.strategy: each for each in averages(evidence, ["ct"])}
    assert {name: each.arm for name, each in found.items()} == {
        "pcgrad": Arm("baseline"),
        "gcond_sequential": Arm("baseline_integrated"),
    }
    assert all(each.unchanged for each in found.values())
    assert sweeps(list(found.values())) == []
    # (.5 - .42) / (.5 - .4), and Baseline itself keeps nothing of PCGrad
    assert kept(evidence, found["gcond_sequential"], "l1").effect.mean == pytest.approx(0.8)
    assert str(kept(evidence, found["pcgrad"], "l1").effect.mean) == "0.0"


def test_what_is_kept_and_what_is_lost_by_hand(tmp_path):
    evidence = usual(tmp_path)
    (each,) = averages(evidence, ["ct"])
    assert kept(evidence, each, "l1").effect.mean == pytest.approx((0.5 - 0.45) / (0.5 - 0.4))
    # 1 - SSIM is half the level and more at the last epoch: the share is the same, the percentage another
    assert kept(evidence, each, "ssim", "last_val").effect.mean == pytest.approx(0.5)
    mean = sum(0.4 + fake_controls.SPREAD[seed] for seed in SEEDS) / 2
    assert differs(evidence, each, "l1").effect.mean == pytest.approx(100 * 0.05 / mean)


def test_the_sweeps_train_what_the_arms_are_called(tmp_path):
    weights = {"cagrad": (0.454, 1.084), "gradnorm": (1.37, 5.57), "gcond_stochastic": (1.0, 1.2)}
    evidence = record(tmp_path, {(name, ""): 0.4 for name in ("baseline", *weights)}, weights)
    found = averages(evidence, ["ct"])
    lines = sweeps(found)
    assert [line.split()[:2] for line in lines] == [
        ["dataset=ct", "strategy=baseline_integrated"],
        ["dataset=ct", "strategy=baseline"],
    ]
    runs = [run for line in lines for run in plan(["scale=smoke", *line.split()])]
    trained = {(run.cfg.strategy.name, *OmegaConf.to_container(run.cfg.loss.tasks).values()) for run in runs}
    assert trained == {(each.arm.strategy, *each.lambdas.values()) for each in found}
    assert ("baseline", 0.386, 0.163) in trained
    # Hydra names a run of a sweep by the text that the arm has
    overrides = OverridesParser.create().parse_overrides(lines[1].split())
    jobs = BasicSweeper.split_arguments(overrides, None)[0]
    assert {job[-1] for job in jobs} == {each.arm.variant for each in found if each.arm.strategy == "baseline"}


def test_the_lambdas_are_those_of_the_config():
    assert OmegaConf.load(CONFIG / "loss" / "l1_ssim.yaml").tasks == LAMBDAS
    assert lambdas_of(static(Arm("baseline"), {"l1": 0.12345, "ssim": 2.0})) == {"l1": 0.123, "ssim": 2.0}
    assert lambdas_of(Arm("baseline", "loss=l1")) is None
    assert lambdas_of(Arm("baseline", "loss.tasks={l1:1.0}")) is None


def test_the_page_and_the_command_name_what_is_missing(tmp_path, capsys):
    record(tmp_path, {("baseline", ""): 0.5, ("cagrad", ""): 0.4}, {"cagrad": (0.454, 1.084)})
    assert main(["frozen", "--scale", "sample", "--results", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"dataset=ct strategy=baseline {STATIC}\n"
    assert "CAGrad weighs L1 0.454, 1 - SSIM 1.08" in shown.err
    assert main(["o9", "--scale", "sample", "--results", str(tmp_path)]) == 2
    assert "`make reproduce-o9 SCALE=sample` makes the runs" in capsys.readouterr().err
    usual(tmp_path)
    assert main(["o9", "--scale", "sample", "--results", str(tmp_path), "--datasets", "ct"]) == 1
    shown = capsys.readouterr()
    (row,) = [line for line in shown.out.splitlines() if line.startswith("| CAGrad")]
    assert "0.386, 0.163" in row
    assert "0.50" in row
    assert "PCGrad on ct: not run" in shown.err
    assert "CAGrad" not in shown.err
    assert main(["frozen", "--scale", "mini", "--results", str(tmp_path / "nowhere")]) == 2
    assert "`make reproduce-table2 SCALE=mini` makes them" in capsys.readouterr().err


def test_the_claims_answer_with_shares_and_differences(tmp_path):
    usual(tmp_path)
    assert main(["claims", "--scale", "sample", "--results", str(tmp_path)]) == 0
    words = (tmp_path / "sample" / "CLAIMS.md").read_text()
    assert "| ct L1: CAGrad, share of its difference to Baseline that is kept 0.50" in words
    assert f"ct: CAGrad weighs L1 0.454, 1 - SSIM 1.08; frozen as Baseline ({STATIC})." in words

"""The pages of `python -m gcond.report` on made-up runs: numbers by hand, what is missing, files."""

import csv
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from report import fake_controls

from gcond.report.__main__ import main
from gcond.report.claims import tradeoff
from gcond.report.lineup import SCALE_PIXELS, SCALE_RATES, STRATEGIES
from gcond.report.pages import ablations, conflict, o1, o6, o10, windows
from gcond.report.pages import page as page_module
from gcond.report.pages.parameters import PARAMETERS, parsed
from gcond.report.pages.source import load

CONF = Path(__file__).parents[2] / "conf"
EXPERIMENTS = CONF / "experiment"
PAGES = ("ablations", "o1", "o6", "o10", "windows", "conflict")
METHODS = tuple(STRATEGIES)
FEW = ("baseline", "gcond_sequential", "gcond_stochastic")


def page(results, name, scale="sample", *arguments):
    return main([name, "--scale", scale, "--results", str(results), *arguments])


def text(results, name, scale="sample"):
    return (results / scale / "tables" / f"{name}.md").read_text()


def tidy(results, page, **where):
    rows = list(csv.DictReader((results / "sample" / "tables" / f"{page}.csv").open()))
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


def drop(path, keep):
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table[keep(table)].to_csv(path, index=False)


@pytest.fixture
def drawn():
    """Asked for by tests that look at the files of a figure."""


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Those files take seconds."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(page_module, "save", lambda figure, base: [])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Everything that the pages show, complete."""
    results = tmp_path_factory.mktemp("pages") / "results"
    often, steps = fake_controls.often(METHODS)
    ablated, more = fake_controls.ablated()
    of_table2 = {(row["dataset"], row["strategy"], row["variant"]) for row in often}
    first = {}
    for row in [*often, *fake_controls.factorial(), *ablated]:  # of two runs of one name the first
        first.setdefault(tuple(row[name] for name in ("dataset", "strategy", "seed", "variant")), row)
    taken = [row for row in more if (row["dataset"], row["strategy"], row["variant"]) not in of_table2]
    fake_controls.write(results, "sample", list(first.values()), [*steps, *taken], fake_controls.probed(METHODS),
                        fake_controls.windowed())  # fmt: skip
    return results


@pytest.mark.parametrize("name", [pytest.param("ablations", marks=pytest.mark.slow), "o1", "o6",
                                  pytest.param("o10", marks=pytest.mark.slow),
                                  pytest.param("windows", marks=pytest.mark.slow)])  # fmt: skip
def test_a_complete_page_has_table_csv_figure_and_caption(study, name, capsys, drawn):
    assert page(study, name) == 0
    words = text(study, name)
    assert words in capsys.readouterr().out
    assert "Incomplete" not in words
    assert re.match(r"# .*, at scale sample: CPU, a made-up machine, 2025-03-04, \d+ runs\n", words)
    assert f"`python -m gcond.report {name} --scale sample`" in words
    base = study / "sample" / "figures" / name
    assert base.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert base.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert f"(../figures/{name}.png)" in words
    assert "at scale sample" in base.with_suffix(".md").read_text()
    assert tidy(study, name, scale="sample")


@pytest.mark.slow
def test_the_same_records_give_the_same_bytes(study, drawn):
    found = []
    for _ in range(2):
        page(study, "o6")
        files = [*(study / "sample" / "figures").glob("o6.*"), *(study / "sample" / "tables").glob("o6.*")]
        found.append({path: path.read_bytes() for path in files})
    assert found[0] == found[1]
    assert len(found[0]) == 5


@pytest.mark.parametrize("name", PAGES)
def test_without_runs_one_line_names_the_command(tmp_path, name, capsys):
    assert page(tmp_path, name) == 2
    error = capsys.readouterr().err
    assert f"`make reproduce-{name} SCALE=sample` makes the runs" in error
    assert error.count("\n") == 1
    fake_controls.write(tmp_path, "sample", [fake_controls.run(("ct", "baseline", 11, ""), 0.5)])
    assert page(tmp_path, name) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "sample" / "tables").exists()


@pytest.mark.parametrize("name", PAGES)
def test_mini_is_no_evidence(tmp_path, name):
    runs, steps = fake_controls.ablated() if name == "ablations" else fake_controls.often(FEW)
    made = (runs, steps, fake_controls.probed(FEW)) if name != "conflict" else fake_controls.conflicting()
    fake_controls.write(tmp_path, "mini", *made, fake_controls.windowed())
    assert page(tmp_path, name, "mini") in (0, 1)
    assert ", at scale mini (mini, not evidence): " in text(tmp_path, name, "mini").splitlines()[0]
    assert "it is not evidence about any method" in (tmp_path / "mini" / "figures" / f"{name}.md").read_text()


# Ablations


@pytest.fixture
def ablated(tmp_path):
    def write(reach=0.02, default=("gcond_stochastic", ""), scale="sample"):
        fake_controls.write(tmp_path, scale, *fake_controls.ablated(default, reach))
        return tmp_path

    return write


def test_declared_values_are_those_of_the_experiments():
    """By what conf/experiment/ablation_*.yaml sweep; the default is the strategy's own."""
    swept = {}
    for path in EXPERIMENTS.glob("ablation_*.yaml"):
        assert "tables/ablations.md" in path.read_text()
        params = yaml.safe_load(path.read_text())["hydra"]["sweeper"]["params"]
        (key,) = set(params) - {"seed", "dataset", "strategy"}
        swept[key] = tuple(re.findall(r"\[[^]]*\]|[^,\[\]]+", str(params[key])))
        assert (params["dataset"], params["strategy"]) == ("ct", "gcond_stochastic")
    assert swept == {parameter.key: parameter.values for parameter in PARAMETERS}
    strategy = yaml.safe_load((EXPERIMENTS.parent / "strategy" / "gcond_stochastic.yaml").read_text())
    for parameter in PARAMETERS:
        value = strategy
        for part in parameter.key.split("."):
            value = value[part]
        assert parsed(parameter.default) == (tuple(value) if isinstance(value, list) else value)


def test_differences_are_paired_and_in_percent_of_the_default(ablated):
    """By hand: momentum 0 adds .02 + .006 s to the default's .4 + .01 s, s = -1, 0, 1: 5 % ± 4.303 x 1.5 / sqrt 3."""
    results = ablated()
    assert page(results, "ablations") == 0
    (row,) = tidy(results, "ablations", parameter="strategy.conductor.update.beta", value="0.0", metric="l1",
                  block="best_val")  # fmt: skip
    assert float(row["mean"]) == pytest.approx(0.42)
    assert float(row["sample_sd"]) == pytest.approx(0.016)
    assert float(row["difference_mean"]) == pytest.approx(5.0)
    assert float(row["difference_high"]) - 5 == pytest.approx(4.30265 * 1.5 / np.sqrt(3), rel=1e-4)
    assert row["difference_n"] == row["n"] == "3"
    line = next(line for line in text(results, "ablations").splitlines() if line.startswith("| 0 ") and "every" in line)
    assert re.search(r"\| 3 \| 0\.4200 ± 0\.0160 +\| 0\.2100 ± 0\.0080 +\| \+5\.0 % \[\+1\.3, \+8\.7\]", line)
    last = tidy(results, "ablations", parameter="strategy.conductor.update.beta", value="0.0", metric="l1",
                block="last_val")  # fmt: skip
    assert float(last[0]["difference_mean"]) == pytest.approx(100 * 0.02 / 0.5)
    assert "| 0.5000 ± 0.0400† |" in text(results, "ablations")  # .49 needs no training


def test_every_parameter_says_how_often_it_can_act(ablated):
    """By hand: zones .3, .02 and .005 times a step; .25 of the steps resolved; norms .8 and .2."""
    results = ablated()
    page(results, "ablations")
    expected = {"thresholds": 0.325, "remap_power": 0.02, "beta": 1, "dominance_window": 0.025,
                "tie_breaking_weights": 0.025, "projection_max_iters": 0.075}  # fmt: skip
    rows = tidy(results, "ablations", metric="l1", block="best_val")
    for name, often in expected.items():
        found = [float(row["can_act"]) for row in rows if row["parameter"].endswith(name)]
        assert found == [pytest.approx(often)] * len(found)
        assert len(found) > 2
    caps = {row["value"]: row["can_act"] for row in rows if row["parameter"].endswith("norm_cap")}
    assert caps == {"null": "", "1.0": "0", "0.3": "1", "0.1": "1"}
    words = text(results, "ablations")
    assert "In the mild zone" in words
    assert "neither was ever" not in words


def test_a_zone_that_is_never_reached_makes_runs_equal_or_is_a_mistake(ablated):
    """The made-up window does nothing; the made-up power and weights do, which without their zone cannot be."""
    results = ablated(reach=0.0)
    page(results, "ablations")
    window, power, weights = (text(results, "ablations").split(f"### {title}")[1].split("###")[0]
                              for title in ("dominance", "remap", "arbitration"))  # fmt: skip
    said = "In 9 pairs of runs neither was ever in that zone, so that both must have the same losses: all have."
    assert said in window
    assert "In 6 pairs" in power
    assert "0 have, 6 have not" in power
    assert "0 have, 12 have not" in weights


def test_ablations_in_eval_mode_stand_apart(ablated):
    results = ablated(default=("gcond_stochastic", "strategy.model_mode=eval"))
    assert page(results, "ablations") == 0
    assert "## CT (public samples, 10 patients), GCond stochastic, eval mode\n" in text(results, "ablations")
    assert {row["settings"] for row in tidy(results, "ablations")} == {"strategy.model_mode=eval"}


def test_missing_values_and_seeds_of_an_ablation_are_named(ablated, capsys):
    results = ablated()
    gone = "strategy.conductor.update.beta=0.99"
    half = "strategy.conductor.resolver.remap_power=4.0"
    drop(results / "sample" / "runs.csv", lambda rows: (rows.variant != gone)
         & ~((rows.variant == half) & (rows.seed == "42")) & ~rows.variant.str.contains("norm_cap"))  # fmt: skip
    assert page(results, "ablations") == 1
    words = text(results, "ablations")
    assert "momentum (EMA inside) 0.99 (GCond stochastic on ct): not run" in words
    assert re.search(r"GCond stochastic, conductor\.resolver\.remap_power=4\.0 on ct, seed 42: not run", words)
    assert "norm cap of a task gradient 1, 0.3, 0.1 (GCond stochastic on ct): not run" in words
    assert "Not run." in words.split("### norm cap")[1]
    assert "`make reproduce-ablations SCALE=sample` makes them" in words
    assert "incomplete: momentum" in capsys.readouterr().err
    (row,) = tidy(results, "ablations", value="4.0", metric="l1", block="best_val")
    assert (row["n"], row["difference_n"]) == ("2", "2")


def test_panels_share_their_axis_and_hold_every_seed(ablated):
    built = ablations.build("sample", ablated(), None)
    panels = built.drawing.axes[: len(PARAMETERS)]
    assert len({axes.get_ylim() for axes in panels}) == 1
    low, high = panels[0].get_ylim()
    for axes in panels:
        values = np.concatenate([np.atleast_1d(line.get_ydata()) for line in axes.get_lines()]).astype(float)
        assert low <= values.min() <= values.max() <= high
    momentum = panels[2]
    seeds = [line.get_ydata() for line in momentum.get_lines() if len(line.get_ydata()) == 3]
    assert len(seeds) == 2 * 5
    assert sorted(seeds[0]) == pytest.approx([3.5, 5.0, 6.5])  # (.02 + .006 s) / .4


# O1


def test_rates_and_sizes_of_the_scales_are_those_of_conf():
    for path in (CONF / "scale").glob("*.yaml"):
        scale = yaml.safe_load(path.read_text())
        for base in scale.get("defaults", [])[:-1]:
            scale = yaml.safe_load(path.with_name(f"{base}.yaml").read_text()) | scale
        assert float(scale["lr"]) == SCALE_RATES[path.stem]
        assert scale["image_size"] == SCALE_PIXELS[path.stem]


def test_the_factorials_effects_are_those_put_in(tmp_path):
    """By hand, in percent of .5: EMA -10 in train and -6 in eval mode; eval 2 and 6; resolution -1; micro-batch 3."""
    fake_controls.write(tmp_path, "sample", fake_controls.factorial())
    assert page(tmp_path, "o1") == 0
    where = {"dataset": "ct", "metric": "l1", "block": "best_val"}
    found = {row["name"]: float(row["mean"]) for row in tidy(tmp_path, "o1", kind="average", **where)}
    assert found == {
        "EMA update (beta1 = 0) (mean of 6)": pytest.approx(-8),
        "eval mode (mean of 6)": pytest.approx(4),
        "sequential resolution (mean of 4)": pytest.approx(-1),
        "stochastic resolution (mean of 4)": pytest.approx(-1),
        "EMA update (beta1 = 0) x eval mode (mean of 3)": pytest.approx(4),
        "EMA update (beta1 = 0) x sequential resolution (mean of 2)": pytest.approx(0),
        "EMA update (beta1 = 0) x stochastic resolution (mean of 2)": pytest.approx(0),
        "eval mode x sequential resolution (mean of 2)": pytest.approx(0),
        "eval mode x stochastic resolution (mean of 2)": pytest.approx(0),
        "share of the gap that EMA alone gives": pytest.approx(100 * 10 / 11, rel=1e-4),
    }
    changes = {row["name"]: float(row["mean"]) for row in tidy(tmp_path, "o1", kind="change", **where)}
    kinds = {"gap": (4, {-11, -7}), "EMA update": (6, {-10, -6}), "resolution": (8, {-1}), "eval mode": (6, {2, 6}),
             "per micro-batch": (4, {3})}  # fmt: skip
    for kind, (count, sizes) in kinds.items():
        own = [value for name, value in changes.items() if name.startswith(f"{kind}: ")]
        assert len(own) == count, kind
        assert {round(value, 6) for value in own} == sizes
    assert len(changes) == 28
    assert changes["resolution: GCond stochastic vs Baseline integrated"] == pytest.approx(-1)
    assert changes["eval mode: GCond pure, eval mode vs GCond pure"] == pytest.approx(2)
    arms = tidy(tmp_path, "o1", kind="arm", dataset="ct", metric="ssim", block="best_test")
    assert len(arms) == len(o1.ARMS) == 16
    (own,) = [row for row in arms if row["name"] == "gcond_stochastic strategy.model_mode=eval"]
    assert (float(own["mean"]), float(own["sample_sd"]), own["n"]) == (pytest.approx(0.4375), pytest.approx(0.005), "3")
    line = next(line for line in text(tmp_path, "o1").splitlines() if re.match(r"\| eval .*EMA.*\| stochastic", line))
    assert "| 0.4750 ± 0.0100  | 0.2375 ± 0.0050 |" in line


def test_the_two_parts_of_a_stochastic_resolution_where_its_control_ran(tmp_path):
    """Put in: a block per task costs .01 of Baseline's .5, resolution on the same blocks gains .02."""
    levels = {"baseline": 0.5, "baseline_integrated": 0.45, "stochastic_integrated": 0.46, "gcond_stochastic": 0.44}
    runs = [
        fake_controls.run(("ct", name, seed, ""), level) for name, level in levels.items() for seed in (11, 42, 2025)
    ]
    fake_controls.write(tmp_path, "sample", runs)
    page(tmp_path, "o1", "sample", "--datasets", "ct")
    found = {
        row["name"]: float(row["mean"]) for row in tidy(tmp_path, "o1", kind="change", metric="l1", block="best_val")
    }
    assert found["a block per task: Stochastic integrated vs Baseline integrated"] == pytest.approx(2)
    assert found["resolution alone: GCond stochastic vs Stochastic integrated"] == pytest.approx(-4)
    assert found["resolution: GCond stochastic vs Baseline integrated"] == pytest.approx(-2)
    (line,) = [line for line in text(tmp_path, "o1").splitlines() if "none, a block per task" in line]
    assert re.match(
        r"\| train \| EMA, beta1 = 0 +\| none, a block per task \| Stochastic integrated \| 3 \| 0\.46", line
    )


def test_an_arm_that_is_missing_takes_only_its_own_changes_away(tmp_path):
    """What the study has first: three arms in train mode, of which one has a seed less."""
    kept = {"baseline", "baseline_integrated", "gcond_stochastic"}
    runs = [row for row in fake_controls.factorial(("ct",)) if row["strategy"] in kept and not row["variant"]]
    runs = [row for row in runs if (row["strategy"], row["seed"]) != ("gcond_stochastic", 11)]
    fake_controls.write(tmp_path, "sample", runs)
    assert page(tmp_path, "o1", "sample", "--datasets", "ct") == 1
    found = tidy(tmp_path, "o1", kind="change", metric="l1", block="best_val")
    assert {row["name"]: (round(float(row["mean"]), 1), row["n"]) for row in found} == {
        "gap: GCond stochastic vs Baseline": (-10.9, "2"),  # of Baseline's .505 on the seeds shared
        "EMA update: Baseline integrated vs Baseline": (-10.0, "3"),
        "resolution: GCond stochastic vs Baseline integrated": (-1.0, "2"),
    }
    assert "GCond pure" in text(tmp_path, "o1").split("Arms not run: ")[1].split("\n")[0]


def test_missing_arms_of_the_factorial_are_named(tmp_path, capsys):
    gone = ("gcond_pure strategy.model_mode=eval",)
    fake_controls.write(tmp_path, "sample", fake_controls.factorial(("ct",), gone))
    assert page(tmp_path, "o1") == 1
    words = text(tmp_path, "o1")
    assert "Arms not run: GCond pure, eval mode." in words
    assert "imagenet256: not run" in words or "photos: not run" in words
    assert "GCond pure, eval mode on ct: not run" in capsys.readouterr().err
    assert page(tmp_path, "o1", "sample", "--datasets", "ct") == 1
    assert "256: not run" not in text(tmp_path, "o1")
    assert "o1 --scale sample --datasets ct`" in text(tmp_path, "o1")


def test_a_failed_arm_is_told_from_one_that_was_not_run(tmp_path):
    runs = fake_controls.factorial(("ct",))
    for row in runs:
        if row["strategy"] == "gcond_pure" and row["variant"] and row["seed"] == 42:
            row["status"] = "failed"
    fake_controls.write(tmp_path, "sample", runs)
    assert page(tmp_path, "o1", "sample", "--datasets", "ct") == 1
    assert "GCond pure, eval mode on ct, seed 42: failed" in text(tmp_path, "o1")
    assert "Failed: gcond_pure on ct, seed 42" in text(tmp_path, "o1")


def test_seeds_beyond_this_experiments_are_no_gap(tmp_path):
    """Table 2 may have been run with more seeds than the arms that O1 alone has."""
    more = [fake_controls.run(("ct", "baseline", seed, ""), 0.5) for seed in (1, 2, 3)]
    fake_controls.write(tmp_path, "sample", [*fake_controls.factorial(("ct",)), *more])
    assert page(tmp_path, "o1", "sample", "--datasets", "ct") == 0


def test_other_learning_rates_stand_beside_the_scales_own(tmp_path):
    runs = fake_controls.factorial(("ct",))
    for strategy, level in (("baseline", 0.7), ("baseline_integrated", 0.6)):
        runs += [fake_controls.run(("ct", strategy, seed, "optimizer.lr=2e-4"), level) for seed in fake_controls.SEEDS]
    fake_controls.write(tmp_path, "sample", runs)
    assert page(tmp_path, "o1", "sample", "--datasets", "ct") == 0
    (row,) = tidy(tmp_path, "o1", kind="change", learning_rate="at learning rate 2e-4", metric="l1", block="best_val")
    assert row["name"] == "EMA update: Baseline integrated vs Baseline"
    assert float(row["mean"]) == pytest.approx(-100 / 7, rel=1e-4)
    words = text(tmp_path, "o1")
    both = next(line for line in words.splitlines() if re.match(r"\| EMA update +\| Baseline integrated vs B", line))
    assert re.findall(r"-\d+\.\d %", both)[::2] == ["-10.0 %", "-14.3 %", "-10.0 %"]  # L1 at 1e-3, 2e-4 and the best
    assert "rate 1e-3: L1" in words
    assert "### At learning rate 2e-4" in words
    assert "### Each arm at the best of its 2 learning rates" in words
    best = tidy(tmp_path, "o1", kind="arm", learning_rate="each arm at the best of its 2 learning rates", metric="l1",
                block="best_val", name="baseline")  # fmt: skip
    assert float(best[0]["mean"]) == pytest.approx(0.5)
    panels = o1.build("sample", tmp_path, ("ct",)).drawing.axes
    assert [axes.get_title() for axes in panels[4:6]] == ["CT, train mode\nrate 2e-4", "CT, eval mode\nrate 2e-4"]
    (line,) = [line for line in panels[4].get_lines() if line.get_label().startswith("EMA")]
    assert line.get_ydata() == pytest.approx([0.6])
    assert panels[5].texts[0].get_text() == "not run"


def test_the_interaction_plot_has_means_of_both_updates_on_one_axis(tmp_path):
    fake_controls.write(tmp_path, "sample", fake_controls.factorial(("ct",)))
    panels = o1.build("sample", tmp_path, ("ct",)).drawing.axes
    assert [axes.get_title() for axes in panels] == ["CT, train mode", "CT, eval mode"] * 2
    assert panels[0].get_ylim() == panels[1].get_ylim() != panels[2].get_ylim() == panels[3].get_ylim()
    lines = [line for line in panels[1].get_lines() if line.get_linestyle() != "None"]
    assert [line.get_ydata().tolist() for line in lines] == [
        pytest.approx([0.51, 0.505, 0.505]),
        pytest.approx([0.48, 0.475, 0.475]),
    ]


# O6


def test_shares_are_weighted_by_the_steps_that_were_measured(tmp_path):
    """By hand: 5 bins of .5 and 5 of .1 on CT; per seed .3 - .02, .3, .3 + .02, so ± 4.303 x .02 / sqrt 3."""
    fake_controls.write(tmp_path, "sample", *fake_controls.often(FEW))
    assert page(tmp_path, "o6") == 1
    (row,) = tidy(tmp_path, "o6", dataset="ct", strategy="gcond_stochastic", number="steps with a conflict")
    assert float(row["mean"]) == pytest.approx(30)
    assert float(row["high"]) == pytest.approx(30 + 4.30265 * 2 / np.sqrt(3), rel=1e-4)
    assert row["n"] == "3"
    (row,) = tidy(tmp_path, "o6", dataset="photos", strategy="gcond_sequential", number="times in the main zone")
    assert (float(row["mean"]), row["unit"]) == (pytest.approx(0.004), "times a step")
    line = next(line for line in text(tmp_path, "o6").splitlines() if line.startswith("| Baseline "))
    assert line.count("| -") == 6  # all but n and the share of conflicts
    assert "CAGrad on ct: not run" in text(tmp_path, "o6")


def test_coarser_bins_of_the_figure_keep_the_share(tmp_path):
    rows = pd.DataFrame({"seed": 1, "bin": [0, 1, 2, 3], "first_step": [1, 11, 21, 31], "last_step": [10, 20, 30, 40],
                         "conflicts": [1.0, 0.0, float("nan"), 0.5], "cosine_steps": [1, 3, 0, 2]})  # fmt: skip
    found = o6.coarse(rows, 2)
    assert found.conflicts.tolist() == pytest.approx([0.25, 0.5])
    assert (found.first_step.tolist(), found.last_step.tolist()) == ([1, 21], [20, 40])


def test_every_method_of_table_2_has_its_panel_in_o6(study):
    assert sorted(name for names in o6.PANELS.values() for name in names) == sorted(METHODS)
    built = o6.build("sample", study, None)
    assert len(built.drawing.axes) == 2 * len(o6.PANELS)
    own = [line for line in built.drawing.axes[1].get_lines() if line.get_linewidth() > 1]
    assert len(own) == 3
    assert np.allclose(own[0].get_ydata(), [0.5] * 5 + [0.1] * 5)


def test_runs_whose_steps_are_lost_are_named(tmp_path):
    fake_controls.write(tmp_path, "sample", *fake_controls.often(METHODS))
    assert page(tmp_path, "o6") == 0
    drop(tmp_path / "sample" / "steps.csv", lambda rows: (rows.strategy != "pcgrad") | (rows.seed != "42"))
    assert page(tmp_path, "o6") == 1
    assert "PCGrad on ct, seed 42: nothing in steps.csv" in text(tmp_path, "o6")


# O10


def test_cosines_stand_beside_their_reliability_per_group(study):
    """By hand: COSINES plus an epoch's trend that cancels; seeds .03 apart: ± 4.303 x .03 / sqrt 3."""
    assert page(study, "o10") == 0
    (row,) = tidy(study, "o10", dataset="ct", strategy="pcgrad", group="encoder",
                  cosine="between tasks, disjoint samples")  # fmt: skip
    assert float(row["mean"]) == pytest.approx(-0.1)
    assert float(row["low"]) == pytest.approx(-0.1 - 4.30265 * 0.03 / np.sqrt(3), rel=1e-4)
    section = text(study, "o10").split("## CT")[1].split("### decoder body")[1].split("###")[0]
    line = next(line for line in section.splitlines() if line.startswith("| PCGrad"))
    assert re.findall(r"[+-]0\.\d\d(?= \[)", line) == ["+0.40", "+0.10", "+0.05", "+0.60"]
    (left,) = tidy(study, "o10", dataset="ct", strategy="cagrad", cosine="resolved gradient and step")
    assert float(left["mean"]) == pytest.approx(0.35)


def test_o10_without_probes_of_a_method_or_steps_names_them(tmp_path):
    runs, steps = fake_controls.often(METHODS)
    fake_controls.write(tmp_path, "sample", runs, steps, fake_controls.probed(METHODS[1:]))
    assert page(tmp_path, "o10") == 1
    assert "Baseline on ct, seed 11, 42, 2025: nothing in probes.csv" in text(tmp_path, "o10")
    (tmp_path / "sample" / "steps.csv").unlink()
    assert page(tmp_path, "o10") == 1
    assert "Not recorded." in text(tmp_path, "o10")
    assert "nothing in steps.csv" in text(tmp_path, "o10")


def test_o10s_panels_hold_the_mean_over_seeds_by_epoch_on_one_axis(study):
    panels = o10.build("sample", study, ("ct",)).drawing.axes
    assert len(panels) == 2 * 4
    assert len({axes.get_ylim() for axes in panels}) == 1
    shared = next(line for line in panels[0].get_lines() if line.get_label() == "between tasks, shared samples")
    assert np.allclose(shared.get_ydata(), 0.4 + 0.02 * (np.arange(1, 5) - 2.5))


# Windows


def test_variance_and_signs_stand_by_k_with_their_intervals(study):
    """By hand: WINDOWED, .1 more at the last weights; seeds .03 apart: ± 4.303 x .03 / sqrt 3."""
    assert page(study, "windows") == 0
    (row,) = tidy(study, "windows", dataset="ct", strategy="baseline", state="last", mode="train", group="all",
                  statistic="scaled_noise/l1/24")  # fmt: skip
    assert float(row["mean"]) == pytest.approx(1.1)
    assert float(row["low"]) == pytest.approx(1.1 - 4.30265 * 0.03 / np.sqrt(3), rel=1e-4)
    assert (row["n"], row["error_within"]) == ("3", "0.25")
    (row,) = tidy(study, "windows", dataset="ct", strategy="baseline", state="initial", mode="train", group="head",
                  statistic="sign_agreement_disjoint/8")  # fmt: skip
    assert float(row["mean"]) == pytest.approx(48)
    section = text(study, "windows").split("## CT")[1].split("#### Same samples")[1].split("####")[0]
    line = next(line for line in section.splitlines() if re.match(r"\| Baseline +\| last .*\| encoder", line))
    assert re.findall(r"[\d.]+(?= % \[)", line) == ["61.0", "68.0", "84.0"]


def test_windows_lines_are_relative_to_one_micro_batch_beside_one_over_k(study):
    panels = windows.build("sample", study, ("ct",)).drawing.axes
    assert len(panels) == 2
    lines = {line.get_label(): line for line in panels[0].get_lines()}
    assert np.allclose(lines["L1, initial weights"].get_ydata(), [1, 1 / 8, 1 / 24], rtol=1e-3)
    assert np.allclose(lines["1/K"].get_ydata(), [1, 1 / 8, 1 / 24])
    signs = {line.get_label(): line for line in panels[1].get_lines()}
    assert np.allclose(signs["other samples, last checkpoint"].get_ydata(), [51, 58, 74])


def test_runs_that_were_not_measured_are_named(tmp_path):
    rows = [row for row in fake_controls.windowed() if row["seed"] != 42 or row["strategy"] != "baseline"]
    fake_controls.write(tmp_path, "sample", fake_controls.often(FEW)[0], windows=rows)
    assert page(tmp_path, "windows") == 1
    assert "Baseline on ct, seed 42: nothing in windows.csv" in text(tmp_path, "windows")


def test_sources_take_the_photographs_that_are_recorded(tmp_path):
    runs = [row | {"dataset": "imagenet256"} for row in fake_controls.often(FEW, ("photos",))[0]]
    fake_controls.write(tmp_path, "sample", runs)
    assert load("o6", "sample", tmp_path, None, ("photos", "ct")).datasets == ("imagenet256", "ct")


# C1


def contradicted(results, *arguments, strengths=(0.0, 0.5)):
    fake_controls.write(results, "sample", *fake_controls.conflicting(strengths=strengths))
    return page(results, "conflict", "sample", "--datasets", "ct", *arguments)


def test_what_the_page_on_conflict_says_of_its_experiments_is_so():
    params = {
        name: yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text())["hydra"]["sweeper"]["params"]
        for name in ("conflict", "conflict_strength")
    }
    assert tuple(params["conflict"]["strategy"].split(",")) == tradeoff.METHODS
    assert set(params["conflict_strength"]["strategy"].split(",")) == set(conflict.SWEPT)
    assert {own["loss"] for own in params.values()} == {tradeoff.LOSS}
    loss = yaml.safe_load((EXPERIMENTS.parent / "loss" / f"{tradeoff.LOSS}.yaml").read_text())
    assert loss["tasks"] == tradeoff.LAMBDAS
    assert loss["reconstruction"]["flip_strength"] == tradeoff.FULL


def test_a_method_is_told_by_its_place_on_the_trade_off(tmp_path):
    """By hand, PCGrad against Baseline: L1 -10 ± 1 %, 1 - SSIM 0, flipped +20 %, mean 10/3; of the bound 1.5 both."""
    assert contradicted(tmp_path) == 0
    where = {"strategy": "pcgrad", "strength": "1", "block": "best_val"}
    found = {row["name"]: row for row in tidy(tmp_path, "conflict", kind="difference", **where)}
    means = {name: float(row["mean"]) for name, row in found.items()}
    base = 0.35 * 1 + 0.15 * 0.5 + 0.5 * 0.6
    weighted = 100 * (0.35 * 0.9 + 0.15 * 0.5 + 0.5 * 0.72 - base) / base
    assert means == {"mean": pytest.approx(10 / 3, rel=1e-4), "l1": pytest.approx(-10), "ssim": pytest.approx(0),
                     "flipped": pytest.approx(20), "sum": pytest.approx(weighted, rel=1e-4)}  # fmt: skip
    assert float(found["mean"]["high"]) - 10 / 3 == pytest.approx(4.30265 / 3 / np.sqrt(3), rel=1e-3)
    (towards,) = tidy(tmp_path, "conflict", kind="towards the image", **where)
    assert float(towards["mean"]) == pytest.approx(100 * 0.72 / 1.62, abs=0.01)
    (wasted,) = tidy(tmp_path, "conflict", kind="above the bound", **where)
    assert float(wasted["mean"]) == pytest.approx(100 * (1.62 / 1.5 - 1), rel=1e-4)
    words = text(tmp_path, "conflict")
    assert "The bound of L1 + flipped on validation: 1.5000" in words
    assert re.search(
        r"\| PCGrad +\| 3 +\| -10\.0 % [^|]*\|[^|]*\|[^|]*\|[^|]*\| \+3\.3 % \[\+2\.5, \+4\.2\] +\|", words
    )
    assert re.search(r"\| Mean image \(no training\) +\| +\| 0\.7500 +\| 0\.7500 +\| 0\.7500 +\| 0\.7500 +\| 50", words)
    (own,) = [line for line in words.splitlines() if re.match(r"\| PCGrad +\| 3 +\| 0\.9", line)]
    total = own.split("|")[6].strip()  # .75, which is not below the mean image's
    assert total.startswith(f"{0.35 * 0.9 + 0.15 * 0.5 + 0.5 * 0.72:.4f} ±")
    assert total.endswith("†")
    zones = {row["strategy"]: float(row["mean"]) for row in tidy(tmp_path, "conflict", name="times in the main zone")}
    assert zones == dict.fromkeys(("gcond_sequential", "gcond_stochastic", "gcond_pure"), 0.5)


def test_what_resolving_does_is_told_against_the_same_update_without_it(tmp_path):
    """By hand: with L1 and flipped of GCond stochastic at .8 and 1.1 times Baseline integrated's, 1 - SSIM at once and
    a half: mean (-20 + 50 + 10) / 3 = 13.3 %; sequential as the update alone."""
    runs, steps, probes = fake_controls.conflicting()
    factors = {"l1": 0.8, "ssim": 1.5, "flipped": 1.1}
    for row in runs:
        if row["strategy"] == "gcond_stochastic":
            row |= {key: value * factors[task] for key, value in row.items()
                    if key.startswith(("best_", "last_")) and (task := key.split("_")[-1]) in factors}  # fmt: skip
    fake_controls.write(tmp_path, "sample", runs, steps, probes)
    page(tmp_path, "conflict", "sample", "--datasets", "ct")
    where = {"kind": "difference to baseline_integrated", "block": "best_val"}
    found = {
        row["name"]: float(row["mean"]) for row in tidy(tmp_path, "conflict", strategy="gcond_stochastic", **where)
    }
    base = 0.35 * 0.9 + 0.15 * 0.5 + 0.5 * 0.72
    weighted = 100 * (0.35 * 0.9 * 0.8 + 0.15 * 0.75 + 0.5 * 0.72 * 1.1 - base) / base
    assert found == {"mean": pytest.approx(40 / 3, rel=1e-3), "l1": pytest.approx(-20), "ssim": pytest.approx(50),
                     "flipped": pytest.approx(10), "sum": pytest.approx(weighted, rel=1e-3)}  # fmt: skip
    same = tidy(tmp_path, "conflict", strategy="gcond_sequential", **where)
    assert [float(row["mean"]) for row in same] == pytest.approx([0] * 5, abs=1e-9)
    assert re.search(r"against Baseline integrated .*\n.*\n\| GCond sequential", text(tmp_path, "conflict"))


def test_conflict_is_told_against_its_strength(tmp_path):
    contradicted(tmp_path)
    section = text(tmp_path, "conflict").split("## Against the strength")[1]
    lines = [line for line in section.splitlines() if re.match(r"\| ct +\| PCGrad", line)]
    assert [re.findall(r"[\d.]+(?= %)|[+-]\d\.\d\d(?= \[)", line)[1:] for line in lines] == [
        ["0.0", "+0.00", "+0.00", "+0.00"], ["50.0", "-0.50", "-0.50", "-0.25"], ["100.0", "-1.00", "-1.00", "-0.50"]
    ]  # fmt: skip
    drawn = conflict.build("sample", tmp_path, ("ct",)).drawing.axes
    assert len(drawn) == 3
    (line,) = [line for line in drawn[2].get_lines() if line.get_label() == "PCGrad"]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0, 0.5, 1], pytest.approx([0, -0.5, -1]))
    contradicted(tmp_path, strengths=())
    assert "Against the strength" not in text(tmp_path, "conflict")
    assert len(conflict.build("sample", tmp_path, ("ct",)).drawing.axes) == 2


def test_a_missing_method_and_another_window_are_named(tmp_path):
    runs, steps, probes = fake_controls.conflicting()
    other = fake_controls.FLIPPED.replace("6", "3")
    runs = [row for row in runs if row["strategy"] != "mgda" or row["seed"] == 11]
    runs += [row | {"variant": other} for row in runs if row["strategy"] == "baseline"]
    fake_controls.write(tmp_path, "sample", runs, steps, probes)
    assert page(tmp_path, "conflict", "sample", "--datasets", "ct") == 1
    words = text(tmp_path, "conflict")
    assert "MGDA on ct, seed 42, 2025: not run" in words
    assert f"Recorded with another window, and not shown: {other}." in words
    assert len(tidy(tmp_path, "conflict", strategy="baseline", kind="towards the image", block="best_val")) == 1

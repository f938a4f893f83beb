"""Figures: the numbers that they are made of against pandas by hand, and that nothing empty is drawn."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gcond.study import figure_runs, plots, tables
from gcond.study.methods import facts, look

RESULTS = Path(__file__).resolve().parents[2] / "results"
SAMPLE, STUDY = RESULTS / "sample", RESULTS / "study"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Some of the study's runs: three arms on CT, the tuning seed and two more."""
    folder, runs = tmp_path_factory.mktemp("results") / "study", tables.read(STUDY)
    folder.mkdir()
    own = runs[(runs.dataset == "headneck") & runs.strategy.isin(["baseline", "gcond_sequential", "pcgrad"])]
    own = own[own.seed.isin([11, 42, 101]) & (own.model_mode == "train")]
    own = own[own.variant.fillna("").str.match("optimizer|$")]
    own.to_csv(folder / "runs.csv", index=False)
    (folder / "logs").symlink_to(STUDY / "logs")
    return folder


def spec(name):
    return facts("figures")["figures"][name]


def chosen(name, **choices):
    return figure_runs.choose(name, spec(name), SAMPLE, **choices)


def of_one_arm(name, folder, **columns):
    """What a figure is drawn from, of runs made by hand."""
    runs = pd.DataFrame({"device": "cpu", "arithmetic": "", **columns})
    arm, dataset = columns["strategy"], columns["dataset"]
    return figure_runs.Chosen(name, spec(name), folder, runs, [arm], [dataset], "", [], runs)


def logged(strategy, seed):
    """The log of a run of Table 2 on CT at 2e-4, found without gcond."""
    runs = pd.read_csv(SAMPLE / "runs.csv", keep_default_na=False)
    own = runs[(runs.dataset == "ct") & (runs.strategy == strategy) & (runs.seed == seed)
               & (runs.variant == "optimizer.lr=0.0002")]  # fmt: skip
    name = "-".join(filter(None, (own["name"].item(), own.arithmetic.item())))
    return pd.read_parquet(SAMPLE / "logs" / f"{name}.parquet")


def test_every_figure_names_what_exists():
    methods = set(facts("methods")["methods"])
    known, experiments = facts("figures"), {path.stem for path in (RESULTS.parent / "conf/experiment").glob("*.yaml")}
    assert {f"figure{number}" for number in range(1, 13)} <= set(known["figures"])
    for figure in known["figures"].values():
        assert figure["kind"] in {*plots.KINDS, *plots.APART, "forest"}
        assert set(figure.get("quantities", ())) <= set(known["quantities"])
        assert {*figure.get("arms", ()), *figure.get("controls", ())} <= methods
        rows = [row for row in figure.get("rows", ()) if "says" in row]
        assert {row[arm] for row in rows for arm in ("ours", "theirs") if arm in row} <= methods
        assert figure.get("experiment", "table2") in experiments


def test_points_of_lines_are_what_the_runs_logged():
    points = plots.tidy(chosen("figure4", lr="paper", datasets=["ct"], seeds=[42, 2025]))
    for strategy, seed in (("pcgrad", 42), ("gcond_stochastic", 2025)):
        log = logged(strategy, seed)
        log = log[log.kind == "validation"].sort_values("epoch")
        own = points[(points.dataset == "ct") & (points.arm == strategy) & (points.seed == seed)]
        own = own[own.quantity == "val_l1"]
        np.testing.assert_allclose(own.y, log.val_l1, rtol=1e-6)
        np.testing.assert_allclose(own.x, log.epoch)


def test_steps_are_bins_of_means_and_percents():
    points = plots.tidy(chosen("o6", lr="paper", datasets=["ct"], seeds=[11]))
    log = logged("gcond_stochastic", 11)
    log = log[log.kind == "step"].sort_values("first_step").reset_index(drop=True)
    own = points[(points.arm == "gcond_stochastic") & (points.quantity == "conflicts")]
    pairs = log.index // int(np.ceil(len(log) / 25))
    found = (log.conflicts * log.cosine_steps).groupby(pairs).sum() / log.cosine_steps.groupby(pairs).sum()
    np.testing.assert_allclose(own.y, 100 * found, rtol=1e-6)
    middle = (log.first_step.groupby(pairs).min() + log.last_step.groupby(pairs).max()) / 2
    np.testing.assert_allclose(own.x, middle)


def test_the_published_minimum_is_one_where_nothing_conflicts():
    cosines = [0.5, -0.25, np.nan, 0.0]
    log = pd.DataFrame({"kind": "step", "step": range(4), "resolved_norm": 1.0, "cosine/all": cosines})
    assert plots.binned(log, 50).published.tolist() == pytest.approx([1, -0.25, np.nan, 1], nan_ok=True)
    assert plots.binned(log, 2).cosine_min.tolist() == [-0.25, 0.0]


def test_a_window_falls_from_one_and_signs_are_percents():
    own = chosen("windows", seeds=[11, 42])
    points = plots.tidy(own)
    noise = points[points.quantity == "noise/l1"]
    assert set(noise[noise.x == noise.x.min()].y) == {1.0}
    run = own.runs.iloc[0]
    log = tables.log(SAMPLE, run.log, "window")
    log = log[(log["mode"] == "train") & (log.group == "all") & (log.state == "last")]
    own = points[(points.seed == run.seed) & (points.state == "last")]
    last = own[(own.quantity == "noise/l1") & (own.x == 24)].y.item()
    assert last == pytest.approx(log["noise/l1/24"].item() / log["noise/l1/1"].item())
    sign = own[(own.quantity == "sign_agreement_disjoint") & (own.x == 24)].y.item()
    assert sign == pytest.approx(100 * log["sign_agreement_disjoint/24"].item())


def test_the_forest_shows_the_judges_findings_beside_the_papers_change(study):
    found = plots.effects(spec("overview"), tables.of_paper_model(tables.runs(study)), "paper", study)
    rows = found[(found.dataset == "headneck") & (found.says == "GCond sequential")]
    seeds, patients = (rows[rows.group == group].iloc[0] for group in ("", "patients"))
    runs = pd.read_csv(study / "runs.csv", keep_default_na=False)
    runs = runs[(runs.dataset == "headneck") & (runs.model == "mobilenetv3_small")]
    own = runs[(runs.variant == "optimizer.lr=2e-4") & (runs.seed != 101)]
    own = own.set_index(["strategy", "seed"])
    ours, theirs = (own.loc[name] for name in ("gcond_sequential", "baseline"))
    change = (ours.best_test_l1.astype(float) - theirs.best_test_l1.astype(float)).dropna()
    assert seeds.effect == pytest.approx(100 * change.mean() / theirs.best_test_l1.astype(float)[change.index].mean())
    by_patient = [pd.concat([groups(run) for run in arm.loc[change.index].itertuples()]) for arm in (ours, theirs)]
    ours, theirs = (each.groupby("group").l1.mean() for each in by_patient)
    assert patients.effect == pytest.approx(100 * (ours - theirs).mean() / theirs.mean(), rel=1e-5)
    assert patients.n == len(ours)
    paper = facts("paper")["table2"]["rows"]
    assert seeds.paper == pytest.approx(100 * (paper["gcond_sequential"][2][0] / paper["baseline"][2][0] - 1), abs=0.01)
    assert found[found.label == "its best rate"].paper.isna().all()
    tuned = plots.effects(spec("methods"), tables.of_paper_model(tables.runs(study)), "best", study)
    tuned = tuned[(tuned.says == "PCGrad") & (tuned.group == "")].iloc[0]
    at_best = runs[(runs.variant == "") & (runs.seed != 101)].set_index(["seed", "strategy"]).best_test_l1
    at_best = at_best.unstack()[["pcgrad", "baseline"]].astype(float).dropna()  # 2e-3 suits both best
    change = (at_best.pcgrad - at_best.baseline).mean() / at_best.baseline.mean()
    assert (tuned.effect, tuned.n) == (pytest.approx(100 * change), len(at_best))
    assert np.isnan(tuned.paper)


def groups(run):
    log = pd.read_parquet(STUDY / "logs" / f"{run.name}-{run.arithmetic}.parquet")
    return log[(log.kind == "groups") & (log["at"] == "best") & (log.split == "test")]


def test_pictures_show_the_error_over_hidden_pixels_and_never_patients(tmp_path):
    """By hand: two of four patches hidden, one image; the method errs by 51 of 255 on one of them."""
    original = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)
    original[0, 0, :2, 2:] = 200  # visible
    pasted = original.copy()
    pasted[0, 0, 2:, 2:] += 51
    tables.pictures(tmp_path, "run").parent.mkdir()
    np.savez(tables.pictures(tmp_path, "run"), original=original, masked=original, pasted=pasted,
             hidden=np.array([[0, 3]]), patch_size=2)  # fmt: skip
    own = of_one_arm("figure10", tmp_path, strategy="pcgrad", dataset="photos", seed=[11], log="run")
    figure = plots.pictures(own)
    visible = original[0, 0][[0, 0, 1, 1, 2, 2, 3, 3], [2, 3, 2, 3, 0, 1, 0, 1]]
    flat = np.abs(original[0, 0][[0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 0, 1, 2, 3, 2, 3]] - visible.mean()).mean() / 255
    assert [axes.get_title() for axes in figure.axes] == [
        "original\n\n", f"masked\nflat guess\n{flat:.3f}", "PCGrad\n\n0.100"]  # fmt: skip
    assert [[patch.get_xy() for patch in axes.patches] for axes in figure.axes[1:]] == 2 * [[(1.5, -0.5), (-0.5, 1.5)]]
    own.datasets[:] = ["ct"]
    with pytest.raises(ValueError, match="datasets"):
        plots.pictures(own)


@pytest.fixture
def drawn(monkeypatch):
    """drawn(name, ...) -> the figure, which is not written."""

    def draw(name, **choices):
        figures = []
        monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
        plots.draw(name, RESULTS, **{"scale": "sample"} | choices)
        return figures[0]

    return draw


def test_a_cloud_has_a_mark_for_each_run_and_a_large_one_for_their_mean(drawn):
    runs = pd.read_csv(SAMPLE / "runs.csv", keep_default_na=False)
    own = runs[(runs.strategy == "pcgrad") & (runs.lr == 1e-3) & runs.variant.str.contains("l1_ssim_flipped")]
    first = drawn("conflict").axes[1]
    small, large = (line for line in first.lines if line.get_color() == look("pcgrad")["colour"])
    np.testing.assert_allclose(small.get_xdata(), own.best_test_l1.astype(float), rtol=1e-6)
    np.testing.assert_allclose(small.get_ydata(), own.best_test_flipped.astype(float), rtol=1e-6)
    assert large.get_xdata() == pytest.approx([own.best_test_l1.astype(float).mean()])
    probe = drawn("o7", lr="paper", datasets=["ct"], seeds=[11]).axes[0]
    log = logged("pcgrad", 11)
    scores = log[log.kind == "linear_probe"].test_score
    shown = next(line for line in probe.lines if line.get_label() == "PCGrad")
    assert shown.get_ydata()[0] == pytest.approx(scores.iloc[0], rel=1e-6)


def test_bands_are_means_of_quantiles_over_seeds(monkeypatch):
    def log(_, run, kind):
        ends = [end for low, high, *_ in plots.BANDS for end in (low, high)]
        numbers = {f"quantiles.{end}": [run.seed * float(end)] * 2 for end in ends}
        return pd.DataFrame({"epoch": [1, 2], "quantiles.0.5": [run.seed, 2.0 * run.seed], **numbers})

    monkeypatch.setattr(figure_runs.Chosen, "log", log)
    own = of_one_arm("figure6", SAMPLE, strategy="baseline", dataset="ct", seed=[1, 3], model="convnextv2_base")
    (axes,) = plots.bands(own).axes
    assert axes.lines[0].get_xydata().tolist() == [[1, 2], [2, 4]]
    edges = [band.get_paths()[0].get_extents() for band in axes.collections]
    assert [(edge.y0, edge.y1) for edge in edges] == [pytest.approx((2 * float(low), 2 * float(high)))
                                                      for low, high, *_ in plots.BANDS]  # fmt: skip


def test_a_panel_without_runs_is_not_drawn_and_the_caption_names_it(drawn):
    figure = drawn("figure8", lr="paper", seeds=[11])
    axes, text = figure.axes, " ".join(each.get_text() for each in figure.texts)
    assert all(len(each.lines) > 1 for each in axes)
    assert "GCond lion" in re.search(r"Missing: (.*)", text.replace("\n", " "))[1]
    assert len(drawn("overview", scale="mini").axes) == 2  # which has no other rate than the scale's own
    with pytest.raises(ValueError, match="figure5"):
        plots.draw("figure5", RESULTS, scale="sample")
    with pytest.raises(ValueError, match="best"):
        plots.draw("figure12", RESULTS, scale="mini", lr="best")
    with pytest.raises(ValueError, match="name"):
        plots.draw("figure13", RESULTS)


def test_runs_are_those_of_the_rate_the_seeds_and_the_settings():
    own = chosen("conflict").runs
    assert set(own.setting) == {"loss=l1_ssim_flipped,scale.accumulation_steps=6"}
    for lr, rate in (("paper", 2e-4), ("own", 1e-3), (1e-3, 1e-3)):
        own = chosen("figure4", lr=lr, seeds=[42]).runs
        about = own[["lr", "seed", "setting", "model_mode"]].drop_duplicates()
        assert about.to_numpy().tolist() == [[rate, 42, "", "train"]]


FRONT = {"{l1:0.95,ssim:0.05}": (0.95, 0.05), "{l1:0.15,ssim:0.85}": (0.15, 0.85), "{l1:0.8,ssim:0.9}": (0.8, 0.9)}


@pytest.fixture
def made(study, tmp_path):
    """made(rows) -> chosen(name, ...) of `study` and copies of its tuned Baseline of seed 11, changed by `rows`."""
    runs = pd.read_csv(study / "runs.csv", dtype=str, keep_default_na=False)
    tuned = runs[(runs.strategy == "baseline") & (runs.seed == "11") & (runs.lr == "0.002")]

    def make(*rows):
        new = [pd.concat([tuned.assign(name=f"made{place}", **row)]) for place, row in enumerate(rows)]
        (tmp_path / "study").mkdir()
        (tmp_path / "study" / "logs").symlink_to(STUDY / "logs")
        pd.concat([runs, *new]).to_csv(tmp_path / "study" / "runs.csv", index=False)
        return lambda name, **choices: figure_runs.choose(name, spec(name), tmp_path / "study", **choices)

    return make


def test_static_weights_are_joined_in_order_and_frozen_weights_are_none_of_them(made):
    rows = [{"variant": f"loss.tasks={tasks}", "lambda_l1": str(one), "lambda_ssim": str(two), "best_test_l1": str(two)}
            for tasks, (one, two) in FRONT.items()]  # fmt: skip
    alone = {"variant": "loss=ssim", "lambda_l1": "", "lambda_ssim": "1.0", "best_test_l1": "7"}
    own = made(*rows, alone)("o8", datasets=["headneck"], seeds=[11])
    assert set(own.runs.setting) == {""}
    (axes,) = plots.scatter(own).axes
    front = next(line for line in axes.lines if line.get_label() == "static weights")
    tuned = own.runs[own.runs.strategy == "baseline"].best_test_l1.item()
    np.testing.assert_allclose(front.get_xdata(), [7, 0.85, tuned, 0.05])
    assert [text.get_text() for text in axes.texts] == ["0", ".15", ".85", ".95"]
    assert axes.get_xlim()[1] < 7  # one loss alone does not squeeze the others


def test_a_front_and_its_methods_are_drawn_at_the_seeds_that_all_weights_have(made):
    rows = [{"variant": f"loss.tasks={tasks}", "lambda_l1": str(one), "lambda_ssim": str(two), "seed": seed}
            for tasks, (one, two) in FRONT.items() for seed in ("11", "42")[: 1 + (one < 0.5)]]  # fmt: skip
    own = made(*rows)("o8", datasets=["headneck"])
    assert set(own.runs.seed) == set(own.static.seed) == {11}


def test_one_weighting_alone_takes_no_seed_from_the_methods(made):
    contrary = {"variant": "loss=l1_ssim_flipped,scale.accumulation_steps=6", "best_test_flipped": "0.9"}
    contrary |= {"lambda_l1": "0.35", "lambda_ssim": "0.15", "lambda_flipped": "0.5"}
    own = made(contrary, *(contrary | {"strategy": "pcgrad", "seed": seed} for seed in ("11", "42")))("conflict")
    assert set(own.runs[own.runs.strategy == "pcgrad"].seed) >= {11, 42}


def test_contradicting_tasks_at_best_rates_are_drawn_beside_their_weights_at_full_strength(made):
    contrary = "loss=l1_ssim_flipped,{}scale.accumulation_steps=6,scale.steps_per_epoch=64"
    weights = {"lambda_l1": "0.35", "lambda_ssim": "0.15", "lambda_flipped": "0.5", "best_test_flipped": "0.9"}
    half = contrary.format("loss.reconstruction.flip_strength=0.5,")
    other = contrary.format("loss.tasks={l1:0.45,ssim:0.15,flipped:0.4},")
    full = weights | {"variant": contrary.format("")}
    at_half = weights | {"variant": half, "flip_strength": "0.5"}
    own = made(full, at_half, weights | {"variant": other, "lambda_l1": "0.45", "lambda_flipped": "0.4"})("conflict")
    assert [name for name in own.runs.name if name.startswith("made")] == ["made0"]
    assert [name for name in own.static.name if name.startswith("made")] == ["made0", "made2"]
    mean = tables.predictors(own.folder).query("dataset == 'headneck' and predictor == 'dataset_mean'").iloc[0]
    for axes, y in zip(plots.scatter(own).axes, (mean.test_ssim, mean.test_l1), strict=True):
        marked = next(line for line in axes.lines if line.get_label() == "mean image, nothing learnt")
        assert marked.get_xydata().tolist() == [[pytest.approx(mean.test_l1), pytest.approx(y)]]


def test_rates_are_those_of_the_tuning_seed_and_the_lowest_is_ringed(study):
    own = figure_runs.choose("rates", spec("rates"), study)
    assert set(own.runs.seed) == {101}
    (axes,) = plots.lines(own).axes
    runs = pd.read_csv(study / "runs.csv", keep_default_na=False)
    grid = runs[(runs.strategy == "pcgrad") & (runs.seed == 101)].sort_values("lr")
    loss = 0.85 * grid.best_val_l1.astype(float) + 0.15 * grid.best_val_ssim.astype(float)
    line, ring = (line for line in axes.lines if line.get_color() == look("pcgrad")["colour"])
    np.testing.assert_allclose(line.get_xydata(), np.column_stack([grid.lr, loss]), rtol=1e-6)
    assert ring.get_xydata().tolist() == [[grid.lr[loss.idxmin()], pytest.approx(loss.min())]]
    untried = (own.runs.strategy == "pcgrad") & (own.runs.lr > 1e-3)
    (axes,) = plots.lines(replace(own, runs=own.runs[~untried])).axes
    (_,) = (line for line in axes.lines if line.get_color() == look("pcgrad")["colour"])  # no ring


def test_a_smaller_network_stands_for_the_papers_and_is_named(made):
    own = made({"model": "convnextv2_atto", "lr": "2e-4"})("figure5")
    assert set(own.runs.model) == {"convnextv2_atto"}
    assert "in place of" in plots.finish(plots.Figure(layout="constrained"), own, "").get_suptitle()


@pytest.mark.parametrize("name", ["table1", "toy"])
def test_computed_figures_are_drawn(name, tmp_path):
    shutil.copytree(RESULTS / name, tmp_path / name, ignore=shutil.ignore_patterns("figures"))
    made = plots.draw(name, tmp_path)
    assert {path.name for path in made} == {path.name for path in (RESULTS / name / "figures").iterdir()}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
    with pytest.raises(ValueError, match=r"\.csv"):
        plots.draw(name, tmp_path / "nothing")

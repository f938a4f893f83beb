"""Figures: the numbers that they are made of against pandas by hand, and that nothing empty is drawn."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gcond.study import figure_runs, plots, tables
from gcond.study.methods import facts, look

RESULTS = Path(__file__).resolve().parents[2] / "results"
SAMPLE = RESULTS / "sample"


def spec(name):
    return facts("figures")["figures"][name]


def chosen(name, **choices):
    return figure_runs.choose(name, spec(name), SAMPLE, **choices)


def logged(strategy, seed, lr="0.0002", dataset="ct"):
    """The log of a run of Table 2, found without gcond."""
    runs = pd.read_csv(SAMPLE / "runs.csv", keep_default_na=False)
    own = runs[(runs.dataset == dataset) & (runs.strategy == strategy) & (runs.seed == seed)
               & (runs.variant == f"optimizer.lr={lr}")]  # fmt: skip
    name = "-".join(filter(None, (own["name"].item(), own.arithmetic.item())))
    return pd.read_parquet(SAMPLE / "logs" / f"{name}.parquet")


def test_every_figure_names_what_exists():
    known, experiments = facts("figures"), {path.stem for path in (RESULTS.parent / "conf/experiment").glob("*.yaml")}
    assert {f"figure{number}" for number in range(1, 13)} <= set(known["figures"])
    for figure in known["figures"].values():
        assert figure["kind"] in {*plots.KINDS, *plots.APART, "forest"}
        assert set(figure.get("quantities", ())) <= set(known["quantities"])
        assert {*figure.get("arms", ()), *figure.get("controls", ())} <= set(facts("methods")["methods"])
        named = figure.get("experiment", "table2")
        assert {named} if isinstance(named, str) else set(named) <= experiments


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
    log = pd.DataFrame(
        {"kind": "step", "step": range(4), "resolved_norm": 1.0, "cosine/all": [0.5, -0.25, np.nan, 0.0]}
    )
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


def test_the_forest_shows_the_judges_findings_beside_the_papers_change():
    found = plots.effects(spec("overview"), tables.runs(SAMPLE), "paper")
    row = found[(found.dataset == "ct") & (found.says == "GCond sequential, all of it") & (found.epoch == "best_val")]
    row = row[row.measure == "l1"].iloc[0]
    runs = pd.read_csv(SAMPLE / "runs.csv", keep_default_na=False)
    own = runs[(runs.dataset == "ct") & (runs.variant == "optimizer.lr=0.0002")].set_index(["strategy", "seed"])
    ours, theirs = (own.loc[name].best_val_l1.astype(float) for name in ("gcond_sequential", "baseline"))
    assert row.effect == pytest.approx(100 * (ours - theirs).mean() / theirs.mean())
    paper = facts("paper")["table2"]["rows"]
    assert row.paper == pytest.approx(100 * (paper["gcond_sequential"][2][0] / paper["baseline"][2][0] - 1), abs=0.01)
    larger = found[(found.label == "larger rate") & (found.dataset == "ct")]
    assert larger.paper.isna().tolist() == [True] * 6


def test_pictures_show_the_error_over_hidden_pixels_and_never_patients(tmp_path):
    """By hand: two of four patches hidden, one image; the method errs by 51 of 255 on one of them."""
    original = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)
    original[0, 0, :2, 2:] = 200  # visible
    pasted = original.copy()
    pasted[0, 0, 2:, 2:] += 51
    (tmp_path / "mini" / "run").mkdir(parents=True)
    np.savez(tmp_path / "mini" / "run" / "final_reconstructions.npz", original=original, masked=original, pasted=pasted,
             hidden=np.array([[0, 3]]), patch_size=2)  # fmt: skip
    runs = pd.DataFrame(
        {"strategy": ["pcgrad"], "seed": [11], "name": ["run"], "dataset": ["photos"], "device": ["cpu"]}
    )
    own = figure_runs.Chosen(
        "figure10", spec("figure10"), tmp_path / "mini", runs, ["pcgrad"], ["photos"], "", [], tmp_path
    )
    figure = plots.pictures(own)
    visible = original[0, 0][[0, 0, 1, 1, 2, 2, 3, 3], [2, 3, 2, 3, 0, 1, 0, 1]]
    flat = np.abs(original[0, 0][[0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 0, 1, 2, 3, 2, 3]] - visible.mean()).mean() / 255
    assert [axes.get_title() for axes in figure.axes] == [
        "original\n", f"masked\nflat guess {flat:.3f}", "PCGrad\n0.100"]  # fmt: skip
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
        plots.draw(name, RESULTS, scale="sample", **choices)
        return figures[0]

    return draw


def test_a_cloud_has_a_mark_for_each_run_and_a_large_one_for_their_mean(drawn):
    runs = pd.read_csv(SAMPLE / "runs.csv", keep_default_na=False)
    own = runs[(runs.strategy == "pcgrad") & (runs.lr == 1e-3) & runs.variant.str.contains("l1_ssim_flipped")]
    first = drawn("conflict").axes[0]
    small, large = (line for line in first.lines if line.get_color() == look("pcgrad")["colour"])
    np.testing.assert_allclose(small.get_xdata(), own.best_val_l1.astype(float), rtol=1e-6)
    np.testing.assert_allclose(small.get_ydata(), own.best_val_flipped.astype(float), rtol=1e-6)
    assert large.get_xdata() == pytest.approx([own.best_val_l1.astype(float).mean()])
    probe = drawn("o7", lr="paper", datasets=["ct"], seeds=[11]).axes[0]
    log = logged("pcgrad", 11)
    scores = log[log.kind == "linear_probe"].test_score
    shown = next(line for line in probe.lines if line.get_label() == "PCGrad")
    assert shown.get_ydata()[0] == pytest.approx(scores.iloc[0], rel=1e-6)


def test_bands_are_means_of_quantiles_over_seeds(monkeypatch):
    def log(_, run, kind):
        numbers = {
            f"quantiles.{end}": [run.seed * float(end)] * 2 for low, high, *_ in plots.BANDS for end in (low, high)
        }
        return pd.DataFrame({"epoch": [1, 2], "quantiles.0.5": [run.seed, 2.0 * run.seed], **numbers})

    monkeypatch.setattr(figure_runs.Chosen, "log", log)
    runs = pd.DataFrame({"dataset": "ct", "strategy": "baseline", "seed": [1, 3], "device": "cpu"})
    figure = plots.bands(
        figure_runs.Chosen("figure6", spec("figure6"), SAMPLE, runs, ["baseline"], ["ct"], "", [], SAMPLE)
    )
    (axes,) = figure.axes
    assert axes.lines[0].get_xydata().tolist() == [[1, 2], [2, 4]]
    edges = [band.get_paths()[0].get_extents() for band in axes.collections]
    assert [(edge.y0, edge.y1) for edge in edges] == [pytest.approx((2 * float(low), 2 * float(high)))
                                                      for low, high, *_ in plots.BANDS]  # fmt: skip


def test_a_panel_without_runs_is_not_drawn_and_the_caption_names_it(drawn):
    figure = drawn("figure8", lr="paper", seeds=[11])
    axes, text = figure.axes, " ".join(each.get_text() for each in figure.texts)
    assert all(len(each.lines) > 1 for each in axes)
    assert "GCond lion" in re.search(r"Missing: (.*)", text.replace("\n", " "))[1]
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


@pytest.mark.parametrize("name", ["table1", "toy"])
def test_computed_figures_are_drawn(name, tmp_path):
    shutil.copytree(RESULTS / name, tmp_path / name, ignore=shutil.ignore_patterns("figures"))
    made = plots.draw(name, tmp_path)
    assert {path.name for path in made} == {path.name for path in (RESULTS / name / "figures").iterdir()}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)
    with pytest.raises(ValueError, match=r"\.csv"):
        plots.draw(name, tmp_path / "nothing")


def test_drawing_imports_no_torch():
    code = "import sys, gcond.study.plots; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

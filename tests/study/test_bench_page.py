"""results/bench.csv as a table, and the page over it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gcond.study import bench, bench_page, pages
from gcond.study.methods import facts

RESULTS = Path(__file__).parents[2] / "results"


def test_the_committed_page_is_that_of_the_committed_rows(tmp_path):
    (tmp_path / "bench.csv").write_bytes((RESULTS / "bench.csv").read_bytes())
    (page,) = pages.make("bench", tmp_path)
    assert page.read_text() == (RESULTS / "bench.md").read_text()


def test_numbers_that_a_person_wrote_into_the_page_are_those_of_the_rows():
    """PCGrad's largest micro-batch over Baseline's, freed and kept, and the paper's; measured over planned peaks."""
    text, b = (RESULTS / "bench.md").read_text(), bench.read(RESULTS)
    largest = b.query("bench == 'memory' and quantity == 'largest_micro_batch' and precision == 'fp32'")
    size = largest[largest.model == "convnext_tiny"].set_index(["strategy", "case"]).value
    base, kept = size["baseline", "16GB"], "16GB, graph kept until the next"
    paper = facts("paper")["table4"]["ct"]
    shares = [size["pcgrad", "16GB"] / base, size["pcgrad", kept] / base]
    shares.append(paper["pcgrad"]["micro_batch"] / paper["baseline"]["micro_batch"])
    assert [f"{share:.2f}"[1:] for share in shares] == [".91", ".49", ".56"]
    assert "is .91 of Baseline's if the last backward pass frees the graph, .49 if" in text
    measured = b.query("bench == 'table3' and quantity == 'peak'").set_index("strategy").value
    planned = b.query("bench == 'memory' and quantity == 'peak' and case == '' and tasks == 2 and dataset == 'ct'")
    planned = planned.query("model == 'mobilenetv3_small' and accumulation_steps == 24").set_index("strategy").value
    ratios = (measured / planned).dropna()
    assert (round(ratios.min(), 3), round(ratios.max(), 3)) == (1.005, 1.007)
    assert "1.005 to 1.007" in text


def test_a_row_takes_the_place_of_its_namesake(tmp_path):
    own = {"bench": "step", "strategy": "pcgrad", "quantity": "time", "unit": "ratio", "image_size": 64}
    bench.add(tmp_path, [own | {"value": 1.8, "n": 3}, own | {"value": 1.0, "strategy": "baseline"}])
    bench.add(tmp_path, [own | {"value": 1.6}, own | {"value": 1.4, "image_size": 32}])
    rows = bench.read(tmp_path)
    assert sorted(zip(rows.strategy, rows.image_size, rows.value, strict=True)) == [
        ("baseline", 64, 1.0),
        ("pcgrad", 32, 1.4),
        ("pcgrad", 64, 1.6),
    ]
    assert bench.is_recorded(tmp_path, {"bench": "step", "image_size": 32}, ["pcgrad"])
    assert not bench.is_recorded(tmp_path, {"bench": "step", "image_size": 32}, ["baseline"])
    assert not bench.is_recorded(tmp_path, {"bench": "step", "micro_batch": 1})


@pytest.mark.parametrize(("old", "new"), [(",64,", ",many,"), ("step,,", "step,"), ("bench,case", "bench,kind")])
def test_a_damaged_record_is_named(tmp_path, old, new):
    bench.add(tmp_path, [{"bench": "step", "strategy": "pcgrad", "quantity": "time", "image_size": 64, "value": 1.8}])
    path = tmp_path / "bench.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=r"bench\.csv"):
        bench.read(tmp_path)


def test_nothing_recorded_says_what_makes_it(tmp_path):
    with pytest.raises(ValueError, match="make bench"):
        pages.make("bench", tmp_path)


def test_tables_by_hand(tmp_path):
    """The paper's ratio is 988.59... / 778.09 for CAGrad on CT; a part of the record makes a part of the page."""
    own = {"bench": "table3", "device": "CPU, made", "model": "mobilenetv3_small", "dataset": "ct", "precision": "fp32"}
    own |= {"micro_batch": 1, "strategy": "cagrad", "against": "baseline", "quantity": "time", "unit": "ratio"}
    bench.add(tmp_path, [own | {"value": 1.5, "low": 1.25, "high": 1.75, "n": 3}])
    heading, paper, ours = bench_page.costs(bench.read(tmp_path))
    place = heading.index("CAGrad")
    assert (paper[place], ours[place]) == (f"{989.17 / 778.09:.3f}", "1.500 [1.250, 1.750]")
    page = pages.make("bench", tmp_path)[0].read_text()
    assert "## Tables 3 and 4: time" in page
    assert "largest micro-batch: ConvNeXtV2-Base" not in page


def test_equal_buffers_share_a_line(tmp_path):
    held = {"pcgrad": (2, 1, 2), "cagrad": (2, 1, 2), "baseline": (1, 0, 2)}
    about = {"bench": "memory", "unit": "P"}
    rows = [about | {"strategy": name, "quantity": part, "value": value} for name, values in held.items()
            for part, value in zip(("task_gradients", "mean", "optimizer"), values, strict=True)]  # fmt: skip
    bench.add(tmp_path, rows)
    assert bench_page.held(bench.read(tmp_path))[1:] == [
        ["Baseline", "float32", "1", "0", "0", "0", "2", "3"],
        ["CAGrad; PCGrad", "float32", "2", "0", "1", "0", "2", "5"],
    ]

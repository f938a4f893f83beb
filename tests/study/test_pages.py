"""The pages of results/: their numbers are those of the records, and the sentences of the first one hold."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from gcond.study import experiments, judge, pages, tables
from gcond.study.artefacts import Catalogue
from gcond.study.methods import facts
from gcond.study.queue import AS_RECORDED

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
KNOWN = facts("headlines")


@pytest.fixture(scope="module")
def found():
    return judge.read(RESULTS / "findings.csv")


def test_pages_are_made_without_torch():
    code = "import gcond.study.judge, gcond.study.pages, gcond.study.plots, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


SENTENCES = {name: KNOWN["sentences_of"] | where for name, where in KNOWN["sentences"].items()}
for table in (KNOWN["table"], KNOWN["opposed"], KNOWN["half"]):
    SENTENCES |= {f"{row} {column}": table["where"] | KNOWN["columns"][column] | KNOWN["rows"][row] | {"lies": lies}
                  for row, cells in table["lies"].items() for column, lies in cells.items()}  # fmt: skip


def lies(low: float, high: float, where: str) -> bool:
    """ "< 0", "> 0", "in -5, 0", "around 0", "around 0 within 2": the interval."""
    if where.startswith("around 0"):
        bound = float(where.removeprefix("around 0").removeprefix(" within") or math.inf)
        return -bound < low < 0 < high < bound
    if where.startswith("in"):
        lowest, highest = map(float, where.removeprefix("in").split(","))
        return lowest < low and high < highest
    return high < float(where[1:]) if where[0] == "<" else low > float(where[1:])


@pytest.mark.parametrize("name", SENTENCES)
def test_what_a_sentence_of_the_first_page_says_is_so(name, found):
    finding = pages.finding(SENTENCES[name], found)
    assert finding["n"] >= 3
    assert lies(finding["low"], finding["high"], SENTENCES[name]["lies"]), dict(finding)


@pytest.mark.parametrize("name", KNOWN["sentences_about_several"])
def test_what_a_sentence_says_of_several_findings_is_so_of_each(name, found):
    where = KNOWN["sentences_of"] | KNOWN["sentences_about_several"][name]
    several = pages.findings(where, found)
    assert len(several) > 1
    assert several.n.min() >= 3
    for one in several.itertuples():
        assert lies(one.low, one.high, where["lies"]), one


PAGES = ["README.md", "claims.md", "history.md", "../docs/findings.md", "../docs/details.md"]


@pytest.mark.parametrize("page", [*PAGES, *(f"{scale}/claims.md" for scale in ("mini", "sample", "sample_gpu"))])
def test_the_files_that_a_page_points_to_exist(page):
    text = (RESULTS / page).read_text(encoding="utf-8")
    for target, place in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        linked = ((RESULTS / page).parent / target).resolve() if target else RESULTS / page
        assert linked.exists(), target
        headings = re.findall(r"^## (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE) if place else []
        assert not place or place in [each.lower().replace(" ", "-") for each in headings], (target, place)


def test_the_committed_pages_are_those_of_the_committed_findings(tmp_path, monkeypatch):
    scales = ("mini", "sample", "sample_gpu")
    for scale in scales:
        (tmp_path / scale).symlink_to(RESULTS / scale)
    monkeypatch.setattr(judge, "write", lambda results: RESULTS / "findings.csv")
    monkeypatch.setattr(pages, "RECORDED", tmp_path)
    written: dict[str, str] = {}
    monkeypatch.setattr(pages, "write_text", lambda path, text: written.update({str(path.relative_to(tmp_path)): text}))
    pages.make("claims", tmp_path)
    assert len(written) == 3 + 4 * 3
    for name, text in written.items():
        assert (RESULTS / name).read_text(encoding="utf-8") == text, name


def test_a_finding_stands_in_its_cell_of_its_claims_table(found):
    comparisons, levels = pages.finding_tables(found[(found.claim == "C1") & (found.scale == "sample")])
    one = pages.finding(SENTENCES["contradicting_sum"], found)
    row = next(row for row in comparisons if row[1] == "GCond stochastic - Baseline")
    shown = row[comparisons[0].index("weighted sum, validation")]
    assert shown == f"**{one['effect']:+.1f} [{one['low']:+.1f}, {one['high']:+.1f}]**"
    assert all(len(row) == len(levels[0]) for row in levels)


def test_what_was_measured_at_another_rate_alone_stands_on_the_page_beside_levels_at_the_papers(found):
    (levels,) = pages.finding_tables(found[(found.claim == "D4") & (found.scale == "sample")])
    at = levels[0].index("lr")
    rates = {(row[0], row[1].partition(",")[0]): row[at] for row in levels[1:]}
    assert rates == {("CT", "in training"): "paper", ("photographs", "in training"): "paper",
                     ("CT", "initial weights"): "own", ("CT", "last weights"): "own"}  # fmt: skip


def test_the_first_table_holds_the_findings_and_stands_on_three_pages(found):
    seeds, rows = pages.first_table(found)
    columns = KNOWN["table"]["columns"]
    one = pages.finding(KNOWN["table"]["where"] | KNOWN["rows"]["sequential"] | KNOWN["columns"]["test"], found)
    assert seeds["ct"] == one["n"] >= 3
    assert rows[1][1 + columns.index("test")] == "*-21.4*"  # the paper's
    assert rows[2][0] == "GCond sequential"
    assert f"{one['effect']:+.1f} [{one['low']:+.1f}, {one['high']:+.1f}]" in rows[2][1 + columns.index("test")]
    for page in ("README.md", "results/README.md", "docs/findings.md"):
        assert pages.grid(rows) in (ROOT / page).read_text()


def test_a_reader_computes_the_number_of_docs_findings(monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "findings.md").read_text(), re.DOTALL)
    (number,) = re.findall(r"\nprints (\S+),", (ROOT / "docs" / "findings.md").read_text())
    monkeypatch.chdir(ROOT)
    exec(code, {})
    assert capsys.readouterr().out == f"{number}\n"


def test_a_users_results_have_no_such_page(tmp_path):
    assert pages.make("readme", tmp_path) == []


def test_a_sentence_that_two_findings_fit_is_refused(found):
    with pytest.raises(ValueError, match="expected one finding"):
        pages.finding(SENTENCES["cosine"], pd.concat([found, found]))


def test_the_terminal_shows_findings_and_says_what_is_missing():
    text, complete = pages.text(SimpleNamespace(name="o6", claims=("O6",)), RESULTS, scale="sample_gpu", lr=None)
    assert complete
    assert re.search(r"GCond stochastic +3 +32\.6 \[31\.3, 33\.9\]", text)
    text, complete = pages.text(SimpleNamespace(name="o3", claims=("O6", "I1")), RESULTS, scale="sample_gpu")
    assert not complete
    assert text.endswith("not run")
    assert pages.text(SimpleNamespace(name="figure1", claims=()), RESULTS) == ("", True)


def test_the_terminal_shows_a_users_own_table2_and_below_it_what_this_project_recorded(tmp_path):
    with pytest.raises(ValueError, match="nothing to report"):
        pages.make("table2", tmp_path)
    (tmp_path / "sample_gpu").symlink_to(RESULTS / "sample_gpu")
    text, complete = pages.text(SimpleNamespace(name="table2"), tmp_path, scale="sample_gpu", lr=2e-4)
    assert complete
    assert [line.count(pages.BESIDE) for line in text.splitlines() if line.startswith("CT")] == [0, 1]
    own, beside = text.split(pages.BESIDE)
    for text in (own, beside):
        assert re.search(r"^GCond stochastic +0\.\d{4} ± ", text, re.MULTILINE)


def test_an_unknown_page_is_refused():
    with pytest.raises(ValueError, match="name"):
        pages.make("tabel2", RESULTS)


EXPERIMENTS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
COUNTS = {name: int(said[1]) for name, text in EXPERIMENTS.items() if (said := re.search(r"= (\d+) runs", text))}


def test_a_sweep_has_as_many_runs_as_its_file_says():
    assert len(COUNTS) > 15
    assert {name: experiments.sweep_size([f"experiment={name}"]) for name in COUNTS} == COUNTS
    narrowed = ["experiment=o8_weights", "seed=1", "loss.tasks={l1:1,ssim:2},{l1:2,ssim:1}"]
    assert experiments.sweep_size(narrowed) == 2 * 2 * 3


def test_every_block_of_the_queue_belongs_to_an_artefact():
    blocks = {block["name"] for block in facts("queue")["blocks"]}
    counted = {block for artefact in Catalogue().artefacts.values() for block in experiments.blocks_of(artefact)}
    assert blocks == counted


def test_runs_of_the_queue_are_counted_once(monkeypatch):
    runs = pd.DataFrame({"block": ["table2-ct", "table2-ct", "table2-ct-tuned", "table2-photos", "rates-ct"],
                         "strategy": ["baseline", "pcgrad", "baseline", "baseline", "baseline"],
                         "dataset": ["headneck"] * 3 + ["imagenet84", "headneck"], "hash": list("abacd"),
                         "made": [True, False, True, False, True]})  # fmt: skip
    table2, figure7, figure12 = (Catalogue().artefacts[name] for name in ("table2", "figure7", "figure12"))
    assert experiments._counted(table2, runs, RESULTS) == "1 of 3"
    assert experiments._counted(figure7, runs, RESULTS) == "1 of 2"  # not PCGrad
    assert experiments._counted(figure12, runs, RESULTS) == ""


def test_recorded_runs_are_counted_and_those_whose_rate_is_open_are_left():
    runs = experiments.queue_runs(RESULTS / "study")
    recorded = tables.finished(RESULTS / "study")
    assert runs[runs.made].hash.nunique() == len(recorded.drop_duplicates(AS_RECORDED))
    assert not runs[runs.waiting].made.any()


def test_the_page_of_experiments_lists_every_artefact_with_its_runs(monkeypatch):
    written: list[str] = []
    monkeypatch.setattr(pages, "write_text", lambda path, text: written.append(text))
    pages.make("experiments", RESULTS)

    def runs(text: str) -> list[list[str]]:
        return [[cell.strip() for cell in line.split("|")[1:8]] for line in text.splitlines() if line.startswith("|")]

    assert len(runs(written[0])) > 30
    assert runs((ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")) == runs(written[0])

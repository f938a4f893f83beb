"""The README and the docs show code that runs, numbers that the records give, and files that exist."""

import json
import re
import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("README.md", r"smallest cosine -?[01]\.\d\d"),
        ("docs/conductor.md", r"4 losses of age, 2 of pose(.|\n)*\d of 3 steps left out"),
    ],
)
def test_the_python_blocks_run(page, printed, capsys):
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, page, "exec"), {})
    assert re.search(printed, capsys.readouterr().out)


def assert_printed_as_shown(page, printed):
    """Words as the page's blocks of text, numbers nearly: another processor may round the last digit otherwise."""
    blocks = re.findall(r"```text\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    number = r"[+-]?\d+(?:\.\d+)?"
    shown = "".join(blocks)
    assert re.sub(rf" *{number}", "#", printed).split() == re.sub(rf" *{number}", "#", shown).split()
    found, expected = (re.findall(number, text) for text in (printed, shown))
    near = 0.1 if "tutorial" in page else 0.02
    for one, other in zip(found, expected, strict=True):
        assert float(one) == pytest.approx(float(other), rel=0.02, abs=near if "." in other else 2), (one, other)


@pytest.mark.parametrize("page", ["docs/profiler.md", "docs/tutorial.md", "docs/how.md"])
def test_the_page_shows_what_its_code_prints(page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    with torch.random.fork_rng(devices=[]):
        for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL):
            exec(compile(block, page, "exec"), names)
    assert_printed_as_shown(page, capsys.readouterr().out)
    if "profile.html" in (ROOT / page).read_text(encoding="utf-8"):
        assert (tmp_path / "profile.html").stat().st_size > 5000


def test_the_notebook_is_the_tutorial():
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    render = runpy.run_path(str(ROOT / "tools" / "notebook.py"))["rendered"]
    assert (ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8") == render(page), "run tools/notebook.py"
    cells = json.loads(render(page))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) == page.count("```python")
    assert all(cell["outputs"] for cell in code)


def test_what_the_table_of_choices_names_exists_and_nothing_is_left_out():
    running = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"## What can be combined\n(.*?)\n## ", running, re.DOTALL)
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|") and "---" not in line]
    groups = [re.findall(r"`(\w+)=`", cell)[0] for cell in rows[0]]
    for column, group in enumerate(groups):
        named = {name for row in rows[1:] for name in re.findall(r"`(\w+)`", row[column])}
        assert named == {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}, group


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_it_points_to_exists(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "mailto")):
            assert (page.parent / target).exists(), target

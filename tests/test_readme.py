"""The README and the docs show code that runs, numbers that the records give, and files that exist."""

import re
from pathlib import Path

import pytest

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


def test_the_profiler_prints_what_its_page_shows(capsys, tmp_path, monkeypatch):
    """Words as they are, numbers nearly: another processor may round the last digit otherwise."""
    monkeypatch.chdir(tmp_path)
    (code,), (shown,) = (
        re.findall(rf"```{kind}\n(.*?)```", (ROOT / "docs/profiler.md").read_text(encoding="utf-8"), re.DOTALL)
        for kind in ("python", "text")
    )
    exec(compile(code, "docs/profiler.md", "exec"), {})
    assert (tmp_path / "profile.html").stat().st_size > 5000
    number = r"[+-]?\d+(?:\.\d+)?"
    printed = capsys.readouterr().out
    assert re.sub(rf" *{number}", "#", printed).split() == re.sub(rf" *{number}", "#", shown).split()
    found, expected = ([float(each) for each in re.findall(number, text)] for text in (printed, shown))
    assert found == pytest.approx(expected, rel=0.02, abs=2)
    assert found[:30] == pytest.approx(expected[:30], abs=0.02)


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

"""The README shows code that runs and numbers that stand in the committed table."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_blocks_run(capsys):
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"smallest cosine -?[01]\.\d\d", printed)
    assert re.search(r"\d of 3 steps left out", printed)


def test_the_result_is_part_of_the_committed_table():
    (shown,) = re.findall(r"<!-- from results/mini/tables/table2\.md -->\n\n(.*?)\n<!-- end -->", README, re.DOTALL)
    table = (ROOT / "results/mini/tables/table2.md").read_text(encoding="utf-8")
    assert shown.count("|") > 50
    assert shown in table


def test_what_the_table_of_choices_names_exists_and_nothing_is_left_out():
    (section,) = re.findall(r"## What can be combined\n(.*?)\n## ", README, re.DOTALL)
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|") and "---" not in line]
    groups = [re.findall(r"`(\w+)=`", cell)[0] for cell in rows[0]]
    for column, group in enumerate(groups):
        named = {name for row in rows[1:] for name in re.findall(r"`(\w+)`", row[column])}
        assert named == {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}, group


def test_every_file_it_points_to_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target

"""The README and the docs show code that runs, numbers that the records give, and files that exist."""

import re
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)


@pytest.mark.parametrize(("page", "printed"), [("README.md", r"smallest cosine -?[01]\.\d\d"),
                                               ("docs/conductor.md", r"\d of 3 steps left out")])  # fmt: skip
def test_the_python_blocks_run(page, printed, capsys):
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, page, "exec"), {})
    assert re.search(printed, capsys.readouterr().out)


LR, EVAL = "optimizer.lr=0.0002", "optimizer.lr=0.0002,strategy.model_mode=eval"
BASELINE, MOMENTUM = ("baseline", LR), ("baseline_integrated", LR)
ROWS = {  # as the README's table calls them: (ours, theirs)
    "GCond sequential": (("gcond_sequential", LR), BASELINE),
    "its momentum alone, nothing resolved": (MOMENTUM, BASELINE),
    "the difference of these two: resolving": (("gcond_sequential", LR), MOMENTUM),
    "weighted sum, learning rate 1e-3": (("baseline", ""), BASELINE),
    "GCond stochastic as published, BatchNorm frozen": (("gcond_stochastic", EVAL), BASELINE),
}
COLUMNS = ("train_l1_tail", "best_val_l1", "best_val_ssim", "best_test_l1")


def test_the_finding_is_what_the_recorded_runs_give():
    """Percent of Baseline's mean, t-interval over six seeds, by pandas and SciPy alone."""
    runs = pd.read_csv(ROOT / "results" / "sample" / "runs.csv", keep_default_na=False)
    runs = runs[(runs.dataset == "ct") & (runs.status == "done") & (runs.seed != "")]
    arms = {arm: own.set_index("seed") for arm, own in runs.groupby(["strategy", "variant"])}
    (shown,) = re.findall(r"<!-- sample, CT.*?-->\n\n(.*?)\n<!-- end -->", README, re.DOTALL)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines()]
    table = {row[0]: row[1:] for row in cells}
    for title, (ours, theirs) in ROWS.items():
        for column, cell in zip(COLUMNS, table[title], strict=True):
            values = [arms[arm][column].astype(float) for arm in (ours, theirs, BASELINE)]
            effect = 100 * (values[0] - values[1]).dropna() / values[2].mean()
            low, high = stats.ttest_1samp(effect, 0).confidence_interval()
            text = f"{effect.mean():+.1f} [{low:+.1f}, {high:+.1f}]"
            assert len(effect) == 6
            assert cell == (f"**{text}**" if low > 0 or high < 0 else text), (title, column)


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

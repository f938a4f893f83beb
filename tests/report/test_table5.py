"""Table 5: composed settings beside the paper's, and that a departure shows."""

import csv
from pathlib import Path

import pytest
import script_files

from gcond.report import paper_settings
from gcond.report.__main__ import main

ROOT = Path(__file__).parents[2]

# Typed from Table 5 of arXiv 2509.07252, one column after the other: rate, decay, betas, raw, stochastic, momentum.
TYPED = {
    "baseline": (2e-4, 0.05, "0.9/0.95", "-", "-", "-"),
    "pcgrad": (2e-4, 0.05, "0.9/0.95", "-", "-", "-"),
    "cagrad": (2e-4, 0.05, "0.9/0.95", "-", "-", "-"),
    "gradnorm": (2e-4, 0.05, "0.9/0.95", "-", "-", "-"),
    "gcond_pure": (2e-4, 0.05, "0.9/0.95", "true", "true", "0"),
    "gcond_stochastic": (2e-4, 0.05, "0/0.95", "false", "true", "0.9"),
    "gcond_sequential": (2e-4, 0.05, "0/0.95", "false", "false", "0.9"),
    "gcond_lion": (1e-5, 0, "-", "false", "true", "0.9"),
}
GCOND = {"remap_power": 2, "projection_max_iters": 3, "dominance_window": 0, "norm_ema_beta": 0.95}


def compose(folder, *overrides):
    script_files.load("paper_settings").main(["--out", str(folder / "paper_settings"), *overrides])


def rows(folder):
    with (folder / "paper_settings" / "table5.csv").open(newline="") as file:
        return {(row["setting"], row["strategy"]): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    compose(folder)
    return folder


@pytest.fixture
def table(results):
    assert main(["table5", "--results", str(results)]) == 0
    return rows(results)


def test_the_papers_data_is_the_papers():
    for strategy, (rate, decay, *texts) in TYPED.items():
        names = ("betas", "return_raw_grad", "stochastic", "momentum_beta")
        assert [paper_settings.value(name, strategy) for name in names] == texts
        assert float(paper_settings.value("lr", strategy)) == rate
        assert float(paper_settings.value("weight_decay", strategy)) == decay
        for name, number in GCOND.items():
            found = paper_settings.value(name, strategy)
            assert found == "-" if "gcond" not in strategy else float(found) == number
    assert set(TYPED) == set(paper_settings.STRATEGIES)
    assert paper_settings.value("gradnorm_alpha", "gradnorm") == "1.5"
    assert paper_settings.value("thresholds", "gcond_lion") == "-0.8/-0.5/0"


def test_the_only_difference_is_the_known_one(table):
    different = {key for key, row in table.items() if row["differs"] == "true"}
    assert different == {("outer_lr", "gcond_lion")}
    assert different <= set(paper_settings.REASONS)
    assert len(table) == len(paper_settings.TITLES) * len(TYPED)


@pytest.mark.parametrize(
    ("override", "setting", "strategies", "shown"),
    [
        ("optimizer.lr=1e-3", "lr", set(TYPED), "**0.001** (paper: 0.0002)"),
        ("loss.tasks.l1=0.5", "lambda_l1", set(TYPED) - {"gradnorm"}, "**0.5** (paper: 0.85)"),
        ("scale.accumulation_steps=8", "accumulation_steps", set(TYPED), "**8**"),
    ],
)
def test_an_override_is_marked_as_a_difference(tmp_path, override, setting, strategies, shown):
    compose(tmp_path, override)
    assert main(["table5", "--results", str(tmp_path)]) == 0
    found = {
        strategy for (name, strategy), row in rows(tmp_path).items() if name == setting and row["differs"] == "true"
    }
    assert found == strategies
    page = (tmp_path / "paper_settings" / "table5.md").read_text()
    assert shown in page
    assert "not explained" in page


def test_a_strategy_that_is_not_composed_is_named(tmp_path, capsys):
    compose(tmp_path, "strategy=gcond_pure,gcond_lion")
    assert main(["table5", "--results", str(tmp_path)]) == 2
    assert "of baseline" in capsys.readouterr().err


def test_the_committed_page_is_the_composed_one(results, table):
    for name in ("composed.csv", "table5.md", "table5.csv"):
        found = (results / "paper_settings" / name).read_text()
        assert found == (ROOT / "results" / "paper_settings" / name).read_text(), f"make {name} again"


def test_without_a_composition_the_command_is_named(tmp_path, capsys):
    assert main(["table5", "--results", str(tmp_path)]) == 2
    assert "`make reproduce-table5` makes it" in capsys.readouterr().err

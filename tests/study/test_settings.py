"""Table 5: composed settings beside the paper's, and that a departure shows."""

from pathlib import Path

import pytest

from gcond.study import pages, settings
from gcond.study.methods import facts

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


@pytest.fixture(scope="module")
def composed():
    return settings.compose([])


def differences(composed):
    pairs = composed.assign(paper=[pages.paper_setting(*row) for row in composed[["setting", "strategy"]].to_numpy()])
    return {(row.setting, row.strategy) for row in pairs.itertuples() if not pages.same(row.value, row.paper)}


def test_the_papers_data_is_the_papers():
    value = pages.paper_setting
    for strategy, (rate, decay, *texts) in TYPED.items():
        names = ("betas", "return_raw_grad", "stochastic", "momentum_beta")
        assert [value(name, strategy) for name in names] == texts
        assert float(value("lr", strategy)) == rate
        assert float(value("weight_decay", strategy)) == decay
        for name, number in GCOND.items():
            found = value(name, strategy)
            assert found == "-" if "gcond" not in strategy else float(found) == number
    assert set(TYPED) == set(facts("paper")["table5"]["methods"])
    assert value("gradnorm_alpha", "gradnorm") == "1.5"
    assert value("thresholds", "gcond_lion") == "-0.8/-0.5/0"


def test_the_differences_are_the_known_ones(composed):
    assert len(composed) == len(facts("paper")["table5"]["titles"]) * len(TYPED)
    everywhere = {(setting, name) for setting in ("ct_statistics", "workers", "precision") for name in TYPED}
    assert differences(composed) == everywhere | {("outer_lr", "gcond_lion")}
    assert {setting for setting, _ in differences(composed)} <= set(facts("paper")["table5"]["why"])


def test_an_override_is_a_difference():
    changed = differences(settings.compose(["optimizer.lr=1e-3", "loss.tasks.l1=0.5", "scale.accumulation_steps=8"]))
    assert {("lr", name) for name in TYPED} <= changed
    assert {name for setting, name in changed if setting == "lambda_l1"} == set(TYPED) - {"gradnorm"}
    assert {("effective_batch", name) for name in TYPED} <= changed


def test_a_strategy_that_is_not_composed_is_named(tmp_path, composed):
    (tmp_path / "table5").mkdir()
    some = composed[composed.strategy != "baseline"]
    some.to_csv(tmp_path / "table5" / "composed.csv", index=False)
    with pytest.raises(ValueError, match="baseline"):
        pages.make("table5", tmp_path)


def test_the_committed_page_is_the_composed_one(tmp_path, composed):
    settings.write(tmp_path / "table5")
    pages.make("table5", tmp_path)
    for name in ("composed.csv", "table5.md"):
        found = (tmp_path / "table5" / name).read_text()
        assert found == (ROOT / "results" / "table5" / name).read_text(), f"make {name} again"

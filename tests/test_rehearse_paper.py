"""tools/rehearse_paper.py: what it counts as one case, and that it finds what does not start."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine.runs import config
from script_files import load

script = load("tools/rehearse_paper")
SMALL = ("scale=paper", "model=mobilenetv3_small_050", "scale.image_size=64", "scale.patch_size=16")
SMALL += ("scale.accumulation_steps=2", "scale.micro_batch=4", "dataset=ct")


@pytest.mark.slow
def test_runs_that_differ_in_numbers_alone_are_one_case() -> None:
    """Of O8 eight pairs of weights, at one seed, rate and data set; the mode of the model is another matter."""
    cases = script.distinct(["o8_weights"])
    ((cfg, runs),) = cases.values()
    assert runs == ["o8_weights"] * 8
    assert (cfg.scale.name, cfg.scale.micro_batch, cfg.dataset.name) == ("paper", 256, "imagenet256")
    changes = ([], ["strategy.model_mode=eval"], ["loss=l1"], ["scale.accumulation_steps=8"], ["model=convnext_tiny"])
    names = {script.name_of(config(*SMALL, "strategy=baseline", *change)) for change in changes}
    assert len(names) == len(changes)
    assert script.name_of(config(*SMALL, "seed=1", "optimizer.lr=0.5")) == script.name_of(config(*SMALL, "seed=2"))


@pytest.mark.slow
def test_what_does_not_start_is_named_and_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = (config(*SMALL, f"strategy={name}") for name in ("gcond_sequential", "baseline"))
    bad.model.depth = "two"
    cases = {"good": (good, ["table2"] * 3), "bad": (bad, ["o1"])}
    out = tmp_path / "rehearsal.csv"
    table = script.rehearse(cases, 2, True, out).set_index("case")
    assert table.error["good"] == ""
    assert table.planned_gb["good"] > 0
    assert table.seconds["good"] > 0
    assert table.runs["good"] == 3
    assert table.error["bad"] != ""
    monkeypatch.setattr(script, "first_step", None)  # would be called
    assert len(script.rehearse({"good": cases["good"]}, 2, True, out)) == 1


def test_settings_that_are_refused_are_named_with_their_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = config(*SMALL, "strategy=baseline", "scale.micro_batch=0")
    monkeypatch.setattr(script, "runs_of", lambda experiment: iter([broken]))
    with pytest.raises(
        ValueError, match=r"o1, baseline on ct: `scale\.micro_batch`: expected greater than or equal to 1, found 0"
    ):
        script.distinct(["o1"])

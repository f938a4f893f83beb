import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine import tiny
from engine.runs import tiny_config

from gcond.engine import baselines as module
from gcond.engine.baselines import trivial_scores
from gcond.engine.evaluate import EvaluationSet
from gcond.loss import ReconstructionLoss


def test_scores_are_computed_once_per_data_set_and_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny_config(tmp_path)
    data = tiny.load(64)
    sets = {split: EvaluationSet.of(data, split, None, 16, 0.75) for split in ("val", "test")}
    loss = ReconstructionLoss(16, data.intensity)
    scores = trivial_scores(cfg, data, sets, loss)

    # By hand: the mean of the data set is 0 in z-space, so its L1 is the mean absolute value of the hidden pixels.
    rows = [
        data.intensity.normalise(data.val[index])[:, 16 * (patch // 4) :, 16 * (patch % 4) :][:, :16, :16]
        for index in range(6)
        for patch in sets["val"].hidden[index].tolist()
    ]
    assert scores["dataset_mean"]["val_l1"] == pytest.approx(float(torch.stack(rows).abs().mean()), rel=1e-6)
    assert sorted(scores["visible_mean"]) == ["test_l1", "test_ssim", "val_l1", "val_ssim"]

    (kept,) = (tmp_path / "smoke").glob("trivial-*.json")
    whole = kept.read_bytes()
    lacking = {name: {task: value for task, value in own.items() if task != "test_l1"} for name, own in scores.items()}
    for damage in (b"", whole[:100], whole.replace(b"0.", b"x.", 1), b"\xff" + whole, b"[1]", b'{"a": 1}', b"{}",
                   whole.replace(b": 0.", b': Infinity, "x": 0.', 1), json.dumps(lacking).encode()):  # fmt: skip
        kept.write_bytes(damage)
        assert trivial_scores(cfg, data, sets, loss) == scores, damage
        assert kept.read_bytes() == whole

    monkeypatch.setattr(module, "score_trivial", lambda *_, **__: {"computed": {"l1": 1.0}})
    assert trivial_scores(tiny_config(tmp_path, "strategy=baseline", "seed=1"), data, sets, loss) == scores
    changed = replace(data, facts=data.facts | {"checksum": "other"})
    assert trivial_scores(cfg, changed, sets, loss) == {"computed": {"val_l1": 1.0, "test_l1": 1.0}}
    thinner = tiny_config(tmp_path, "scale.eval_images=2")
    assert trivial_scores(thinner, data, sets, loss) == {"computed": {"val_l1": 1.0, "test_l1": 1.0}}

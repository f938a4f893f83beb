"""The four trivial predictors against loops in NumPy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engine import tiny
from engine.runs import tiny_config
from torch import Tensor

import gcond.engine.baselines
from gcond.data.intensity import Intensity
from gcond.engine import baselines as module
from gcond.engine.baselines import baseline_scores, score_constants
from gcond.engine.evaluate import EvaluationSet
from gcond.loss import ReconstructionLoss
from gcond.model.masking import fixed_hidden

CT = Intensity.of_hu_window(-800, 2000, mean=0.3, std=0.2)
PHOTOS = Intensity.of_photographs()


class Images:
    """A split in memory that counts what is read."""

    def __init__(self, raw: Tensor):
        self.raw = raw
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: int) -> Tensor:
        self.read.append(index)
        return self.raw[index]


def images(count: int, intensity: Intensity, seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, intensity.channels, 32, 32)
    if intensity is PHOTOS:
        levels = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
        return Images(levels // torch.tensor([1, 2, 4], dtype=torch.uint8).view(3, 1, 1))  # channels differ
    return Images(torch.randint(0, 4096, shape, generator=generator).to(torch.int16))


@pytest.mark.parametrize("intensity", [CT, PHOTOS], ids=["ct", "photos"])
def test_scores_are_those_of_the_four_predictors(intensity: Intensity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcond.engine.baselines, "BATCH", 2)  # 5 images: batches of 2, 2 and 1
    train, evaluate = images(7, intensity, seed=1), images(5, intensity, seed=2)
    hidden = fixed_hidden(range(5), 4, 0.5, seed=0)
    loss = ReconstructionLoss(16, intensity)
    scores = score_constants(train, evaluate, hidden, loss, intensity)

    z_train, z = (intensity.normalise(split.raw).double().numpy() for split in (train, evaluate))
    channels = z.shape[1]
    predicted = {name: np.zeros_like(z) for name in ("dataset_mean", "global_median", "pixel_median", "visible_mean")}
    for c in range(channels):
        ordered = np.sort(z_train[:, c], axis=None)
        predicted["global_median"][:, c] = ordered[(ordered.size - 1) // 2]
        predicted["pixel_median"][:, c] = np.median(z_train[:, c], axis=0)
    for i, row in enumerate(hidden.tolist()):
        corners = [(16 * (n // 2), 16 * (n % 2)) for n in range(4) if n not in row]
        for c in range(channels):
            predicted["visible_mean"][i, c] = np.mean([z[i, c, y : y + 16, x : x + 16] for y, x in corners])

    assert list(scores) == list(predicted)
    for name, whole in predicted.items():
        values = []
        for i, row in enumerate(hidden.tolist()):
            patches = [whole[i, :, 16 * (n // 2) :, 16 * (n % 2) :][:, :16, :16] for n in row]
            target = torch.from_numpy(z[i : i + 1])
            values.append(loss(torch.from_numpy(np.stack(patches))[None], target, hidden[i : i + 1], ("l1", "ssim")))
        for task in ("l1", "ssim"):
            expected = np.mean([value[task].item() for value in values])
            assert scores[name][task] == pytest.approx(expected, abs=1e-5), (name, task)


def test_large_training_sets_are_sampled_evenly() -> None:
    train, evaluate = images(10, CT, seed=1), images(2, CT, seed=2)
    hidden = fixed_hidden(range(2), 4, 0.5, seed=0)
    score_constants(train, evaluate, hidden, ReconstructionLoss(16, CT), CT, max_train_images=4)
    assert train.read == [0, 2, 5, 7]
    assert evaluate.read == [0, 1]


def test_sizes_that_do_not_fit_are_refused() -> None:
    train, evaluate, loss = images(3, CT, seed=1), images(2, CT, seed=2), ReconstructionLoss(16, CT)
    with pytest.raises(ValueError, match="`hidden` must have one row per image, found 3 rows and 2 images"):
        score_constants(train, evaluate, fixed_hidden(range(3), 4, 0.5, seed=0), loss, CT)
    with pytest.raises(ValueError, match="found 0 images"):
        score_constants(Images(train.raw[:0]), evaluate, fixed_hidden(range(2), 4, 0.5, seed=0), loss, CT)


def test_scores_are_computed_once_per_data_set_and_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny_config(tmp_path)
    data = tiny.load(64)
    sets = {split: EvaluationSet.of(data, split, None, 16, 0.75) for split in ("val", "test")}
    loss = ReconstructionLoss(16, data.intensity)
    scores = baseline_scores(cfg, data, sets, loss)

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
        assert baseline_scores(cfg, data, sets, loss) == scores, damage
        assert kept.read_bytes() == whole

    monkeypatch.setattr(module, "score_constants", lambda *_, **__: {"computed": {"l1": 1.0}})
    assert baseline_scores(tiny_config(tmp_path, "strategy=baseline", "seed=1"), data, sets, loss) == scores
    changed = replace(data, facts=data.facts | {"checksum": "other"})
    assert baseline_scores(cfg, changed, sets, loss) == {"computed": {"val_l1": 1.0, "test_l1": 1.0}}
    thinner = tiny_config(tmp_path, "scale.eval_images=2")
    assert baseline_scores(thinner, data, sets, loss) == {"computed": {"val_l1": 1.0, "test_l1": 1.0}}

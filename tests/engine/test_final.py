"""The scores that a run is judged by: best and last epoch, all images, by patient."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from engine import tiny
from torch import Tensor, nn

from gcond.engine.evaluate import Best, EvaluationSet, Scores, final_records

DATA = replace(
    tiny.load(64, val=7),
    groups={"train": ["t"] * 12, "val": list("aabbbac"), "test": list("ddeeff")},
    body_above=127,
)
SETS = {split: EvaluationSet.of(DATA, split, None, 16, 0.75) for split in ("val", "test")}


class Level(nn.Module):
    """One number."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(1))
        self.norm = nn.BatchNorm1d(1)


def at(model: Level, level: float) -> Level:
    model.level.data.fill_(level)
    model.norm.running_mean.fill_(level)  # type: ignore[union-attr]
    return model


def best_of(losses: list[float]) -> Best:
    model = Level()
    best = Best(model, {"l1": 0.5, "ssim": 2.0})
    for epoch, loss in enumerate(losses, start=1):
        at(model, epoch)
        best.consider(epoch, 10 * epoch, {"val_l1": 0.0, "val_ssim": loss})
    return best


@pytest.mark.parametrize(
    ("losses", "epoch"),
    [([3, 2, 4], 2), ([2, 2, 2], 1), ([math.nan, 5, 4], 3), ([math.nan, math.nan], 1), ([1, math.nan], 1)],
)
def test_the_best_epoch_is_the_first_with_the_smallest_weighted_loss(losses: list[float], epoch: int) -> None:
    best = best_of(losses)
    assert (best.epoch, best.step) == (epoch, 10 * epoch)
    model = best._model
    with best.in_the_model():
        assert model.level.item() == model.norm.running_mean.item() == epoch
    assert model.level.item() == model.norm.running_mean.item() == len(losses)


def test_another_task_than_the_weighted_ones_does_not_choose() -> None:
    best = Best(Level(), {"l1": 1.0})
    best.consider(1, 1, {"val_l1": 1.0, "val_ssim": 0.0})
    best.consider(2, 2, {"val_l1": 0.5, "val_ssim": 9.0})
    assert best.epoch == 2


def test_all_images_are_scored_at_the_best_and_at_the_last_epoch_and_each_group_by_itself() -> None:
    best = best_of([1, 2])
    measured: list[float] = []

    def measure(images: EvaluationSet) -> Scores:
        """The level, and more for each image than for the one before."""
        measured.append(best._model.level.item())
        count = len(images.images)
        return {"l1": best._model.level.item() + torch.arange(count, dtype=torch.float64)}

    records = list(final_records(best, 2, 20, SETS, measure))
    assert measured == [2, 2, 1, 1]
    assert [(record["kind"], record["at"], record.get("split")) for record in records] == [
        ("final", "best", None),
        ("groups", "best", "val"),
        ("groups", "best", "test"),
        ("final", "last", None),
        ("groups", "last", "val"),
        ("groups", "last", "test"),
    ]
    first, last = records[0], records[3]
    assert (first["epoch"], first["step"], last["epoch"], last["step"]) == (1, 10, 2, 20)
    assert (first["val_l1"], last["val_l1"]) == (1 + 3, 2 + 3)  # mean of 0 … 6 is 3
    assert (first["val_images"], first["test_images"]) == (7, 6)
    assert records[1]["groups"] == {
        "a": {"images": 3, "l1": 1 + (0 + 1 + 5) / 3},
        "b": {"images": 3, "l1": 1 + (2 + 3 + 4) / 3},
        "c": {"images": 1, "l1": 1 + 6},
    }
    assert best._model.level.item() == 2


def test_nothing_is_measured_twice_where_the_last_epoch_is_the_best() -> None:
    best = best_of([2, 1])
    calls: list[EvaluationSet] = []

    def measure(images: EvaluationSet) -> Scores:
        calls.append(images)
        return {"l1": torch.zeros(len(images.images), dtype=torch.float64)}

    assert len(list(final_records(best, 2, 20, SETS, measure))) == 6
    assert calls == list(SETS.values())


def test_a_thinned_set_keeps_masks_and_groups() -> None:
    whole, thin = SETS["val"], SETS["val"].thinned(3)
    assert thin.groups == ["a", "b", "c"]
    assert torch.equal(thin.hidden, whole.hidden[[0, 3, 6]])
    assert torch.equal(image(thin, 1), image(whole, 3))
    assert thin.body_above == 127
    assert len(whole.thinned(None).images) == len(whole.thinned(100).images) == 7


def image(data: EvaluationSet, place: int) -> Tensor:
    return data.images[place]

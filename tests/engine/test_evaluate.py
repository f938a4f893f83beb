from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine import tiny
from strategy.far_device import CudaDevice, FarDevice
from torch import Tensor, nn

from gcond.engine import evaluate as module
from gcond.engine.distributed import World
from gcond.engine.evaluate import MASK_SEED, EvaluationSet, evaluate, means
from gcond.loss import ReconstructionLoss
from gcond.model.masking import fixed_hidden
from gcond.model.patches import patchify, select
from gcond.strategy.processes import SingleProcess

CPU = torch.device("cpu")
DATA = tiny.load(64, val=7)
LOSS = ReconstructionLoss(16, DATA.intensity)
TASKS = ("l1", "ssim")


class Normalised(nn.Module):
    """Predicts the hidden patches from themselves, batch-normalised: every image of a batch matters in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.norm.running_mean += torch.tensor([0.1, 0.2, 0.3])

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        return select(patchify(self.norm(images), 16), hidden) * 0.5


def score(model: nn.Module, count: int | None = None) -> dict[str, float]:
    data = EvaluationSet.of(DATA, "val", count, 16, 0.75)
    return means(evaluate(model, LOSS, DATA.intensity, data, TASKS, CPU))


def score_by_hand(indices: list[int]) -> dict[str, float]:
    model = Normalised().eval()
    sums = dict.fromkeys(TASKS, 0.0)
    for index in indices:
        image, hidden = DATA.intensity.normalise(DATA.val[index][None]), fixed_hidden([index], 16, 0.75, MASK_SEED)
        with torch.no_grad():
            values = LOSS(model(image, hidden), image, hidden, TASKS)
        sums = {task: sums[task] + float(values[task]) / len(indices) for task in TASKS}
    return sums


@pytest.mark.parametrize("batch", [1, 4, 32])  # 4: batches of 4 and 3 images
def test_the_score_is_the_mean_over_images_whatever_the_batch(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", batch)
    assert score(Normalised()) == pytest.approx(score_by_hand(list(range(7))), rel=1e-6)


def test_a_thinned_set_takes_evenly_spaced_images_with_the_masks_they_have_in_the_whole() -> None:
    assert score(Normalised(), count=3) == pytest.approx(score_by_hand([0, 3, 6]), rel=1e-6)
    assert score(Normalised(), count=1) == pytest.approx(score_by_hand([0]), rel=1e-6)
    assert score(Normalised(), count=100) == score(Normalised())


@pytest.mark.parametrize("device", [FarDevice, pytest.param(CudaDevice, marks=pytest.mark.cuda)])
def test_an_evaluation_waits_for_the_device_once_at_its_end(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if device is CudaDevice and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr(module, "BATCH", 2)
    if device is FarDevice:
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no "meta"
    device, data = device(), EvaluationSet.of(DATA, "val", None, 16, 0.75)
    with device:
        model = Normalised().to(device.device)
        for _ in range(2):  # the first moves mean and standard deviation
            device.clear()
            evaluate(model, LOSS, DATA.intensity, data, TASKS, device.device)
        assert (device.counts["synchronisations"], device.counts["transfers"]) == (1, 0), device.log


def test_looking_changes_nothing() -> None:
    model = Normalised().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    score(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_parts_of_a_team_are_the_whole_each_image_with_its_own_mask() -> None:
    data = EvaluationSet.of(DATA, "val", None, 16, 0.75)
    parts = [data.part(rank, 3) for rank in range(3)]
    assert [len(part.images) for part in parts] == [3, 2, 2]  # of seven
    found = [(image.sum().item(), hidden.tolist()) for part in parts for image, hidden in pairs(part)]
    whole = [(image.sum().item(), hidden.tolist()) for image, hidden in pairs(data)]
    assert len({image for image, _ in whole}) == 7
    assert sorted(found) == sorted(whole)


def pairs(data: EvaluationSet) -> list[tuple[Tensor, Tensor]]:
    return [(data.images[place].long(), data.hidden[place]) for place in range(len(data.images))]


@pytest.mark.parametrize("size", [2, 8])  # 8: one process has no image at all
def test_a_team_s_score_is_the_mean_over_all_images(size: int) -> None:
    """Members one after the other: each adds its own sums to those of the ones before."""

    class Member(World):
        def __init__(self, rank: int) -> None:
            super().__init__(SingleProcess(), CPU)
            self.rank, self.size = rank, size

        def sum(self, tensor: Tensor) -> Tensor:
            told.append(tensor.clone())
            return torch.stack(told).sum(0)

    told: list[Tensor] = []
    data = EvaluationSet.of(DATA, "val", None, 16, 0.75)
    for rank in range(size):
        found = means(evaluate(Normalised(), LOSS, DATA.intensity, data, TASKS, CPU, team=Member(rank)))
    assert found == pytest.approx(score_by_hand(list(range(7))), rel=1e-6)


def test_the_body_of_a_ct_is_measured_by_itself() -> None:
    """Half of the levels count as body here; the loop goes over single images and pixels."""
    data = EvaluationSet.of(replace(DATA, body_above=127), "val", None, 16, 0.75)
    found = means(evaluate(Normalised(), LOSS, DATA.intensity, data, TASKS, CPU))
    model, expected = Normalised().eval(), []
    for place in range(7):
        z, hidden = DATA.intensity.normalise(DATA.val[place][None]), data.hidden[place : place + 1]
        with torch.no_grad():
            errors = (model(z, hidden) - select(patchify(z, 16), hidden)).abs()
        expected.append(float(errors[select(patchify(DATA.val[place][None], 16), hidden) > 127].mean()))
    assert found["body_l1"] == pytest.approx(sum(expected) / 7, rel=1e-6)
    assert found["body_images"] == 7
    assert found["l1"] == pytest.approx(score(Normalised())["l1"], rel=1e-12)

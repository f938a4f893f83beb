"""Losses of single images, by hand and against the loss itself."""

import math

import pytest
import torch

from gcond.data.intensity import Intensity
from gcond.engine.evaluate import by_group, means, per_image
from gcond.loss import ReconstructionLoss
from gcond.model.masking import fixed_hidden
from gcond.model.patches import patchify, select

CT = Intensity.of_hu_window(-800, 2000, mean=0.3, std=0.2)
LOSS = ReconstructionLoss(2, CT, ssim_window=1)


def test_l1_of_the_body_by_hand() -> None:
    """Patches of 2 x 2 pixels in images of 4 x 4; the patches 1 (top right) and 2 (bottom left) are hidden."""
    images = torch.zeros(3, 1, 4, 4)
    images[0, 0, 0] = torch.tensor([9.0, 9.0, 1.0, 2.0])  # the last two are hidden
    body = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    body[0, 0, 0, 3] = True  # hidden, 2
    body[0, 0, 3, 0] = True  # hidden, 0
    body[0, 0, 0, 0] = True  # visible: does not count
    body[1, 0, 3, 3] = True  # visible only: nothing to measure
    body[2, 0, 2:, :2] = True
    predictions = torch.full((3, 2, 1, 2, 2), 0.5)
    found = per_image(LOSS, predictions, images, torch.tensor([[1, 2]] * 3), ["l1"], body)
    assert found["l1"].tolist() == [(0.5 + 1.5 + 6 * 0.5) / 8, 0.5, 0.5]
    assert found["body_l1"].tolist() == [(1.5 + 0.5) / 2, 0.0, 0.5]
    assert found["body_images"].tolist() == [1, 0, 1]
    assert means(found)["body_l1"] == (1.0 + 0.5) / 2  # of the two images that have one
    assert means(found)["body_images"] == 2

    groups = by_group(found, ["b", "a", "b"])
    assert groups["b"] == {"images": 2, "l1": (0.625 + 0.5) / 2, "body_l1": 0.75, "body_images": 2}
    assert math.isnan(groups["a"]["body_l1"])
    assert (groups["a"]["images"], groups["a"]["body_images"]) == (1, 0)


def test_a_prediction_that_is_not_a_number_is_not_taken_for_air() -> None:
    predictions = torch.full((1, 2, 1, 2, 2), math.nan)
    body = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    found = means(per_image(LOSS, predictions, torch.zeros(1, 1, 4, 4), torch.tensor([[0, 1]]), ["l1"], body))
    assert math.isnan(found["l1"])
    assert math.isnan(found["body_l1"])
    assert found["body_images"] == 1


def test_the_losses_of_images_are_those_of_batches_of_one_and_groups_add_up_to_the_whole() -> None:
    draw = torch.Generator().manual_seed(1)
    intensity = Intensity.of_photographs()
    loss = ReconstructionLoss(16, intensity, flip_strength=0.7)
    images, hidden = torch.randn(7, 3, 64, 64, generator=draw), fixed_hidden(range(7), 16, 0.75, seed=0)
    predictions = torch.randn(7, 12, 3, 16, 16, generator=draw)
    found = per_image(loss, predictions, images, hidden, loss.tasks)
    for place in range(7):
        one = slice(place, place + 1)
        expected = loss(predictions[one], images[one], hidden[one], loss.tasks)
        assert {task: float(values[place]) for task, values in found.items()} == pytest.approx(
            {task: float(value) for task, value in expected.items()}, rel=1e-6
        )
    assert means(found)["l1"] == pytest.approx(
        float((predictions - select(patchify(images, 16), hidden)).abs().double().mean()), rel=1e-6
    )
    groups = by_group(found, list("abcabca"))
    assert [groups[name]["images"] for name in "abc"] == [3, 2, 2]
    for task, whole in means(found).items():
        weighted = sum(group["images"] * group[task] for group in groups.values()) / 7
        assert weighted == pytest.approx(whole, rel=1e-12)

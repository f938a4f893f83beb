"""L1 and 1 - SSIM against scikit-image, torchmetrics and loops written here."""

import numpy as np
import pytest
import skimage.metrics
import torch

from gcond.data.intensity import Intensity
from gcond.loss import TASKS, ReconstructionLoss, outside_unit_share
from gcond.model.masking import draw_hidden
from gcond.model.patches import patchify, select

PHOTOS = Intensity.of_photographs()
CT = Intensity.of_hu_window(-800, 2000, mean=0.16, std=0.16)
UNIT = Intensity(0, 255, mean=(0.0,), std=(1.0,))  # z-space = [0, 1]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def example(intensity, patch_size=16, dtype=torch.float64, seed=0):
    """Images in z-space with structure at several scales, hidden indices, and noisy predictions of them."""
    generator = torch.Generator().manual_seed(seed)
    size, channels = 4 * patch_size, intensity.channels
    unit = sum(
        torch.nn.functional.interpolate(
            torch.rand(3, channels, cells, cells, generator=generator), size, mode="bicubic"
        )
        for cells in (4, 16)
    )
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (intensity.mean, intensity.std))
    images = ((unit / 2 - mean) / std).to(dtype)
    hidden = draw_hidden(3, 16, 0.5, generator)
    targets = select(patchify(images, patch_size), hidden)
    noise = torch.randn(targets.shape, generator=generator, dtype=torch.float64).to(dtype)
    return targets * 0.8 + 0.3 * noise, images, hidden


def skimage_ssim(x: np.ndarray, y: np.ndarray) -> float:
    return skimage.metrics.structural_similarity(
        x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1
    )  # window 11; its mean leaves out the border of 5 pixels, where the window does not fit


@pytest.mark.parametrize("intensity", [CT, PHOTOS], ids=["ct", "photos"])
@pytest.mark.parametrize("patch_size", [16, 32])
def test_both_losses_are_the_mean_over_hidden_patches(intensity, patch_size):
    predictions, images, hidden = example(intensity, patch_size)
    losses = ReconstructionLoss(patch_size, intensity)(predictions, images, hidden, TASKS)
    l1, ssim = [], []
    for b, row in enumerate(hidden.tolist()):
        for h, patch in enumerate(row):
            top, left = patch // 4 * patch_size, patch % 4 * patch_size
            for c in range(intensity.channels):
                target = images[b, c, top : top + patch_size, left : left + patch_size].numpy()
                prediction = predictions[b, h, c].numpy()
                l1.append(np.abs(prediction - target).mean())
                unit = [v * intensity.std[c] + intensity.mean[c] for v in (prediction, target)]
                ssim.append(skimage_ssim(*unit))
    assert losses["l1"].item() == pytest.approx(np.mean(l1), abs=1e-10)
    assert losses["ssim"].item() == pytest.approx(1 - np.mean(ssim), abs=1e-10)
    assert 0.1 < losses["ssim"] < 0.9


def test_single_precision_and_nothing_below_it():
    predictions, images, hidden = example(CT)
    loss = ReconstructionLoss(16, CT)
    exact = loss(predictions, images, hidden, TASKS)
    single = predictions.float(), images.float(), hidden
    expected = loss(*single, TASKS)
    for task in TASKS:
        assert (exact[task].dtype, expected[task].dtype) == (torch.float64, torch.float32)
        assert expected[task].item() == pytest.approx(exact[task].item(), abs=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(*single, TASKS) == expected  # to the last bit
    coarse = predictions.bfloat16()
    assert loss(coarse, *single[1:], TASKS) == loss(coarse.float(), *single[1:], TASKS)
    strange = single[0].permute(4, 2, 0, 1, 3).contiguous().permute(2, 3, 1, 4, 0)
    assert not strange.is_contiguous()
    channels_last = images.float().to(memory_format=torch.channels_last)
    torch.testing.assert_close(loss(strange, channels_last, hidden, TASKS), expected)


def test_gradients_agree_with_finite_differences():
    predictions, images, hidden = example(CT, patch_size=4)
    loss = ReconstructionLoss(4, CT, ssim_window=3)
    predictions = predictions[:1, :2].clone().requires_grad_()
    for task in TASKS:
        assert torch.autograd.gradcheck(lambda p, t=task: loss(p, images[:1], hidden[:1, :2], [t])[t], predictions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("target", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("prediction", [0.0, 0.7, -3.0, 1e4])
def test_constant_patches_have_finite_losses_and_gradients(prediction, target, dtype):
    images = torch.full((1, 1, 64, 64), target, dtype=dtype)
    predictions = torch.full((1, 2, 1, 16, 16), prediction, dtype=dtype, requires_grad=True)
    loss = ReconstructionLoss(16, UNIT)(predictions, images, torch.tensor([[0, 5]]), ["ssim"])["ssim"]
    loss.backward()
    assert -1e-5 <= loss <= 2
    assert predictions.grad.isfinite().all()


def test_visible_pixels_do_not_count_and_every_hidden_pixel_does():
    predictions, images, hidden = example(CT)
    loss = ReconstructionLoss(16, CT)
    images.requires_grad_()
    for task in TASKS:
        (gradient,) = torch.autograd.grad(loss(predictions, images, hidden, [task])[task], images)
        reached = patchify(gradient, 16).flatten(2)
        is_hidden = torch.zeros(3, 16, dtype=torch.bool).scatter_(1, hidden, True)
        assert (reached[~is_hidden] == 0).all()
        assert (reached[is_hidden] != 0).float().mean() > 0.99


def test_a_validation_before_training_leaves_nothing_behind_that_breaks_it():
    predictions, images, hidden = example(CT, dtype=torch.float32)
    intensity = Intensity.of_hu_window(-800, 2000, mean=0.17, std=0.15)  # of no other test, nor this window
    loss = ReconstructionLoss(16, intensity, ssim_sigma=1.25)
    with torch.inference_mode():
        loss(predictions, images, hidden, ["ssim"])
    loss(predictions.requires_grad_(), images, hidden, ["ssim"])["ssim"].backward()
    assert predictions.grad.any()


def test_share_outside_the_unit_range():
    predictions = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1, 7.0, 0.2, 0.3]).view(1, 2, 1, 2, 2)
    assert outside_unit_share(predictions, UNIT) == pytest.approx(3 / 8)
    lows, highs = ((0 - 0.16) / 0.16, (1 - 0.16) / 0.16)
    predictions = torch.tensor([lows - 0.01, lows + 0.01, highs - 0.01, highs + 0.01]).view(1, 1, 1, 2, 2)
    assert outside_unit_share(predictions, CT) == pytest.approx(0.5)


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.5, 1.0])
def test_flipped_is_the_l1_to_the_target_times_one_minus_twice_the_strength(strength):
    predictions, images, hidden = example(CT)
    loss = ReconstructionLoss(16, CT, flip_strength=strength)
    assert loss.tasks == ("l1", "ssim", "flipped")
    found = loss(predictions, images, hidden, loss.tasks)
    targets = select(patchify(images, 16), hidden).numpy()
    expected = {0.0: targets, 0.25: targets / 2, 0.5: 0 * targets, 1.0: -targets}[strength]
    assert found["flipped"].item() == pytest.approx(np.abs(predictions.numpy() - expected).mean(), abs=1e-12)
    if strength == 0:
        assert found["flipped"] == found["l1"]


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.5, 1.0])
def test_l1_and_flipped_oppose_each_other_between_their_targets_and_agree_elsewhere(strength):
    predictions, images, hidden = example(CT)
    predictions = (predictions * 0.7).requires_grad_()
    losses = ReconstructionLoss(16, CT, flip_strength=strength)(predictions, images, hidden, ("l1", "flipped"))
    ours, theirs = (torch.autograd.grad(losses[task], predictions, retain_graph=True)[0] for task in losses)
    x = select(patchify(images, 16), hidden)
    ends = torch.stack([x, (1 - 2 * strength) * x])
    between = (predictions > ends.min(0).values) & (predictions < ends.max(0).values)
    assert torch.equal(ours[between], -theirs[between])
    assert torch.equal(ours[~between], theirs[~between])
    cosine = torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
    assert cosine.item() == pytest.approx(1 - 2 * between.double().mean().item(), abs=1e-12)
    assert (between.double().mean() > 0.1) == (strength > 0)


@pytest.mark.parametrize(
    ("named", "setting"),
    [
        *(("`flip_strength` must be null or a number from 0 to 1", {"flip_strength": s}) for s in (-0.1, float("nan"))),
        *((rf"`ssim_window` .* 16, found {window}", {"ssim_window": window}) for window in (17, 10, 0)),
        ("`ssim_sigma` must be positive", {"ssim_sigma": 0}),
    ],
)
def test_settings_that_mean_nothing_are_refused(named, setting):
    with pytest.raises(ValueError, match=named):
        ReconstructionLoss(16, CT, **setting)


def test_wrong_calls_are_refused():
    predictions, images, hidden = example(PHOTOS)
    loss = ReconstructionLoss(16, PHOTOS)
    for unknown in ("mse", "flipped"):
        with pytest.raises(ValueError, match=f"`tasks` may hold l1, ssim; found {unknown}"):
            loss(predictions, images, hidden, ["l1", unknown])
    with pytest.raises(ValueError, match="`predictions` must have the shape"):
        loss(predictions[:, :, :1], images, hidden, ["l1"])  # would broadcast over the channels

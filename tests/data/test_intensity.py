"""Intensity: raw integers -> [0, 1] -> z, by hand; HU windows by their names, statistics against plain NumPy."""

import numpy as np
import pytest
import torch

from gcond.data import windows
from gcond.data.intensity import IMAGENET_MEAN, IMAGENET_STD, Intensity


def ct():
    return Intensity.of_hu_window(-800, 2000, mean=0.2, std=0.1)


def test_normalise_by_hand():
    hu = torch.tensor([-1024, -800, 600, 2000, 3071])
    z = ct().normalise((hu + 1024).to(torch.int16).view(1, 1, 1, 5))
    unit_by_hand = torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0])  # 600 is the centre of the window
    torch.testing.assert_close(z.flatten(), (unit_by_hand - 0.2) / 0.1)
    assert z.dtype == torch.float32
    raw = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    z = Intensity.of_photographs().normalise(raw).flatten()
    by_hand = [(value / 255 - m) / s for value, m, s in zip([0, 128, 255], IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    torch.testing.assert_close(z, torch.tensor(by_hand))


def test_to_unit_inverts_normalise_and_does_not_clamp():
    raw = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2) * 20
    intensity = Intensity.of_photographs()
    torch.testing.assert_close(intensity.to_unit(intensity.normalise(raw)), raw / 255)
    patches = torch.full((2, 5, 1, 4, 4), 10.0)  # [B, H, C, p, p]
    torch.testing.assert_close(ct().to_unit(patches), torch.full_like(patches, 10 * 0.1 + 0.2))
    unit = ct().to_unit(torch.zeros(1, 1, 1, dtype=torch.bfloat16))
    assert unit.item() == pytest.approx(0.2, abs=1e-7)  # bfloat16 would give 0.2002


def test_only_integers_of_the_right_channels_are_normalised():
    for dtype in (torch.float32, torch.bfloat16, torch.bool):
        with pytest.raises(TypeError, match="normalised already"):
            ct().normalise(torch.zeros(1, 1, 2, 2, dtype=dtype))
    with pytest.raises(ValueError, match="`raw`"):
        ct().normalise(torch.zeros(1, 3, 2, 2, dtype=torch.int16))


@pytest.mark.parametrize(
    ("settings", "named"),
    [((255, 255, (0.1,), (0.1,)), "raw_min"), ((0, 255, (0.1,), (0.0,)), "std"), ((0, 255, (0.1,), (0.1, 0.1)), "std")],
)
def test_bad_statistics_are_refused(settings, named):
    with pytest.raises(ValueError, match=f"`{named}`"):
        Intensity(*settings)


# HU windows


def test_presets_are_what_their_names_say():
    for name, (hu_min, hu_max) in windows.PRESETS.items():
        if name.startswith("c"):
            centre, width = name[1:].split("w")
            assert ((hu_min + hu_max) / 2, hu_max - hu_min) == (int(centre), int(width))
    assert windows.resolve("m1024p2048") == (-1024, 2048)
    assert windows.resolve("12bit") == (-1024, 2**12 - 1 - 1024)
    assert windows.resolve([-600, 1800]) == (-600, 1800)


@pytest.mark.parametrize("window", [[2000, -800], [0, 0], [-2000, 1000], [0, 4000], [1, 2, 3], "brain"])
def test_impossible_window_is_refused(window):
    with pytest.raises(ValueError, match="`window`"):
        windows.resolve(window)


def test_statistics_of_a_histogram_and_of_sums_over_slices_are_those_of_the_pixels():
    stored = np.random.default_rng(0).integers(0, 4096, (3, 8, 8), dtype=np.uint16)
    histogram = np.bincount(stored.ravel(), minlength=4096)
    for window in (*windows.PRESETS.values(), (-0.5, 0.75)):
        unit = np.clip((stored - 1024.0 - window[0]) / (window[1] - window[0]), 0, 1)
        assert windows.statistics(histogram, *window) == pytest.approx((unit.mean(), unit.std()), rel=1e-12)
        each = [windows.sums(np.bincount(picture.ravel(), minlength=4096), *window) for picture in stored]
        total, squares = map(sum, zip(*each, strict=True))
        assert windows.of_sums(stored.size, total, squares, *window) == windows.statistics(histogram, *window)

"""HU windows: the presets by hand (centre and width), statistics against plain NumPy."""

import numpy as np
import pytest

from gcond.data import windows


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

"""dataset=photos: which photographs, which crops, which split."""

from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from gcond.data import photos


@pytest.fixture(scope="module")
def splits():
    return photos.load(64)


def test_counts(splits):
    assert (len(splits.train), len(splits.val), len(splits.test)) == (632, 127, 138)
    assert splits.train[0].shape == (3, 64, 64)
    assert splits.train[0].dtype == torch.uint8


def test_boxes_are_squares_inside_that_reach_every_edge_and_overlap():
    found = photos.boxes(451, 300)
    assert len(found) == len(set(found))
    for side in (300, 225, 150):
        lefts = sorted({left for left, _, right, _ in found if right - left == side})
        tops = sorted({top for left, top, right, bottom in found if bottom - top == right - left == side})
        assert (lefts[0], lefts[-1] + side) == (0, 451)
        assert (tops[0], tops[-1] + side) == (0, 300)
        assert max(np.diff(lefts)) <= side / 6 + 1
    assert photos.boxes(512, 512)[0] == (0, 0, 512, 512)


def test_first_crop_is_the_left_square_of_the_photograph(splits):
    photo = Image.open(files("skimage.data").joinpath("chelsea.png"))
    left_square = np.asarray(photo)[:300, :300].transpose(2, 0, 1)
    blocks = splits.val[0].float().mean((1, 2))
    torch.testing.assert_close(blocks, torch.from_numpy(left_square.astype(np.float32)).mean((1, 2)), atol=0.5, rtol=0)

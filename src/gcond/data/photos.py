"""Crops of the colour photographs that the scikit-image wheel carries: real pictures that need no download.

Few scenes, so their crops are alike within a split: enough to see an optimiser at work, not to rank anything.
"""

import math
from importlib.resources import files

import torch
from PIL import Image
from torch import Tensor

from gcond.data.checksums import PHOTOGRAPHS, of_photographs
from gcond.data.images import TensorImages, check_size, square_rgb
from gcond.data.intensity import Intensity
from gcond.data.splits import Splits
from gcond.data.store import STORED_SIZE

CROP_SIDES = (1.0, 0.75, 0.5)
"""Sides of the square crops as shares of the photograph's short side."""
STRIDE = 1 / 6
"""Largest step between neighbouring crops as a share of their side."""


def load(image_size: int) -> Splits:
    """Train, val and test from different photographs, in a fixed order of crops. Raises ValueError for a bad size."""
    check_size(image_size)
    crops = {
        split: TensorImages(torch.cat([_crops(name, image_size) for name in names]))
        for split, names in PHOTOGRAPHS.items()
    }
    return Splits(
        **crops,
        intensity=Intensity.of_photographs(),
        title="photos (scikit-image)",
        checksum=of_photographs(),
    )


def boxes(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of every square crop, from edge to edge, coarse scale first, row-major."""
    found = []
    for share in CROP_SIDES:
        side = round(min(width, height) * share)
        for top in _starts(height, side):
            found += [(left, top, left + side, top + side) for left in _starts(width, side)]
    return found


def _starts(length: int, side: int) -> list[int]:
    steps = math.ceil((length - side) / (side * STRIDE))
    return [round(i * (length - side) / steps) for i in range(steps + 1)] if steps else [0]


def _crops(name: str, image_size: int) -> Tensor:
    """uint8 [n, 3, S, S]. A crop first becomes 256 pixels, as in the other datasets, then `image_size`."""
    with files("skimage.data").joinpath(name).open("rb") as file, Image.open(file) as photo:
        photo.load()
        return torch.stack([_crop(photo, box, image_size) for box in boxes(*photo.size)])


def _crop(photo: Image.Image, box: tuple[int, int, int, int], image_size: int) -> Tensor:
    stored = photo.crop(box).resize((STORED_SIZE, STORED_SIZE), Image.Resampling.BILINEAR)
    return square_rgb(stored, image_size)

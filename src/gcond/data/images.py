"""Sets of raw images: decoded once where they are small, one by one where they are not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from gcond.data.splits import ImageSet
from gcond.data.store import STORED_SIZE

IN_MEMORY_BYTES = 2 * 2**30
"""A split that takes more than this once decoded is read image by image."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What a file may hold whatever its name says: ImageNet itself has a PNG called JPEG. Others could start a program."""
DECODER = 2
"""Raised whenever a photograph gives other pixels than before."""
bars: ContextVar[bool] = ContextVar("bars", default=True)
"""Whether decoding shows a bar on a terminal: `progress=lines` and `quiet` forbid it."""


class TensorImages:
    """Images held in memory as one integer tensor [n, C, S, S]."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


class PhotoFiles:
    """Photographs in files of any size, decoded when asked for; those with few pixels are enlarged, and noted."""

    def __init__(self, files: list[Path], size: int) -> None:
        self.files = files
        self.rows = range(len(files))
        self.size = size
        self.enlarged: set[int] = set()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        path = self.files[index]
        with naming(str(path)), path.open("rb") as file, opened(file) as photo:
            if min(photo.size) < self.size:
                self.enlarged.add(index)
            return square_rgb(photo, self.size)


def check_size(image_size: int) -> None:
    """Raises ValueError for a size that would need upsampling of what is stored at 256 pixels."""
    if not 1 <= image_size <= STORED_SIZE:
        raise ValueError(f"`image_size` must lie in 1..{STORED_SIZE} (images are stored so), found {image_size}")


@contextmanager
def naming(photograph: str) -> Iterator[None]:
    """Turn whatever goes wrong while a photograph is decoded into a ValueError that names it."""
    try:
        yield
    except Exception as error:  # Pillow raises whatever its plugins raise; MemoryError is one of them
        raise ValueError(f"`root`: {photograph} cannot be decoded: {error}; mend it or take it away") from error


@contextmanager
def opened(file: BinaryIO, turn: bool = True) -> Iterator[Image.Image]:
    """A photograph, turned as its EXIF orientation says unless `turn` is false.

    Raises ValueError for more than 8 bits a channel, which Pillow would clip to white, and whatever Pillow raises for a
    file that is damaged, of another format, or larger than its limit of 179 million pixels.
    """
    with Image.open(file, formats=FORMATS) as photo:
        if photo.mode.startswith(("I", "F")):
            raise ValueError(f"expected 8 bits a channel, found Pillow's mode {photo.mode}")
        if turn:
            ImageOps.exif_transpose(photo, in_place=True)
        yield photo


def square_rgb(photo: Image.Image, size: int) -> Tensor:
    """Centre crop to the short side, antialiased resize -> uint8 [3, size, size]."""
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    cropped = photo.convert("RGB").crop((left, top, left + side, top + side))
    square = cropped.resize((size, size), Image.Resampling.BILINEAR)  # with resize's own box, outside pixels bleed in
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def hold_in_memory(images: ImageSet, what: str) -> ImageSet:
    """Decode a small set; a set above IN_MEMORY_BYTES comes back as it is."""
    if not len(images):
        raise ValueError(f"no image in {what}")
    first = images[0]
    if len(images) * first.nbytes > IN_MEMORY_BYTES:
        return images
    held = np.empty((len(images), *first.shape), dtype=first.numpy().dtype)
    hidden = None if bars.get() else True  # None: shown on a terminal only
    for i in tqdm(range(len(images)), desc=f"decoding {what}", unit="image", delay=2, disable=hidden):
        held[i] = images[i].numpy()
    return TensorImages(torch.from_numpy(held))

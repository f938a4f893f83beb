"""Sets of raw images: decoded once where they are small, one by one where they are not."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gcond.data.splits import ImageSet
from gcond.data.store import STORED_SIZE

IN_MEMORY_BYTES = 2 * 2**30
"""A split that takes more than this once decoded is read image by image."""


class TensorImages:
    """Images held in memory as one integer tensor [n, C, S, S]."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


class PhotoFiles:
    """Photographs in files of any size, decoded when asked for."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths = paths
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as photo:
            return square_rgb(photo, self.size)


def check_size(image_size: int) -> None:
    """Raises ValueError for a size that would need upsampling of what is stored at 256 pixels."""
    if not 1 <= image_size <= STORED_SIZE:
        raise ValueError(f"`image_size` must lie in 1..{STORED_SIZE} (images are stored so), found {image_size}")


def square_rgb(photo: Image.Image, size: int) -> Tensor:
    """Centre crop to the short side, antialiased resize -> uint8 [3, size, size]."""
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    cropped = photo.convert("RGB").crop((left, top, left + side, top + side))
    square = cropped.resize((size, size), Image.Resampling.BILINEAR)  # with resize's own box, outside pixels bleed in
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def hold_in_memory(images: ImageSet, what: str) -> ImageSet:
    """Decode a small set once; a set above IN_MEMORY_BYTES comes back as it is."""
    if not len(images):
        raise ValueError(f"no image in {what}")
    first = images[0]
    if len(images) * first.nbytes > IN_MEMORY_BYTES:
        return images
    held = np.empty((len(images), *first.shape), dtype=first.numpy().dtype)
    for i in tqdm(range(len(images)), desc=f"decoding {what}", unit="image", delay=2):
        held[i] = images[i].numpy()
    return TensorImages(torch.from_numpy(held))

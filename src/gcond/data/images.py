"""Sets of raw images: decoded once where they are small, one by one where they are not.

What takes long to decode is kept between runs (28,800 photographs take up to a minute, reading them back a second):

    ~/.cache/gcond/decoded ($GCOND_CACHE/decoded)
        FOLDER/SPLIT-SIZE-KEY.npz    pixels uint8 [n, 3, S, S], and which of them were enlarged; FOLDER is named after
                                     that of the photographs

KEY is that of the files (path, size, times), the rows, and the decoder, so that nothing stale is ever read. Any of it
may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, features
from PIL import __version__ as pillow
from torch import Tensor
from tqdm import tqdm

from gcond.data.splits import ImageSet
from gcond.data.store import STORED_SIZE
from gcond.files import cache, write_atomically

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


class Encoded:
    """Photographs as bytes: here one in each file."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __getitem__(self, row: int) -> bytes:
        return self.files[row].read_bytes()

    def name(self, row: int) -> str:
        """Where it lies."""
        return str(self.files[row])


class Photographs:
    """Some rows of `encoded`, decoded when asked for. Those with fewer pixels than `size` are refused, or enlarged and
    noted."""

    def __init__(self, encoded: Encoded, rows: range, size: int, enlarges: bool = False) -> None:
        self.encoded = encoded
        self.rows = rows
        self.size = size
        self.enlarges = enlarges
        self.enlarged: set[int] = set()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        row = self.rows[index]
        with naming(self.encoded.name(row)), opened(BytesIO(self.encoded[row])) as photo:
            if min(photo.size) < self.size:
                if not self.enlarges:
                    raise ValueError(f"`image_size` {self.size} is more than its {photo.width} x {photo.height} pixels")
                self.enlarged.add(index)
            return square_rgb(photo, self.size)


def check_size(image_size: int, stored: int = STORED_SIZE) -> None:
    """Raises ValueError for a size that would need upsampling of what is stored."""
    if not 1 <= image_size <= stored:
        raise ValueError(f"`image_size` must lie in 1..{stored} (images are stored so), found {image_size}")


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


FEWEST = 1000
"""Fewer photographs than these are decoded in less time than it takes to look for them."""


def held_or_kept(photographs: Photographs, what: str, root: Path) -> ImageSet:
    """What `hold_in_memory` returns, read back where an earlier run has decoded it.

    A cache that cannot be written is said, and done without.
    """
    shape = (len(photographs), 3, photographs.size, photographs.size)
    if len(photographs) < FEWEST or np.prod(shape) > IN_MEMORY_BYTES:
        return hold_in_memory(photographs, what)
    folder = cache("decoded") / f"{root.resolve().name[:40]}-{_digest(str(root.resolve()))[:8]}"
    stem = f"{what.split()[-1]}-{photographs.size}"
    path = folder / f"{stem}-{_key(photographs)}.npz"
    if (kept := _read(path)) is not None:
        photographs.enlarged = set(kept["enlarged"].tolist())
        return TensorImages(torch.from_numpy(kept["pixels"]))
    decoded = hold_in_memory(photographs, what)
    assert isinstance(decoded, TensorImages)
    try:
        arrays = {"pixels": decoded.images.numpy(), "enlarged": np.array(sorted(photographs.enlarged), np.int64)}
        write_atomically(path, lambda temporary: np.savez(temporary, **arrays))
        for other in folder.glob(f"{stem}-*"):  # of other files, or by another decoder
            if other != path:
                other.unlink(missing_ok=True)
    except OSError as error:
        print(f"decoded photographs are not kept for the next run: {error}", file=sys.stderr)
    return decoded


def _key(photographs: Photographs) -> str:
    states = [(str(file.resolve()), file.stat()) for file in photographs.encoded.files]
    listing = [(name, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for name, state in states]
    libraries = [pillow, features.version("jpg"), features.version("libjpeg_turbo")]
    return _digest(json.dumps([DECODER, libraries, photographs.size, str(photographs.rows), listing]))[:32]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """None where there is no such file, or a damaged one."""
    try:
        with np.load(path) as kept:
            return {name: kept[name] for name in ("pixels", "enlarged")}  # each compared with its CRC-32
    except Exception:  # a damaged header says anything
        return None

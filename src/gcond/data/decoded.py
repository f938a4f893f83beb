"""Decoded photographs, kept between runs: decoding 28,800 of them takes up to a minute, reading them back a second.

    ~/.cache/gcond/decoded ($GCOND_CACHE/decoded)
        FOLDER/SPLIT-SIZE-KEY-SHA256.npy    uint8 [n, 3, S, S]; FOLDER is named after that of the photographs

KEY is that of the files (path, size, times), the rows, and the decoder, so that nothing stale is ever read; SHA256 is
that of the pixels, compared whenever they are read. Any of it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import __version__ as pillow
from PIL import features

from gcond.data import images
from gcond.data.images import TensorImages, hold_in_memory
from gcond.data.splits import ImageSet
from gcond.files import cache, write_atomically

FEWEST = 1000
"""Fewer photographs than these are decoded in less time than it takes to look for them."""


class Photographs(ImageSet, Protocol):
    """`rows` of `files`, counted over all of them, at `size` pixels."""

    @property
    def files(self) -> list[Path]: ...

    rows: range
    size: int


def held(photographs: Photographs, what: str, root: Path) -> ImageSet:
    """What `hold_in_memory` returns, read back where an earlier run has decoded it.

    A cache that cannot be written is said, and done without.
    """
    shape = (len(photographs), 3, photographs.size, photographs.size)
    if len(photographs) < FEWEST or np.prod(shape) > images.IN_MEMORY_BYTES:
        return hold_in_memory(photographs, what)
    folder = cache("decoded") / f"{root.resolve().name[:40]}-{_digest(str(root.resolve()))[:8]}"
    stem, key = f"{what.split()[-1]}-{photographs.size}", _key(photographs)
    if (pixels := _read(folder, f"{stem}-{key}", shape)) is None:
        decoded = hold_in_memory(photographs, what)
        assert isinstance(decoded, TensorImages)
        pixels = decoded.images.numpy()
        try:
            _write(folder, stem, key, pixels)
        except OSError as error:
            print(f"decoded photographs are not kept for the next run: {error}", file=sys.stderr)
    return TensorImages(torch.from_numpy(pixels))


def _key(photographs: Photographs) -> str:
    states = [(str(file.resolve()), file.stat()) for file in photographs.files]
    listing = [(name, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for name, state in states]
    libraries = [pillow, features.version("jpg"), features.version("libjpeg_turbo")]
    return _digest(json.dumps([images.DECODER, libraries, photographs.size, str(photographs.rows), listing]))[:32]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _read(folder: Path, stem: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """None where there is no such file, or only a damaged one."""
    for path in folder.glob(f"{stem}-*.npy"):
        try:
            pixels = np.load(path)
            digest = hashlib.sha256(pixels).hexdigest()
        except Exception:  # damaged, a header says anything
            continue
        if (pixels.shape, pixels.dtype) == (shape, np.uint8) and path.stem.endswith(f"-{digest}"):
            return pixels
    return None


def _write(folder: Path, stem: str, key: str, pixels: np.ndarray) -> None:
    """In the place of what was kept of other files, or by another decoder."""
    path = folder / f"{stem}-{key}-{hashlib.sha256(pixels).hexdigest()}.npy"
    write_atomically(path, lambda temporary: np.save(temporary, pixels))
    for other in folder.glob(f"{stem}-*.npy"):
        if other != path:
            other.unlink(missing_ok=True)

"""What a data set's images are, as one checksum: had without decoding an image and without PyTorch.

A run records it, and counts as finished for these data only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from gcond.config import build
from gcond.data import folders

PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "train": (
        "astronaut.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "motorcycle_left.png",  # the two views of one scene stay in one split
        "motorcycle_right.png",
        "retina.jpg",
        "rocket.jpg",
    ),
    "val": ("chelsea.png",),
    "test": ("coffee.png",),
}
"""Files of the scikit-image wheel, split by split."""


def checksum_of(dataset: DictConfig) -> Any:
    """The `checksum` that the loader of `dataset` states; a loader that is not named here is called for it.

    Raises ValueError where there are no such data.
    """
    match dataset._target_:
        case "gcond.data.ct.load":
            from gcond.data import store  # here, since pyarrow takes a while to import

            return store.read_facts(store.folder(dataset.root))["checksum"]
        case "gcond.data.imagenet256.load":
            root = photo_folder(dataset.root)
            return of_listing(root, parquet_files(root) or folders.read(root).files)
        case "gcond.data.photos.load":
            return of_photographs()
    return build(dataset).checksum


def of_listing(root: Path, listing: Iterable[Path]) -> str:
    """SHA-256 over names and sizes: 19 GB of content are not read for a checksum."""
    lines = sorted(f"{file.relative_to(root).as_posix()} {file.stat().st_size}" for file in listing)
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def of_photographs() -> str:
    """SHA-256 over the PHOTOGRAPHS as scikit-image ships them."""
    digest = hashlib.sha256()
    for split, names in PHOTOGRAPHS.items():
        for name in names:
            content = files("skimage.data").joinpath(name).read_bytes()
            digest.update(f"{split} {name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def photo_folder(root: str | Path | None) -> Path:
    """Raises ValueError where there is none at `root`."""
    if root is None or not Path(root).is_dir():
        raise ValueError(
            f"`root`: no folder of photographs at {root}; name one with `IMAGENET=DIR` (make) or `dataset.root=DIR`, "
            "or make one as docs/data.md says"
        )
    return Path(root)


def parquet_files(root: Path) -> list[Path]:
    return sorted(root.glob("data/*.parquet"))


def short(checksum: Any) -> str:
    """As a sentence shows it."""
    if isinstance(checksum, dict):
        return ", ".join(f"{split} {value[:10]}" for split, value in checksum.items())
    return str(checksum)[:10]

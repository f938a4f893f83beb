"""The checksum of a data set, had quickly, is the one that its loader states."""

import hashlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from gcond.config import build
from gcond.data import checksums
from gcond.data.checksums import checksum_of


def dataset(module: str, **settings: object) -> DictConfig:
    return OmegaConf.create({"name": module, "_target_": f"gcond.data.{module}.load", "image_size": 16, **settings})


def write_photos(root: Path, seed: int) -> Path:
    """Twelve noisy JPEG files below train/, val/ and test/."""
    draw = np.random.default_rng(seed)
    for split in ("train", "val", "test"):
        (root / split).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(draw.integers(0, 255, (20, 20, 3), np.uint8)).save(root / split / f"{number}.jpg")
    return root


def stated(cfg: DictConfig) -> object:
    """By the loader."""
    return build(cfg).checksum


def test_of_photographs():
    quick = checksum_of(dataset("photos"))
    assert quick == stated(dataset("photos"))
    lines = [
        f"{split} {name} {hashlib.sha256(files('skimage.data').joinpath(name).read_bytes()).hexdigest()}\n"
        for split, names in checksums.PHOTOGRAPHS.items()
        for name in names
    ]
    assert quick == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_of_a_folder_of_photographs(tmp_path):
    a, b = (
        dataset("imagenet256", root=str(write_photos(tmp_path / name, seed))) for name, seed in (("a", 1), ("b", 2))
    )
    assert checksum_of(a) == stated(a)
    assert checksum_of(a) != checksum_of(b)
    (tmp_path / "a").rename(tmp_path / "c")
    c = dataset("imagenet256", root=str(tmp_path / "c"))
    assert checksum_of(c) == stated(c)
    with pytest.raises(ValueError, match="`root`"):
        checksum_of(a)

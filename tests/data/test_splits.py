"""What every dataset says about itself."""

from pathlib import Path

from PIL import Image

from gcond.data import ct, imagenet256, photos


def test_only_ct_shows_patients(small_store: Path, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / split / "photo.jpg")
    assert ct.load(small_store, 64).shows_patients
    assert not photos.load(32).shows_patients
    assert not imagenet256.load(tmp_path, 64).shows_patients

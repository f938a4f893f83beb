"""Decoded photographs kept between runs: the same pixels, never those of other files, never damaged ones."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from gcond.data import images
from gcond.data.images import Files, Photographs, TensorImages

SIZE = 8


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GCOND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(images, "FEWEST", 3)
    return tmp_path / "cache" / "decoded"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 255, (3, 20, 20, 3), np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return folder


@pytest.fixture
def decodings(monkeypatch):
    """One entry for each photograph that is decoded."""
    found = []
    square_rgb = images.square_rgb
    monkeypatch.setattr(images, "square_rgb", lambda *a: found.append(1) or square_rgb(*a))
    return found


def photographs(root, size=SIZE):
    files = sorted(root.iterdir())
    return Photographs(Files(files), range(len(files)), size)


def pixels(root, size=SIZE):
    held = images.held_or_kept(photographs(root, size), "photographs train", root)
    assert isinstance(held, TensorImages)
    return held.images


def test_photographs_are_decoded_once_with_the_same_pixels(cache, root, decodings):
    first = pixels(root)
    decodings.clear()
    again = pixels(root)
    assert not decodings
    assert torch.equal(first, again)
    assert torch.equal(again, torch.stack([photographs(root)[i] for i in range(3)]))
    again[0] = 0  # what is held in memory is nobody else's
    assert torch.equal(pixels(root), first)


def test_few_photographs_leave_nothing_behind(cache, root, monkeypatch):
    monkeypatch.setattr(images, "FEWEST", 4)
    pixels(root)
    assert not cache.exists()


@pytest.mark.parametrize("change", ["content with the old times", "one more", "size", "decoder"])
def test_whatever_changes_is_decoded_anew_in_the_place_of_the_old(cache, root, decodings, monkeypatch, change):
    pixels(root)
    size = SIZE
    file = root / "1.jpg"
    times = file.stat()
    if change.startswith("content"):
        file.write_bytes(file.read_bytes()[:-2] + b"\0\0")  # as long as before
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif change == "one more":
        (root / "9.jpg").write_bytes(file.read_bytes())
    elif change == "size":
        size = 4
    else:
        monkeypatch.setattr(images, "DECODER", 99)
    decodings.clear()
    found = pixels(root, size)
    assert len(decodings) >= 3
    assert torch.equal(found, torch.stack(list(photographs(root, size))))
    assert len(list(cache.rglob("*"))) == (3 if change == "size" else 2)  # the folder, and a file for each size


@pytest.mark.parametrize("damage", ["a pixel", "cut", "header"])
def test_a_damaged_file_is_decoded_anew(cache, root, decodings, damage):
    whole = pixels(root)
    (file,) = cache.rglob("*.npz")
    content = bytearray(file.read_bytes())
    if damage == "a pixel":
        content[len(content) // 2] ^= 1
    elif damage == "cut":
        content = content[:-10]
    else:
        content = content.replace(b"(3, 3, 8, 8)", b"(8, 3, 3, 8)")
    file.write_bytes(content)
    decodings.clear()
    assert torch.equal(pixels(root), whole)
    assert decodings
    decodings.clear()
    pixels(root)
    assert not decodings


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, root, monkeypatch, capsys):
    monkeypatch.setattr(images, "FEWEST", 3)
    (tmp_path / "file").touch()
    monkeypatch.setenv("GCOND_CACHE", str(tmp_path / "file"))
    assert len(pixels(root)) == 3
    assert str(tmp_path / "file") in capsys.readouterr().err

"""Folders of JPEG files: which files are read, into which split, with which class; and what is said or refused."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from gcond.data import folders, imagenet256


def save(path, grey=0, size=(8, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey,) * 3).save(path, "JPEG", quality=95, **options)


@pytest.fixture
def tree(tmp_path):
    """Two training and two validation photographs of each of four classes."""
    for split, first in (("train", 0), ("val", 100)):
        for i in range(8):
            save(tmp_path / "real" / split / f"n{i % 4:08}" / f"{i}.JPEG", first + 10 * i)
    return tmp_path / "real"


def greys(images):
    return sorted(round(float(image.float().mean()), -1) for image in images)


def content(root):
    splits = imagenet256.load(root, 8)
    return {split: greys(getattr(splits, split)) for split in folders.SPLITS}, splits.groups, splits.facts["checksum"]


# Links.


@pytest.mark.parametrize(
    "linked", [("train/n00000001", "train/n00000003"), ("train", "val"), ("val/n00000002/2.JPEG",)]
)
def test_links_are_followed(tree, tmp_path, linked):
    shutil.copytree(tree, tmp_path / "linked")
    for name in linked:
        path = tmp_path / "linked" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(tree / name)
    (tmp_path / "linked" / "train" / "n00000000" / "up").symlink_to(tmp_path / "linked" / "train")  # ends
    assert content(tmp_path / "linked") == content(tree)


@pytest.mark.parametrize("link", ["symbolic", "hard", "folder"])
def test_a_photograph_in_two_splits_is_refused_and_so_is_a_link_to_nothing(tree, link):
    source, target = tree / "train" / "n00000000" / "0.JPEG", tree / "val" / "n00000000" / "again.JPEG"
    if link == "folder":
        (tree / "val" / "n00000009").symlink_to(source.parent)
    else:
        target.symlink_to(source) if link == "symbolic" else target.hardlink_to(source)
    with pytest.raises(ValueError, match=r"n0000000\d/.*\.JPEG .* must be disjoint"):
        folders.read(tree)
    (tree / "train" / "n00000000" / "gone.jpg").symlink_to(tree / "nowhere.jpg")
    with pytest.raises(ValueError, match=r"gone\.jpg"):
        folders.read(tree)


# Splits.


@pytest.mark.parametrize(("above", "name"), [("", "val"), ("a/b/", "validation"), ("a/b/", "Test")])
def test_splits_that_lie_deeper_or_are_called_otherwise_are_never_split_anew(tree, tmp_path, above, name):
    outer = tmp_path / "outer"
    inner = outer / above
    inner.parent.mkdir(parents=True, exist_ok=True)
    (tree / "train").rename(tree / "Training")
    (tree / "val").rename(tree / name)
    tree.rename(inner)
    with pytest.raises(ValueError, match=f"dataset.root={inner}`" if above else "train, val and test"):
        folders.read(outer)


def test_tiny_imagenet(tmp_path):
    for i in range(4):
        wnid = f"n{i % 2:08}"
        save(tmp_path / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 10 * i)
        save(tmp_path / "val" / "images" / f"val_{i}.JPEG", 100 + 10 * i)
        save(tmp_path / "test" / "images" / f"test_{i}.JPEG", 200)
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").touch()
    lines = [f"val_{i}.JPEG\tn{(i // 2) % 2:08}\t0\t0\t62\t62\n" for i in range(4)]
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    found, groups, _ = content(tmp_path)
    assert found == {"train": [0, 10, 20, 30], "val": [100, 120], "test": [110, 130]}
    assert groups["train"] == ["n00000000", "n00000000", "n00000001", "n00000001"]
    assert groups["val"] == groups["test"] == ["n00000000", "n00000001"]
    assert folders.read(tmp_path).passed_over == {".txt": 3, "JPEG of test/ (no labels)": 4}


# What is passed over, and what is said.


def test_what_is_not_read_is_counted_and_said(tree, capsys):
    for name in ("a.png", "b.PNG", "notes.txt", "LICENSE", ".DS_Store", "._0.JPEG"):
        (tree / "train" / "n00000000" / name).write_bytes(b"x")
    save(tree / "__MACOSX" / "train" / "0.jpg")
    before = {".png": 2, ".txt": 1, "no suffix": 1, "hidden": 3}
    assert imagenet256.load(tree, 8).facts["passed_over"] == before
    assert "2 .png" in capsys.readouterr().err


def test_classes_without_training_images_and_small_photographs_are_said(tree, capsys):
    imagenet256.load(tree, 8)
    assert capsys.readouterr().err == ""
    shutil.rmtree(tree / "train" / "n00000002")
    save(tree / "train" / "n00000000" / "small.jpg", size=(20, 7))
    imagenet256.load(tree, 8)
    told = capsys.readouterr().err
    assert "1 of the 4 classes of val" in told
    assert "1 photographs have fewer pixels" in told


# Decoding.


def sixteen_bits(path):
    Image.fromarray(np.full((8, 8), 5000, np.uint16)).save(path, "PNG")


def huge(path):
    """One row of a picture whose header says 60,000 x 60,000."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG")
    content = file.getvalue()
    start = content.index(b"\xff\xc0") + 5
    path.write_bytes(content[:start] + (60000).to_bytes(2) * 2 + content[start + 4 :])


BROKEN = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>"),
    "16 bits": sixteen_bits,
    "huge": huge,
    "a program": lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_photograph_that_cannot_be_decoded_is_named(tree, damage):
    path = tree / "train" / "n00000003" / "3.JPEG"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    BROKEN[damage](path)
    with pytest.raises(ValueError, match=r"n00000003/3\.JPEG"):
        imagenet256.load(tree, 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    """The left half is bright in the file; by the EXIF standard, row 0 and column 0 of 2 to 8 are these sides."""
    sides = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("train/a.jpg", "val/b.jpg", "val/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name, quality=95, exif=exif)
    image = imagenet256.load(tmp_path, 8).train[0].float()
    half = {"left": image[..., :3], "right": image[..., 5:], "top": image[:, :3], "bottom": image[:, 5:]}
    assert {side: bool(part.mean() > 240) for side, part in half.items()} == {
        side: side == sides[orientation] for side in half
    }

"""dataset=imagenet256 and photos: which photographs are read, into which split and class; what is said and refused."""

import hashlib
import io
import json
import os
import shutil
from importlib.resources import files

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from gcond.data import folders, imagenet256, images, photos


def jpeg(grey, size=(16, 16), **options):
    file = io.BytesIO()
    Image.new("RGB", size, (grey,) * 3).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def noise(side):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8))


def greys(split):
    return [round(float(image.float().mean())) for image in split]


# Parquet

SECOND = "train-00001-of-00002.parquet"


@pytest.fixture
def parquet(tmp_path):
    """With the `huggingface` schema metadata of the original, which `datasets` puts there; a label is its grey / 10."""
    features = Features({"image": ImageFeature(), "label": Value("int64")})
    (tmp_path / "data").mkdir()
    for name, own in {
        "train-00000-of-00002": [10, 20],
        "train-00001-of-00002": [30],
        "validation-00000-of-00001": [40, 50, 60, 70, 80],
        "test-00000-of-00001": [90],
    }.items():
        rows = {
            "image": [{"bytes": jpeg(grey, (64, 64)), "path": None} for grey in own],
            "label": [grey // 10 for grey in own],
        }
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / f"{name}.parquet")
    return tmp_path


@pytest.fixture
def on_demand(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(images, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(imagenet256, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("arrow"))


def test_parquet(parquet, request, monkeypatch):
    splits = imagenet256.load(parquet, 32)
    assert [greys(split) for split in (splits.train, splits.val, splits.test)] == [[10, 20, 30], [40, 60, 80], [50, 70]]
    assert splits.groups == {"train": list("123"), "val": list("468"), "test": list("57")}
    assert splits.groups == imagenet256.labels(parquet)
    assert (splits.train[0].shape, splits.train[0].dtype) == ((3, 32, 32), torch.uint8)
    assert splits.title == f"{parquet.name} (8 images)"
    request.getfixturevalue("on_demand")  # large files: from an Arrow copy, with the same result
    monkeypatch.setattr(imagenet256, "FULL_TRAIN", 3)
    large = imagenet256.load(parquet, 32)
    assert isinstance(splits.test, images.TensorImages)
    assert isinstance(large.test, images.Photographs)
    assert torch.equal(splits.test[1], large.test[1])
    assert (large.checksum, large.title) == (splits.checksum, "ImageNet-256")


STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.mark.parametrize("held", [True, False])
def test_a_row_that_cannot_be_decoded_is_named_with_its_file(parquet, request, held):
    if not held:
        request.getfixturevalue("on_demand")
    for broken in (jpeg(40, (64, 64))[:-20], None, jpeg(40, (31, 64))):
        rows = [{"bytes": content, "path": None} for content in (jpeg(30, (64, 64)), broken)]
        pq.write_table(pa.table({"image": pa.array(rows, STRUCT)}), parquet / "data" / SECOND)
        with pytest.raises(ValueError, match=rf"{SECOND} row 1 "):
            list(imagenet256.load(parquet, 32).train)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: path.write_bytes(path.read_bytes()[:4] + bytes(200) + path.read_bytes()[204:]),
        lambda path: path.write_text("<html>"),
        lambda path: pq.write_table(pa.table({"img": ["x.jpg"]}), path),
        lambda path: pq.write_table(pa.table({"image": ["x.jpg"]}), path),
    ],
)
def test_a_file_that_is_damaged_or_without_images_is_named(parquet, damage):
    damage(parquet / "data" / SECOND)
    with pytest.raises(ValueError, match=SECOND):
        imagenet256.load(parquet, 32)


def a_bit(path):
    content = path.read_bytes()
    at = content.index(b"\xff\xd9") - 3  # in the last of what is a photograph
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (SECOND, a_bit),
        (SECOND, lambda path: pq.write_table(pq.read_table(path)[:0], path)),
        (SECOND, os.unlink),
        ("facts.json", lambda path: path.write_text("{}")),
    ],
)
def test_files_of_data_prep_are_compared_with_its_facts(parquet, request, name, damage):
    if damage is not a_bit:  # found even where the files are too large to be read for their checksums
        request.getfixturevalue("on_demand")
    content = (parquet / "data" / SECOND).read_bytes()
    stated = {f"data/{SECOND}": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    (parquet / "facts.json").write_text(json.dumps({"files": stated}))
    imagenet256.load(parquet, 32)
    damage(parquet / name if name == "facts.json" else parquet / "data" / name)
    with pytest.raises(ValueError, match=name):
        imagenet256.load(parquet, 32)


def test_missing_and_other_files_are_counted_and_said_and_withheld_labels_make_no_class(parquet, capsys):
    path = parquet / "data" / "validation-00000-of-00001.parquet"
    for label in (None, -1):
        labels = pa.array([0, 0, label, 0, 0], pa.int64())
        pq.write_table(pq.read_table(path).set_column(1, "label", labels), path)
        assert imagenet256.load(parquet, 32).groups is None
    (parquet / "data" / SECOND).rename(parquet / "data" / "extra.parquet")
    imagenet256.load(parquet, 32)
    assert "1 Parquet files that are not there, 1 other Parquet files" in capsys.readouterr().err


def test_folders_without_images_are_refused(tmp_path):
    for root in (None, "nowhere"):
        with pytest.raises(ValueError, match=r"`IMAGENET=DIR`.*`dataset.root=DIR`"):
            imagenet256.load(root, 32)
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"neither data/.*parquet nor a JPEG file; found 1 \.png"):
        imagenet256.load(tmp_path, 32)
    (tmp_path / "data").mkdir()
    for name, message in (("train", r"`root`: no validation-\*.parquet"), ("validation", "no image in .* train")):
        pq.write_table(pa.table({"image": pa.array([], STRUCT)}), tmp_path / "data" / f"{name}-0.parquet")
        with pytest.raises(ValueError, match=message):
            imagenet256.load(tmp_path, 32)


# Folders of JPEG files


def write(root, *names, **options):
    """The grey value is in the name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(int(name.split(".")[-2][-2:]), **options))


@pytest.fixture
def tree(tmp_path):
    """Two training and two validation photographs of each of four classes."""
    for split, first in (("train", 10), ("val", 50)):
        write(tmp_path / "real", *(f"{split}/n{i % 4:08}/{first + i}.JPEG" for i in range(8)))
    return tmp_path / "real"


def content(root):
    splits = imagenet256.load(root, 8)
    found = {split: greys(getattr(splits, split)) for split in folders.SPLITS}
    return found, splits.groups, splits.checksum


def test_jpeg_folders(tmp_path):
    root = tmp_path / "my <b>photos\nof 2025"
    write(root, "train/a/10.jpg", "train/b/20.JPEG", "val/30.jpg", "val/40.jpg", "val/50.jpg")
    assert content(root)[0] == {"train": [10, 20], "val": [30, 50], "test": [40]}
    assert imagenet256.load(root, 8).title == "my <b>photos of 2025 (5 images)"
    write(root, "test/60.jpg")
    assert content(root)[0] == {"train": [10, 20], "val": [30, 40, 50], "test": [60]}
    write(root, "70.jpg")
    with pytest.raises(ValueError, match=r"(?s)1 JPEG files .* outside"):
        imagenet256.load(root, 8)


def test_flat_jpeg_folder_is_split_by_path_whatever_else_is_there(tmp_path):
    names = [f"{i // 10}/{i:02}.jpg" for i in range(100)]
    write(tmp_path, *names)
    whole = content(tmp_path)[0]
    assert sum(map(len, whole.values())) == 100
    assert 70 <= len(whole["train"]) <= 95
    for name in names[::2]:
        (tmp_path / name).unlink()
    half = content(tmp_path)[0]
    assert all(set(half[split]) <= set(whole[split]) for split in whole)


def test_tiny_imagenet(tmp_path):
    for i in range(4):
        wnid = f"n{i % 2:08}"
        write(tmp_path, f"train/{wnid}/images/1{i}.JPEG", f"val/images/2{i}.JPEG", f"test/images/3{i}.JPEG")
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").touch()
    lines = [f"2{i}.JPEG\tn{(i // 2) % 2:08}\t0\t0\t62\t62\n" for i in range(4)]
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    found, groups, _ = content(tmp_path)
    assert found == {"train": [10, 12, 11, 13], "val": [20, 22], "test": [21, 23]}
    assert groups == imagenet256.labels(tmp_path)
    assert groups["train"] == ["n00000000", "n00000000", "n00000001", "n00000001"]
    assert groups["val"] == groups["test"] == ["n00000000", "n00000001"]
    assert folders.read(tmp_path).passed_over == {".txt": 3, "JPEG of test/ (no labels)": 4}


@pytest.mark.parametrize(
    "linked", [("train/n00000001", "train/n00000003"), ("train", "val"), ("val/n00000002/52.JPEG",)]
)
def test_links_are_followed(tree, tmp_path, linked):
    shutil.copytree(tree, tmp_path / "linked")
    for name in linked:
        path = tmp_path / "linked" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(tree / name)
    (tmp_path / "linked" / "train" / "n00000000" / "up").symlink_to(tmp_path / "linked" / "train")  # ends
    assert content(tmp_path / "linked") == content(tree)


DISJOINT = r"/.0\.JPEG .*must be disjoint"


def no_train(tree):
    shutil.rmtree(tree / "train")
    (tree / "train").mkdir()


@pytest.mark.parametrize(
    ("message", "do"),
    [
        (DISJOINT, lambda tree: (tree / "val/n00000009").symlink_to(tree / "train/n00000000")),
        (DISJOINT, lambda tree: (tree / "val/00.JPEG").symlink_to(tree / "train/n00000000/10.JPEG")),
        (DISJOINT, lambda tree: (tree / "val/00.JPEG").hardlink_to(tree / "train/n00000000/10.JPEG")),
        (r"gone\.jpg", lambda tree: (tree / "train/gone.jpg").symlink_to(tree / "nowhere.jpg")),
        (r"/loop cannot be read", lambda tree: (tree / "train/loop").symlink_to("loop")),
        ("no image for train", no_train),
    ],
)
def test_what_makes_no_splits_is_refused(tree, message, do):
    do(tree)
    with pytest.raises(ValueError, match=message):
        folders.read(tree)


@pytest.mark.parametrize(("above", "name"), [("", "val"), ("a/b/", "validation"), ("a/b/", "Test")])
def test_splits_that_lie_deeper_or_are_called_otherwise_are_never_split_anew(tree, tmp_path, above, name):
    inner = tmp_path / "outer" / above
    inner.parent.mkdir(parents=True, exist_ok=True)
    (tree / "train").rename(tree / "Training")
    (tree / "val").rename(tree / name)
    tree.rename(inner)
    with pytest.raises(ValueError, match=f"dataset.root={inner}" if above else "train, val and test"):
        folders.read(tmp_path / "outer")


def test_what_is_unusual_is_counted_and_said(tree, capsys):
    imagenet256.load(tree, 8)
    assert capsys.readouterr().err == ""
    for name in ("a.png", "b.PNG", "notes.txt", "LICENSE", ".DS_Store", "._0.JPEG"):
        (tree / "train" / "n00000000" / name).write_bytes(b"x")
    write(tree, "__MACOSX/train/10.jpg")
    shutil.rmtree(tree / "train" / "n00000002")
    write(tree, "train/n00000000/90.jpg", size=(20, 7))
    imagenet256.load(tree, 8)
    told = capsys.readouterr().err
    assert "passed over 2 .png, 1 .txt, 3 hidden, 1 no suffix\n" in told
    assert "1 of the 4 classes of val" in told
    assert "1 photographs have fewer pixels" in told


# Decoding


def huge(path):
    """One row of a picture whose header says 60,000 x 60,000."""
    content = jpeg(0)
    start = content.index(b"\xff\xc0") + 5
    path.write_bytes(content[:start] + (60000).to_bytes(2) * 2 + content[start + 4 :])


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: Image.fromarray(np.full((8, 8), 5000, np.uint16)).save(path, "PNG"),
        huge,
        lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"),  # a program
    ],
)
def test_a_photograph_that_cannot_be_decoded_is_named(tree, damage):
    path = tree / "train" / "n00000003" / "13.JPEG"
    noise(64).save(path)
    damage(path)
    with pytest.raises(ValueError, match=r"n00000003/13\.JPEG"):
        imagenet256.load(tree, 8)


def test_grey_and_oblong_photographs_become_square_rgb():
    oblong = np.zeros((40, 80), np.uint8)
    oblong[:, 20:60] = 200  # the centre square
    square = images.square_rgb(Image.fromarray(oblong), 16)
    assert square.shape == (3, 16, 16)
    assert (square == 200).all()


def test_exif_orientation_is_applied(tmp_path):
    """The left half is bright in the file; by the EXIF standard, 6 is shown turned: its row 0 is the right side."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = 250
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("train/a.jpg", "val/b.jpg", "val/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name, quality=95, exif=exif)
    image = imagenet256.load(tmp_path, 8).train[0].float()
    assert image[:, :3].mean() > 240
    assert image[:, 5:].mean() < 15


# Decoded photographs kept between runs: the same pixels, never those of other files, never damaged ones


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GCOND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(images, "FEWEST", 3)
    return tmp_path / "cache" / "decoded"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        noise(20 + i).save(tmp_path / "photos" / f"{i}.jpg")
    return tmp_path / "photos"


@pytest.fixture
def decodings(monkeypatch):
    """One entry for each photograph that is decoded."""
    found = []
    square_rgb = images.square_rgb
    monkeypatch.setattr(images, "square_rgb", lambda *a: found.append(1) or square_rgb(*a))
    return found


def photographs(root, size=8):
    files = sorted(root.iterdir())
    return images.Photographs(images.Encoded(files), range(len(files)), size)


def pixels(root, size=8):
    return images.held_or_kept(photographs(root, size), "photographs train", root).images


def test_photographs_are_decoded_once_with_the_same_pixels(cache, root, decodings):
    first = pixels(root)
    decodings.clear()
    again = pixels(root)
    assert not decodings
    assert torch.equal(first, again)
    assert torch.equal(again, torch.stack(list(photographs(root))))
    again[0] = 0  # what is held in memory is nobody else's
    assert torch.equal(pixels(root), first)


def test_what_was_enlarged_is_known_however_the_pixels_were_had(cache, root):
    files = sorted(root.iterdir())
    for _ in ("decoded", "kept"):
        taken = images.Photographs(images.Encoded(files), range(3), 21, enlarges=True)  # of sides 20, 21 and 22
        images.held_or_kept(taken, "photographs train", root)
        assert taken.enlarged == {0}


@pytest.mark.parametrize("change", ["content with the old times", "one more", "size", "decoder"])
def test_whatever_changes_is_decoded_anew_in_the_place_of_the_old(cache, root, decodings, monkeypatch, change):
    pixels(root)
    file = root / "1.jpg"
    times = file.stat()
    if change.startswith("content"):
        content = bytearray(file.read_bytes())
        content[content.index(b"\xff\xdb") + 10] ^= 1  # of a quantisation table
        file.write_bytes(content)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif change == "one more":
        (root / "9.jpg").write_bytes(file.read_bytes())
    elif change == "decoder":
        monkeypatch.setattr(images, "DECODER", 99)
    size = 4 if change == "size" else 8
    decodings.clear()
    found = pixels(root, size)
    assert len(decodings) >= 3
    assert torch.equal(found, torch.stack(list(photographs(root, size))))
    assert len(list(cache.rglob("*"))) == (3 if change == "size" else 2)  # the folder, and a file for each size


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:300] + bytes([whole[300] ^ 1]) + whole[301:],
        lambda whole: whole[:-10],
        lambda whole: whole.replace(b"(3, 3, 8, 8)", b"(8, 3, 3, 8)"),
    ],
)
def test_a_damaged_file_is_decoded_anew(cache, root, decodings, damage):
    whole = pixels(root)
    (file,) = cache.rglob("*.npz")
    file.write_bytes(damage(file.read_bytes()))
    for again in (True, False):
        decodings.clear()
        assert torch.equal(pixels(root), whole)
        assert bool(decodings) == again


def test_few_photographs_and_a_cache_that_cannot_be_written_leave_nothing_behind(cache, root, monkeypatch, capsys):
    monkeypatch.setattr(images, "FEWEST", 4)
    pixels(root)
    assert not cache.exists()
    monkeypatch.setattr(images, "FEWEST", 3)
    cache.parent.touch()
    assert len(pixels(root)) == 3
    assert str(cache.parent) in capsys.readouterr().err


# dataset=photos


@pytest.fixture(scope="module")
def splits():
    return photos.load(64)


def test_counts(splits):
    assert (len(splits.train), len(splits.val), len(splits.test)) == (632, 127, 138)
    assert splits.train[0].shape == (3, 64, 64)
    assert splits.train[0].dtype == torch.uint8


def test_boxes_are_squares_inside_that_reach_every_edge_and_overlap():
    found = photos.boxes(451, 300)
    assert len(found) == len(set(found))
    for side in (300, 225, 150):
        lefts = sorted({left for left, _, right, _ in found if right - left == side})
        tops = sorted({top for left, top, right, bottom in found if bottom - top == right - left == side})
        assert (lefts[0], lefts[-1] + side) == (0, 451)
        assert (tops[0], tops[-1] + side) == (0, 300)
        assert max(np.diff(lefts)) <= side / 6 + 1
    assert photos.boxes(512, 512)[0] == (0, 0, 512, 512)


def test_first_crop_is_the_left_square_of_the_photograph(splits):
    photo = Image.open(files("skimage.data").joinpath("chelsea.png"))
    left_square = np.asarray(photo)[:300, :300].transpose(2, 0, 1)
    blocks = splits.val[0].float().mean((1, 2))
    torch.testing.assert_close(blocks, torch.from_numpy(left_square.astype(np.float32)).mean((1, 2)), atol=0.5, rtol=0)

"""dataset=imagenet256: Parquet and JPEG folders made here."""

import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from gcond.data import imagenet256, images


def jpeg(grey, size=(256, 256), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size, (grey,) * 3 if mode == "RGB" else grey).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_parquet(root, name, greys):
    """With the `huggingface` schema metadata of the original, which `datasets` puts there."""
    (root / "data").mkdir(exist_ok=True)
    features = Features({"image": ImageFeature(), "label": Value("int64")})
    rows = {"image": [{"bytes": jpeg(grey), "path": None} for grey in greys], "label": [0] * len(greys)}
    Dataset.from_dict(rows, features=features).to_parquet(root / "data" / name)


def greys(split):
    return [round(float(image.float().mean())) for image in split]


@pytest.fixture
def parquet(tmp_path):
    write_parquet(tmp_path, "train-00000-of-00002.parquet", [10, 20])
    write_parquet(tmp_path, "train-00001-of-00002.parquet", [30])
    write_parquet(tmp_path, "validation-00000-of-00001.parquet", [40, 50, 60, 70, 80])
    write_parquet(tmp_path, "test-00000-of-00001.parquet", [90])
    return tmp_path


def test_parquet(parquet, monkeypatch):
    splits = imagenet256.load(parquet, 32)
    assert greys(splits.train) == [10, 20, 30]
    assert greys(splits.val) == [40, 60, 80]
    assert greys(splits.test) == [50, 70]
    assert splits.train[0].shape == (3, 32, 32)
    assert splits.train[0].dtype == torch.uint8
    assert splits.title == f"{parquet.name} (8 images)"
    monkeypatch.setattr(imagenet256, "FULL_TRAIN", 3)
    assert imagenet256.load(parquet, 32).title == "ImageNet-256"
    assert splits.intensity.channels == 3


def test_large_parquet_is_decoded_on_demand_with_the_same_result(parquet, tmp_path_factory, monkeypatch):
    held = imagenet256.load(parquet, 32)
    monkeypatch.setattr(images, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(imagenet256, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("arrow"))
    on_demand = imagenet256.load(parquet, 32)
    assert isinstance(held.test, images.TensorImages)
    assert isinstance(on_demand.test, images.Photographs)
    assert torch.equal(held.test[1], on_demand.test[1])
    assert held.facts == on_demand.facts


@pytest.mark.parametrize("held", [True, False])
def test_a_row_that_cannot_be_decoded_is_named_with_its_file(parquet, tmp_path_factory, monkeypatch, held):
    if not held:
        monkeypatch.setattr(images, "IN_MEMORY_BYTES", 0)
        monkeypatch.setattr(imagenet256, "IN_MEMORY_BYTES", 0)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("arrow"))
    rows = [{"bytes": content, "path": None} for content in (jpeg(30), jpeg(40)[:-20], None)]
    path = parquet / "data" / "train-00001-of-00002.parquet"
    for broken in (1, 2):
        pq.write_table(pa.table({"image": pa.array([rows[0], rows[broken]], imagenet_struct())}), path)
        with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet row 1 "):
            list(imagenet256.load(parquet, 32).train)


@pytest.mark.parametrize("damage", ["cut", "pages", "text"])
def test_a_damaged_file_is_named(parquet, damage):
    path = parquet / "data" / "train-00001-of-00002.parquet"
    whole = path.read_bytes()
    damaged = {"cut": whole[:-10], "pages": whole[:4] + bytes(200) + whole[204:], "text": b"<html>"}
    path.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet"):
        imagenet256.load(parquet, 32)


def test_missing_and_other_files_are_counted_and_said(parquet, capsys):
    (parquet / "data" / "train-00001-of-00002.parquet").rename(parquet / "data" / "extra.parquet")
    found = {"Parquet files that are not there": 1, "other Parquet files": 1}
    assert imagenet256.load(parquet, 32).facts["passed_over"] == found
    assert "1 Parquet files that are not there, 1 other Parquet files" in capsys.readouterr().err


@pytest.mark.parametrize("column", ["img", "image"])
def test_a_table_without_encoded_images_is_named(parquet, column):
    pq.write_table(pa.table({column: ["x.jpg"]}), parquet / "data" / "train-00001-of-00002.parquet")
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet has no column image"):
        imagenet256.load(parquet, 32)


@pytest.mark.parametrize("damage", ["a bit", "cut", "gone", "facts"])
def test_files_of_data_prep_are_compared_with_its_facts(parquet, damage):
    path = parquet / "data" / "train-00001-of-00002.parquet"
    content = path.read_bytes()
    stated = {"data/" + path.name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    (parquet / "facts.json").write_text(json.dumps({"files": stated}))
    imagenet256.load(parquet, 32)
    if damage == "a bit":
        at = content.index(b"\xff\xd9") - 3  # in the last of what is a photograph
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    elif damage == "cut":
        pq.write_table(pq.read_table(path)[:0], path)
    elif damage == "gone":
        path.unlink()
    else:
        path = parquet / "facts.json"
        path.write_text("{}")
    with pytest.raises(ValueError, match=path.name):
        imagenet256.load(parquet, 32)


@pytest.mark.parametrize("label", [None, -1])
def test_a_withheld_label_makes_no_class(parquet, label):
    assert imagenet256.load(parquet, 32).groups == {"train": ["0"] * 3, "val": ["0"] * 3, "test": ["0"] * 2}
    path = parquet / "data" / "validation-00000-of-00001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "label", pa.array([0, 0, label, 0, 0], pa.int64())), path)
    assert imagenet256.load(parquet, 32).groups is None


def test_a_folder_of_ones_own_is_called_by_its_own_name(tmp_path, monkeypatch):
    own = tmp_path / "my <b>photos\nof 2025"
    write_jpegs(own, ["train/10.jpg", "train/20.jpg", "val/30.jpg", "val/40.jpg"])
    assert imagenet256.load(own, 32).title == "my <b>photos of 2025 (4 images)"
    monkeypatch.setattr(imagenet256, "FULL_TRAIN", 2)
    monkeypatch.chdir(own)
    assert imagenet256.load(".", 32).title == "my <b>photos of 2025 (4 images)"  # however many they are


def write_jpegs(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(int(name.split(".")[0][-2:])))


def test_jpeg_folders(tmp_path):
    write_jpegs(tmp_path, ["train/a/10.jpg", "train/b/20.JPEG", "val/30.jpg", "val/40.jpg", "val/50.jpg"])
    splits = imagenet256.load(tmp_path, 32)
    assert greys(splits.train) == [10, 20]
    assert (greys(splits.val), greys(splits.test)) == ([30, 50], [40])
    write_jpegs(tmp_path, ["test/60.jpg"])
    splits = imagenet256.load(tmp_path, 32)
    assert (greys(splits.val), greys(splits.test)) == ([30, 40, 50], [60])
    write_jpegs(tmp_path, ["70.jpg"])
    with pytest.raises(ValueError, match=r"1 JPEG files .* outside"):
        imagenet256.load(tmp_path, 32)


def test_flat_jpeg_folder_is_split_by_path_whatever_else_is_there(tmp_path):
    names = [f"{i // 10}/{i:02}.jpg" for i in range(100)]
    write_jpegs(tmp_path, names)
    whole = imagenet256.load(tmp_path, 16)
    assert sum(whole.facts["counts"].values()) == 100
    assert 70 <= len(whole.train) <= 95
    for name in names[::2]:
        (tmp_path / name).unlink()
    half = imagenet256.load(tmp_path, 16)
    assert set(greys(half.val)) <= set(greys(whole.val))
    assert set(greys(half.test)) <= set(greys(whole.test))


def test_grey_and_oblong_photographs_become_square_rgb():
    oblong = np.zeros((40, 80), np.uint8)
    oblong[:, 20:60] = 200  # the centre square
    square = images.square_rgb(Image.fromarray(oblong), 16)
    assert square.shape == (3, 16, 16)
    assert (square == 200).all()


def test_folders_without_images_are_refused(tmp_path):
    for root in (None, "nowhere"):
        with pytest.raises(ValueError, match=r"`IMAGENET=DIR`.*`dataset.root=DIR`"):
            imagenet256.load(root, 32)
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"neither data/.*parquet nor a JPEG file; found 1 \.png"):
        imagenet256.load(tmp_path, 32)
    empty = pa.table({"image": pa.array([], imagenet_struct())})
    (tmp_path / "data").mkdir()
    pq.write_table(empty, tmp_path / "data" / "train-0.parquet")
    with pytest.raises(ValueError, match=r"`root`: no validation-\*.parquet"):
        imagenet256.load(tmp_path, 32)
    pq.write_table(empty, tmp_path / "data" / "validation-0.parquet")
    with pytest.raises(ValueError, match=r"no image in .* train"):
        imagenet256.load(tmp_path, 32)


def imagenet_struct():
    return pa.struct({"bytes": pa.binary(), "path": pa.string()})

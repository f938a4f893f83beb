"""data_prep/imagenet256.py on small clones made here; the loader reads what it makes."""

import hashlib
import io
import json
from collections import Counter

import clone as conversion
import imagenet256
import numpy as np
import pyarrow.parquet as pq
import pytest
from clone import CLASSES, convert
from PIL import Image

from gcond.data import imagenet256 as loader

TENCH, GOLDFISH = "n01440764", "n01443537"  # the first two of ImageNet's classes


def save(path, grey, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey,) * 3).save(path, "JPEG", quality=95)


def rows(out, split):
    return [row for path in sorted((out / "data").glob(f"{split}-*")) for row in pq.read_table(path).to_pylist()]


def command(source, *options):
    return imagenet256.main(["--from", str(source), *map(str, options)])


@pytest.fixture
def clone(tmp_path):
    """Six training and three validation photographs of each of two classes; the grey value is in the name."""
    for split, count in (("train", 6), ("val", 3)):
        for c, wnid in enumerate((GOLDFISH, TENCH)):
            for i in range(count):
                grey = 100 * c + 10 * i + (5 if split == "val" else 0)
                save(tmp_path / "clone" / split / wnid / f"{grey}.jpg", grey)
    return tmp_path / "clone"


def test_photographs_of_the_size_keep_their_bytes_and_get_the_label_of_their_class(clone, tmp_path):
    facts = convert(clone, tmp_path / "out", 8)
    assert facts["counts"] == {"train": 12, "validation": 6}
    lines = []
    for split, count in (("train", 6), ("validation", 3)):
        found = rows(tmp_path / "out", split)
        assert Counter(row["label"] for row in found) == {0: count, 1: count}
        for row in found:
            assert row["image"]["bytes"] == (clone / row["image"]["path"]).read_bytes()
            assert CLASSES[row["label"]] in row["image"]["path"]
            lines.append(f"{split} {row['label']} {hashlib.sha256(row['image']['bytes']).hexdigest()}\n")
    assert facts["images_sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    labels = [str(row["label"]) for row in rows(tmp_path / "out", "train")]
    assert loader.load(tmp_path / "out", 8).groups["train"] == labels
    with pytest.raises(ValueError, match=r"train-00000-of-00001.parquet row 0 .*`image_size` 16 .* 8 x 8"):
        loader.load(tmp_path / "out", 16)


def test_a_larger_subset_contains_a_smaller_one_and_the_seed_matters(clone, tmp_path):
    kept = {}
    for name, subset, seed in (("small", 2, 0), ("large", 4, 0), ("other", 4, 1), ("again", 2, 0)):
        convert(clone, tmp_path / name, 8, subset=subset, subset_validation=1, seed=seed)
        kept[name] = [row["image"]["path"] for row in rows(tmp_path / name, "train")]
        assert Counter(path.split("/")[1] for path in kept[name]) == {TENCH: subset, GOLDFISH: subset}
        assert len(rows(tmp_path / name, "validation")) == 2
    assert set(kept["small"]) < set(kept["large"])
    assert kept["small"] == kept["again"]
    assert set(kept["large"]) != set(kept["other"])
    assert kept["large"] != sorted(kept["large"])


def test_without_folders_the_split_follows_from_each_name(tmp_path):
    names = [f"{wnid}_{i}.JPEG" for wnid in (TENCH, GOLDFISH) for i in range(20)]
    for name in names:
        save(tmp_path / "clone" / name, 0)
    (tmp_path / "clone" / "README.md").touch()
    convert(tmp_path / "clone", tmp_path / "out", 8)
    validates = [n for n in names if int(hashlib.md5((n[:-4] + "jpg").encode()).hexdigest(), 16) % 9 == 0]
    assert {row["image"]["path"] for row in rows(tmp_path / "out", "validation")} == set(validates)
    assert [row["image"]["path"] for row in rows(tmp_path / "out", "train")] == sorted(set(names) - set(validates))
    with pytest.raises(ValueError, match="`--subset` has no effect"):
        convert(tmp_path / "clone", tmp_path / "less", 8, subset=1)


def test_large_photographs_are_made_smaller_and_small_ones_left_out(clone, tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200  # the centre
    Image.fromarray(wide).save(clone / "train" / TENCH / "wide.jpg", quality=95)
    save(clone / "train" / TENCH / "small.jpg", 0, (30, 7))
    facts = convert(clone, tmp_path / "out", 8)
    assert facts["made"] == {"kept": 18, "made smaller": 1, "left out (too small)": 1}
    (smaller,) = (r["image"]["bytes"] for r in rows(tmp_path / "out", "train") if "wide" in r["image"]["path"])
    made = np.asarray(Image.open(io.BytesIO(smaller)))
    assert made.shape == (8, 8, 3)
    assert abs(made[:, 1:-1].mean() - 200) < 6


def test_what_is_there_is_compared_and_nothing_else_looked_at(clone, tmp_path, monkeypatch):
    out = tmp_path / "out"
    facts = convert(clone, out, 8, subset=1)
    assert json.loads((out / "facts.json").read_text()) == facts
    monkeypatch.setattr(conversion, "fitted", None)
    assert convert(clone, out, 8, subset=1) == facts
    with pytest.raises(ValueError, match="exists and was not made by this command"):
        convert(clone, out, 8, subset=2)
    first = out / next(iter(facts["files"]))
    first.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{first.name} does not match the checksum"):
        convert(clone, out, 8, subset=1)
    (tmp_path / "else").mkdir()
    with pytest.raises(ValueError, match="exists and was not made"):
        convert(clone, tmp_path / "else", 8, subset=1)


@pytest.mark.parametrize("damage", ["class", "photograph", "layout", "size"])
def test_what_cannot_be_converted_is_named_and_nothing_is_made(clone, tmp_path, damage):
    named = clone / "train" / TENCH / "0.jpg"
    if damage == "class":
        named = (clone / "train" / TENCH).rename(clone / "train" / "n99999999")
    elif damage == "photograph":
        named.write_bytes(b"\xff\xd8\xff")
    elif damage == "layout":
        named = clone = tmp_path / "empty"
        clone.mkdir()
    with pytest.raises(ValueError, match="no train photograph" if damage == "size" else named.name):
        convert(clone, tmp_path / "out", 9 if damage == "size" else 8)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_the_command_converts_a_clone_and_checks_a_copy(clone, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert command(clone, "--size", 8) == 1  # no --out
    assert command(clone, "--out", out, "--size", 8) == 0
    assert "train: 12 images" in capsys.readouterr().out
    assert command(out, "--size", 8) == 0
    assert "train: 12 images, validation: 6" in capsys.readouterr().out
    assert command(out, "--out", tmp_path / "subset", "--subset", 1) == 1
    assert "holds Parquet already" in capsys.readouterr().err
    for wrong in (("--seed", "3"), ("--size", "0")):
        with pytest.raises(SystemExit):
            command(clone, "--out", out, *wrong)


def test_a_copy_that_is_faulty_or_not_the_published_one_is_refused(tmp_path, monkeypatch, capsys):
    for split, count in (("train", 2), ("val", 4)):
        for i in range(count):
            save(tmp_path / "clone" / split / (TENCH if i % 2 else GOLDFISH) / f"{i}.jpg", 10 * i, (256, 256))
    convert(tmp_path / "clone", tmp_path / "copy", 256)
    (tmp_path / "copy" / "facts.json").unlink()
    assert command(tmp_path / "copy") == 1
    assert "not the published copy of 1,281,167 and 50,000 images" in capsys.readouterr().err
    monkeypatch.setattr(imagenet256, "TRAIN", 2)
    monkeypatch.setattr(imagenet256, "VALIDATION", 4)
    monkeypatch.setattr(imagenet256, "PER_CLASS", 2)
    assert command(tmp_path / "copy") == 0
    (path,) = (tmp_path / "copy" / "data").glob("validation-*")
    table = pq.read_table(path)
    labels = [*table.column("label").to_pylist()[1:], 999]
    pq.write_table(table.set_column(1, "label", [labels]), path)
    assert command(tmp_path / "copy") == 1
    images = table.column("image").to_pylist()
    images[3]["bytes"] = images[3]["bytes"][:-100]
    pq.write_table(table.set_column(0, "image", [images]), path)
    assert command(tmp_path / "copy") == 1
    assert f"{path.name} row 3 cannot be decoded" in capsys.readouterr().err

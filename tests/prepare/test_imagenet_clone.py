"""Clones of JPEG files, made here, become Parquet files that the loader reads."""

import hashlib
import io
import json
from collections import Counter

import imagenet256
import numpy as np
import pyarrow.parquet as pq
import pytest
from imagenet.clone import CLASSES, convert
from PIL import Image

from gcond.data import imagenet256 as loader

TENCH, GOLDFISH = "n01440764", "n01443537"  # the first two of ImageNet's classes


def save(path, grey, size=(8, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey,) * 3).save(path, "JPEG", quality=95, **options)


@pytest.fixture
def folders(tmp_path):
    """Six training and three validation photographs of each of two classes; the grey value is in the name."""
    for split, count in (("train", 6), ("val", 3)):
        for c, wnid in enumerate((GOLDFISH, TENCH)):
            for i in range(count):
                grey = 100 * c + 10 * i + (5 if split == "val" else 0)
                save(tmp_path / "clone" / split / wnid / f"{grey}.jpg", grey)
    return tmp_path / "clone"


def rows(out, split):
    return [row for path in sorted((out / "data").glob(f"{split}-*")) for row in pq.read_table(path).to_pylist()]


def test_photographs_of_the_size_keep_their_bytes_and_get_the_label_of_their_class(folders, tmp_path):
    facts = convert(folders, tmp_path / "out", 8)
    assert facts["counts"] == {"train": 12, "validation": 6}
    for split, count in (("train", 6), ("validation", 3)):
        found = rows(tmp_path / "out", split)
        assert Counter(row["label"] for row in found) == {0: count, 1: count}
        for row in found:
            assert row["image"]["bytes"] == (folders / row["image"]["path"]).read_bytes()
            assert CLASSES[row["label"]] in row["image"]["path"]
    assert loader.load(tmp_path / "out", 8).groups["train"] == [
        str(row["label"]) for row in rows(tmp_path / "out", "train")
    ]
    with pytest.raises(ValueError, match=r"train-00000-of-00001.parquet row 0 .*`image_size` 16 .* 8 x 8"):
        loader.load(tmp_path / "out", 16)


def test_a_larger_subset_contains_a_smaller_one_and_the_seed_matters(folders, tmp_path):
    kept = {}
    for name, subset, seed in (("small", 2, 0), ("large", 4, 0), ("other", 4, 1), ("again", 2, 0)):
        convert(folders, tmp_path / name, 8, subset=subset, subset_validation=1, seed=seed)
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


def test_large_photographs_are_made_smaller_and_small_ones_left_out(folders, tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200  # the centre
    Image.fromarray(wide).save(folders / "train" / TENCH / "wide.jpg", quality=95)
    save(folders / "train" / TENCH / "small.jpg", 0, (30, 7))
    facts = convert(folders, tmp_path / "out", 8)
    assert facts["made"] == {"kept": 18, "made smaller": 1, "left out (too small)": 1}
    (encoded,) = (r["image"]["bytes"] for r in rows(tmp_path / "out", "train") if "wide" in r["image"]["path"])
    made = np.asarray(Image.open(io.BytesIO(encoded)))
    assert made.shape == (8, 8, 3)
    assert abs(made[:, 1:-1].mean() - 200) < 6


def test_facts_hold_checksums_and_a_second_call_compares_them(folders, tmp_path):
    facts = convert(folders, tmp_path / "out", 8)
    lines = [
        f"{split} {row['label']} {hashlib.sha256(row['image']['bytes']).hexdigest()}\n"
        for split in ("train", "validation")
        for row in rows(tmp_path / "out", split)
    ]
    assert facts["images_sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert convert(folders, tmp_path / "out", 8) == facts == json.loads((tmp_path / "out" / "facts.json").read_text())
    with pytest.raises(ValueError, match="exists and was not made by this command"):
        convert(folders, tmp_path / "out", 8, subset=1)
    (tmp_path / "out" / "data" / "train-00000-of-00001.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train-00000-of-00001\.parquet does not match"):
        convert(folders, tmp_path / "out", 8)


@pytest.mark.parametrize("damage", ["class", "photograph", "layout"])
def test_what_cannot_be_converted_is_named_and_nothing_is_made(folders, tmp_path, damage):
    named = folders / "train" / TENCH / "0.jpg"
    if damage == "class":
        named = (folders / "train" / TENCH).rename(folders / "train" / "n99999999")
    elif damage == "photograph":
        named.write_bytes(b"\xff\xd8\xff")
    else:
        named = folders = tmp_path / "empty"
        folders.mkdir()
    with pytest.raises(ValueError, match=named.name):
        convert(folders, tmp_path / "out", 8)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_the_command_converts_a_clone_and_checks_its_result(folders, tmp_path, capsys):
    out = tmp_path / "out"
    for source, target in ((folders, out), (out, tmp_path / "linked")):
        assert imagenet256.main(["--from", str(source), "--out", str(target), "--size", "8", "--workers=1"]) == 0
        assert "12" in capsys.readouterr().out
    assert imagenet256.main(["--from", str(out), "--out", str(tmp_path / "new"), "--allow-partial"]) == 1
    assert "not 256 x 256" in capsys.readouterr().out

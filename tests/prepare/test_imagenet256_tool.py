"""data_prep/imagenet256.py and its modules on small copies made here."""

import hashlib
import io
import json
import os
import shutil
from collections import Counter

import imagenet256
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from imagenet import output
from imagenet import source as published
from imagenet.source import choose
from PIL import Image

from gcond.data import imagenet256 as loader


def encoded(grey=100, size=(256, 256), mode="RGB", form="JPEG"):
    file = io.BytesIO()
    colour = grey if mode == "L" else (grey,) * len(mode)
    Image.new(mode, size, colour).save(file, form)
    return file.getvalue()


def noisy():
    """A JPEG of some length, so that cutting it loses rows."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


FAULTS = {
    "no bytes": b"",
    "not JPEG": encoded(form="PNG"),
    "not 256 x 256": encoded(size=(256, 255)),
    "not RGB": encoded(mode="L"),
    "unreadable": noisy()[:2000],
}


def write(root, name, labels, greys, replaced=None):
    """With the schema metadata of the published files; `replaced` maps rows to other bytes."""
    rows = [{"bytes": encoded(grey), "path": f"{grey}.jpeg"} for grey in greys]
    for row, content in (replaced or {}).items():
        rows[row]["bytes"] = content
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[f"n{i:04}" for i in range(1000)])})
    (root / "data").mkdir(parents=True, exist_ok=True)
    dataset = Dataset.from_dict({"image": rows, "label": labels}, features=features)
    dataset.to_parquet(root / "data" / name, batch_size=4)


TRAIN_LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 2, 0, 1]
"""Four images of each of three classes, in two files of seven and five; the grey value of row i is 10 + i."""


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    write(root, "train-00000-of-00002.parquet", TRAIN_LABELS[:7], range(10, 17))
    write(root, "train-00001-of-00002.parquet", TRAIN_LABELS[7:], range(17, 22))
    write(root, "validation-00000-of-00001.parquet", [2, 1, 0, 2, 1, 0], range(50, 56))
    write(root, "test-00000-of-00001.parquet", [-1, -1], [90, 91])
    return root


@pytest.fixture
def source(made, tmp_path):
    return shutil.copytree(made, tmp_path / "source")


@pytest.fixture
def small_world(monkeypatch):
    """As if the published copy were the one of `source`."""
    monkeypatch.setattr(published, "IMAGES", {"train": 12, "validation": 6, "test": 2})
    monkeypatch.setattr(published, "CLASSES", 3)
    monkeypatch.setattr(published, "VALIDATION_PER_CLASS", 2)


def prepare(source, out, **options):
    return output.prepare(source, out, allow_partial=True, **options)


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(path):
    return pq.read_table(path).to_pylist()


def command(source, out, *options):
    return imagenet256.main(["--from", str(source), "--out", str(out), "--workers", "1", *options])


# Checks.


def test_each_fault_has_its_name():
    for fault, content in FAULTS.items():
        assert published.image_fault(content) == fault
    for content, fault in ((None, "no bytes"), (b"GIF89a no picture", "unreadable"), (noisy(), "")):
        assert published.image_fault(content) == fault
    assert published.image_fault(encoded(mode="CMYK")) == "not RGB"


def test_the_whole_is_accepted_with_the_expected_counts_alone(source, tmp_path, small_world, capsys):
    facts = output.prepare(source, tmp_path / "out")
    assert facts["counts"] == {"train": 12, "validation": 6, "test": 2}
    assert facts["classes"] == {"train": 3, "validation": 3, "test": 0}
    assert facts["deviations"] == []
    (source / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match="nothing was made"):
        output.prepare(source, tmp_path / "less")
    said = capsys.readouterr().out
    assert "missing: data/train-00001-of-00002.parquet" in said
    assert "train: 7 images, expected 12" in said
    write(source, "validation-00000-of-00001.parquet", [2, 1, 0, 2, 1, 1], range(50, 56))
    with pytest.raises(ValueError, match="nothing was made"):
        output.prepare(source, tmp_path / "less")
    assert "validation: 2 classes do not have 2 images" in capsys.readouterr().out
    assert not (tmp_path / "less").exists()


def test_partial_counts_are_reported_where_they_are_allowed(source, tmp_path, capsys):
    assert command(source, tmp_path / "out") == 1
    assert "train: 12 images, expected 1,281,167" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert command(source, tmp_path / "out", "--allow-partial") == 0
    assert len(json.loads((tmp_path / "out" / "facts.json").read_text())["deviations"]) == 4
    with pytest.raises(SystemExit):
        command(source, tmp_path / "out", "--seed", "3")
    assert "no effect without --subset" in capsys.readouterr().err


def test_a_table_names_and_counts_what_is_wrong(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(published, "BATCH", 2)
    replaced = dict(enumerate(FAULTS.values())) | {5: FAULTS["not RGB"]}
    write(source, "train-00001-of-00002.parquet", [1] * 7, range(7), replaced)
    with pytest.raises(ValueError, match="nothing was made"):
        prepare(source, tmp_path / "out")
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("train  ")]
    assert {" ".join(line[1:-4]): line[-4] for line in table} == dict.fromkeys(FAULTS, "1") | {"not RGB": "2"}
    assert ["train-00001-of-00002.parquet", "row", "3"] in [line[-3:] for line in table]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("label", [None, 1000])
def test_labels_outside_the_classes_are_wrong(source, tmp_path, label, capsys):
    path = source / "data" / "train-00001-of-00002.parquet"
    table = pq.read_table(path)
    broken = [*table.column("label").to_pylist()[:-1], label]
    pq.write_table(table.set_column(1, "label", [broken]), path)
    with pytest.raises(ValueError, match="nothing was made"):
        prepare(source, tmp_path / "out")
    assert "label outside 0..999" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["footer", "pages"])
def test_a_file_that_parquet_cannot_read_is_named(source, tmp_path, damage, capsys):
    path = source / "data" / "train-00001-of-00002.parquet"
    whole = path.read_bytes()
    # The labels stand behind the images, so the damaged pages are found only when images are read.
    path.write_bytes(whole[:-20] if damage == "footer" else whole[:4] + bytes(200) + whole[204:])
    with pytest.raises(ValueError, match="nothing was made"):
        prepare(source, tmp_path / "out")
    assert "file unreadable" in capsys.readouterr().out


def test_other_layouts_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match=r"no data/train-\*.parquet"):
        prepare(tmp_path, tmp_path / "out")
    path = source / "data" / "train-00000-of-00002.parquet"
    pq.write_table(pq.read_table(path).select(["label"]), path)
    with pytest.raises(ValueError, match="no column image"):
        prepare(source, tmp_path / "out")
    path.rename(path.with_name("extra.parquet"))
    with pytest.raises(ValueError, match=r"found extra\.parquet"):
        prepare(source, tmp_path / "out")


# Subsets.


def drawn(seed, label, row):
    return hashlib.sha256(f"{seed}:{label}:{row}".encode()).hexdigest()


@pytest.mark.parametrize(("per_class", "seed"), [(1, 0), (3, 7), (9, 0)])
def test_choice_is_that_of_sorting_each_class(per_class, seed):
    expected = []
    for label in set(TRAIN_LABELS):
        own = [row for row, found in enumerate(TRAIN_LABELS) if found == label]
        expected += sorted(own, key=lambda row: drawn(seed, label, row))[:per_class]
    assert choose(np.array(TRAIN_LABELS), per_class, seed).tolist() == sorted(expected)


def test_subset_keeps_the_very_images(source, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "BATCH", 3)
    facts = prepare(source, tmp_path / "out", subset=2, subset_validation=1, seed=5)
    originals = [row for path in sorted((source / "data").glob("train-*")) for row in rows(path)]
    kept = [row for path in sorted((tmp_path / "out" / "data").glob("train-*")) for row in rows(path)]
    assert Counter(row["label"] for row in kept) == {0: 2, 1: 2, 2: 2}
    assert [originals.index(row) for row in kept] == choose(np.array(TRAIN_LABELS), 2, 5).tolist()
    assert facts["counts"] == {"train": 6, "validation": 3}
    made = sorted((tmp_path / "out" / "data").iterdir())
    assert {name: file["sha256"] for name, file in facts["files"].items()} == {
        f"data/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in made
    }
    assert json.loads((tmp_path / "out" / "facts.json").read_text()) == facts
    assert facts["source"]["listing_sha256"] == loader.load(source, 16).facts["checksum"]
    assert "train: 997 classes have fewer than 2 images, all of them kept" in facts["deviations"]
    assert not list((tmp_path / "out" / "data").glob("test-*"))
    metadata = [
        pq.read_schema(root / "data" / "train-00000-of-00002.parquet").metadata for root in (source, tmp_path / "out")
    ]
    assert metadata[0][b"huggingface"] == metadata[1][b"huggingface"]


def test_result_does_not_depend_on_the_workers(source, tmp_path):
    options = {"subset": 2, "seed": 3}
    assert prepare(source, tmp_path / "one", **options, workers=1)
    assert prepare(source, tmp_path / "two", **options, workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


# Files.


def test_the_whole_is_linked_through_symbolic_links_or_copied(source, tmp_path, monkeypatch, capsys):
    """As in the hub's cache, where a snapshot's files are symbolic links to blobs."""
    snapshot = tmp_path / "snapshot" / "data"
    snapshot.mkdir(parents=True)
    for path in (source / "data").iterdir():
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
    prepare(snapshot.parent, tmp_path / "out")
    for path in (tmp_path / "out" / "data").iterdir():
        assert not path.is_symlink()
        assert path.samefile(source / "data" / path.name)
    assert "4 linked" in capsys.readouterr().out

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    prepare(source, tmp_path / "copied")
    assert "4 copied" in capsys.readouterr().out
    assert content(source / "data") == content(tmp_path / "copied" / "data")


def looked_at(monkeypatch):
    """The list to which every image that is checked from now on adds its grey value."""
    seen = []
    original = published.image_fault

    def image_fault(content, size):
        seen.append(Image.open(io.BytesIO(content)).getpixel((0, 0))[0])
        return original(content, size)

    monkeypatch.setattr(published, "image_fault", image_fault)
    return seen


def test_what_is_there_is_compared(source, tmp_path, monkeypatch):
    facts = prepare(source, tmp_path / "out", subset=1)
    seen = looked_at(monkeypatch)
    assert prepare(source, tmp_path / "out", subset=1) == facts
    assert seen == []
    with pytest.raises(ValueError, match=r"exists and was not made by this command \(subset: wanted 2, found 1\)"):
        prepare(source, tmp_path / "out", subset=2)
    (tmp_path / "out" / "data" / "train-00000-of-00002.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="does not match the checksum"):
        prepare(source, tmp_path / "out", subset=1)
    (tmp_path / "else").mkdir()
    with pytest.raises(ValueError, match="exists and was not made"):
        prepare(source, tmp_path / "else")


# The loader.


def test_the_loader_reads_the_result(source, tmp_path):
    """For this seed no image of the second file is kept."""
    seed = next(s for s in range(100) if max(choose(np.array(TRAIN_LABELS), 1, s)) < 7)
    prepare(source, tmp_path / "out", subset=1, seed=seed)
    assert not (tmp_path / "out" / "data" / "train-00001-of-00002.parquet").exists()
    splits = loader.load(tmp_path / "out", 32)
    greys = [round(float(image.float().mean())) for image in splits.train]
    assert greys == [10 + row for row in choose(np.array(TRAIN_LABELS), 1, seed)]
    assert splits.facts["counts"] == {"train": 3, "val": 3, "test": 3}

"""data_prep/imagenet256.py on small copies and clones made here; the loader reads what it makes."""

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
from imagenet.clone import CLASSES, convert
from imagenet.source import choose
from PIL import Image

from gcond.data import imagenet256 as loader


def encoded(grey=100, size=(256, 256), mode="RGB", form="JPEG"):
    file = io.BytesIO()
    colour = grey if mode == "L" else (grey,) * len(mode)
    Image.new(mode, size, colour).save(file, form, quality=95)
    return file.getvalue()


FAULTS = {
    "no bytes": b"",
    "not JPEG": encoded(form="PNG"),
    "not 256 x 256": encoded(size=(256, 255)),
    "not RGB": encoded(mode="L"),
    "unreadable": encoded()[:700],
}
FIRST, SECOND = "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"


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


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    write(root, FIRST, TRAIN_LABELS[:7], range(10, 17))
    write(root, SECOND, TRAIN_LABELS[7:], range(17, 22))
    write(root, "validation-00000-of-00001.parquet", [2, 1, 0, 2, 1, 0], range(50, 56))
    write(root, "test-00000-of-00001.parquet", [-1, -1], [90, 91])
    return root


@pytest.fixture
def source(made, tmp_path):
    return shutil.copytree(made, tmp_path / "source")


def prepare(source, out, **options):
    return output.prepare(source, out, allow_partial=True, **options)


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(out, split):
    return [row for path in sorted((out / "data").glob(f"{split}-*")) for row in pq.read_table(path).to_pylist()]


def command(source, out, *options):
    return imagenet256.main(["--from", str(source), "--out", str(out), *options])


# A copy is checked


def test_the_whole_is_accepted_with_the_expected_counts_alone(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(published, "IMAGES", {"train": 12, "validation": 6, "test": 2})
    monkeypatch.setattr(published, "CLASSES", 3)
    monkeypatch.setattr(published, "VALIDATION_PER_CLASS", 2)
    facts = output.prepare(source, tmp_path / "out")
    assert facts["counts"] == {"train": 12, "validation": 6, "test": 2}
    assert facts["classes"] == {"train": 3, "validation": 3, "test": 0}
    assert facts["deviations"] == []
    (source / "data" / SECOND).unlink()
    write(source, "validation-00000-of-00001.parquet", [2, 1, 0, 2, 1, 1], range(50, 56))
    with pytest.raises(ValueError, match="nothing was made"):
        output.prepare(source, tmp_path / "less")
    said = capsys.readouterr().out
    assert f"missing: data/{SECOND}" in said
    assert "train: 7 images, expected 12" in said
    assert "validation: 2 classes do not have 2 images" in said
    assert not (tmp_path / "less").exists()


def test_partial_counts_are_reported_where_they_are_allowed(source, tmp_path, capsys):
    assert command(source, tmp_path / "out") == 1
    assert "train: 12 images, expected 1,281,167" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert command(source, tmp_path / "out", "--allow-partial") == 0
    assert len(json.loads((tmp_path / "out" / "facts.json").read_text())["deviations"]) == 4
    for wrong in (("--seed", "3"), ("--size", "0")):
        with pytest.raises(SystemExit):
            command(source, tmp_path / "out", *wrong)


def test_a_table_names_and_counts_what_is_wrong(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(published, "BATCH", 2)
    replaced = dict(enumerate(FAULTS.values())) | {5: FAULTS["not RGB"]}
    write(source, SECOND, [1] * 7, range(7), replaced)
    with pytest.raises(ValueError, match="nothing was made"):
        prepare(source, tmp_path / "out")
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("train  ")]
    assert {" ".join(line[1:-4]): line[-4] for line in table} == dict.fromkeys(FAULTS, "1") | {"not RGB": "2"}
    assert [SECOND, "row", "3"] in [line[-3:] for line in table]
    assert not (tmp_path / "out").exists()


def relabel(label):
    def change(path):
        table = pq.read_table(path)
        labels = [*table.column("label").to_pylist()[:-1], label]
        pq.write_table(table.set_column(1, "label", [labels]), path)

    return change


def blank_pages(path):
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(200) + content[204:])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (relabel(None), "label outside 0..999"),
        (relabel(1000), "label outside 0..999"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "file unreadable"),
        # The labels stand behind the images, so the damaged pages are found only when images are read.
        (blank_pages, "file unreadable"),
        (lambda path: pq.write_table(pq.read_table(path).select(["label"]), path), "no column image"),
        (lambda path: pq.write_table(pq.read_table(path).select(["image"]), path), "no integer column label"),
        (lambda path: path.rename(path.with_name("extra.parquet")), r"found extra.parquet"),
        (lambda path: [file.unlink() for file in path.parent.glob("train-*")], "no data/train-*.parquet"),
    ],
)
def test_damaged_files_and_other_layouts_are_refused(source, tmp_path, damage, said, capsys):
    damage(source / "data" / SECOND)
    assert command(source, tmp_path / "out", "--allow-partial") == 1
    told = capsys.readouterr()
    assert said in told.out + told.err
    assert not (tmp_path / "out").exists()


# Subsets


@pytest.mark.parametrize(("per_class", "seed"), [(1, 0), (3, 7), (9, 0)])
def test_choice_is_that_of_sorting_each_class(per_class, seed):
    expected = []
    for label in set(TRAIN_LABELS):
        own = [row for row, found in enumerate(TRAIN_LABELS) if found == label]
        drawn = {row: hashlib.sha256(f"{seed}:{label}:{row}".encode()).hexdigest() for row in own}
        expected += sorted(own, key=drawn.get)[:per_class]
    assert choose(np.array(TRAIN_LABELS), per_class, seed).tolist() == sorted(expected)


def test_subset_keeps_the_very_images(source, tmp_path, monkeypatch, capsys):
    """For this seed no image of the second file is kept."""
    monkeypatch.setattr(published, "BATCH", 3)
    seed = next(s for s in range(100) if max(choose(np.array(TRAIN_LABELS), 1, s)) < 7)
    facts = prepare(source, tmp_path / "out", subset=1, subset_validation=1, seed=seed)
    kept = rows(tmp_path / "out", "train")
    chosen = choose(np.array(TRAIN_LABELS), 1, seed).tolist()
    assert [rows(source, "train").index(row) for row in kept] == chosen
    assert facts["counts"] == {"train": 3, "validation": 3}
    made = sorted((tmp_path / "out" / "data").iterdir())
    assert [path.name for path in made] == [FIRST, "validation-00000-of-00001.parquet"]
    assert {name: file["sha256"] for name, file in facts["files"].items()} == {
        f"data/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in made
    }
    assert json.loads((tmp_path / "out" / "facts.json").read_text()) == facts
    assert facts["source"]["listing_sha256"] == loader.load(source, 16).checksum
    assert "train: 997 classes have fewer than 1 images, all of them kept" in facts["deviations"]
    metadata = [pq.read_schema(root / "data" / FIRST).metadata for root in (source, tmp_path / "out")]
    assert metadata[0][b"huggingface"] == metadata[1][b"huggingface"]
    splits = loader.load(tmp_path / "out", 32)
    assert [round(float(image.float().mean())) for image in splits.train] == [10 + row for row in chosen]
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [3, 2, 1]
    assert "passed over" not in capsys.readouterr().err  # the second file is no missing one


# Files


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


# A clone of JPEG files becomes Parquet

TENCH, GOLDFISH = "n01440764", "n01443537"  # the first two of ImageNet's classes


def save(path, grey, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(grey, size))


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


@pytest.mark.parametrize("of", ["copy", "clone"])
def test_what_is_there_is_compared_and_nothing_else_looked_at(source, clone, tmp_path, monkeypatch, of):
    def make(out, **options):
        return prepare(source, out, **options) if of == "copy" else convert(clone, out, 8, **options)

    out = tmp_path / "out"
    facts = make(out, subset=1)
    assert json.loads((out / "facts.json").read_text()) == facts
    monkeypatch.setattr(published, "image_fault", None)
    monkeypatch.setattr("imagenet.clone.fitted", None)
    assert make(out, subset=1) == facts
    with pytest.raises(ValueError, match="exists and was not made by this command"):
        make(out, subset=2)
    first = out / next(iter(facts["files"]))
    first.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{first.name} does not match the checksum"):
        make(out, subset=1)
    (tmp_path / "else").mkdir()
    with pytest.raises(ValueError, match="exists and was not made"):
        make(tmp_path / "else", subset=1)
    (tmp_path / "else" / "facts.json").write_text('{"size": 8,')
    with pytest.raises(ValueError, match=r"else/facts\.json: expected a JSON object"):
        make(tmp_path / "else", subset=1)


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


def test_the_command_converts_a_clone_and_checks_its_result(clone, tmp_path, capsys):
    out = tmp_path / "out"
    for source, target in ((clone, out), (out, tmp_path / "linked")):
        assert command(source, target, "--size", "8") == 0
        assert "12" in capsys.readouterr().out
    assert command(out, tmp_path / "new", "--allow-partial") == 1
    assert "not 256 x 256" in capsys.readouterr().out

"""The CT store: read back as it was written, and refused, by the name of the file, where it is not what it says."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from write_store import finish, write, write_shard

from gcond.data import ct, images, photos, store, windows
from gcond.data.checksums import checksum_of
from gcond.files import sha256

FIRST, SECOND, INDEX, FACTS = "shards/00000.arrow", "shards/00001.arrow", "index.parquet", "facts.json"
SLICES = 4  # of each shard
PATIENTS = "aabcbadd"
SPLIT_OF = {"a": "train", "b": "train", "c": "validation", "d": "test"}
TRAIN = (1000, 1001, 1002, 1004, 1005)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Two shards of four constant slices, HU + 1024 = 1000 .. 1007; the training slices are in both."""
    root = tmp_path_factory.mktemp("sound") / "ct"
    pictures = [np.full((256, 256), 1000 + i, store.DTYPE).tobytes() for i in range(2 * SLICES)]
    shards = [write_shard(root / FIRST, pictures[:SLICES]), write_shard(root / SECOND, pictures[SLICES:])]
    rows = [
        {"split": SPLIT_OF[patient], "patient": patient, "shard": i // SLICES, "row": i % SLICES, "z": i}
        for i, patient in enumerate(PATIENTS)
    ]
    train = np.bincount(TRAIN, minlength=store.VALUES)
    statistics = {name: windows.statistics(train, *window) for name, window in windows.PRESETS.items()}
    about = {"title": "CT (made)", "missing_packages": ["absent"]}
    finish(root, pa.Table.from_pylist(rows, store.INDEX), shards, statistics, about)
    return root


@pytest.fixture
def root(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "ct")


def values(split):
    return [int(image[0, 0, 0]) for image in split]


# What is read


@pytest.mark.parametrize("backwards", [False, True])
def test_every_slice_has_its_patient_wherever_it_stands_in_the_index(root, backwards):
    if backwards:
        do(root, index(lambda table: table.take(list(range(2 * SLICES))[::-1])))
        restate(root)
    splits = ct.load(root, image_size=256)
    expected = {name: {} for name in ct.SPLITS}
    for i, patient in enumerate(PATIENTS):
        expected[next(name for name in ct.SPLITS if ct.SPLITS[name] == SPLIT_OF[patient])][1000 + i] = patient
    for name, whose in expected.items():
        assert dict(zip(values(getattr(splits, name)), splits.groups[name], strict=True)) == whose
    assert (splits.train[0].shape, splits.train[0].dtype) == ((1, 256, 256), torch.int16)
    assert splits.missing_packages == ["absent"]
    assert (splits.title, splits.body_above, splits.shows_patients) == ("CT (made)", 524, True)  # -500 HU
    assert not photos.load(32).shows_patients
    cfg = OmegaConf.create({"_target_": "gcond.data.ct.load", "root": str(root)})
    assert splits.checksum == checksum_of(cfg)


@pytest.mark.parametrize("window", ["c600w2800", [-800, 2000]])
def test_statistics_are_those_of_the_training_split(root, window):
    splits = ct.load(root, 256, window)
    unit = (np.array(TRAIN) - 1024 + 800) / 2800
    assert splits.intensity.mean == pytest.approx((unit.mean(),))
    assert splits.intensity.std == pytest.approx((unit.std(),))
    z = splits.intensity.normalise(torch.stack(list(splits.train)))
    assert z.mean().item() == pytest.approx(0, abs=1e-4)
    assert z.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    paper = ct.load(root, 64, window, statistics="paper")
    assert (paper.intensity.mean, paper.intensity.std) == ((0.107961,), (0.173622,))


def test_large_store_is_read_slice_by_slice_with_the_same_result(root, monkeypatch):
    held = ct.load(root, 32).train
    monkeypatch.setattr(images, "IN_MEMORY_BYTES", 0)
    on_demand = ct.load(root, 32).train
    assert isinstance(held, images.TensorImages)
    assert isinstance(on_demand, ct.StoreSlices)
    assert values(held) == values(on_demand) == list(TRAIN)


def test_heights_along_each_volume(root):
    assert ct.heights(root) is None
    spaced = {"spacing_z_mm": dict.fromkeys(range(2 * SLICES), 2.5), "series": {0: "s", 1: "s"}}
    do(root, cells(**spaced))
    restate(root)
    volumes, mm = ct.heights(root)["train"]
    assert volumes.tolist() == ["a//s", "a//s", "b//", "b//", "a//"]
    assert mm.tolist() == [0, 2.5, 5, 10, 12.5]


def test_slices_without_labels_are_left_out_of_a_labelled_run(root, capsys):
    """Labelled are the first slices of a, b, c and d; d's second has five labels of six."""
    known = {0: 1, 2: 0, 3: 0, 6: 1, 7: 1}
    do(root, cells(**dict.fromkeys(store.LABELS, known)))
    do(root, cells(any={7: None}))
    restate(root)
    splits, found = ct.load(root, 256, labelled=True), ct.labels(root)
    assert (values(splits.train), values(splits.val), values(splits.test)) == ([1000, 1002], [1003], [1006])
    assert splits.groups == {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    assert splits.title == "CT (made), labelled slices"
    assert "4 of 8 slices have no labels" in capsys.readouterr().err
    assert splits.intensity == ct.load(root, 256).intensity
    assert {name: own[:, 0].tolist() for name, own in found.items()} == {"train": [1, 0], "val": [0], "test": [1]}
    assert all(own.shape[1] == 6 and own.is_floating_point() for own in found.values())


def test_a_store_without_labels_names_the_file_that_has_them(root):
    for asked in (lambda: ct.labels(root), lambda: ct.load(root, 32, labelled=True)):
        with pytest.raises(ValueError, match=r"stage_2_train\.csv"):
            asked()


def test_resize_averages_and_rounds():
    stored = np.zeros((256, 256), np.uint16)
    stored[:, :128] = 4095
    small = ct.resize(stored, 2)  # triangle filter, support of one target pixel: by hand 3/4 : 1/4 less edge effects
    assert small.dtype == np.int16
    assert (small[0] + small[0][::-1] == 4095).all()
    assert 3 * 4095 / 4 < small[0, 0] < 4095
    chequers = (np.indices((256, 256)).sum(0) % 2 * 1001).astype(np.uint16)
    assert np.ptp(ct.resize(chequers, 64)[2:-2, 2:-2]) < 60
    three_of_four = (np.indices((256, 256))[0] % 4 > 0).astype(np.uint16)  # every mean of four rows is 3/4
    assert (ct.resize(three_of_four, 64)[2:-2] == 1).all()


# What is refused


# A damage is a file of the store, and what changes it.


def raw(file, how):
    """`how` returns other bytes."""
    return file, lambda path: path.write_bytes(how(path.read_bytes()))


def slices(file, how):
    """A shard written anew, whole and valid as Arrow; `how` returns other slices."""

    def change(path):
        with pa.ipc.open_stream(path.read_bytes()) as stream:
            found = stream.read_all().column("pixels").to_pylist()
        table = pa.table({"pixels": pa.array(how(found), pa.binary())})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)

    return file, change


def index(how):
    """`how` returns another table."""
    return INDEX, lambda path: pq.write_table(how(pq.read_table(path)), path)


def facts(how):
    """`how` changes them in place."""

    def change(path):
        found = json.loads(path.read_text())
        how(found)
        path.write_text(json.dumps(found))

    return FACTS, change


def do(root, damage):
    file, change = damage
    change(root / file)


def restate(root):
    """Let the facts name the checksums of the files as they are."""

    def how(found):
        for shard in found["shards"]:
            shard["sha256"] = sha256(root / "shards" / shard["name"])
        found["index_sha256"] = sha256(root / INDEX)
        found["checksum"] = store.checksum(found)

    do(root, facts(how))


def cells(**changed):
    """The index with other values in some rows, column={row: value}."""

    def how(table):
        rows = table.to_pylist()
        for column, values in changed.items():
            for row, value in values.items():
                rows[row][column] = value
        return pa.Table.from_pylist(rows, table.schema)

    return index(how)


def flip(file, at):
    return raw(file, lambda content: content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])


def bright(found):
    return [*found[:-1], np.full((256, 256), 4096, store.DTYPE).tobytes()]


def state(window="c600w2800", **changed):
    return facts(lambda found: found["train_statistics"][window].update(changed))


def nudge(found):
    found["train_statistics"]["c600w2800"]["mean"] += 1e-8


CHECKSUMS = {  # damage that nothing but its checksum can tell
    "a pixel": flip(FIRST, 5000),
    "a bit of the index": flip(INDEX, 100),
    "rows exchanged": cells(row={0: 1, 1: 0}),
    "a height": cells(z={0: 9}),
}
CONTENTS = {  # damage that is found whatever the facts say of the file
    "values above 4095 in training": slices(FIRST, lambda found: bright(found[::-1])),
    "values above 4095 in test": slices(SECOND, bright),
    "short slices": slices(FIRST, lambda found: [found[0][:-2], *found[1:]]),
    "a slice less": slices(SECOND, lambda found: found[1:]),
    "text for a shard": raw(FIRST, lambda content: b"<html>"),
    "half a shard": raw(SECOND, lambda content: content[: len(content) // 2]),
    "text for an index": raw(INDEX, lambda content: b"split,patient\n"),
    "an index cut": index(lambda table: table[:-1]),
    "no column of rows": index(lambda table: table.drop_columns("row")),
    "a row of the next shard": cells(row={3: 4}),
    "a row behind the last shard": cells(row={7: 4}),
    "a negative shard": cells(shard={0: -1}),
    "no such shard": cells(shard={7: 2}),
    "a negative row": cells(row={0: -1}),
    "a row twice": cells(row={0: 1}),
    "no row": cells(row={0: None}),
    "no patient": cells(patient={0: None}),
    "another split": cells(split={0: "trian"}),
    "a slice of another split": cells(split={0: "test"}),
}
STATISTICS = {
    "a mean, last digits": facts(nudge),
    "a std of another window": state("12bit", std=0.25),
}
STATED = {
    "a mean that is no number": state(mean=float("nan")),
    "a std of zero": state(std=0),
    "a mean beyond the window": state(mean=3.0),
    "a mean in words": state(mean="0.1"),
    "an unknown window": facts(lambda found: found["train_statistics"].update(brain={"mean": 2, "std": 1})),
    "the checksum": facts(lambda found: found.update(checksum="0" * 64)),
    "the order of the shards": facts(lambda found: found["shards"].reverse()),
    "the path of a shard": facts(lambda found: found["shards"][0].update(name="../00000.arrow")),
    "counts below zero": facts(lambda found: found["counts"].update(train=-1)),
    "a slice more": facts(lambda found: found["counts"].update(train=6)),
    "a slice more in a shard": facts(lambda found: found["shards"][0].update(slices=5)),
    "counts without test": facts(lambda found: found["counts"].pop("test")),
    "no title": facts(lambda found: found.pop("title")),
    "half the facts": raw(FACTS, lambda content: content[: len(content) // 2]),
    "no UTF-8": raw(FACTS, lambda content: b"\xff" + content),
}
DAMAGES = {
    "checksums": CHECKSUMS | CONTENTS,
    "contents": CONTENTS,
    "facts": STATISTICS | STATED,
}


def load_all(root):
    splits = ct.load(root, 16)
    return [list(split) for split in (splits.train, splits.val, splits.test)]


@pytest.mark.parametrize("group", DAMAGES)
def test_a_damaged_store_neither_loads_nor_passes(sound, tmp_path, monkeypatch, group):
    """Held in memory, read slice by slice (but for what statistics alone tell), and verified; the file is named."""
    for name, damage in DAMAGES[group].items():
        root = shutil.copytree(sound, tmp_path / "ct")
        do(root, damage)
        if group == "contents":
            restate(root)
        for reader, bytes_in_memory in ((load_all, 2**31), (load_all, 0), (store.verify, 0)):
            if name in STATISTICS and reader is load_all and not bytes_in_memory:
                continue
            monkeypatch.setattr(images, "IN_MEMORY_BYTES", bytes_in_memory)
            print(name, bytes_in_memory)  # shown where one of them fails
            named = damage[0] if group == "checksums" and bytes_in_memory else r"\S+\.(arrow|parquet|json)"
            with pytest.raises(ValueError, match=rf"`root`: {root}/{named}"):
                reader(root)
        shutil.rmtree(root)


def test_what_was_compared_is_compared_again_when_the_file_changes(root, monkeypatch):
    """Read slice by slice, a shard is compared once, by whatever process, as long as it stays the same."""
    monkeypatch.setattr(images, "IN_MEMORY_BYTES", 0)
    compared = []
    monkeypatch.setattr(store, "sha256", lambda path: compared.append(path.name) or sha256(path))
    for expected in (2, 0):
        compared.clear()
        assert values(ct.load(root, 16).train) == list(TRAIN)
        assert len(compared) == expected
    do(root, flip(FIRST, 5000))
    with pytest.raises(ValueError, match=FIRST):
        list(ct.load(root, 16).train)


def one_patient_in_two_splits(root):
    do(root, cells(patient={6: "c"}))
    restate(root)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root), "no CT store at .*ct; .* `make data`"),
        (lambda root: (root / FACTS).unlink(), "an unfinished CT store"),
        (lambda root: do(root, facts(lambda found: found.update(format_version=99))), "format version 99"),
        (lambda root: (root / FIRST).unlink(), "00000.arrow is missing"),
        (lambda root: (root / INDEX).unlink(), INDEX),
        (one_patient_in_two_splits, "patient c is in validation and in test"),
    ],
)
def test_what_is_no_store_is_refused(root, damage, message):
    damage(root)
    for read in (lambda: ct.load(root, 64), lambda: store.verify(root)):
        with pytest.raises(ValueError, match=message):
            read()


def test_a_store_that_is_not_named_is_asked_for():
    """`paths.ct=null`."""
    unnamed = OmegaConf.create({"_target_": "gcond.data.ct.load", "root": None})
    for read in (lambda: checksum_of(unnamed), lambda: ct.labels(None), lambda: ct.heights(None)):
        with pytest.raises(ValueError, match="`root`: expected the folder of a CT store"):
            read()


@pytest.mark.parametrize("setting", [{"image_size": 512}, {"window": "brain"}, {"statistics": "imagenet"}])
def test_bad_settings_name_their_key(root, setting):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}`"):
        ct.load(root, **{"image_size": 64, **setting})


def test_nothing_is_left_of_a_store_that_could_not_be_written(tmp_path):
    made = [{"split": split, "patient": "a", "pixels": bytes(131072)} for split in store.SPLITS]
    with pytest.raises(ValueError, match="patient a is in train and in validation and in test"):
        write(tmp_path / "ct", made, {})
    assert not list(tmp_path.iterdir())

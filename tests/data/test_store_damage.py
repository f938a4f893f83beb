"""A damaged store never trains: every damage is a ValueError that names a file of the store, before a step is made.

What is damaged without its checksums (RAW) is found by these; what has been written so, checksums and all (WRITTEN), by
what the files hold.
"""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from write_store import finish, write_shard

from gcond.data import ct, images, store, windows
from gcond.files import sha256

FIRST, SECOND = "shards/00000.arrow", "shards/00001.arrow"
SLICES = 4  # of each shard
PATIENTS = ("a", "a", "b", "c", "b", "a", "d", "d")
SPLITS = {"a": "train", "b": "train", "c": "validation", "d": "test"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Two shards of four slices each, of noise; the training slices are in both."""
    root = tmp_path_factory.mktemp("sound") / "ct"
    pictures = np.random.default_rng(0).integers(0, 4096, (8, 256, 256)).astype(store.DTYPE)
    parts = [pictures[:SLICES], pictures[SLICES:]]
    shards = [write_shard(root / f"shards/{i:05}.arrow", [p.tobytes() for p in part]) for i, part in enumerate(parts)]
    rows = [
        {"split": SPLITS[patient], "patient": patient, "shard": i // SLICES, "row": i % SLICES, "z": i}
        for i, patient in enumerate(PATIENTS)
    ]
    train = np.bincount(pictures[[SPLITS[p] == "train" for p in PATIENTS]].ravel(), minlength=store.VALUES)
    statistics = {name: windows.statistics(train, *window) for name, window in windows.PRESETS.items()}
    index = pa.Table.from_pylist(rows, store.INDEX)
    finish(root, index, shards, statistics, {"title": "CT (made)", "missing_packages": []})
    return root


@pytest.fixture
def root(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "ct")


def change(name, how):
    def damage(root):
        (root / name).write_bytes(how(bytearray((root / name).read_bytes())))
        return name

    return damage


def flip(at):
    """One bit of a byte; `at` is its place, or finds it."""

    def how(content):
        content[at(content) if callable(at) else at] ^= 4
        return content

    return how


def rewrite(name, how, schema=store.PIXELS):
    """A shard written anew, whole and valid as Arrow, from `how(slices)`."""

    def damage(root):
        with pa.memory_map(str(root / name)) as source:
            slices = pa.ipc.open_stream(source).read_all().column("pixels").to_pylist()
        batch = pa.record_batch([pa.array(how(slices), schema.field(0).type)], schema=schema)
        with pa.OSFile(str(root / name), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            writer.write_batch(batch)
        return name

    return damage


def index(**columns):
    """The index with other values in some rows: {row: value}; None takes the column away."""

    def damage(root):
        path = root / "index.parquet"
        table = pq.read_table(path)
        for name, changed in columns.items():
            place, field = table.schema.names.index(name), table.schema.field(name)
            if changed is None:
                table = table.remove_column(place)
                continue
            values = [changed.get(i, value) for i, value in enumerate(table.column(name).to_pylist())]
            table = table.set_column(place, field, pa.array(values, field.type))
        pq.write_table(table, path)
        return path.name

    return damage


def take(*rows):
    def damage(root):
        path = root / "index.parquet"
        pq.write_table(pq.read_table(path).take(list(rows)), path)
        return path.name

    return damage


def facts(how):
    def damage(root):
        path = root / "facts.json"
        found = json.loads(path.read_text())
        how(found)
        path.write_text(json.dumps(found))
        return path.name

    return damage


def state(window="c600w2800", **changed):
    return facts(lambda found: found["train_statistics"][window].update(changed))


def nudge(found):
    found["train_statistics"]["c600w2800"]["mean"] += 1e-8


def remove(name):
    def damage(root):
        (root / name).unlink()
        return name

    return damage


def restated(damage):
    """The same, with the checksums that the files then have."""

    def both(root):
        name = damage(root)
        path = root / "facts.json"
        found = json.loads(path.read_text())
        for shard in found["shards"]:
            shard["sha256"] = sha256(root / "shards" / shard["name"])
        found["index_sha256"] = sha256(root / "index.parquet")
        path.write_text(json.dumps(found | {"checksum": store.checksum(found)}))
        return name

    return both


def bright(slices):
    return [*slices[:-1], np.full((256, 256), 4096, store.DTYPE).tobytes()]


RAW = {
    "first pixels": change(FIRST, flip(5000)),
    "half a shard": change(SECOND, lambda content: content[: len(content) // 2]),
    "text for a shard": change(FIRST, lambda content: b"<html>"),
    "a shard less": remove(SECOND),
    "values above 4095": rewrite(SECOND, bright),
    "a bit of the index": change("index.parquet", flip(100)),
    "no index": remove("index.parquet"),
    "an index cut": take(*range(7)),
    "rows exchanged": index(row={0: 1, 1: 0}),
    "a row of the next shard": index(row={3: 4}),
    "a height": index(z={0: 9}),
}
WRITTEN = {
    "values above 4095 in training": rewrite(FIRST, lambda slices: bright(slices[::-1])),
    "values above 4095 in test": rewrite(SECOND, bright),
    "short slices": rewrite(FIRST, lambda slices: [slices[0][:-2], *slices[1:]]),
    "a slice less": rewrite(SECOND, lambda slices: slices[1:]),
    "another column": rewrite(FIRST, lambda slices: slices, pa.schema([("image", pa.binary())])),
    "text for a shard": RAW["text for a shard"],
    "text for an index": change("index.parquet", lambda content: b"split,patient\n"),
    "half a shard": RAW["half a shard"],
    "a row of the next shard": index(row={3: 4}),
    "a negative shard": index(shard={0: -1}),
    "no such shard": index(shard={7: 2}),
    "a negative row": index(row={0: -1}),
    "a row twice": index(row={0: 1}),
    "no row": index(row={0: None}),
    "no patient": index(patient={0: None}),
    "another split": index(split={0: "trian"}),
    "a slice of another split": index(split={0: "test"}),
    "no column of rows": index(row=None),
    "an index cut": take(*range(7)),
}
STATISTICS = {
    "a mean, last digits": facts(nudge),
    "a std of another window": state("12bit", std=0.25),
}
FACTS = {
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
    "half the facts": change("facts.json", lambda content: content[: len(content) // 2]),
    "no UTF-8": change("facts.json", lambda content: b"\xff" + content),
}
DAMAGES = (
    RAW
    | {f"written: {name}": restated(damage) for name, damage in WRITTEN.items()}
    | {f"statistics: {name}": damage for name, damage in STATISTICS.items()}
    | {f"facts: {name}": damage for name, damage in FACTS.items()}
)


TOLD_BY_STATISTICS = {f"statistics: {name}" for name in STATISTICS}


def read(root):
    loaded = ct.load(root, 16)
    return [list(split) for split in (loaded.train, loaded.val, loaded.test)]


@pytest.mark.parametrize("group", ["RAW", "written", "statistics", "facts"])
def test_a_damaged_store_neither_loads_nor_passes(sound, tmp_path, monkeypatch, group):
    """Held in memory, read slice by slice (but for what statistics alone tell), and verified; the file is named."""
    names = RAW if group == "RAW" else [name for name in DAMAGES if name.startswith(group)]
    for name in names:
        root = shutil.copytree(sound, tmp_path / "ct")
        file = DAMAGES[name](root)
        readers = {"load": lambda root=root: ct.load(root, 16), "verify": lambda root=root: store.verify(root)}
        if name not in TOLD_BY_STATISTICS:
            readers["slice by slice"] = lambda root=root: read(root)
        for how, reader in readers.items():
            monkeypatch.setattr(images, "IN_MEMORY_BYTES", 0 if how == "slice by slice" else 2**31)
            print(name, how)  # shown where one of them fails
            named = file if group == "RAW" and how == "load" else r"\S+\.(arrow|parquet|json)"
            with pytest.raises(ValueError, match=rf"`root`: {root}/{named}"):
                reader()
        shutil.rmtree(root)


def test_what_was_compared_is_compared_again_when_the_file_changes(root, monkeypatch):
    """Read slice by slice, a shard is compared once, by whatever process, as long as it stays the same."""
    monkeypatch.setattr(images, "IN_MEMORY_BYTES", 0)
    compared = []
    monkeypatch.setattr(store, "sha256", lambda path: compared.append(path.name) or sha256(path))
    for expected in (2, 0):
        compared.clear()
        read(root)
        assert len(compared) == expected
    change(FIRST, flip(5000))(root)
    with pytest.raises(ValueError, match=FIRST):
        read(root)

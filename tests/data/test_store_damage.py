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
from engine.attempts import saved_steps
from engine.runs import tiny_config
from hydra.errors import InstantiationException
from write_store import finish, write_shard

from gcond.command import main
from gcond.data import ct, images, store, windows
from gcond.engine.run_folder import RunFolder
from gcond.engine.trainer import Trainer

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


def fill(start, end):
    def how(content):
        content[start:end] = bytes(end - start)
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


def shift(key, by, window="c600w2800"):
    def how(found):
        found["train_statistics"][window][key] += by

    return facts(how)


def swap(root):
    first, second, between = root / FIRST, root / SECOND, root / "between"
    for source, target in ((first, between), (second, first), (between, second)):
        source.rename(target)
    return FIRST


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
            shard["sha256"] = store.sha256(root / "shards" / shard["name"])
        found["index_sha256"] = store.sha256(root / "index.parquet")
        path.write_text(json.dumps(found | {"checksum": store.checksum(found)}))
        return name

    return both


def offsets(content):
    """Where the end of the first slice stands: 131,072 as a little-endian int32 behind a 0."""
    return content.index(np.array([0, store.STORED_BYTES], "<i4").tobytes()) + 5


def bright(slices):
    return [*slices[:-1], np.full((256, 256), 4096, store.DTYPE).tobytes()]


RAW = {
    "first pixels": change(FIRST, flip(5000)),
    "last pixels": change(SECOND, flip(-500)),
    "offsets": change(FIRST, flip(offsets)),
    "the length of the metadata": change(FIRST, flip(4)),
    "the schema": change(FIRST, fill(8, 60)),
    "the metadata of the slices": change(SECOND, fill(250, 420)),
    "everything zero": change(FIRST, fill(0, 300_000)),
    "half a shard": change(SECOND, lambda content: content[: len(content) // 2]),
    "an empty shard": change(SECOND, lambda content: b""),
    "no end": change(SECOND, lambda content: content[:-8]),
    "more than a shard": change(FIRST, lambda content: content + bytes(64)),
    "text for a shard": change(FIRST, lambda content: b"<html>"),
    "shards exchanged": swap,
    "a shard less": remove(SECOND),
    "a shuffled shard": rewrite(FIRST, lambda slices: slices[::-1]),
    "values above 4095": rewrite(SECOND, bright),
    "a bit of the index": change("index.parquet", flip(100)),
    "half an index": change("index.parquet", lambda content: content[: len(content) // 2]),
    "no index": remove("index.parquet"),
    "text for an index": change("index.parquet", lambda content: b"split,patient\n"),
    "an index reversed": take(*range(7, -1, -1)),
    "an index cut": take(*range(7)),
    "rows exchanged": index(row={0: 1, 1: 0}),
    "a row of the next shard": index(row={3: 4}),
    "a negative row": index(row={0: -1}),
    "a row twice": index(row={0: 1}),
    "a height": index(z={0: 9}),
}
WRITTEN = {
    "values above 4095 in training": rewrite(FIRST, lambda slices: bright(slices[::-1])),
    "values above 4095 in test": rewrite(SECOND, bright),
    "training slices for others": rewrite(FIRST, lambda slices: [slices[3], *slices[1:3], slices[0]]),
    "short slices": rewrite(FIRST, lambda slices: [slices[0][:-2], *slices[1:]]),
    "a slice less": rewrite(SECOND, lambda slices: slices[1:]),
    "no pixels in a slice": rewrite(SECOND, lambda slices: [None, *slices[1:]]),
    "another column": rewrite(FIRST, lambda slices: slices, pa.schema([("image", pa.binary())])),
    "text for a shard": RAW["text for a shard"],
    "half a shard": RAW["half a shard"],
    "a row of the next shard": index(row={3: 4}),
    "a negative row": index(row={0: -1}),
    "a row twice": index(row={0: 1}),
    "no such shard": index(shard={7: 2}),
    "a negative shard": index(shard={0: -1}),
    "no row": index(row={0: None}),
    "no patient": index(patient={0: None}),
    "another split": index(split={0: "trian"}),
    "a slice of another split": index(split={0: "test"}),
    "no column of rows": index(row=None),
    "an index cut": take(*range(7)),
    "text for an index": RAW["text for an index"],
}
STATISTICS = {
    "a mean": shift("mean", 1e-4),
    "a mean, last digits": shift("mean", 1e-8),
    "a std": shift("std", -1e-3),
    "a mean of another window": shift("mean", 1e-3, "12bit"),
}
FACTS = {
    "a mean that is no number": state(mean=float("nan")),
    "a std that is no number": state(std=float("nan")),
    "a std of zero": state(std=0),
    "a std below zero": state(std=-0.1),
    "a mean beyond the window": state(mean=3.0),
    "a mean in words": state(mean="0.1"),
    "no mean": facts(lambda found: found["train_statistics"]["12bit"].pop("mean")),
    "an unknown window": facts(lambda found: found["train_statistics"].update(brain={"mean": 2, "std": 1})),
    "the checksum": facts(lambda found: found.update(checksum="0" * 64)),
    "the checksum of a shard": facts(lambda found: found["shards"][0].update(sha256="0" * 64)),
    "the checksum of the index": facts(lambda found: found.update(index_sha256="0" * 64)),
    "the order of the shards": facts(lambda found: found["shards"].reverse()),
    "the path of a shard": facts(lambda found: found["shards"][0].update(name="../00000.arrow")),
    "no shards": facts(lambda found: found.update(shards=[])),
    "half a slice": facts(lambda found: found["shards"][0].update(slices=3.5)),
    "counts below zero": facts(lambda found: found["counts"].update(train=-1)),
    "counts without test": facts(lambda found: found["counts"].pop("test")),
    "no title": facts(lambda found: found.pop("title")),
    "a list": change("facts.json", lambda content: b"[]"),
    "half the facts": change("facts.json", lambda content: content[: len(content) // 2]),
    "NULs": change("facts.json", lambda content: content[:40] + bytes(len(content) - 40)),
    "no UTF-8": change("facts.json", lambda content: b"\xff" + content),
}
DAMAGES = (
    RAW
    | {f"written: {name}": restated(damage) for name, damage in WRITTEN.items()}
    | {f"statistics: {name}": damage for name, damage in STATISTICS.items()}
    | {f"facts: {name}": damage for name, damage in FACTS.items()}
)


TOLD_BY_STATISTICS = {"written: training slices for others", *(f"statistics: {name}" for name in STATISTICS)}


def read(root):
    loaded = ct.load(root, 16)
    return [list(split) for split in (loaded.train, loaded.val, loaded.test)]


def test_the_sound_store_is_sound(root):
    store.verify(root)
    assert ct.load(root, 16).facts["counts"] == {"train": 5, "val": 1, "test": 2}


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
    sha256 = store.sha256
    monkeypatch.setattr(store, "sha256", lambda path, *rest: compared.append(path.name) or sha256(path, *rest))
    for expected in (2, 0):
        compared.clear()
        read(root)
        assert len(compared) == expected
    change(FIRST, flip(5000))(root)
    with pytest.raises(ValueError, match=FIRST):
        read(root)


def test_a_shard_that_is_zeroed_under_an_interrupted_run_is_named(small_store, tmp_path, monkeypatch):
    settings = ("dataset=ct", "dataset._target_=gcond.data.ct.load", f"dataset.root={small_store}")
    cfg = tiny_config(tmp_path / "runs", "strategy=baseline", *settings)
    taken = Trainer.step

    def interrupted(trainer, step):
        if step == 2:
            raise KeyboardInterrupt
        return taken(trainer, step)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(cfg)
    shard = small_store / "shards" / "00000.arrow"
    shard.write_bytes(bytes(shard.stat().st_size))
    monkeypatch.setattr(Trainer, "step", lambda trainer, step: pytest.fail("took a step"))
    with pytest.raises((ValueError, InstantiationException), match=r"00000.arrow"):
        main(cfg)
    folder = RunFolder(cfg)
    assert saved_steps(folder) == [2]
    assert not folder.done

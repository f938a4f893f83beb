"""The CT store: written, read back, refused where it is not what it says."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from write_store import write

from gcond.data import ct, images, photos, store
from gcond.files import sha256


def edit_facts(root, **changes):
    facts = json.loads((root / "facts.json").read_text())
    (root / "facts.json").write_text(json.dumps({**facts, **changes}))


def change_index(root, **columns):
    index = pq.read_table(root / "index.parquet")
    for name, values in columns.items():
        place = index.schema.names.index(name)
        index = index.set_column(place, index.schema.field(name), pa.array(values, index.schema.field(name).type))
    pq.write_table(index, root / "index.parquet")
    restate(root)


def restate(root):
    """Let the facts name the checksums of the files as they are."""
    facts = json.loads((root / "facts.json").read_text())
    facts["index_sha256"] = sha256(root / "index.parquet")
    for shard in facts["shards"]:
        shard["sha256"] = sha256(root / "shards" / shard["name"])
    edit_facts(root, **facts | {"checksum": store.checksum(facts)})


def test_round_trip(small_store):
    splits = ct.load(small_store, image_size=256)
    assert [int(image[0, 0, 0]) for image in (splits.train[3], splits.val[0], splits.test[1])] == [1003, 1004, 1007]
    assert splits.train[0].shape == (1, 256, 256)
    assert splits.train[0].dtype == torch.int16
    assert splits.facts["counts"] == {"train": 4, "val": 2, "test": 2}
    assert splits.facts["missing_packages"] == ["absent"]
    assert splits.title == "CT (made)"
    json.dumps(splits.facts)
    assert splits.shows_patients
    assert not photos.load(32).shows_patients


def test_every_slice_has_its_patient_wherever_it_stands_in_the_index(small_store):
    before = ct.load(small_store, 32)
    index = pq.read_table(small_store / "index.parquet")
    pq.write_table(index.take(list(range(len(index)))[::-1]), small_store / "index.parquet")
    restate(small_store)
    for splits in (before, ct.load(small_store, 32)):
        found = [
            (int(image[0, 0, 0]), patient)
            for name, names in splits.groups.items()
            for image, patient in zip(getattr(splits, name), names, strict=True)
        ]
        assert sorted(found) == [(1000 + place, "abcd"[place // 2]) for place in range(8)]
    assert before.body_above == 524  # -500 HU


@pytest.mark.parametrize("window", ["c600w2800", [-800, 2000]])
def test_statistics_are_those_of_the_training_split(small_store, window):
    splits = ct.load(small_store, 256, window)
    unit = (np.array([1000, 1001, 1002, 1003]) - 1024 + 800) / 2800
    assert splits.intensity.mean == pytest.approx((unit.mean(),))
    assert splits.intensity.std == pytest.approx((unit.std(),))
    z = splits.intensity.normalise(torch.stack([splits.train[i] for i in range(4)]))
    assert z.mean().item() == pytest.approx(0, abs=1e-4)
    assert z.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    paper = ct.load(small_store, 64, window, statistics="paper")
    assert (paper.intensity.mean, paper.intensity.std) == ((0.107961,), (0.173622,))


def test_large_store_is_read_slice_by_slice_with_the_same_result(small_store, monkeypatch):
    held = ct.load(small_store, 32).val
    monkeypatch.setattr(images, "IN_MEMORY_BYTES", 0)
    on_demand = ct.load(small_store, 32).val
    assert isinstance(held, images.TensorImages)
    assert isinstance(on_demand, ct.StoreSlices)
    assert torch.equal(held[1], on_demand[1])


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 512}, "`image_size`"),
        ({"window": "brain"}, "`window`"),
        ({"statistics": "imagenet"}, "`statistics`"),
    ],
)
def test_bad_settings_name_their_key(small_store, settings, message):
    with pytest.raises(ValueError, match=message):
        ct.load(small_store, **{"image_size": 64, **settings})


def test_absent_store_says_how_to_make_one(tmp_path):
    with pytest.raises(ValueError, match=r"no CT store at .*none; make one with `make data`"):
        ct.load(tmp_path / "none", 64)


def test_unknown_format_is_refused(small_store):
    edit_facts(small_store, format_version=99)
    with pytest.raises(ValueError, match="format version 99"):
        ct.load(small_store, 64)


def test_a_missing_shard_is_named(small_store):
    (small_store / "shards" / "00000.arrow").unlink()
    with pytest.raises(ValueError, match=r"00000.arrow is missing"):
        ct.load(small_store, 64)


def test_a_store_without_facts_is_unfinished(small_store):
    (small_store / "facts.json").unlink()
    with pytest.raises(ValueError, match="an unfinished CT store"):
        ct.load(small_store, 64)


def test_patient_in_two_splits_is_refused(small_store):
    change_index(small_store, patient=["a", "a", "b", "b", "c", "c", "c", "c"])
    with pytest.raises(ValueError, match="patient c is in validation and in test"):
        ct.load(small_store, 64)


def test_nothing_is_left_of_a_store_that_could_not_be_written(tmp_path):
    slices = [{"split": split, "patient": "a", "pixels": bytes(131072)} for split in store.SPLITS]
    with pytest.raises(ValueError, match="patient a is in train and in validation and in test"):
        write(tmp_path / "ct", slices, {})
    assert not list(tmp_path.iterdir())

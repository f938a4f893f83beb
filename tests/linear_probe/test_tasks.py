"""What is asked: turns, classes and heights, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine.runs import config
from write_store import write

from gcond.data import imagenet256
from gcond.data.images import TensorImages
from gcond.data.intensity import Intensity
from gcond.linear_probe.probe import encoder, features, pixels
from gcond.linear_probe.tasks import classes, height, rotation, tasks
from gcond.model import MaskedAutoencoder

CPU = torch.device("cpu")


def test_a_turn_of_an_image_is_what_its_label_says():
    """The corner that is bright goes round against the clock."""
    raw = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    raw[:, :, :8, :8] = 255
    intensity = Intensity(0, 255, (0.0,) * 3, (1.0,) * 3)
    found = features(lambda seen: pixels(seen)[:, :64], TensorImages(raw), [0, 2], intensity, CPU)
    assert found.shape == (4, 2, 64)
    corners = found.reshape(4, 2, 8, 8)[:, :, [0, 7, 7, 0], [0, 0, 7, 7]]  # top left, then against the clock
    assert np.allclose(corners, np.eye(4)[:, None].repeat(2, 1))
    task = rotation({"train": 2, "val": 2, "test": 2})
    assert task.targets.argmax(1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert task.chance == 0.25
    assert task.score(found.reshape(8, 8, 8)[:, [0, 7, 7, 0], [0, 0, 7, 7]], "test") == 1.0


def test_the_features_are_the_means_of_the_map_of_the_whole_image_in_eval_mode():
    model = MaskedAutoencoder("mobilenetv3_small_050", 32, 16, channels=1, width=32, depth=1)
    images = torch.randn(3, 1, 32, 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = encoder(model.train())(images)
    expected = torch.stack([model.encoder(image[None]).flatten(2).mean(2)[0] for image in images])
    assert torch.allclose(found, expected, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_classes_are_scored_against_their_names_and_chance_is_the_most_frequent():
    task = classes("class", {"train": np.array(["b", "a", "b"]), "val": np.array(["a"]), "test": np.array(["b", "c"])})
    assert task.chance == 0.5
    assert task.score(np.array([[0.1, 0.9], [0.1, 0.9]]), "test") == 0.5
    assert task.score(np.array([[0.9, 0.1]]), "val") == 1.0


def test_height_is_ranked_within_a_volume():
    """By hand: 1 - 6 sum d^2 / (n (n^2 - 1)); the offset between volumes counts for nothing."""
    volumes, mm = np.repeat(["u", "v"], 3), np.array([0.0, 3, 6, 0, 1, 2])
    task = height(dict.fromkeys(("train", "val", "test"), (volumes, mm)))
    assert task.score(np.array([[1.0], [2], [3], [700], [500], [600]]), "test") == pytest.approx(
        (1 + (1 - 6 * 6 / 24)) / 2
    )
    assert task.score(np.array([[1.0], [2], [3], [5], [5], [5]]), "val") == 0.5
    assert task.groups.tolist() == volumes.tolist()


def test_a_store_gives_heights_in_the_order_of_its_images(tmp_path):
    """Pixels say which slice is which; volumes have other spacings."""
    rows = {}
    for split, names in (("train", "ab"), ("validation", "c"), ("test", "d")):
        slices = [(name, z) for name in names for z in range(3)]
        rows[split] = {
            "pixels": [np.full((256, 256), 1000 + 10 * ord(name) + z, "<u2").tobytes() for name, z in slices],
            "source": ["made"] * len(slices),
            "patient": [name for name, _ in slices],
            "z": [z for _, z in slices],
            "rows": [256] * len(slices),
            "cols": [256] * len(slices),
            "spacing_z_mm": [2.0 if name == "a" else 5.0 for name, _ in slices],
            "spacing_xy_mm": [0.5] * len(slices),
        }
    write(tmp_path / "ct", rows, {"title": "CT", "patients": {}, "missing_packages": []})
    for dataset in ("ct", "headneck"):
        cfg = config(f"dataset={dataset}", f"dataset.root={tmp_path}/ct")
        turn, tall = tasks(cfg.dataset, {"train": [1, 2, 5], "val": [0, 1, 2], "test": [0, 2]})
        assert (turn.name, tall.name) == ("rotation", "height")
        assert tall.targets[:, 0].tolist() == [2.0, 4.0, 10.0]
        assert [name[0] for name in tall.groups] == ["a", "a", "b"]


def test_labels_of_jpeg_folders_and_of_parquet_follow_the_images(tmp_path, write_photos):
    root = write_photos(tmp_path)
    found = imagenet256.labels(root)
    data = imagenet256.load(root, 8)
    assert data.groups == found
    for dataset in ("imagenet256", "imagenet84"):
        cfg = config(f"dataset={dataset}", f"dataset.root={root}")
        assert [task.name for task in tasks(cfg.dataset, {split: [0] for split in found})] == ["rotation", "class"]
    bright = {"cat": 200, "dog": 50}
    for split, images in (("train", data.train), ("val", data.val), ("test", data.test)):
        levels = [float(images[place].float().mean()) for place in range(len(images))]
        assert len(found[split]) == len(levels)
        assert np.allclose(levels, [bright[name] for name in found[split]], atol=3)


def test_images_without_a_class_have_no_labels(tmp_path, write_photos):
    assert imagenet256.labels(write_photos(tmp_path, classless=True)) is None

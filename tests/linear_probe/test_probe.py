"""Tasks by hand; the fit against least squares on an augmented system, and what may and may not change its choice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine.runs import config
from write_store import write

from gcond.data.images import TensorImages
from gcond.data.intensity import Intensity
from gcond.linear_probe.probe import STRENGTHS, Task, classes, encoder, features, height, pixels, probe, ridge, tasks
from gcond.model import MaskedAutoencoder

RANDOM = np.random.default_rng(3)

# What is asked.


def test_a_turn_of_an_image_is_what_its_label_says():
    """The corner that is bright goes round against the clock."""
    raw = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    raw[:, :, :8, :8] = 255
    intensity = Intensity(0, 255, (0.0,) * 3, (1.0,) * 3)
    found = features(lambda seen: pixels(seen)[:, :64], TensorImages(raw), [0, 2], intensity, torch.device("cpu"))
    assert found.shape == (4, 2, 64)
    corners = found.reshape(4, 2, 8, 8)[:, :, [0, 7, 7, 0], [0, 0, 7, 7]]  # top left, then against the clock
    assert np.allclose(corners, np.eye(4)[:, None].repeat(2, 1))
    (task,) = tasks(config("dataset=photos").dataset, {split: [0, 2] for split in ("train", "val", "test")})
    assert task.targets.argmax(1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert task.chance == 0.25
    assert task.score(corners.reshape(8, 4), "test") == 1.0


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
    score = task.score(np.array([[1.0], [2], [3], [700], [500], [600]]), "test")
    assert score == pytest.approx((1 + (1 - 6 * 6 / 24)) / 2)
    assert task.score(np.array([[1.0], [2], [3], [5], [5], [5]]), "val") == 0.5
    assert task.groups.tolist() == volumes.tolist()


def test_a_store_gives_heights_in_the_order_of_its_images(tmp_path):
    """Pixels say which slice is which; volumes have other spacings."""
    splits = {"a": "train", "b": "train", "c": "validation", "d": "test"}
    slices = [
        {"split": split, "pixels": np.full((256, 256), 1000 + 10 * ord(name) + z, "<u2").tobytes(), "source": "made",
         "patient": name, "z": z, "rows": 256, "cols": 256, "spacing_z_mm": 2.0 if name == "a" else 5.0,
         "spacing_xy_mm": 0.5}
        for name, split in splits.items()
        for z in range(3)
    ]  # fmt: skip
    write(tmp_path / "ct", slices, {"title": "CT", "patients": {}, "missing_packages": []})
    for dataset in ("ct", "headneck"):
        cfg = config(f"dataset={dataset}", f"dataset.root={tmp_path}/ct")
        turn, tall = tasks(cfg.dataset, {"train": [1, 2, 5], "val": [0, 1, 2], "test": [0, 2]})
        assert (turn.name, tall.name) == ("rotation", "height")
        assert tall.targets[:, 0].tolist() == [2.0, 4.0, 10.0]
        assert [name[0] for name in tall.groups] == ["a", "a", "b"]


def test_photographs_with_labels_are_told_by_their_classes(monkeypatch):
    labels = {"train": ["cat", "ant", "bee"], "val": ["bee", "ant"], "test": ["ant", "cat"]}
    monkeypatch.setattr("gcond.data.imagenet256.labels", {"labelled": labels}.get)
    places = {"train": [0, 2, 1], "val": [1], "test": [1, 0]}
    for dataset in ("imagenet256", "imagenet84"):
        turn, told = tasks(config(f"dataset={dataset}", "dataset.root=labelled").dataset, places)
        assert (turn.name, told.name) == ("rotation", "class")
        assert told.targets.argmax(1).tolist() == [2, 1, 0]  # cat, bee, ant
        assert told.score(np.eye(3)[[2, 0]], "test") == 1.0
        assert [task.name for task in tasks(config(f"dataset={dataset}", "dataset.root=other").dataset, places)] == [
            "rotation"
        ]


# The fit.


def made(features=5):
    """[T = 1, n, D] by split."""
    return {split: RANDOM.normal(3, 2, (1, count, features)) for split, count in
            (("train", 40), ("val", 12), ("test", 9))}  # fmt: skip


def asked(targets, score, groups=None):
    return Task("made", "", False, targets, score, 0.0, groups)


def by_lstsq(train, targets, strength, dummies=None):
    """min |Y - X W - Z B|^2 / n + strength |W|^2, Z a column of ones or one per group: no closed form of ours."""
    n, width = train.shape
    free = np.ones((n, 1)) if dummies is None else dummies
    top = np.hstack([train, free]) / np.sqrt(n)
    below = np.hstack([np.sqrt(strength) * np.eye(width), np.zeros((width, free.shape[1]))])
    wanted = np.vstack([targets / np.sqrt(n), np.zeros((width, targets.shape[1]))])
    return np.linalg.lstsq(np.vstack([top, below]), wanted, rcond=None)[0]


def test_the_weights_are_those_of_least_squares_with_a_penalty_and_a_free_intercept():
    train = made()["train"][0]
    train -= train.mean(0)
    targets = RANDOM.normal(5, 1, (40, 2))
    for strength, weights, intercept in ridge(train, targets, [1e-4, 1.0, 1e4]):
        expected = by_lstsq(train, targets, strength)
        assert np.allclose(weights, expected[:5], atol=1e-10)
        assert np.allclose(intercept, expected[5], atol=1e-10)


def test_answers_with_an_intercept_per_group_are_those_of_dummy_variables():
    features, groups = made(), np.repeat(["a", "b"], 20)
    dummies = (groups[:, None] == ["a", "b"]).astype(float)
    targets = features["train"][0][:, :1] + 100 * dummies[:, 1:] + RANDOM.normal(0, 0.1, (40, 1))
    within = features["train"][0] - dummies @ np.linalg.pinv(dummies) @ features["train"][0]
    mean, spread = within.mean(0), within.std(0)
    answers = []
    probe(features, asked(targets, lambda found, split: answers.append(found) or 0.0, groups))
    weights = by_lstsq((features["train"][0] - mean) / spread, targets, max(STRENGTHS), dummies)[:5]
    expected = (features["test"][0] - mean) / spread @ weights
    on_test = answers[1]  # of the first strength, the largest
    assert np.allclose(on_test - on_test.mean(), expected - expected.mean(), atol=1e-9)


def test_validation_alone_chooses_and_the_test_images_have_no_part():
    features, targets, wanted = made(), RANDOM.normal(0, 1, (40, 1)), 1e-1

    def chosen(features):
        order = iter(sorted(STRENGTHS, reverse=True))
        liked = asked(targets, lambda found, split: float(next(order) == wanted) if split == "val" else found.sum())
        return probe(features, liked)

    first, second = chosen(features), chosen(features | {"test": 1e6 * features["test"]})
    assert first.strength == second.strength == wanted
    assert first.val == second.val == 1.0
    assert first.test != second.test


def test_the_largest_of_equally_good_strengths_is_taken_and_a_dead_channel_changes_nothing():
    features, targets = made(), RANDOM.normal(0, 1, (40, 1))
    assert probe(features, asked(targets, lambda found, split: 0.5)).strength == max(STRENGTHS)
    error = asked(targets, lambda found, split: -float(np.square(found).sum()))
    dead = {split: np.pad(values, [(0, 0), (0, 0), (0, 1)], constant_values=7) for split, values in features.items()}
    assert probe(dead, error).test == pytest.approx(probe(features, error).test)


def test_features_that_are_not_finite_are_refused():
    features = made()
    features["val"][0, 2, 1] = np.nan
    with pytest.raises(ValueError, match="features of val"):
        probe(features, asked(np.zeros((40, 1)), lambda found, split: 0.0))

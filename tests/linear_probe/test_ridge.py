"""The probe's fit against least squares on an augmented system, and what may and may not change its choice."""

from __future__ import annotations

import numpy as np
import pytest

from gcond.linear_probe.probe import STRENGTHS, probe, ridge

RANDOM = np.random.default_rng(3)
COUNTS = {"train": 40, "val": 12, "test": 9}


def made(features=5):
    return {split: RANDOM.normal(3, 2, (count, features)) for split, count in COUNTS.items()}


def by_lstsq(train, targets, strength, dummies=None):
    """min |Y - X W - Z B|^2 / n + strength |W|^2, Z a column of ones or one per group: no closed form of ours."""
    n, width = train.shape
    free = np.ones((n, 1)) if dummies is None else dummies
    top = np.hstack([train, free]) / np.sqrt(n)
    below = np.hstack([np.sqrt(strength) * np.eye(width), np.zeros((width, free.shape[1]))])
    wanted = np.vstack([targets / np.sqrt(n), np.zeros((width, targets.shape[1]))])
    return np.linalg.lstsq(np.vstack([top, below]), wanted, rcond=None)[0]


@pytest.mark.parametrize("strength", [1e-4, 1.0, 1e4])
def test_the_weights_are_those_of_least_squares_with_a_penalty_and_a_free_intercept(strength):
    train = made()["train"]
    train -= train.mean(0)
    targets = RANDOM.normal(5, 1, (40, 2))
    weights, intercept = ridge(train, targets)(strength)
    expected = by_lstsq(train, targets, strength)
    assert np.allclose(weights, expected[:5], atol=1e-10)
    assert np.allclose(intercept, expected[5], atol=1e-10)


def test_answers_with_an_intercept_per_group_are_those_of_dummy_variables():
    features, groups = made(), np.repeat(["a", "b"], 20)
    dummies = (groups[:, None] == ["a", "b"]).astype(float)
    targets = features["train"][:, :1] + 100 * dummies[:, 1:] + RANDOM.normal(0, 0.1, (40, 1))
    within = features["train"] - dummies @ np.linalg.pinv(dummies) @ features["train"]
    mean, spread = within.mean(0), within.std(0)
    answers = {}

    def score(found, split):
        answers.setdefault(split, []).append(found)
        return -len(answers[split]) if split == "val" else 0.0  # the first strength, the largest, wins

    probe(features, targets, score, groups)
    weights = by_lstsq((features["train"] - mean) / spread, targets, max(STRENGTHS), dummies)[:5]
    expected = (features["test"] - mean) / spread @ weights
    assert np.allclose(answers["test"][0] - answers["test"][0].mean(), expected - expected.mean(), atol=1e-9)


def test_validation_alone_chooses_and_the_test_images_have_no_part():
    features, targets = made(), RANDOM.normal(0, 1, (40, 1))
    wanted = 1e-1

    def only(found, split):
        """Validation likes one strength; test another, and other test images."""
        seen.append(split)
        return float(split == "val" and seen.count("val") - 1 == place)

    place = sorted(STRENGTHS, reverse=True).index(wanted)
    seen: list[str] = []
    first = probe(features, targets, only)
    seen = []
    second = probe(features | {"test": 1e6 * features["test"]}, targets, only)
    assert first.strength == second.strength == wanted
    assert first.val == second.val == 1.0


def test_the_largest_of_equally_good_strengths_is_taken_and_a_dead_channel_changes_nothing():
    features, targets = made(), RANDOM.normal(0, 1, (40, 1))
    assert probe(features, targets, lambda found, split: 0.5).strength == max(STRENGTHS)

    def error(found, split):
        return -float(np.square(found).sum())

    dead = {split: np.hstack([values, np.full((len(values), 1), 7.0)]) for split, values in features.items()}
    assert probe(dead, targets, error).test == pytest.approx(probe(features, targets, error).test)


def test_features_that_are_not_finite_are_refused():
    features = made()
    features["val"][2, 1] = np.nan
    with pytest.raises(ValueError, match="features of val: expected finite numbers, found 1 others"):
        probe(features, np.zeros((40, 1)), lambda found, split: 0.0)

"""Times taken in turns, and ratios of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gcond.timing import Ratio, interleaved, interval, machine, seconds

CPU = torch.device("cpu")


def test_ratio_is_the_median_of_paired_ratios():
    """A machine that slows down tenfold in the middle changes no ratio; the ratio of medians would be 5.5."""
    base = np.array([1.0, 1.0, 10.0, 10.0, 10.0])
    ratio = Ratio.of(2 * base, base)
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 2.0)
    assert str(ratio) == "2.000 [2.000, 2.000]"
    assert Ratio.of(np.array([1.0, 2.0, 9.0]), np.ones(3)).median == 2.0


def test_interval_covers_the_median_as_often_as_it_says():
    """500 samples of 25 normal numbers: 95 % up to three standard errors (1 %) and the bootstrap's own bias (2 %)."""
    random = np.random.default_rng(0)
    covered = [low <= 0 <= high for low, high in (interval(random.normal(size=25)) for _ in range(500))]
    assert 0.92 <= np.mean(covered) <= 0.98


def test_everyone_takes_one_turn_in_every_round_after_being_prepared():
    turns = []
    works = {name: lambda name=name: turns.append(name) for name in "abc"}
    times = interleaved(works, 4, CPU, warm_up=2, prepare=lambda name: turns.append(f"before {name}"))
    assert {name: len(taken) for name, taken in times.items()} == {"a": 4, "b": 4, "c": 4}
    rounds = [turns[i : i + 6] for i in range(0, len(turns), 6)]
    assert len(rounds) == 6
    for played in rounds:
        assert sorted(played[1::2]) == ["a", "b", "c"]
        assert [f"before {name}" for name in played[1::2]] == played[::2]
    assert len({tuple(played) for played in rounds}) > 1  # the order changes


def test_time_is_that_of_the_work():
    """Work of ten times the size takes longer, and sleeping costs no processor time."""
    small, large = torch.ones(10, 10), torch.ones(2000, 2000)
    assert seconds(lambda: large @ large, CPU) > seconds(lambda: small @ small, CPU)


def test_machine_names_device_and_versions():
    assert f"torch {torch.__version__.split('+')[0]}" in machine(CPU)
    with pytest.raises(ModuleNotFoundError):
        machine(CPU, ("no-such-package",))

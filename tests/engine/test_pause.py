from __future__ import annotations

import signal

import pytest
import torch

from gcond.engine.distributed import World
from gcond.engine.process import Interrupt, StopOrCheckpoint
from gcond.strategy.processes import SingleProcess


class Others(World):
    """A team in which another process has found `theirs`."""

    def __init__(self, theirs: list[int]) -> None:
        super().__init__(SingleProcess(), torch.device("cpu"))
        self.theirs = theirs

    def most(self, numbers: list[int]) -> list[int]:
        return [max(pair) for pair in zip(numbers, self.theirs, strict=True)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def pause(minutes: float, theirs: tuple[int, int] = (0, 0), interrupt: Interrupt | None = None) -> StopOrCheckpoint:
    return StopOrCheckpoint(interrupt or Interrupt(), minutes, Others(list(theirs)))


def test_a_checkpoint_is_due_so_many_minutes_after_the_last_one(clock: list[float]) -> None:
    asked = pause(minutes=10)
    assert asked() == (False, 0)
    clock[0] += 599
    assert asked() == (False, 0)
    clock[0] += 1
    assert asked() == (True, 0)
    assert asked() == (True, 0)  # until there is one
    asked.saved()
    assert asked() == (False, 0)
    clock[0] += 600
    assert asked() == (True, 0)


def test_a_signal_is_told_by_its_number() -> None:
    interrupt = Interrupt()
    asked = pause(10, interrupt=interrupt)
    interrupt.number = signal.SIGINT
    assert asked() == (False, signal.SIGINT)


@pytest.mark.parametrize(("theirs", "expected"), [((1, 0), (True, 0)), ((0, 15), (False, 15)), ((1, 2), (True, 2))])
def test_what_one_process_has_found_all_act_upon(theirs: tuple[int, int], expected: tuple[bool, int]) -> None:
    assert pause(10, theirs)() == expected

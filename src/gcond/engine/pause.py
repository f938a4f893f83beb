"""When a run writes a checkpoint between epochs, and when it stops."""

from __future__ import annotations

import time

from gcond.engine.interrupt import Interrupt
from gcond.engine.team import Team


class Pause:
    """Asked after every step, it answers the same in every process: (checkpoint is due, number of the signal to stop).

    A checkpoint is due `minutes` after the last one.
    """

    def __init__(self, interrupt: Interrupt, minutes: float, team: Team) -> None:
        self._interrupt, self._seconds, self._team = interrupt, 60 * minutes, team
        self.saved()

    def saved(self) -> None:
        self._last = time.monotonic()

    def __call__(self) -> tuple[bool, int]:
        late = time.monotonic() - self._last >= self._seconds
        due, signal = self._team.most([int(late), self._interrupt.number])
        return bool(due), signal

"""This process: its rank, and the signals that stop it. PyTorch is not needed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any


def rank() -> int:
    """Of this process among those that torchrun started; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STDERR = 2
ECHO = 1.0  # seconds; a batch system may send SIGTERM to every process of a job, and torchrun passes its own on


def signals_that_stop() -> list[signal.Signals]:
    """SIGHUP that is ignored (nohup) stays so."""
    return [which for which in SIGNALS if which != signal.SIGHUP or signal.getsignal(which) != signal.SIG_IGN]


class Interrupted(SystemExit):
    """A run that was told to stop and can go on; its exit status is 128 + the signal's number, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Interrupt:
    """While open, the first SIGTERM, SIGINT or SIGHUP is noted in `number`; a second one acts as if this were not here.

    SIGTERM or SIGHUP within ECHO seconds is taken for the first one, which has come another way. SIGHUP that is ignored
    (nohup) stays so. SIGUSR2 counts too where somebody waits for it: submitit, which then queues the job again; it
    hears of it after the last checkpoint.
    Signals reach the main thread only: in another thread nothing is changed.
    """

    number = 0

    def __enter__(self) -> Interrupt:
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            awaited = [signal.SIGUSR2] if callable(signal.getsignal(signal.SIGUSR2)) else []
            self._before = {which: signal.signal(which, self._note) for which in (*signals_that_stop(), *awaited)}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            if number not in (signal.SIGTERM, signal.SIGHUP) or time.monotonic() - self._noted > ECHO:
                self._restore()
                signal.raise_signal(number)
            return
        self.number, self._noted = number, time.monotonic()
        name = signal.Signals(number).name
        text = f"\n{name}: checkpoint after this step, then the end; once more to leave at once\n"
        with suppress(OSError):  # the terminal may be gone
            os.write(STDERR, text.encode())  # print would raise where the signal came in the middle of another print

    def _restore(self) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)
        self._before = {}

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._restore()
        if isinstance(error, Interrupted) and self.number == signal.SIGUSR2:
            signal.raise_signal(signal.SIGUSR2)


@contextmanager
def signals_held_back() -> Iterator[None]:
    """For starting DataLoader workers, which inherit it: a signal must not meet them before `leave_to_the_parent`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_the_parent(worker: int) -> None:
    """For a DataLoader's worker processes: a signal to the whole group is the training process's to handle.

    SIGTERM from the training process itself still ends them: it waits for them when it leaves.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_when_told_by, args=(os.getppid(),), daemon=True).start()


def _end_when_told_by(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)

"""A few runs side by side at idle priority, each in a process of its own; the queue ends without losing one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

POLL_SECONDS = 1.0
COMMAND = (sys.executable, "-m", "gcond.command")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    task: Any
    began: float  # time.monotonic


class Workers:
    """Starts runs and says which have ended. Used as a context, it asks those at work to save and end when it is left.

    A run's output goes to a file, so that a closed terminal ends none. A signal sets `signum`; nothing starts after it.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self.running: list[Running] = []
        self.signum = 0

    @property
    def free(self) -> bool:
        return len(self.running) < self._slots and not self.signum

    def start(self, overrides: Sequence[str], log: Path, task: Any) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [*COMMAND, *overrides, "progress=quiet"]
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
                preexec_fn=_only_when_idle,
            )
        self.running.append(Running(process, task, time.monotonic()))

    def ended(self) -> Iterator[Running]:
        """Runs that have ended since it was asked last; waits a moment where none has."""
        over = [each for each in self.running if each.process.poll() is not None]
        if not over:
            time.sleep(POLL_SECONDS)
        for each in over:
            self.running.remove(each)
            yield each

    def __enter__(self) -> Workers:
        self._before = {signum: signal.signal(signum, self._stop) for signum in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for each in self.running:
            with suppress(ProcessLookupError):
                os.killpg(each.process.pid, signal.SIGTERM)
        for each in self.running:
            each.process.wait()
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum


def _only_when_idle() -> None:
    """Give this process what no other wants: Linux's idle class, elsewhere the lowest niceness.

    A new session is a scheduling group of its own where Linux groups processes by session (autogroup): then the group's
    niceness counts against other sessions, not the process's.
    """
    os.nice(19)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")
    if hasattr(os, "SCHED_IDLE"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

"""Runs side by side, each in a process of its own, watched to the end and ended together."""

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

from tqdm import tqdm

from gcond.engine.metrics_log import steps_logged
from gcond.engine.process import ECHO, signals_that_stop
from gcond.sweep.plan import Planned

COMMAND = (sys.executable, "-m", "gcond.command")
POLL_SECONDS = 1.0
LOG_SECONDS = 60.0  # between states of the bar where it is not on a terminal


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    task: Any
    log: Path
    said_before: int  # bytes of the log
    began: float  # time.monotonic

    def said(self) -> str:
        with self.log.open("rb") as file:
            file.seek(self.said_before)
            return file.read().decode(errors="replace")


class Workers:
    """Starts runs and says which have ended. Used as a context, it asks those at work to save and end when it is left.

    Each run is a session of its own with a file for its output, so that a closed terminal, or the end of this process,
    ends none. A signal is noted in `signum`: nothing starts after it, the runs at work are asked to end, and killed by
    a second one. SIGHUP that is ignored (nohup) stays so. `idle`: runs take only what no other process wants.
    """

    def __init__(self, slots: int, idle: bool = False) -> None:
        self._slots, self._idle = slots, idle
        self.running: list[Running] = []
        self.signum = 0

    @property
    def free(self) -> bool:
        return len(self.running) < self._slots and not self.signum

    def start(self, overrides: Sequence[str], log: Path, task: Any) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            before = output.tell()  # not later: the run moves the place that it shares
            process = subprocess.Popen(
                [*COMMAND, *overrides, "progress=quiet"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
                preexec_fn=_only_when_idle if self._idle else None,
            )
            self.running.append(Running(process, task, log, before, time.monotonic()))
        if self.signum:  # which came while the process was started
            self._send(signal.SIGTERM)

    def ended(self) -> Iterator[Running]:
        """Runs that have ended since it was asked last; waits a moment where none has."""
        over = [each for each in self.running if each.process.poll() is not None]
        if not over:
            time.sleep(POLL_SECONDS)
        for each in over:
            self.running.remove(each)
            yield each

    def __enter__(self) -> Workers:
        self._before = {signum: signal.signal(signum, self._stop) for signum in signals_that_stop()}
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.signum:
            self._send(signal.SIGTERM)
        for each in self.running:
            each.process.wait()
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        """A closed terminal and its shell may both send SIGHUP: within ECHO seconds that is one signal."""
        now = time.monotonic()
        if self.signum and signum != signal.SIGINT and now - self._asked <= ECHO:
            return
        self._send(signal.SIGKILL if self.signum else signal.SIGTERM)
        self.signum, self._asked = signum, now

    def _send(self, signum: int) -> None:
        for each in self.running:
            with suppress(ProcessLookupError):
                os.killpg(each.process.pid, signum)


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


def launch(runs: Sequence[Planned], jobs: int) -> int:
    """Make the runs, `jobs` of them side by side, with a bar over all of them; what a run says is shown when it ends.

    Returns when all have ended: 0, or the signal that asked them to, after which they have saved their state.
    """
    return _work([(run.overrides, run.folder.output, run.folder.name) for run in runs], runs, jobs)


def submit(overrides: Sequence[str], runs: Sequence[Planned], jobs: int) -> int:
    """The same as one SLURM array: one process submits it and waits. A signal ends that process and no job."""
    array = ["--multirun", *overrides, "hydra/hydra_logging=disabled", f"hydra.launcher.array_parallelism={jobs}"]
    return _work([(array, runs[0].folder.output.with_name("slurm.log"), "SLURM")], runs, 1)


def _work(waiting: list[tuple[Sequence[str], Path, str]], runs: Sequence[Planned], jobs: int) -> int:
    interval = 0.1 if sys.stderr.isatty() else LOG_SECONDS
    total = sum(run.steps or 1 for run in runs)
    with (
        tqdm(
            total=total, unit="step", desc="all runs", dynamic_ncols=True, mininterval=interval, smoothing=0.05
        ) as bar,
        Workers(jobs) as workers,
    ):
        told = False
        while workers.running or (waiting and not workers.signum):
            if workers.signum and not told:
                bar.write("Stopping: the runs save their state (again: they are killed)")
                told = True
            while waiting and workers.free:
                workers.start(*waiting.pop(0))
            for over in workers.ended():
                bar.write(over.said().rstrip("\n"))
                if over.process.returncode < 0:
                    bar.write(f"{over.task}: ended by signal {-over.process.returncode}")
            bar.update(max(0, sum(map(_steps_done, runs)) - bar.n))
    return workers.signum


def _steps_done(run: Planned) -> int:
    if run.steps is None or run.folder.done:
        return (run.steps or 1) * run.folder.done
    try:
        return steps_logged(run.folder.metrics)
    except (OSError, ValueError):  # a damaged log, of which the run itself says so
        return 0

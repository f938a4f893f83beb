"""`gcond-train --multirun` in processes of its own, watched to the end, and ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TextIO

from tqdm import tqdm

from gcond.engine.lock import running
from gcond.sweep.plan import Planned
from gcond.sweep.state import steps_logged

LAUNCHERS = ("basic", "joblib", "local", "slurm")  # Hydra's, and two of conf/hydra/launcher
POLL_SECONDS = 1.0
LOG_SECONDS = 60.0  # between states of the bar where it is not on a terminal
ASK_SECONDS = 2.0
LINGER_SECONDS = 5.0  # that a process may take to end once its run is no longer at work
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked the sweep to end."""

    def __init__(self, signum: int) -> None:
        self.signum = signum


def launch(overrides: Sequence[str], launcher: str, jobs: int, runs: Sequence[Planned]) -> None:
    """Run what is left, with a bar over all runs and their lines above the bar.

    Raises Stopped after SIGINT, SIGTERM or SIGHUP, when the runs have saved their state and all processes have ended.
    """
    command = [sys.executable, "-m", "gcond.command", "--multirun", *overrides]
    command += ["progress=quiet", "hydra/hydra_logging=disabled", *launcher_overrides(launcher, jobs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment["PYTHONWARNINGS"] = "ignore:resource_tracker:UserWarning"  # joblib's, when it is told to end
    left = [run for run in runs if run.left]
    interval = POLL_SECONDS if sys.stderr.isatty() else LOG_SECONDS
    with (
        _signals_raise(),
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,  # a group of its own, which Ctrl-C reaches through us only
        ) as process,
        tqdm(
            total=sum(run.steps or 1 for run in left),
            unit="step",
            desc="all runs",
            dynamic_ncols=True,
            mininterval=interval,
            smoothing=0.05,
        ) as bar,
    ):
        assert process.stdout is not None
        reader = threading.Thread(target=_pass_on, args=(process.stdout, bar), daemon=True)
        reader.start()
        try:
            bar.update(sum(_steps_done(run) for run in left))
            while process.poll() is None or members(process.pid):
                time.sleep(POLL_SECONDS)
                _refresh(bar, left)
        except BaseException:
            bar.write("Stopping: the runs save their state (again: they are killed)")
            _end(process.pid, launcher, left)
            raise
        finally:
            reader.join()  # all processes have ended, so their output has
            _refresh(bar, left)


def launcher_overrides(launcher: str, jobs: int) -> list[str]:
    """What makes Hydra's `launcher` work on `jobs` runs at a time (`local` has no such limit)."""
    limits = {"joblib": "n_jobs", "slurm": "array_parallelism"}
    limit = [f"hydra.launcher.{limits[launcher]}={jobs}"] if launcher in limits else []
    return [f"hydra/launcher={launcher}", *limit]


@contextmanager
def _signals_raise() -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped(signum)

    before = {signum: signal.signal(signum, stop) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _end(group: int, launcher: str, runs: Sequence[Planned]) -> None:
    """Ask each process of the group to end, wait until the runs at work have saved their state, kill what lingers.

    Lingerers are joblib's workers: they survive the end of a run, and would take the next one.
    """
    at_work = [run.folder.path for run in runs if running(run.folder.path)]
    try:
        _signal(group, signal.SIGTERM)
        asked = active = time.monotonic()
        while members(group):
            time.sleep(0.1)
            if launcher == "local" and time.monotonic() - asked > ASK_SECONDS:
                _signal(group, signal.SIGTERM)  # submitit ignores it while a run reads its data, and when repeated
                asked = time.monotonic()
            if any(running(folder) for folder in at_work):
                active = time.monotonic()
            elif time.monotonic() - active > LINGER_SECONDS:
                break
    finally:
        _signal(group, signal.SIGKILL)


def _signal(group: int, signum: int) -> None:
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(group, signum)


def members(group: int) -> list[int]:
    """Processes of the group that are alive; those that only wait to be reaped are not."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):  # ended while we looked
            continue
        if int(its_group) == group and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def _steps_done(run: Planned) -> int:
    if run.steps is None or run.folder.done:
        return (run.steps or 1) * run.folder.done
    return steps_logged(run.folder.metrics)


def _refresh(bar: tqdm[None], left: Sequence[Planned]) -> None:
    bar.update(max(0, sum(_steps_done(run) for run in left) - bar.n))
    bar.set_postfix({"runs left": sum(not run.folder.done for run in left)}, refresh=False)


def _pass_on(stream: TextIO, bar: tqdm[None]) -> None:
    for line in stream:
        bar.write(line.rstrip("\n"))

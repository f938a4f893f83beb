"""`gcond-train --multirun` in processes of its own, watched to the end, and ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from gcond.engine.process import ECHO, SWEEP, process_name
from gcond.engine.run_folder import running
from gcond.engine.run_state import steps_logged
from gcond.sweep.plan import Planned

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

    Returns when all have ended, or when the process that hands them out has ended and none is at work any more. Raises
    Stopped after SIGINT, SIGTERM or SIGHUP, when the runs have saved their state and all processes have ended.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment["PYTHONWARNINGS"] = "ignore:resource_tracker:UserWarning"  # joblib's, when it is told to end
    if launcher in ("basic", "joblib"):
        environment[SWEEP] = str(process_name(os.getpid()))
    left = [run for run in runs if run.left]
    interval = POLL_SECONDS if sys.stderr.isatty() else LOG_SECONDS
    with (
        _signals_raise(),
        tempfile.TemporaryFile() as output,  # not a pipe, which would break with this process
        subprocess.Popen(
            command_of(overrides, launcher, jobs),
            stdout=output,
            stderr=subprocess.STDOUT,
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
        watch = _Watch(left, bar, output.fileno())
        try:
            active = time.monotonic()
            while process.poll() is None or members(process.pid):
                time.sleep(POLL_SECONDS)
                watch.look()
                if process.returncode is None or any(at_work(run) for run in left):
                    active = time.monotonic()
                elif time.monotonic() - active > LINGER_SECONDS:
                    _end(process.pid, launcher, left)
            if process.returncode < 0:
                bar.write(f"The process that hands out the runs was ended by signal {-process.returncode}")
        except BaseException:
            bar.write("Stopping: the runs save their state (again: they are killed)")
            _end(process.pid, launcher, left)
            raise
        finally:
            watch.look(last=True)


class _Watch:
    """Passes on what runs say and have done, look by look. `output` is the file that they write to."""

    def __init__(self, runs: Sequence[Planned], bar: tqdm[None], output: int) -> None:
        self._runs, self._bar, self._output, self._read = runs, bar, output, 0
        self._bar.update(sum(_steps_done(run) for run in runs))

    def look(self, last: bool = False) -> None:
        self._pass_on(last)
        self._bar.update(max(0, sum(_steps_done(run) for run in self._runs) - self._bar.n))
        self._bar.set_postfix({"runs left": sum(not run.folder.done for run in self._runs)}, refresh=False)

    def _pass_on(self, last: bool) -> None:
        """Whole lines, and of the `last` one what there is."""
        said = os.pread(self._output, os.fstat(self._output).st_size - self._read, self._read)
        whole = len(said) if last else said.rfind(b"\n") + 1
        self._read += whole
        for line in said[:whole].decode(errors="replace").splitlines():
            self._bar.write(line)


def command_of(overrides: Sequence[str], launcher: str, jobs: int) -> list[str]:
    """`gcond-train --multirun` with Hydra's `launcher` at work on `jobs` runs at a time (`local` has no such limit)."""
    limits = {"joblib": "n_jobs", "slurm": "array_parallelism"}
    limit = [f"hydra.launcher.{limits[launcher]}={jobs}"] if launcher in limits else []
    command = [sys.executable, "-m", "gcond.command", "--multirun", *overrides]
    return [*command, "progress=quiet", "hydra/hydra_logging=disabled", f"hydra/launcher={launcher}", *limit]


@contextmanager
def _signals_raise() -> Iterator[None]:
    """A closed terminal sends SIGHUP, and so may its shell: within ECHO seconds that is one signal, as in a run."""
    asked = -ECHO

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        before, asked = asked, time.monotonic()
        if signum == signal.SIGINT or asked - before >= ECHO:
            raise Stopped(signum)

    heard = [signum for signum in SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN or signum != signal.SIGHUP]
    before = {signum: signal.signal(signum, stop) for signum in heard}  # nohup ignores SIGHUP
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _end(group: int, launcher: str, runs: Sequence[Planned]) -> None:
    """Ask each process of the group to end, wait until the runs at work have saved their state, kill what lingers.

    Lingerers are joblib's workers: they survive the end of a run, and would take the next one.
    """
    working = [run for run in runs if at_work(run)]
    try:
        _signal(group, signal.SIGTERM)
        asked = active = time.monotonic()
        while members(group):
            time.sleep(0.1)
            if launcher == "local" and time.monotonic() - asked > ASK_SECONDS:
                _signal(group, signal.SIGTERM)  # submitit ignores it while a run reads its data, and when repeated
                asked = time.monotonic()
            if any(at_work(run) for run in working):
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


def at_work(run: Planned) -> bool:
    try:
        return running(run.folder.path)
    except (OSError, ValueError):  # the run itself says why it cannot be locked
        return False


def _steps_done(run: Planned) -> int:
    if run.steps is None or run.folder.done:
        return (run.steps or 1) * run.folder.done
    try:
        return steps_logged(run.folder.metrics)
    except (OSError, ValueError):  # a damaged log, of which the run itself says so
        return 0

"""The queue of the study's runs: python -m gcond.study [--plan] (make study-queue)

Works through study/queue.yaml in order, two runs side by side at idle priority, and records each finished run in
results/study/. It can be stopped at any moment, by Ctrl-C, SIGTERM or a closed terminal: the runs at work save their
state, and the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import pandas as pd

from gcond.data.checksums import checksum_of
from gcond.engine.run_folder import running
from gcond.files import ROOT
from gcond.output import at_least_one, duration, output_may_be_lost, status_of
from gcond.study import tables
from gcond.study.queue import ARM, NAME, Queue, read
from gcond.sweep.launch import Workers
from gcond.sweep.plan import Planned, planned

QUEUE, RESULTS = ROOT / "study" / "queue.yaml", Path("results", "study")
GUESS_SECONDS = 400.0  # of CPU a run, until one is recorded

Overrides = tuple[str, ...]


class Study:
    """The queue, what is recorded of it, and the folders of its runs, which their overrides name.

    Args:
        queue, results: study/queue.yaml and results/study.
        more: Hydra's overrides for every run, such as paths.headneck=DIR.
    """

    def __init__(self, queue: Path, results: Path, more: Sequence[str] = ()) -> None:
        self._results, self.more = results, more
        self.planned: dict[Overrides, Planned] = {}
        self._checksums: dict[str, str] = {}
        self.absent: dict[str, str] = {}  # data set -> why its data cannot be read
        self.queue = Queue(read(queue), self._identify)
        self.recorded = tables.read(results)

    def _identify(self, overrides: Sequence[Overrides]) -> list[tuple[str, str]]:
        plans = planned([[*each, *self.more] for each in overrides])
        self.planned |= dict(zip(overrides, plans, strict=True))
        return [(run.folder.hash, self._checksum(run)) for run in plans]

    def _checksum(self, run: Planned) -> str:
        """Of the run's data; "" where they are not there."""
        name = run.cfg.dataset.name
        if name not in self._checksums:
            try:
                self._checksums[name] = str(checksum_of(run.cfg.dataset))
            except (OSError, ValueError) as error:
                self._checksums[name], self.absent[name] = "", str(error)
        return self._checksums[name]

    def left(self, machine: str) -> pd.DataFrame:
        return self.queue.left(self.recorded, machine)

    def collect(self, runs: Iterable[Overrides]) -> None:
        """Record those that are finished here and not recorded as they are."""
        for overrides in runs:
            folder = self.planned[overrides].folder
            report = folder.finished()
            known = set(zip(self.recorded.name, self.recorded.arithmetic, self.recorded.started, strict=True))
            if report is not None and (report["name"], report["arithmetic"], report["started"]) not in known:
                self.recorded = tables.record(folder.path, self._results)

    def seconds(self, runs: pd.DataFrame) -> float:
        """Of CPU that the runs take, by the medians of recorded runs of a strategy and data set, else of all runs."""
        any_run = self.recorded.cpu_seconds.median() if len(self.recorded) else GUESS_SECONDS
        spent = self.recorded.groupby(ARM).cpu_seconds.median().rename("spent")
        return float(runs.join(spent, on=ARM).spent.fillna(any_run).sum())


def tell_plan(study: Study, machine: str, jobs: int) -> None:
    """A line a block: its runs, those left beyond earlier blocks', those whose learning rate is not known, and when it
    ends."""
    print(f"{'block':24} {'runs':>5} {'left':>5} {'wait':>5} {'until':>8}  question")
    runs = study.queue.runs(study.recorded)
    waiting = runs[runs.waiting]
    left = pd.concat([study.left(machine).drop_duplicates(NAME), waiting])
    seconds = 0.0
    for block in study.queue.blocks:
        name, own = block["name"], left[left.block == block["name"]]
        seconds += study.seconds(own)
        until = duration(seconds / jobs) if len(own) else "done"
        every, wait = (runs.block == name).sum(), own.waiting.sum()
        print(f"{name:24} {every:5} {len(own) - wait:5} {wait:5} {until:>8}  {block['question']}")
    print(f"{len(left)} runs left, {duration(seconds / jobs)} of {jobs} idle cores")
    if len(waiting):
        print(f"{len(waiting)} of them wait for the learning rate of their arm, which earlier runs decide")
    for dataset, reason in study.absent.items():
        print(f"no run of {dataset} can be made here: {reason}")
    sys.stdout.flush()


def work(study: Study, machine: str, jobs: int) -> int:
    """Make the runs that are left, each once; the exit status. One that fails is named and left for the next start."""
    begun: set[str] = set()
    failed: dict[str, str] = {}
    with Workers(jobs, idle=True) as workers:
        while True:
            while workers.free and (overrides := _next(study, machine, begun)) is not None:
                run = study.planned[overrides]
                begun.add(run.folder.name)
                workers.start([*overrides, *study.more], run.folder.output, overrides)
            if not workers.running or workers.signum:
                break
            for over in workers.ended():
                run = study.planned[over.task]
                study.collect([over.task])
                if run.folder.finished() is None and not workers.signum:
                    failed[run.folder.name] = run.folder.error or f"see {run.folder.output}"
                took = duration(time.monotonic() - over.began)
                end = failed.get(run.folder.name, "recorded")
                left = study.left(machine)
                rest = f"{len(left)} left, {duration(study.seconds(left) / jobs)} of {jobs} idle cores"
                print(f"{datetime.now():%H:%M:%S} {run.folder.name}: {end} after {took}; {rest}", flush=True)
        at_work = [each.task for each in workers.running]
    study.collect(at_work)
    for name, error in failed.items():
        print(f"failed: {name}: {error}")
    return 128 + workers.signum if workers.signum else int(bool(failed))


def _next(study: Study, machine: str, begun: set[str]) -> Overrides | None:
    """The first run that is left, was not begun here, has data, and is not at work in another process."""
    for run in study.left(machine).itertuples():
        folder = study.planned[run.overrides].folder
        if run.dataset not in study.absent and folder.name not in begun and not running(folder.path):
            return run.overrides
    return None


def here(more: Sequence[str]) -> str:
    """The fingerprint of the arithmetic that the runs have on this machine: of their device, with one thread."""
    from gcond.engine.device import fingerprint, pick

    devices = [word.removeprefix("device=") for word in more if word.startswith("device=")]
    return fingerprint(pick((devices or ["auto"])[-1], 1))


@output_may_be_lost()
def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gcond.study", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--queue", type=Path, default=QUEUE, help="the list of blocks")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where runs are recorded")
    parser.add_argument("--jobs", type=at_least_one, default=2, help="runs side by side")
    parser.add_argument("--plan", action="store_true", help="say what is left and how long it takes; start nothing")
    parser.add_argument("more", nargs="*", help="Hydra's overrides for every run, such as paths.headneck=DIR")
    arguments = parser.parse_args(words)
    return status_of(lambda: _main(arguments))


def _main(arguments: argparse.Namespace) -> int:
    machine = here(arguments.more)
    study = Study(arguments.queue, arguments.results, arguments.more)
    study.collect(study.left(machine).overrides)
    tell_plan(study, machine, arguments.jobs)
    return 0 if arguments.plan else work(study, machine, arguments.jobs)


if __name__ == "__main__":
    sys.exit(main())

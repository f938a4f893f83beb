"""The queue of the study's runs: python -m gcond.study [--plan] (make study-queue)

Works through study/queue.yaml in order, two runs side by side at idle priority, and records each finished run in
results/study/. It can be stopped at any moment, by Ctrl-C, SIGTERM or a closed terminal: the runs at work save their
state, and the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from gcond.data.checksums import checksum_of
from gcond.engine.run_folder import running
from gcond.engine.run_state import steps_logged
from gcond.output import duration, output_may_be_lost
from gcond.study import tables
from gcond.study.queue import Block, Item, Queue, read
from gcond.study.workers import Workers
from gcond.sweep.plan import Planned, planned

ROOT = Path(__file__).resolve().parents[3]
QUEUE, RESULTS = ROOT / "study" / "queue.yaml", ROOT / "results" / "study"
TELL_SECONDS = 600.0  # between lines about the runs at work
GUESS_SECONDS = 400.0  # of CPU a run, until one is recorded


class Study:
    """The queue, what is recorded of it, and the folders of its runs.

    Args:
        queue, results: study/queue.yaml and results/study.
        more: Hydra's overrides for every run, such as paths.headneck=DIR.
    """

    def __init__(self, queue: Path, results: Path, more: Sequence[str] = ()) -> None:
        self._results, self._more = results, more
        self._planned: dict[tuple[str, ...], Planned] = {}
        self._checksums: dict[str, str] = {}
        self.absent: dict[str, str] = {}  # data set -> why its data cannot be read
        self.queue = Queue(read(queue), self._identify)
        self.recorded = tables.read(results)

    def _identify(self, overrides: Sequence[tuple[str, ...]]) -> list[tuple[str, str]]:
        plans = planned([[*each, *self._more] for each in overrides])
        self._planned |= dict(zip(overrides, plans, strict=True))
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

    def run(self, item: Item) -> Planned:
        return self._planned[item.overrides]

    def overrides(self, item: Item) -> list[str]:
        return [*item.overrides, *self._more]

    def left(self, machine: str) -> list[tuple[Block, list[Item]]]:
        """Each block with its runs that are to be made on `machine`."""
        return [(block, self.queue.left(block, self.recorded, machine)) for block in self.queue.blocks(self.recorded)]

    def collect(self, items: Sequence[Item]) -> None:
        """Record those of the runs that are finished here and not recorded as they are."""
        for item in items:
            report = self.run(item).folder.finished()
            known = set(zip(self.recorded.name, self.recorded.arithmetic, self.recorded.started, strict=True))
            if report is not None and (report["name"], report["arithmetic"], report["started"]) not in known:
                self.recorded = tables.record(self.run(item).folder.path, self._results)

    def seconds(self, items: Sequence[Item]) -> float:
        """Of CPU that the runs take, by the medians of recorded runs of a strategy and data set, else of all runs."""
        spent = self.recorded.groupby(["dataset", "strategy"]).cpu_seconds.median()
        any_run = self.recorded.cpu_seconds.median() if len(self.recorded) else GUESS_SECONDS
        arms = [tuple(dict(item.settings)[key] for key in ("dataset", "strategy")) for item in items]
        return float(sum(spent.get(arm, any_run) for arm in arms))


def tell_plan(study: Study, machine: str, jobs: int) -> None:
    """A line a block: its runs, those left beyond earlier blocks', those whose learning rate is not known, and when it
    ends."""
    print(f"{'block':24} {'runs':>5} {'left':>5} {'wait':>5} {'until':>8}  question")
    seen: set[str] = set()
    seconds, runs, waiting = 0.0, 0, 0
    for block, items in study.left(machine):
        names = {item: study.run(item).folder.name for item in items}
        new = [item for item in items if names[item] not in seen]
        seen |= set(names.values())
        seconds += study.seconds([*new, *block.waiting])
        runs += len(new) + len(block.waiting)
        waiting += len(block.waiting)
        until = duration(seconds / jobs) if new or block.waiting else "done"
        every = len(block.items) + len(block.waiting)
        print(f"{block.name:24} {every:5} {len(new):5} {len(block.waiting):5} {until:>8}  {block.question}")
    print(f"{runs} runs left, {duration(seconds / jobs)} of {jobs} idle cores")
    if waiting:
        print(f"{waiting} of them wait for the learning rate of their arm, which earlier runs decide")
    for dataset, reason in study.absent.items():
        print(f"no run of {dataset} can be made here: {reason}")
    sys.stdout.flush()


def work(study: Study, machine: str, jobs: int) -> int:
    """Make the runs that are left, each once; the exit status. One that fails is named and left for the next start."""
    begun: set[str] = set()
    failed: dict[str, str] = {}
    told = time.monotonic()
    with Workers(jobs) as workers:
        while True:
            while workers.free and (item := _next(study, machine, begun)) is not None:
                begun.add(study.run(item).folder.name)
                workers.start(study.overrides(item), _output(study.run(item)), item)
            if not workers.running or workers.signum:
                break
            for over in workers.ended():
                run = study.run(over.task)
                study.collect([over.task])
                if run.folder.finished() is None and not workers.signum:
                    failed[run.folder.name] = run.folder.error or f"see {_output(run)}"
                took = duration(time.monotonic() - over.began)
                _say(f"{run.folder.name}: {failed.get(run.folder.name, 'recorded')} after {took}")
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                at_work = [study.run(each.task) for each in workers.running]
                steps = ", ".join(f"{r.folder.name} {steps_logged(r.folder.metrics)}/{r.steps}" for r in at_work)
                rest = [item for _, items in study.left(machine) for item in items]
                _say(f"at work: {steps}; {len(rest)} runs left, {duration(study.seconds(rest) / jobs)}")
        at_work = [each.task for each in workers.running]
    study.collect(at_work)
    for name, error in failed.items():
        print(f"failed: {name}: {error}")
    return 128 + workers.signum if workers.signum else int(bool(failed))


def _output(run: Planned) -> Path:
    """Where the run's output goes."""
    return run.folder.path.parent / "output" / f"{run.folder.name}.log"


def _next(study: Study, machine: str, begun: set[str]) -> Item | None:
    """The first run that is left, was not begun here, has data, and is not at work in another process."""
    for _, items in study.left(machine):
        for item in items:
            folder = study.run(item).folder
            there = dict(item.settings)["dataset"] not in study.absent
            if there and folder.name not in begun and not running(folder.path):
                return item
    return None


def _say(line: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {line}", flush=True)


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
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--plan", action="store_true", help="say what is left and how long it takes; start nothing")
    parser.add_argument("more", nargs="*", help="Hydra's overrides for every run, such as paths.headneck=DIR")
    arguments = parser.parse_args(words)
    if arguments.jobs < 1:
        parser.error(f"--jobs: expected an integer >= 1, found {arguments.jobs}")
    try:
        machine = here(arguments.more)
        study = Study(arguments.queue, arguments.results, arguments.more)
        study.collect([item for _, items in study.left(machine) for item in items])
        tell_plan(study, machine, arguments.jobs)
        return 0 if arguments.plan else work(study, machine, arguments.jobs)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

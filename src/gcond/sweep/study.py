"""What several sweeps make together: python -m gcond.sweep.study [OPTIONS] "experiment=o1 scale=mini" "experiment=…"

Runs that sweeps share are counted once. Starts nothing.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from gcond.output import duration, output_may_be_lost
from gcond.sweep.disk import disk_needed
from gcond.sweep.plan import Planned, estimate, plan, print_disk, print_remarks, prove, with_paths_quoted


@dataclass(frozen=True)
class Part:
    """A sweep of the study: its `runs`, and those of them that no sweep before it has."""

    name: str
    runs: Sequence[Planned]
    new: Sequence[Planned]


def parts(sweeps: Mapping[str, Sequence[Planned]]) -> list[Part]:
    seen: set[Path] = set()
    found = []
    for name, runs in sweeps.items():
        new = {run.folder.path: run for run in runs if run.folder.path not in seen}
        seen |= new.keys()
        found.append(Part(name, runs, [*new.values()]))
    return found


def print_study(study: Sequence[Part], jobs: int, results: Path) -> None:
    """The total first, then the largest part, then all parts."""
    runs = [run for part in study for run in part.new]
    left = [run for run in runs if run.left]
    counted = sum(len(part.runs) for part in study)
    print(
        f"Study: {len(runs)} runs ({len(study)} experiments plan {counted}; what they share is trained once), "
        f"{sum(run.done for run in runs)} finished, {len(left)} to do"
    )
    print_remarks(runs)
    if left:
        print(f"       {jobs} side by side, estimated time {_hours(runs, jobs, results)} (from recorded runs; other "
              "machines differ)")  # fmt: skip
        largest = max(study, key=lambda part: sum(run.left for run in part.new))
        to_do = sum(run.left for run in largest.new)
        print(f"       {to_do} of them are {largest.name}'s alone, {_hours(largest.new, jobs, results)}: to leave a "
              "part out, name the others (gcond study run o1 table2 …)")  # fmt: skip
        room = disk_needed(runs, jobs)
        print_disk(Path(runs[0].cfg.runs), room.lasting, room.passing)
    width = max(len(part.name) for part in study)
    print(f"       {'experiment':{width}}  runs   new  to do  time of the new ones")
    for part in study:
        to_do = sum(run.left for run in part.new)
        hours = _hours(part.new, jobs, results) if to_do else "-"
        print(f"       {part.name:{width}} {len(part.runs):5} {len(part.new):5} {to_do:6}  {hours}", flush=True)


def _hours(runs: Sequence[Planned], jobs: int, results: Path) -> str:
    seconds = estimate(runs, results).seconds
    return "unknown until runs of this kind have been recorded" if seconds is None else duration(seconds / jobs)


@output_may_be_lost()
def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gcond.sweep.study", description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where recorded runs are looked up")
    parser.add_argument("--missing", action="store_true", help="runs that are recorded below --results are done")
    parser.add_argument("sweeps", nargs="+", metavar="SWEEP", help="one word each: 'experiment=o1 scale=mini seed=11'")
    arguments = parser.parse_args(words)
    if arguments.jobs < 1:
        parser.error(f"--jobs: expected an integer >= 1, found {arguments.jobs}")
    recorded = [f"recorded={arguments.results.absolute()}"] if arguments.missing else []
    planned = {}
    for sweep in arguments.sweeps:
        overrides = shlex.split(sweep)
        name = next((text.removeprefix("experiment=") for text in overrides if text.startswith("experiment=")), sweep)
        try:
            planned[name] = plan(with_paths_quoted([*overrides, *recorded]))
            prove(planned[name], here=True)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 2
    print_study(parts(planned), arguments.jobs, arguments.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())

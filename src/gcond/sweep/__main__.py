"""A sweep from plan to summary: python -m gcond.sweep [OPTIONS] HYDRA_OVERRIDES (--help)

Prints what there is to do, how long it may take and what room it needs, hands what is not finished to
`gcond-train --multirun`, shows its progress, and ends with what failed and why (exit status 1). A finished run is not
repeated, an interrupted one goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from gcond.engine.run_state import state_of
from gcond.output import output_may_be_lost
from gcond.sweep.disk import disk_needed
from gcond.sweep.launch import LAUNCHERS, Stopped, launch
from gcond.sweep.plan import (
    Planned,
    estimate,
    looked_at_again,
    plan,
    print_disk,
    print_plan,
    prove,
    with_paths_quoted,
)


def print_summary(runs: Sequence[Planned]) -> int:
    """How the sweep ended; the exit status."""
    missing = [run for run in runs if not run.done]
    print(f"Sweep: {len(runs) - len(missing)} of {len(runs)} runs finished")
    for run in missing:
        print(f"  {run.folder.name}: {_why(run)}")
    return 1 if missing else 0


def _why(run: Planned) -> str:
    """It is not finished."""
    if run.refused:
        return run.standing.said
    state = state_of(run.folder.path, time.time())
    return f"{state.state}, {state.detail}" if run.folder.path.exists() else "not begun; the same command begins it"


OVERRIDES = """as for gcond-train --multirun, e.g. experiment=table2 scale=mini; a path is one value, commas and all
(several: dataset.root=choice(A,B))"""


@output_may_be_lost()
def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gcond.sweep", description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side (default: cores)")
    parser.add_argument("--launcher", choices=LAUNCHERS, help="default: joblib, or basic for one run at a time")
    parser.add_argument("--plan-only", action="store_true", help="print the plan and start nothing")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where recorded runs are looked up")
    parser.add_argument("--missing", action="store_true", help="do not repeat runs that are recorded below --results")
    parser.add_argument("overrides", nargs="+", help=OVERRIDES)
    arguments = parser.parse_args(words)
    jobs = arguments.jobs
    if jobs < 1:
        parser.error(f"--jobs: expected an integer >= 1, found {jobs}")
    launcher = arguments.launcher or ("joblib" if jobs > 1 else "basic")
    if launcher == "basic" and arguments.launcher and jobs > 1:
        parser.error(f"--jobs: expected 1 with --launcher basic, found {jobs}; take joblib for more")
    overrides = [*arguments.overrides]
    if arguments.missing:
        overrides.append(f"recorded={arguments.results.absolute()}")
    overrides = with_paths_quoted(overrides)
    try:
        runs = plan(overrides)
        prove(runs, here=launcher != "slurm")
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if launcher == "local" and len(runs) > jobs and not arguments.plan_only:
        parser.error(
            f"--jobs: --launcher local starts all {len(runs)} runs at once, expected at least --jobs "
            f"{len(runs)}, found {jobs}; narrow the sweep, or take --launcher joblib, which keeps to --jobs"
        )
    print_plan(runs, jobs, estimate(runs, arguments.results))
    left = [run for run in runs if run.left]
    if left:
        room = disk_needed(runs, jobs)
        print_disk(Path(runs[0].cfg.runs), room.lasting, room.passing)
    if arguments.plan_only:
        return 0
    try:
        if left:
            launch(overrides, launcher, jobs, runs)
    except Stopped as stopped:
        print_summary(looked_at_again(runs))
        return 128 + stopped.signum
    return print_summary(looked_at_again(runs))


if __name__ == "__main__":
    sys.exit(main())

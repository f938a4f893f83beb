"""A sweep from plan to summary: python -m gcond.sweep [OPTIONS] HYDRA_OVERRIDES (--help)

Prints what there is to do, how long it may take and what room it needs, makes what is not finished, shows its progress,
and ends with what failed and why (exit status 1). A finished run is not repeated, an interrupted one goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from gcond.engine.run_state import state_of
from gcond.output import at_least_one, output_may_be_lost, status_of
from gcond.sweep.launch import launch, submit
from gcond.sweep.plan import Planned, looked_at_again, plan, print_plan, prove, with_paths_quoted


def plan_all(
    sweeps: Mapping[str, Sequence[str]], jobs: int, results: Path, here: bool = True
) -> dict[str, list[Planned]]:
    """Print what the sweeps, name -> overrides, will do, and how long by what is recorded below `results`.

    `here`: they will run on this machine. Raises ValueError where a setting is refused.
    """
    planned = {}
    for name, overrides in sweeps.items():
        try:
            planned[name] = plan(overrides)
            prove(planned[name], here)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ValueError(f"{name}: {error}" if len(sweeps) > 1 else str(error)) from error
    print_plan(planned, jobs, results)
    return planned


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
    parser.add_argument("--jobs", type=at_least_one, default=os.cpu_count(), help="runs side by side (default: cores)")
    parser.add_argument("--launcher", choices=["slurm"], help="submit one SLURM array (default: run on this machine)")
    parser.add_argument("--plan-only", action="store_true", help="print the plan and start nothing")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where recorded runs are looked up")
    parser.add_argument("--missing", action="store_true", help="do not repeat runs that are recorded below --results")
    parser.add_argument("overrides", nargs="+", help=OVERRIDES)
    options = parser.parse_args(words)
    return status_of(lambda: _sweep(options))


def _sweep(options: argparse.Namespace) -> int:
    slurm = options.launcher == "slurm"
    overrides = with_paths_quoted(options.overrides)
    overrides += with_paths_quoted([f"recorded={options.results.absolute()}"]) if options.missing else []
    overrides += ["hydra/launcher=slurm"] if slurm else []
    runs = plan_all({"": overrides}, options.jobs, options.results, here=not slurm)[""]
    left = [run for run in runs if run.left]
    if options.plan_only:
        return 0
    signum = 0
    if left:
        signum = submit(overrides, left, options.jobs) if slurm else launch(left, options.jobs)
    status = print_summary(looked_at_again(runs))
    return 128 + signum if signum else status


if __name__ == "__main__":
    sys.exit(main())

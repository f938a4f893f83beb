"""A sweep from plan to summary: python -m gcond.sweep [--jobs N] [--plan-only] HYDRA_OVERRIDES

Prints what there is to do and how long it may take, hands what is not finished to `gcond-train --multirun`, shows its
progress, and ends with what failed and why (exit status 1). A finished run is not repeated, an interrupted one goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # what --multirun itself splits a sweep with
from hydra.core.override_parser.overrides_parser import OverridesParser
from tqdm import tqdm

from gcond.engine.folder import RunFolder

CONFIG = Path(__file__).resolve().parents[2] / "conf"
POLL_SECONDS = 1.0
LOG_SECONDS = 60.0  # between states of the bar where it is not on a terminal


@dataclass(frozen=True)
class Planned:
    """One run of a sweep. `cost` is what runs of about the same duration share."""

    folder: RunFolder
    cost: tuple[str, str, str, str]  # scale, dataset, model, strategy
    steps: int | None


def plan(overrides: Sequence[str]) -> list[Planned]:
    """The runs that `gcond-train --multirun` would start for these overrides.

    Raises ValueError (from Hydra) for an unknown key or group.
    """
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG)):
        parser = OverridesParser.create()
        fixed = [text for text in overrides if not parser.parse_override(text).is_sweep_override()]
        params = compose("train", fixed, return_hydra_config=True).hydra.sweeper.params or {}
        swept = parser.parse_overrides([f"{key}={value}" for key, value in params.items()] + list(overrides))
        runs = []
        for choice in tqdm(BasicSweeper.split_arguments(swept, None)[0], desc="plan", unit="run", delay=2, leave=False):
            cfg = compose("train", choice)
            per_epoch = cfg.scale.steps_per_epoch
            steps = None if per_epoch is None else per_epoch * cfg.scale.epochs
            runs.append(
                Planned(RunFolder(cfg), (cfg.scale.name, cfg.dataset.name, cfg.model.name, cfg.strategy.name), steps)
            )
    return runs


def expected_seconds(runs: Sequence[Planned], recorded: Path) -> float | None:
    """Seconds of work left, from runs of the same kind, finished here or recorded in results/; None if unknown."""
    known = _recorded_seconds(recorded)
    for run in runs:
        if run.folder.done:
            known.setdefault(run.cost, []).append(json.loads(run.folder.report.read_text())["seconds"])
    left = [run.cost for run in runs if not run.folder.done]
    if not left:
        return 0.0
    everything = [seconds for values in known.values() for seconds in values]
    if not everything:
        return None
    return sum(statistics.median(known.get(cost, everything)) for cost in left)


def _recorded_seconds(results: Path) -> dict[tuple[str, str, str, str], list[float]]:
    known: dict[tuple[str, str, str, str], list[float]] = {}
    for path in results.glob("*/runs.csv"):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row["status"] == "done" and row["variant"] == "" and row["seconds"]:
                    cost = (path.parent.name, row["dataset"], row["model"], row["strategy"])
                    known.setdefault(cost, []).append(float(row["seconds"]))
    return known


def print_plan(runs: Sequence[Planned], jobs: int, seconds: float | None) -> None:
    done = sum(run.folder.done for run in runs)
    begun = sum(run.folder.begun and not run.folder.done for run in runs)
    failed = sum(run.folder.error is not None and not run.folder.done for run in runs)
    print(f"Plan: {len(runs)} runs, {done} finished, {len(runs) - done} to do ({begun} begun, {failed} failed before)")
    if done < len(runs):
        time_left = "unknown until runs of this kind have been recorded" if seconds is None else _words(seconds / jobs)
        print(
            f"      {jobs} side by side, estimated time {time_left} (from recorded runs; other machines differ)",
            flush=True,
        )


def launch(overrides: Sequence[str], jobs: int, runs: Sequence[Planned]) -> None:
    """`gcond-train --multirun` in a process of its own, with a bar over all runs and its lines above the bar."""
    command = [
        sys.executable,
        "-m",
        "gcond.train",
        "--multirun",
        *overrides,
        "progress=quiet",
        "hydra/hydra_logging=disabled",
    ]
    if jobs > 1:
        command += ["hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    left = [run for run in runs if not run.folder.done]
    total = sum(run.steps or 1 for run in left)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert process.stdout is not None
    interval = POLL_SECONDS if sys.stderr.isatty() else LOG_SECONDS
    with tqdm(
        total=total, unit="step", desc="all runs", dynamic_ncols=True, mininterval=interval, smoothing=0.05
    ) as bar:
        bar.update(sum(_steps_done(run) for run in left))
        reader = threading.Thread(target=_pass_on, args=(process.stdout, bar), daemon=True)
        reader.start()
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                _refresh(bar, left)
        except KeyboardInterrupt:
            process.terminate()
            raise
        reader.join()
        _refresh(bar, left)


def _steps_done(run: Planned) -> int:
    if run.folder.done:
        return run.steps or 1
    if run.steps is None or not run.folder.metrics.exists():
        return 0
    with run.folder.metrics.open() as file:
        return sum('"kind": "step"' in line for line in file)


def _refresh(bar: tqdm[None], left: Sequence[Planned]) -> None:
    bar.update(max(0, sum(_steps_done(run) for run in left) - bar.n))
    bar.set_postfix({"runs left": sum(not run.folder.done for run in left)}, refresh=False)


def _pass_on(stream: TextIO, bar: tqdm[None]) -> None:
    for line in stream:
        bar.write(line.rstrip("\n"))


def print_summary(runs: Sequence[Planned]) -> int:
    """How the sweep ended; the exit status."""
    missing = [run for run in runs if not run.folder.done]
    print(f"Sweep: {len(runs) - len(missing)} of {len(runs)} runs finished")
    for run in missing:
        print(f"  {run.folder.name}: {run.folder.error or 'not finished; the same command continues it'}")
    return 1 if missing else 0


def _words(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gcond.sweep", description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side (default: cores)")
    parser.add_argument("--plan-only", action="store_true", help="print the plan and start nothing")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where recorded durations are looked up")
    parser.add_argument("overrides", nargs="+", help="as for gcond-train --multirun, e.g. experiment=table2 scale=mini")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error(f"--jobs: expected an integer >= 1, found {arguments.jobs}")
    runs = plan(arguments.overrides)
    print_plan(runs, arguments.jobs, expected_seconds(runs, arguments.results))
    if arguments.plan_only:
        return 0
    if not all(run.folder.done for run in runs):
        launch(arguments.overrides, arguments.jobs, runs)
    return print_summary(runs)


if __name__ == "__main__":
    sys.exit(main())

"""How long a person waits for `gcond-train`: for its help, and for the first optimizer step of a smoke run.

    python scripts/bench_startup.py [--rounds 7] [--store data/ct] [--out results/bench/startup.csv]

Every work runs in a new process, and all take turns in a new order each round. A run is watched from outside: the time
is taken when its metrics.jsonl has a first line, and then it is killed. `python -c "import torch, timm"` takes turns
with them. Wall time: run it on an idle machine; processor time is recorded besides.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from gcond.engine.device import commit, describe
from gcond.files import write_text
from gcond.report.records import add_rows, frame
from gcond.report.startup import BARE, COLUMNS, FIRST_STEP, HELP, KEY, page
from gcond.timing import versions

TRAIN = [sys.executable, "-m", "gcond.command"]
POLL_SECONDS = 0.005
PATIENCE_SECONDS = 300


def to_its_end(command: Sequence[str]) -> tuple[float, float]:
    """Wall and processor seconds of a process that ends by itself."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
    return wall, usage.ru_utime + usage.ru_stime


def to_first_step(words: Sequence[str]) -> tuple[float, float]:
    """Wall and processor seconds of a run, in a folder of its own, until its first optimizer step is recorded."""
    with tempfile.TemporaryDirectory() as runs:
        command = [*TRAIN, *words, f"runs={runs}", "progress=quiet", "device=cpu"]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            while not _recorded(Path(runs)):
                wall = time.perf_counter() - start
                if process.poll() is not None or wall > PATIENCE_SECONDS:
                    process.kill()
                    assert process.stderr is not None
                    raise RuntimeError(
                        f"{' '.join(command)}: no step in {wall:.0f} s\n{process.stderr.read().decode()}"
                    )
                time.sleep(POLL_SECONDS)
            wall = time.perf_counter() - start
        finally:
            if process.returncode is None:
                process.kill()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return wall, usage.ru_utime + usage.ru_stime


def _recorded(runs: Path) -> bool:
    return any(path.stat().st_size for path in runs.glob("*/*/metrics.jsonl"))


def measure(store: Path, rounds: int) -> pd.DataFrame:
    """One row a work."""
    smoke = {
        dataset: ["scale=smoke", f"dataset={dataset}", *([f"paths.ct={store}"] if dataset == "ct" else [])]
        for dataset in FIRST_STEP
    }
    works = {
        HELP: lambda: to_its_end([*TRAIN, "--help"]),
        BARE: lambda: to_its_end([sys.executable, "-c", "import torch, timm"]),
        **{name: lambda words=smoke[dataset]: to_first_step(words) for dataset, name in FIRST_STEP.items()},
    }
    load = os.getloadavg()[0]
    random = np.random.default_rng(0)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for number in tqdm(range(rounds + 1), unit="round"):
        for name in random.permutation(list(works)):
            turn = works[name]()
            if number:  # the first brings the files into the page cache
                taken[name].append(turn)
    wall = {name: np.array([turn[0] for turn in turns]) for name, turns in taken.items()}
    rows = [
        {
            "device": describe(torch.device("cpu")),
            "work": name,
            "rounds": rounds,
            "seconds": float(np.median(wall[name])),
            "lowest": float(wall[name].min()),
            "highest": float(wall[name].max()),
            "processor_seconds": float(np.median([turn[1] for turn in taken[name]])),
            "share": float(np.median(wall[BARE] / wall[name])),
            "load": load,
            "versions": versions(("torch", "timm", "hydra-core", "datasets")),
            "commit": commit()[0],
        }
        for name in works
    ]
    return frame(rows, COLUMNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--store", type=Path, default=Path("data/ct"))
    parser.add_argument("--out", type=Path, help="a CSV file; the page is written beside it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = measure(arguments.store, arguments.rounds)
    if arguments.out:
        table = add_rows(arguments.out, table, COLUMNS, KEY)
        write_text(arguments.out.with_suffix(".md"), page(table))
    print(page(table))


if __name__ == "__main__":
    main()

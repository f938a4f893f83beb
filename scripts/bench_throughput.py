"""Tables 3 and 4 of the paper: what a training step of each strategy costs in time and memory, against Baseline.

    python scripts/bench_throughput.py --table 3|4 [--device auto|cpu|cuda] [--cap 16GB] [--rounds N] [--anew]
        [HYDRA_OVERRIDES, e.g. dataset=ct strategy=baseline,pcgrad precision=bf16 scale.micro_batch=4]

Data sets and strategies are those of conf/experiment/table3.yaml and table4.yaml, at scale=paper. All methods take
turns in one process (`gcond.timing`), in real optimizer steps on made images (`gcond.synthetic_run`). Besides: a plain
PyTorch loop, and GCond sequential with one forward pass per task, as published.

CUDA: the paper's units, precision fp32 and bf16. Peak memory of each method is measured in a process of its own that
may use --cap of the device. Table 4: all at one batch, then each at its largest under the cap, found by trial.
CPU: ratios of processor time of one thread at small shapes (CPU_SHAPES); memory at the paper's shapes is planned.

Rows go to bench/table3.csv (table4.csv) in --results when those of a data set and precision are complete; what is
recorded there is not measured again without --anew. At the end the page beside it is written:
python -m gcond.report table3.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from hydra.errors import HydraException
from throughput_cases import Case, cases, work_of
from throughput_memory import measured, planned
from tqdm import tqdm

from gcond.engine.device import commit, describe, pick
from gcond.engine.memory import bytes_of
from gcond.engine.out_of_memory import is_out_of_memory
from gcond.files import OWN
from gcond.report.__main__ import report_throughput
from gcond.report.records import frame, read_csv, write_csv
from gcond.report.throughput import COLUMNS, KEY, SEQUENTIAL
from gcond.timing import Ratio, interleaved, versions

CPU_ROUNDS = {"table3": 15, "table4": 7}
CUDA_ROUNDS = 15
PACKAGES = ("torch", "timm")


def measure(case: Case, device: torch.device, rounds: int) -> list[dict[str, object]]:
    """The rows of a case.

    Raises ValueError where the methods of the case do not fit on the device together.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    bar = tqdm(case.methods, desc="memory, planned", unit="method")
    memory = {method: planned(case, method, device) for method in bar}
    sizes = dict.fromkeys(case.methods, case.config("baseline").scale.micro_batch)
    if device.type == "cuda":
        for method in tqdm(case.methods, desc="memory, measured", unit="method"):
            start = memory[method].get("planned_micro_batch", sizes[method])
            found = measured(case, method, device, start)
            if found is not None:
                sizes[method], memory[method]["measured_mb"] = found
            elif case.own:
                del sizes[method]

    times = _taken_together(case, device, sizes, rounds)
    per_image = {method: taken / sizes[method] for method, taken in times.items()}
    revision, dirty = commit()
    about = case.setting(device) | {
        "rounds": rounds,
        "versions": versions(PACKAGES),
        "commit": revision,
        "dirty": dirty,
        "started": started,
    }
    rows = []
    for method, against in _pairs(case):
        row = about | {"method": method, "against": against} | memory[method]
        if method in times and against in times:
            ratio = Ratio.of(per_image[method], per_image[against])
            row |= {"ratio": ratio.median, "ratio_low": ratio.low, "ratio_high": ratio.high}
            row |= {"micro_batch": sizes[method], "step_seconds": float(np.median(times[method]))}
        rows.append(row)
    return rows


def _taken_together(case: Case, device: torch.device, sizes: dict[str, int], rounds: int) -> dict[str, np.ndarray]:
    """Seconds [rounds] of an optimizer step of each method at its micro-batch; no cap."""
    try:
        works = {method: work_of(case, method, device, f"scale.micro_batch={size}") for method, size in sizes.items()}
        return interleaved(works, rounds, device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(
            f"out of memory on {describe(device)}: expected room for {len(sizes)} methods side by side, each with its "
            "weights and moments; name fewer at a time: strategy=baseline,gcond_stochastic, then "
            "strategy=baseline,pcgrad, and so on"
        ) from error


def _pairs(case: Case) -> list[tuple[str, str]]:
    """(method, against) of every row: all against Baseline, and stochastic against sequential."""
    pairs = [(method, "baseline") for method in case.methods]
    pairs += [("gcond_stochastic", form) for form in SEQUENTIAL]
    return [pair for pair in pairs if set(pair) <= set(case.methods)]


def recorded(csv: Path) -> list[dict[str, object]]:
    return read_csv(csv, COLUMNS, KEY).to_dict("records") if csv.exists() else []


def is_recorded(case: Case, device: torch.device, rows: list[dict[str, object]]) -> bool:
    own = [row for row in rows if all(row[name] == value for name, value in case.setting(device).items())]
    return set(_pairs(case)) <= {(row["method"], row["against"]) for row in own}


def save(csv: Path, rows: list[dict[str, object]]) -> None:
    """Beside what is recorded; a row of the same name is replaced."""
    fresh = {tuple(row[name] for name in KEY) for row in rows}
    kept = [row for row in recorded(csv) if tuple(row[name] for name in KEY) not in fresh]
    write_csv(csv, frame([*kept, *rows], COLUMNS), KEY)


def run(options: argparse.Namespace) -> int:
    """Measure what is not recorded, and write the page. Returns the exit code of the report."""
    table = f"table{options.table}"
    device = pick(options.device, threads=1)
    cap = bytes_of(options.cap, "--cap")
    if device.type == "cuda" and cap > (total := torch.cuda.get_device_properties(device).total_memory):
        raise ValueError(f"`--cap`: expected at most the device's {total / 1e9:.1f}GB, found {options.cap}")
    rounds = options.rounds or (CPU_ROUNDS[table] if device.type == "cpu" else CUDA_ROUNDS)
    csv = options.results / "bench" / f"{table}.csv"
    for case in cases(table, device, options.cap, options.overrides):
        name = f"{table}, {case.dataset}, {case.precision}, micro-batch {case.setting(device)['batches']}"
        if not options.anew and is_recorded(case, device, recorded(csv)):
            print(f"{name}: recorded in {csv}; --anew measures it again")
            continue
        print(f"{name}: {len(case.methods)} methods, {rounds} rounds", flush=True)
        save(csv, measure(case, device, rounds))
    return report_throughput(table, options.results)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("--table", choices=("3", "4"), required=True)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … (default: auto)")
    parser.add_argument("--cap", default="16GB", help="memory that a method may use, or is planned into (default 16GB)")
    on_cpu = ", ".join(f"{rounds} for {table}" for table, rounds in CPU_ROUNDS.items())
    default = f"{CUDA_ROUNDS} on CUDA; on the CPU {on_cpu}"
    parser.add_argument("--rounds", type=int, help=f"default: {default}")
    parser.add_argument("--anew", action="store_true", help="measure also what is recorded")
    parser.add_argument("--results", type=Path, default=OWN, help=f"rows go to bench/ in it (default: {OWN})")
    parser.add_argument("overrides", nargs="*", help="e.g. dataset=ct strategy=baseline,pcgrad")
    options = parser.parse_intermixed_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds: expected a number >= 1, found {options.rounds}")
    try:
        return run(options)
    except (ValueError, HydraException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

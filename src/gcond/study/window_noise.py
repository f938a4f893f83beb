"""How noisy a window of K micro-batches is, at the frozen weights of finished runs, before training and after it.

    python -m gcond.study.window_noise --scale sample [--strategies baseline,gcond_stochastic] [--seeds 11,42,2025]
    [--datasets ct] [--micro-batches 72] [--states initial last] [--modes train eval] [--runs DIR] [--results DIR]

Reads finished runs without overrides below runs/<scale>, of which only the last checkpoints are left, and changes
nothing there. Adds to <results>/<scale>/windows.csv; what stands there is left out, so the script can be stopped and
started again. Runs of a seed begin with the same weights, which are measured once. `python -m gcond.report windows`
makes table and figure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from gcond.data.splits import Splits
from gcond.engine import device as devices
from gcond.engine.batches import TrainingImages
from gcond.engine.probes import FEWEST, SIZES, Estimates, WindowProbe
from gcond.files import OWN
from gcond.load_run import STATES, TRUST, LoadedRun
from gcond.report.folders import read_folders
from gcond.report.records import KEY, WINDOW_COLUMNS, WINDOW_KEY, add_rows, frame, read_csv

MODES = ("train", "eval")
STORES = ("ct", "headneck", "imagenet84")  # data sets that stand below data/
OF_THE_BEGINNING = ("seed", "precision", "dataset", "model", "loss", "scale")


def finished(folder: Path, options: argparse.Namespace) -> list[Path]:
    """Of a scale's folder the runs that were asked for; what is left out is said."""
    found = read_folders(folder)
    for remark in found.remarks:
        print(remark, file=sys.stderr)
    asked = {"strategy": options.strategies, "seed": options.seeds, "dataset": options.datasets}
    runs = [
        run
        for run in found.runs
        if (run.row["status"], run.row["variant"]) == ("done", "")
        and all(values is None or str(run.row[key]) in values for key, values in asked.items())
    ]
    return [run.path for run in sorted(runs, key=lambda run: (str(run.row["started"]), run.folder))]


def beginning(run: LoadedRun) -> str:
    """The settings that initial weights and the gradients there depend on."""
    return OmegaConf.to_yaml({name: run.cfg[name] for name in OF_THE_BEGINNING})


def measure(
    run: LoadedRun, data: Splits, state: str, mode: str, n: int, device: torch.device
) -> tuple[int, dict[str, Estimates]]:
    """The step that the weights are of, and per parameter group what `window_noise.statistics` says."""
    model, step = run.model(state, data)
    scale = run.cfg.scale
    probe = WindowProbe(
        model.to(device),
        run.objective(model, data),
        run.tasks,
        TrainingImages(
            data.train, data.intensity, scale.micro_batch, run.patches, scale.mask_ratio, run.cfg.seed, device
        ),
        n,
        training=mode == "train",
        scaler=run.scaler(device),
    )
    return step, probe.measure()


def rows_of(run: LoadedRun, state: str, step: int, mode: str, n: int, found: dict[str, Estimates]) -> list[dict]:
    common = {name: run.report[name] for name in KEY} | {"state": state, "step": step, "mode": mode}
    common |= {"micro_batches": n, "batch_size": run.cfg.scale.micro_batch}
    return [
        common | {"group": group, "name": name, "value": value, "standard_error": error}
        for group, said in found.items()
        for name, (value, error) in said.items()
    ]


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    device = devices.pick(options.device, threads=1)
    paths = finished(options.runs / options.scale, options)
    if not paths:
        print(
            f"expected finished runs in {options.runs / options.scale} that were asked for, found none; "
            f"`make reproduce-windows SCALE={options.scale}` trains some",
            file=sys.stderr,
        )
        return 2
    out = options.results / options.scale / "windows.csv"
    done = set()
    if out.exists():
        table = read_csv(out, WINDOW_COLUMNS, WINDOW_KEY)
        names = [*KEY, "state", "mode", "micro_batches"]
        done = set(table[names].drop_duplicates().itertuples(index=False, name=None))
    measured: dict[tuple[str, str], tuple[int, dict[str, Estimates]]] = {}
    n = options.micro_batches
    roots = {name: getattr(options, name) for name in STORES} | {"imagenet256": options.imagenet}
    with tqdm(total=len(paths) * len(options.states) * len(options.modes), unit="measurement", mininterval=2) as bar:
        for path in paths:
            run = LoadedRun(path, roots, options.trust)
            left = [
                (state, mode)
                for state in options.states
                for mode in options.modes
                if (*(run.report[name] for name in KEY), state, mode, n) not in done
            ]
            bar.update(len(options.states) * len(options.modes) - len(left))
            data = run.data() if left else None
            for state, mode in left:
                which = beginning(run) if state == "initial" else str(path)
                if (which, mode) not in measured:
                    measured[which, mode] = measure(run, data, state, mode, n, device)
                step, found = measured[which, mode]
                rows = frame(rows_of(run, state, step, mode, n, found), WINDOW_COLUMNS)
                add_rows(out, rows, WINDOW_COLUMNS, WINDOW_KEY)
                bar.update()
    print(f"written: {out}")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--scale", default="mini", help="folder below --runs and --results (default: mini)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of local runs; only read")
    parser.add_argument("--results", type=Path, default=OWN, help=f"folder of records (default: {OWN})")
    for name in ("strategies", "seeds", "datasets"):
        parser.add_argument(f"--{name}", type=lambda text: text.split(","), help="comma-separated (default: all)")
    parser.add_argument("--micro-batches", type=int, default=FEWEST * SIZES[-1], help=f"a multiple of {SIZES[-1]}")
    for name, choices in (("states", STATES), ("modes", MODES)):
        parser.add_argument(f"--{name}", nargs="+", choices=choices, default=choices)
    for name in STORES:
        parser.add_argument(f"--{name}", type=Path, default=Path("data", name), help=f"default: data/{name}")
    parser.add_argument("--imagenet", type=Path, help="the ImageNet-256 of the runs")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=TRUST)
    parser.add_argument("--device", default="auto")
    return parser


if __name__ == "__main__":
    sys.exit(main())

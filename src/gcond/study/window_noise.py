"""How noisy a window of K micro-batches is, at the frozen weights of finished runs, before training and after it.

    python -m gcond.study.window_noise --scale sample --strategies baseline,gcond_stochastic --seeds 11,42,2025

Reads the runs with Table 2's settings below runs/<scale> that <results>/<scale>/runs.csv records, of which only the
last checkpoints are left, and changes nothing there. Adds records of kind window to their logs, a row for each state
and parameter group, in train mode, as these runs were trained; what stands there is left out, so the script can be
stopped and started again. Runs of a seed begin with the same weights, which are measured once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pandas as pd
import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from gcond.data.splits import Splits
from gcond.engine import device as devices
from gcond.engine.probes import FEWEST, SIZES, WindowProbe
from gcond.load_run import STATES, LoadedRun, add_options, roots
from gcond.output import output_may_be_lost, status_of
from gcond.study import tables

KIND, MODE = "window", "train"  # of the records in a run's log
OF_THE_BEGINNING = ("seed", "precision", "dataset", "model", "loss", "scale")


def recorded(options: argparse.Namespace) -> pd.DataFrame:
    """The recorded runs that were asked for, in the order of their start."""
    runs = tables.at_rate(tables.runs(options.results / options.scale), options.lr)
    runs = runs[(runs.setting == "") & (runs.model_mode == MODE)]
    for column, values in (("strategy", options.strategies), ("seed", options.seeds), ("dataset", options.datasets)):
        runs = runs[runs[column].astype(str).isin(values)] if values else runs
    there = [(options.runs / options.scale / name / "DONE").exists() for name in runs.name]
    return runs.loc[there].sort_values(["started", "name"])


def beginning(run: LoadedRun) -> str:
    """The settings that initial weights and the gradients there depend on."""
    return OmegaConf.to_yaml({name: run.cfg[name] for name in OF_THE_BEGINNING})


def measure(run: LoadedRun, data: Splits, state: str, n: int, device: torch.device) -> pd.DataFrame:
    """What `WindowProbe` finds, a row a parameter group; the standard error of NAME is NAME:error."""
    model, step = run.model(state, data.intensity.channels)
    images = run.images(data, device)
    objective, scaler = run.objective(model, data), run.scaler(device)
    probe = WindowProbe(model.to(device), objective, run.tasks, images, n, training=True, scaler=scaler)
    about = {"state": state, "step": step, "mode": MODE, "micro_batches": n, "batch_size": images.micro_batch}
    return pd.DataFrame(
        about
        | {"group": group}
        | {name: value for name, (value, _) in said.items()}
        | {f"{name}:error": error for name, (_, error) in said.items()}
        for group, said in probe.measure().items()
    )


@output_may_be_lost()
def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_options(parser)
    for name in ("strategies", "seeds"):
        parser.add_argument(f"--{name}", type=lambda text: text.split(","), help="comma-separated (default: all)")
    parser.add_argument("--lr", default="own", help="own (the scale's, the default), paper, best or a number")
    parser.add_argument("--micro-batches", type=int, default=FEWEST * SIZES[-1], help=f"a multiple of {SIZES[-1]}")
    parser.add_argument("--states", nargs="+", choices=STATES, default=STATES, help="of the weights (default: both)")
    options = parser.parse_args(words)
    return status_of(lambda: _measure(options))


def _measure(options: argparse.Namespace) -> None:
    device = devices.pick(options.device, threads=1)
    results, runs = options.results / options.scale, recorded(options)
    if runs.empty:
        raise ValueError(
            f"expected finished runs in {options.runs / options.scale} that were asked for and that "
            f"{results / 'runs.csv'} records; `gcond study run windows --scale {options.scale}` trains some"
        )
    measured: dict[str, pd.DataFrame] = {}
    n = options.micro_batches
    for row in tqdm(list(runs.itertuples()), unit="run", mininterval=2):
        known = tables.log(results, row.log, KIND)
        done = {each.state for each in known.itertuples() if (each.mode, each.micro_batches) == (MODE, n)}
        if not (left := [state for state in options.states if state not in done]):
            continue
        run = LoadedRun(options.runs / options.scale / row.name, roots(options), options.trust)
        data = run.data()
        for state in left:
            which = beginning(run) if state == "initial" else row.log
            if which not in measured:
                measured[which] = measure(run, data, state, n, device)
            tables.add(results, row.log, KIND, pd.concat([tables.log(results, row.log, KIND), measured[which]]))
    print(f"written: {results / 'logs'}")


if __name__ == "__main__":
    sys.exit(main())

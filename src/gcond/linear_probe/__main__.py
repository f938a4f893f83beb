"""Probe the frozen encoders of finished runs: python -m gcond.linear_probe --scale sample

For each run below runs/<scale> that results/<scale>/runs.csv records, with Table 2's model and settings (the learning
rate may differ; --all takes every run) and no records of kind linear_probe in its log: features of its last
checkpoint's encoder, of the weights that it began with, and pixels; a ridge regression per task, its strength chosen on
validation; the score on test. A run that was trained anew is probed anew. Nothing is written to the runs.

Exit code 0: every such run is recorded; 1: some could not be probed, and are named; 2: bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from gcond.data.splits import Splits
from gcond.engine import device as devices
from gcond.linear_probe.probe import Describe, Probed, encoder, features, pixels, probe, tasks
from gcond.load_run import LoadedRun, add_options, roots
from gcond.output import at_least_one, output_may_be_lost, status_of
from gcond.study import tables
from gcond.study.methods import PAPER_MODEL

KIND = "linear_probe"  # of the records in a run's log
IMAGES = 50_000  # of a split, evenly spaced


class Prober:
    """Probes run after run; what several share (data, pixels, the weights of a seed) is computed once."""

    def __init__(
        self, roots: dict[str, Path | None], device: torch.device, images: int, trusted: Sequence[str] = ()
    ) -> None:
        self._roots, self._device, self._images, self._trusted = roots, device, images, trusted
        self._data: tuple[DictConfig, Splits] | None = None
        self._controls: dict[str, dict[str, Probed]] = {}

    def rows(self, folder: Path) -> list[dict[str, object]]:
        """A row of the record for every task. Raises ValueError for a run that cannot be probed."""
        run = LoadedRun(folder, self._roots, self._trusted)
        data, dataset = self._read(run), run.cfg.dataset
        images = {"train": data.train, "val": data.val, "test": data.test}
        places = {split: spaced(len(own), self._images) for split, own in images.items()}
        asked = tasks(dataset, places)

        def probed(describe: Describe) -> dict[str, Probed]:
            found = {split: features(describe, images[split], chosen, data.intensity, self._device)
                     for split, chosen in places.items()}  # fmt: skip
            return {task.name: probe(found, task) for task in asked}

        def of_weights(state: str) -> dict[str, Probed]:
            return probed(encoder(run.model(state, data.intensity.channels)[0].to(self._device)))

        own = of_weights("last")
        begins = [dataset, run.cfg.model, run.cfg.seed, run.cfg.loss.get("labels")]
        untrained = self._once(begins, lambda: of_weights("initial"))
        of_pixels = self._once([dataset], lambda: probed(pixels))
        about = {"device": devices.describe(self._device), "step": run.report["steps"]}
        about |= {split: len(chosen) for split, chosen in places.items()}
        return [
            {
                "hash": run.report["hash"], "task": task.name, "measure": task.measure, **about,
                "val_score": own[task.name].val, "test_score": own[task.name].test,
                "strength": own[task.name].strength,
                "untrained_val": untrained[task.name].val, "untrained_test": untrained[task.name].test,
                "pixels_val": of_pixels[task.name].val, "pixels_test": of_pixels[task.name].test,
                "chance": task.chance,
            }
            for task in asked
        ]  # fmt: skip

    def _read(self, run: LoadedRun) -> Splits:
        if self._data is None or self._data[0] != run.cfg.dataset:
            self._data = run.cfg.dataset, run.data()
        run.expect(self._data[1])
        return self._data[1]

    def _once(self, settings: Sequence[object], compute: Callable[[], dict[str, Probed]]) -> dict[str, Probed]:
        """What `compute` gave for the same settings the first time."""
        name = "\n".join(map(str, settings))
        if name not in self._controls:
            self._controls[name] = compute()
        return self._controls[name]


def spaced(count: int, most: int) -> list[int]:
    chosen = min(count, most)
    return [place * count // chosen for place in range(chosen)]


def todo(results: Path, runs: Path, datasets: Sequence[str] | None, every: bool) -> pd.DataFrame:
    """The recorded runs below `runs` that are not probed yet, those of one data set and seed together.

    Of other models and settings than Table 2's only where `every` one is wanted.
    """
    done = tables.runs(results)
    done = done.loc[[(runs / name / "DONE").exists() for name in done.name]]
    done = done[done.dataset.isin(datasets)] if datasets else done
    if done.empty:
        of = f" of {' or '.join(datasets)}" if datasets else ""
        raise ValueError(f"nothing to probe: no finished run{of} in {runs} that {results / 'runs.csv'} records")
    model = done.model.iloc[0] if done.model.nunique() == 1 else PAPER_MODEL
    chosen = done if every else done[(done.model == model) & (done.setting == "")]
    left = chosen.loc[[not _recorded(results, run.log, run.hash) for run in chosen.itertuples()]]
    print(f"{len(chosen)} finished runs, {len(chosen) - len(left)} recorded in {results}, {len(left)} to probe")
    if len(chosen) < len(done):
        print(f"{len(done) - len(chosen)} finished runs of another model or with other settings than Table 2's are "
              "left out; --all takes them too")  # fmt: skip
    return left.sort_values(["dataset", "model", "seed", "name"])


def _recorded(results: Path, log: str, run_hash: str) -> bool:
    """Older records do not name their run's hash."""
    rows = tables.log(results, log, KIND)
    return len(rows) > 0 and ("hash" not in rows or set(rows["hash"]) == {run_hash})


@output_may_be_lost()
def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gcond.linear_probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--all", action="store_true", help="also other models and settings than Table 2's")
    parser.add_argument("--images", type=at_least_one, default=IMAGES, help=f"of a split at most (default: {IMAGES})")
    options = parser.parse_args(words)
    return status_of(lambda: _probe(options))


def _probe(options: argparse.Namespace) -> int:
    results, runs = options.results / options.scale, options.runs / options.scale
    device = devices.pick(options.device, threads=1)
    left = todo(results, runs, options.datasets, options.all)
    prober = Prober(roots(options), device, options.images, options.trust)
    errors = []
    for run in tqdm(list(left.itertuples()), desc="probe", unit="run", disable=None):
        try:
            rows = prober.rows(runs / run.name)
        except ValueError as error:
            errors.append(f"{run.name}: {error}")
            continue
        tables.add(results, run.log, KIND, pd.DataFrame(rows))
        scores = [f"{row['task']} {row['test_score']:.3f} (untrained {row['untrained_test']:.3f})" for row in rows]
        tqdm.write(f"{run.name}: {', '.join(scores)}")
    for error in errors:
        print(f"not probed: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())

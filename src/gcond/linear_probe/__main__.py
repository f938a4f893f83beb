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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from gcond.data.splits import Splits
from gcond.engine import device as devices
from gcond.files import OWN
from gcond.linear_probe import probe as seen
from gcond.linear_probe.probe import Array, Probed, probe
from gcond.linear_probe.tasks import Task, tasks
from gcond.load_run import TRUST, LoadedRun
from gcond.output import output_may_be_lost
from gcond.study import tables

KIND = "linear_probe"  # of the records in a run's log
PAPER_MODEL = "mobilenetv3_small"
IMAGES = 50_000  # of a split, evenly spaced


class Prober:
    """Probes run after run; what several share (data, pixels, the weights of a seed) is computed once."""

    def __init__(
        self, roots: dict[str, Path | None], device: torch.device, images: int, trusted: Sequence[str] = ()
    ) -> None:
        self._roots, self._device, self._images, self._trusted = roots, device, images, trusted
        self._data: tuple[Any, Splits, dict[str, list[int]], list[Task]] | None = None
        self._controls: dict[Any, dict[str, Probed]] = {}

    def rows(self, folder: Path) -> Iterator[dict[str, object]]:
        """One for every task. Raises ValueError for a run that cannot be probed."""
        finished = LoadedRun(folder, self._roots, self._trusted)
        data, places, asked = self._read(finished)
        own = self._probe(seen.encoder(finished.model("last", data)[0].to(self._device)), data, places, asked)
        about = finished.cfg.dataset
        untrained = self._control(
            (about, finished.cfg.model, finished.cfg.seed, finished.cfg.loss.get("labels")),
            lambda: seen.encoder(finished.model("initial", data)[0].to(self._device)),
            data, places, asked,
        )  # fmt: skip
        pixels = self._control((about,), lambda: seen.pixels, data, places, asked)
        for task in asked:
            yield {
                "hash": finished.report["hash"], "task": task.name,
                "measure": task.measure, "device": devices.describe(self._device),
                "step": finished.report["steps"], **{split: len(chosen) for split, chosen in places.items()},
                "val_score": own[task.name].val, "test_score": own[task.name].test,
                "strength": own[task.name].strength,
                "untrained_val": untrained[task.name].val, "untrained_test": untrained[task.name].test,
                "pixels_val": pixels[task.name].val, "pixels_test": pixels[task.name].test, "chance": task.chance,
            }  # fmt: skip

    def _read(self, run: LoadedRun) -> tuple[Splits, dict[str, list[int]], list[Task]]:
        if self._data is None or self._data[0] != run.cfg.dataset:
            data = run.data()
            counts = {"train": len(data.train), "val": len(data.val), "test": len(data.test)}
            places = {split: spaced(count, self._images) for split, count in counts.items()}
            self._data = (run.cfg.dataset, data, places, tasks(run.cfg.dataset, places))
        else:
            run.expect(self._data[1])
        return self._data[1:]

    def _control(self, key: tuple[Any, ...], describe: Any, data: Splits, *rest: Any) -> dict[str, Probed]:
        name = "\n".join(map(str, key))
        if name not in self._controls:
            self._controls[name] = self._probe(describe(), data, *rest)
        return self._controls[name]

    def _probe(
        self, describe: seen.Describe, data: Splits, places: dict[str, list[int]], asked: list[Task]
    ) -> dict[str, Probed]:
        images = {"train": data.train, "val": data.val, "test": data.test}
        found = {
            split: seen.features(describe, images[split], chosen, data.intensity, self._device)
            for split, chosen in places.items()
        }
        return {task.name: probe(turned(found, task), task.targets, task.score, task.groups) for task in asked}


def turned(features: dict[str, Array], task: Task) -> dict[str, Array]:
    """[T, n, D] -> [T * n, D], turn by turn, or the images as they are [n, D]."""
    if task.turned:
        return {split: values.reshape(-1, values.shape[-1]) for split, values in features.items()}
    return {split: values[0] for split, values in features.items()}


def spaced(count: int, most: int) -> list[int]:
    chosen = min(count, most)
    return [place * count // chosen for place in range(chosen)]


def todo(results: Path, runs: Path, datasets: tuple[str, ...] | None, every: bool) -> pd.DataFrame:
    """The recorded runs below `runs` whose log holds no probe of them, those of one data set and seed together.

    Of other models and settings than Table 2's only where `every` one is wanted.
    """
    done = tables.runs(results)
    done = done.loc[[(runs / name / "DONE").exists() for name in done.name]]
    if done.empty:
        raise ValueError(f"nothing to probe: no finished run in {runs} that {results / 'runs.csv'} records")
    if datasets:
        done = done[done.dataset.isin(datasets)]
    model = done.model.iloc[0] if done.model.nunique() == 1 else PAPER_MODEL
    of_table2 = (done.model == model) & (done.loss == "l1_ssim") & (done.weights == "") & (done.rest == "")
    chosen = done if every else done[of_table2]
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
    options = _parser().parse_args(words)
    results, runs = options.results / options.scale, options.runs / options.scale
    try:
        if options.images < 1:
            raise ValueError(f"--images: expected an integer >= 1, found {options.images}")
        device = devices.pick(options.device, threads=1)
        left = todo(results, runs, options.datasets, options.all)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    roots = {name: getattr(options, name) for name in ("ct", "headneck", "imagenet84")}
    prober = Prober(roots | {"imagenet256": options.imagenet}, device, options.images, options.trust)
    errors = []
    for run in tqdm(list(left.itertuples()), desc="probe", unit="run", disable=None):
        try:
            rows = list(prober.rows(runs / run.name))
        except ValueError as error:
            errors.append(f"{run.name}: {error}")
            continue
        tables.add(results, run.log, KIND, pd.DataFrame(rows))
        scores = [f"{row['task']} {row['test_score']:.3f} (untrained {row['untrained_test']:.3f})" for row in rows]
        tqdm.write(f"{run.name}: {', '.join(scores)}")
    for error in errors:
        print(f"not probed: {error}", file=sys.stderr)
    return 1 if errors else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gcond.linear_probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", default="mini", help="folder below --runs and --results (default: mini)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of local runs, only read")
    parser.add_argument("--results", type=Path, default=OWN, help=f"folder of records (default: {OWN})")
    parser.add_argument("--datasets", type=lambda text: tuple(text.split(",")), help="comma-separated (default: all)")
    parser.add_argument(
        "--all", action="store_true", help="runs of other models and with other settings than Table 2's as well"
    )
    for name in ("ct", "headneck", "imagenet84"):
        parser.add_argument(f"--{name}", type=Path, default=Path("data", name), help=f"default: data/{name}")
    parser.add_argument("--imagenet", type=Path, help="the ImageNet-256 of the runs")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"of a split at most (default: {IMAGES})")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=TRUST)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser


if __name__ == "__main__":
    sys.exit(main())

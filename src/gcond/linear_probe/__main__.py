"""Probe the frozen encoders of finished runs: python -m gcond.linear_probe --scale sample

For each run of runs/<scale> that is finished, has Table 2's model and settings (the learning rate may differ; --all
takes every run) and is not yet in results/<scale>/linear_probe.csv: features of its last checkpoint's encoder, of the
weights that it began with, and pixels; a ridge regression per task, its strength chosen on validation; the score on
test. `python -m gcond.report o7` makes the page. Nothing is written to the runs.

Exit code 0: every finished run is recorded; 1: some could not be probed, and are named; 2: bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
from gcond.report.claims.evidence import as_table2, table2_model
from gcond.report.folders import Run, read_folders
from gcond.report.records import KEY, LINEAR_PROBE_COLUMNS, LINEAR_PROBE_KEY, add_rows, frame, read_csv

IMAGES = 50_000  # of a split, evenly spaced


class Prober:
    """Probes run after run; what several share (data, pixels, the weights of a seed) is computed once."""

    def __init__(
        self, roots: dict[str, Path | None], device: torch.device, images: int, trusted: Sequence[str] = ()
    ) -> None:
        self._roots, self._device, self._images, self._trusted = roots, device, images, trusted
        self._data: tuple[Any, Splits, dict[str, list[int]], list[Task]] | None = None
        self._controls: dict[Any, dict[str, Probed]] = {}

    def rows(self, run: Run) -> Iterator[dict[str, object]]:
        """One for every task. Raises ValueError for a run that cannot be probed."""
        finished = LoadedRun(run.path, self._roots, self._trusted)
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
            yield {name: run.row[name] for name in (*KEY, "hash")} | {
                "task": task.name, "measure": task.measure, "device": devices.describe(self._device),
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


def todo(runs: list[Run], table: Path, datasets: tuple[str, ...] | None, every: bool) -> list[Run]:
    """Finished runs that `table` does not hold, those that share data and seed one after another.

    Of other models and settings than Table 2's only where `every` one is wanted.
    """
    recorded = set()
    if table.exists():
        rows = read_csv(table, LINEAR_PROBE_COLUMNS, LINEAR_PROBE_KEY)
        recorded = set(rows[[*KEY, "hash"]].itertuples(index=False, name=None))
    done = [run for run in runs if run.row["status"] == "done" and (not datasets or run.row["dataset"] in datasets)]
    model = table2_model(str(run.row["model"]) for run in done)
    others = (
        [] if every else [run for run in done if run.row["model"] != model or not as_table2(str(run.row["variant"]))]
    )
    done = [run for run in done if run not in others]
    left = [run for run in done if tuple(run.row[name] for name in (*KEY, "hash")) not in recorded]
    print(f"{len(done)} finished runs, {len(done) - len(left)} recorded in {table}, {len(left)} to probe")
    if others:
        print(f"{len(others)} finished runs of another model or with other settings than Table 2's are left out; --all "
              "takes them too")  # fmt: skip
    return sorted(left, key=lambda run: (str(run.row["dataset"]), str(run.row["model"]), run.row["seed"], run.folder))


@output_may_be_lost()
def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    table = options.results / options.scale / "linear_probe.csv"
    try:
        if options.images < 1:
            raise ValueError(f"--images: expected an integer >= 1, found {options.images}")
        device = devices.pick(options.device, threads=1)
        found = read_folders(options.runs / options.scale)
        for remark in found.remarks:
            print(remark, file=sys.stderr)
        if not found.runs and not table.exists():
            raise ValueError(f"nothing to probe: no finished run in {options.runs / options.scale}")
        left = todo(found.runs, table, options.datasets, options.all)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    roots = {"imagenet256": options.imagenet} | {
        name: getattr(options, name) for name in ("ct", "headneck", "imagenet84")
    }
    prober = Prober(roots, device, options.images, options.trust)
    errors = [f"{name}: {error}" for name, error in found.unreadable.items()]
    for run in tqdm(left, desc="probe", unit="run", disable=None):
        try:
            rows = list(prober.rows(run))
        except ValueError as error:
            errors.append(f"{run.folder}: {error}")
            continue
        add_rows(table, frame(rows, LINEAR_PROBE_COLUMNS), LINEAR_PROBE_COLUMNS, LINEAR_PROBE_KEY)
        scores = ", ".join(
            f"{row['task']} {row['test_score']:.3f} (untrained {row['untrained_test']:.3f})" for row in rows
        )
        tqdm.write(f"{run.folder}: {scores}")
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

"""What a training step waits for, and how fast one core reads images in several formats.

    python bench/data.py [reading] [trace] [--device auto|cpu|cuda] [--rounds N] [--results DIR] [HYDRA_OVERRIDES]
        [--store data/ct]                                       of reading: the CT store
        [--steps 60] [--cases ct:memory:0,ct:store:2,…]                                            of trace

reading   single random reads to a tensor, from the store as it is and from other ways to keep the same pixels, in
          turns; processor time of one process, files in the page cache
trace     real runs of `gcond.train.train`, whose parts a stopwatch times where the training code calls them; then, in
          turns, the data alone and the step alone. A case is dataset:kept:workers: `memory` is how small data are kept,
          `store` reads every image when its turn comes. Wall time, since a stall is one whatever the processor does.

Without a word both. Rows go to bench.csv in --results, in the place of those of the same name.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Array2D, Dataset, Features, Value, disable_progress_bars, load_from_disk
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from gcond.config import build, compose
from gcond.data import photos, store
from gcond.data.ct import StoreSlices, resize
from gcond.data.imagenet256 import EncodedPhotos
from gcond.data.images import Photographs, TensorImages
from gcond.data.splits import ImageSet
from gcond.data.store import STORED_SIZE
from gcond.engine import batches
from gcond.engine.batches import MicroBatches, TrainingImages
from gcond.engine.device import describe, pick
from gcond.engine.run_folder import RunFolder
from gcond.engine.settings import Settings
from gcond.engine.trainer import Objective, Trainer
from gcond.files import OWN
from gcond.output import at_least_one, status_of
from gcond.strategy import GradientConductor
from gcond.strategy.estimate import Window
from gcond.study import bench, pages
from gcond.synthetic_run import SyntheticRun
from gcond.timing import Ratio, interleaved, interval, stamp
from gcond.train import train

Row = dict[str, object]
PACKAGES = ("torch", "numpy", "datasets", "pyarrow", "pillow")

# Reading

SIZES = (STORED_SIZE, 64)
READS = 100  # of a turn, drawn anew
STORE, JPEG = "the store", "JPEG photographs (ImageNet-256)"


class Slices:
    """CT slices that `read(i)` gives as arrays [256, 256], as a torch dataset [1, S, S]."""

    def __init__(self, read: Callable[[int], np.ndarray], n: int, size: int) -> None:
        self._read, self._n, self._size = read, n, size

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> Tensor:
        pixels = self._read(index)
        whole = self._size == STORED_SIZE
        return torch.from_numpy(np.array(pixels, np.int16) if whole else resize(pixels, self._size)).unsqueeze(0)


def ways(slices: np.ndarray, folder: Path) -> Iterator[tuple[str, Callable[[int], np.ndarray], float]]:
    """Write `slices` [n, 256, 256] uint16 in each way into `folder`: its name, how it is read, KiB of a slice."""
    kib = slices[0].nbytes / 1024
    slices.tofile(folder / "16.bin")
    yield "np.memmap, uint16", np.memmap(folder / "16.bin", slices.dtype, "r", shape=slices.shape).__getitem__, kib

    def saved(name: str, pixels: list[Any], feature: Any) -> Dataset:
        Dataset.from_dict({"pixels": pixels}, Features({"pixels": feature})).save_to_disk(folder / name)
        return load_from_disk(folder / name)

    raw = saved("raw", [each.tobytes() for each in slices], Value("binary"))
    shape = slices.shape[1:]
    yield "datasets, binary uint16", lambda i: np.frombuffer(raw[i]["pixels"], store.DTYPE).reshape(shape), kib
    array = saved("array", list(slices), Array2D(shape, "uint16")).with_format("numpy")
    yield "datasets, Array2D, numpy format", lambda i: array[i]["pixels"], kib
    # The picture's bytes undecoded, as the image feature of `datasets` would add its own conversion.
    encoded = [encode(each, "PNG", compress_level=1) for each in slices]  # higher: few per cent smaller, slow to write
    png = saved("png", encoded, Value("binary"))

    def read(i: int) -> np.ndarray:
        with Image.open(io.BytesIO(png[i]["pixels"])) as picture:
            return np.asarray(picture)

    yield "datasets, PNG16", read, mean_kib(encoded)


def encode(picture: np.ndarray, form: str, **options: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, form, **options)
    return file.getvalue()


def mean_kib(encoded: Sequence[bytes]) -> float:
    return float(np.mean([len(content) for content in encoded])) / 1024


def photographs(n: int, folder: Path) -> tuple[list[ImageSet], float]:
    """Crops of scikit-image's photographs as ImageNet-256 keeps its images, at each size, and KiB of one."""
    crops = photos.load(STORED_SIZE).train
    arrays = (crops[i % len(crops)].permute(1, 2, 0).numpy() for i in range(n))
    encoded = [encode(array, "JPEG", quality=90) for array in arrays]
    pq.write_table(pa.table({"image": [{"bytes": content} for content in encoded]}), folder / "photographs.parquet")
    stored = EncodedPhotos([folder / "photographs.parquet"])
    return [Photographs(stored, range(n), size) for size in SIZES], mean_kib(encoded)


def check_same(name: str, images: ImageSet, of_store: ImageSet) -> None:
    """Raise ValueError unless a way gives the very pixels of the store."""
    for i in range(len(images)):
        if not torch.equal(images[i], of_store[i]):
            raise ValueError(f"{name}: slice {i} is not that of the store")


def reading(path: Path, most: int, rounds: int) -> Iterator[Row]:
    disable_progress_bars()
    facts = store.read_facts(path)
    index = store.read_index(path, facts)
    train_slices = index[index.split == "train"].place.to_numpy()
    n = min(most, len(train_slices))
    chosen = train_slices[np.linspace(0, len(train_slices) - 1, n).round().astype(int)]
    pixels = store.Pixels(path, facts)
    sets: dict[str, list[ImageSet]] = {STORE: [StoreSlices(pixels, chosen, size) for size in SIZES]}
    slices = np.stack([sets[STORE][0][i][0].numpy() for i in range(n)]).astype(store.DTYPE)
    with tempfile.TemporaryDirectory() as folder:
        kib = {STORE: slices[0].nbytes / 1024}
        for name, read, kib[name] in ways(slices, Path(folder)):
            sets[name] = [Slices(read, n, size) for size in SIZES]
            for images, of_store in zip(sets[name], sets[STORE], strict=True):
                check_same(name, images, of_store)
        sets[JPEG], kib[JPEG] = photographs(n, Path(folder))
        random, device = np.random.default_rng(0), torch.device("cpu")
        order = np.arange(n)  # the warm-up brings the files into the page cache

        def draw(name: object) -> None:
            order[:] = random.permutation(n)

        works = {
            f"{name}/{size}": lambda images=images: [images[int(i)] for i in order[:READS]]
            for name, own in sets.items()
            for size, images in zip(SIZES, own, strict=True)
        }
        times = interleaved(works, rounds, device, prepare=draw)
    about = {"bench": "reading", "device": describe(device)} | stamp(*PACKAGES)
    for key, taken in times.items():
        name, size = key.rsplit("/", 1)
        common = about | {"strategy": name, "image_size": int(size), "dataset": "photos" if name == JPEG else "ct"}
        rates = min(READS, n) / taken
        low, high = interval(rates)
        rate = {"quantity": "rate", "n": rounds}
        yield common | rate | {"unit": "images/s", "value": float(np.median(rates)), "low": low, "high": high}
        if name != STORE:
            found = Ratio.of(times[f"{STORE}/{size}"], taken)
            numbers = {"value": found.median, "low": found.low, "high": found.high}
            yield common | rate | {"against": STORE, "unit": "ratio"} | numbers
        yield common | {"quantity": "size", "unit": "KiB", "value": kib[name]}


# Trace

PARTS = ("data", "transfer", "windowing", "passes", "arbitration", "optimizer", "other")
CASES = {
    "cpu": "ct:memory:0,ct:store:0,ct:store:1,ct:store:2,photos:memory:0,photos:memory:1",
    "cuda": "ct:memory:8,ct:store:0,ct:store:4,ct:store:8,photos:memory:8",
}
WARM_UP = 4  # steps left out: the first is diagnosed, and memory is allocated
TURN_SECONDS = 0.5  # at least, of the data alone
ALONE = ["reconstructions.images=0", "progress=quiet", "checkpoint_minutes=1000", "scale.diagnose_every=1000000000"]
RUN = [*ALONE, "scale.epochs=1", "scale.warmup_epochs=0.1", "scale.eval_images=2"]


class Stopwatch:
    """Wall seconds of each part of every lap. A part inside another stops the outer one; the rest is `other`."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.laps: list[dict[str, float]] = []
        self._clock, self._open = clock, ["other"]
        self._lap = dict.fromkeys(PARTS, 0.0)
        self._since = clock()

    def lap(self) -> None:
        self._note()
        self.laps.append(self._lap)
        self._lap = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._note()
        self._open.append(name)
        try:
            yield
        finally:
            self._note()
            self._open.pop()

    def around(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        @wraps(call)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return call(*arguments, **named)

        return timed

    def each(self, items: Iterator[Any], name: str) -> Iterator[Any]:
        while True:
            with self.part(name):
                item = next(items, None)
            if item is None:
                return
            yield item

    def _note(self) -> None:
        now = self._clock()
        self._lap[self._open[-1]] += now - self._since
        self._since = now


@contextmanager
def watching(watch: Stopwatch) -> Iterator[None]:
    """While this is open, `watch` times the parts of every training step; a lap ends with the step."""
    step = Trainer.step

    def lapped(trainer: Trainer, number: int) -> dict[str, Any]:
        record = step(trainer, number)
        watch.lap()
        return record

    class Loader(DataLoader):
        def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
            return watch.each(super().__iter__(), "data")

    parts = [
        (MicroBatches, "__next__", "windowing"),
        (batches.SideStream, "start", "transfer"),
        (batches.SideStream, "finish", "transfer"),
        (Objective, "__call__", "passes"),
        (Window, "backward", "passes"),
        (GradientConductor, "step", "arbitration"),
        (torch.amp.GradScaler, "step", "optimizer"),
    ]
    with ExitStack() as stack:
        for owner, name, part in parts:
            stack.enter_context(patch.object(owner, name, watch.around(getattr(owner, name), part)))
        stack.enter_context(patch.object(Trainer, "step", lapped))
        stack.enter_context(patch("gcond.engine.batches.DataLoader", Loader))
        yield


def run_watched(words: Sequence[str], steps: int) -> pd.DataFrame:
    """Seconds of the parts of `steps` real training steps, one row a step, after those of the warm-up."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as runs, watching(watch):
        cfg = compose([*words, *RUN, f"scale.steps_per_epoch={WARM_UP + steps}", f"runs={runs}"])
        train(cfg, RunFolder(cfg))
    return pd.DataFrame(watch.laps[WARM_UP:])


def alone(words: Sequence[str], kept: str, device: torch.device, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Images a second of the data alone and of the step alone [rounds], taken in turns."""
    cfg = compose([*words, *ALONE])
    scale, settings, data = cfg.scale, Settings(cfg), build(cfg.dataset)
    found = "memory" if isinstance(data.train, TensorImages) else "store"
    if kept != found:
        raise ValueError(f"--cases: expected {found}, as {cfg.dataset.name} is kept here, found {kept}")
    synthetic = SyntheticRun(cfg, device)
    size = scale.micro_batch, settings.patches, scale.mask_ratio
    images = MicroBatches(TrainingImages(data.train, data.intensity, *size, cfg.seed, device, scale.workers))
    window = scale.micro_batch * scale.accumulation_steps

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def of_data() -> float:
        for _ in range(2 * scale.workers + 2):  # what lay ready since the last turn
            next(images)
        start, taken = now(), 0
        while now() - start < TURN_SECONDS or taken < scale.accumulation_steps:
            next(images)
            taken += 1
        return taken * scale.micro_batch / (now() - start)

    def of_step() -> float:
        start = now()
        synthetic.step()
        return window / (now() - start)

    with closing(images):
        of_step()
        turns = [(of_data(), of_step()) for _ in range(rounds)]
    of_datas, of_steps = np.array(turns).T
    return of_datas, of_steps


def trace(case: str, typed: Sequence[str], steps: int, rounds: int, device: torch.device) -> Iterator[Row]:
    """`low` and `high` are quartiles."""
    dataset, kept, workers = case.split(":")
    words = ["scale=mini", f"device={device}", *typed, f"dataset={dataset}", f"scale.workers={workers}"]
    held = {"memory": nullcontext(), "store": patch("gcond.data.images.IN_MEMORY_BYTES", 0)}
    with held[kept]:
        laps = run_watched(words, steps)
        loader, step = alone(words, kept, device, rounds)
    cfg, wall = compose(words), laps.sum(axis=1)
    scale = {name: cfg.scale[name] for name in ("image_size", "micro_batch", "accumulation_steps")}
    about = {"bench": "trace", "case": f"{kept}, {workers} workers", "device": describe(device), "dataset": dataset}
    about |= {"model": cfg.model.name, "precision": cfg.precision, "strategy": cfg.strategy.name} | scale | stamp()

    def row(quantity: str, unit: str, values: Any) -> Row:
        low, median, high = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75]))
        spread = {"value": median, "low": low, "high": high, "n": len(values)}
        return about | {"quantity": quantity, "unit": unit} | spread

    yield row("step_time", "s", wall)
    yield from (row(part, "share", laps[part] / wall) for part in PARTS)
    yield row("data_rate", "images/s", loader)
    yield row("step_rate", "images/s", step)
    yield row("headroom", "ratio", loader / step)


def run(options: argparse.Namespace) -> None:
    device = pick(options.device, threads=1)
    cases = (options.cases or CASES[device.type]).split(",")
    for case in cases:
        parts = case.split(":")
        if len(parts) != 3 or parts[1] not in ("memory", "store") or not parts[2].isdecimal():
            raise ValueError(f"--cases: expected dataset:memory|store:workers, found {case}")
    if "reading" in options.benches:
        bench.add(options.results, reading(options.store, options.slices, options.rounds or 30))
    if "trace" in options.benches:
        for case in cases:
            print(case, flush=True)
            rounds = options.rounds or 12
            bench.add(options.results, trace(case, options.overrides, options.steps, rounds, device))
    print(f"written: {options.results}/bench.csv, {pages.make('bench', options.results)[0]}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("words", nargs="*", help="reading, trace, and overrides such as scale=paper")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … (default: auto)")
    parser.add_argument("--rounds", type=at_least_one, help="default: 30 of reading, 12 of trace")
    parser.add_argument("--results", type=Path, default=OWN, help=f"folder of bench.csv (default: {OWN})")
    parser.add_argument("--store", type=Path, default=Path("data/ct"), help="default: data/ct")
    parser.add_argument("--slices", type=at_least_one, default=1000, help="of its training split, evenly spaced")
    parser.add_argument("--steps", type=at_least_one, default=60, help="default: 60")
    parser.add_argument("--cases", help="dataset:memory|store:workers, by commas")
    options = parser.parse_intermixed_args(arguments)
    benches = [word for word in options.words if "=" not in word]
    options.overrides = [word for word in options.words if "=" in word]
    options.benches = benches or ["reading", "trace"]
    if unknown := sorted(set(options.benches) - {"reading", "trace"}):
        parser.error(f"expected reading or trace, found {', '.join(unknown)}")
    return status_of(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())

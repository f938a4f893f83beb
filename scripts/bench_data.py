"""How fast one core reads CT slices, from the store as it is and from other ways to keep the same pixels.

    python scripts/bench_data.py [--store data/ct] [--slices 1000] [--rounds 30] [--out results/bench/data.md]

All ways take turns in one process, in a new order each round, so that a machine whose speed drifts slows them alike. A
rate is the median over rounds, a ratio the median of paired ratios to the store, both with a 95 % bootstrap interval.
Time is processor time of the process; the files have been read before, so no disk is in it. Single random reads end in
a tensor: no collating, no window (training windows on the device), no worker processes.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Array2D, Dataset, Features, Value, disable_progress_bars, load_from_disk
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gcond.data import photos, store
from gcond.data.ct import StoreSlices, resize
from gcond.data.imagenet256 import EncodedPhotos, ParquetPhotos
from gcond.data.splits import ImageSet
from gcond.data.store import STORED_SIZE
from gcond.files import write_text
from gcond.timing import interval

SMALL = 64
READS = 100
"""Slices that each way reads in a round, drawn anew."""
STORE = "the store as it is"
JPEG = "JPEG of photographs, as `dataset=imagenet256` reads them"
PAPER = {"CT": 2367, "ImageNet": 1422}
"""Images a second that the paper's training consumed (its Table 3)."""
PNG_LEVEL = 1  # higher levels save a few per cent and cost several times the writing
JPEG_QUALITY = 90
PACKAGES = ("torch", "numpy", "datasets", "pyarrow", "pillow")


class Way(NamedTuple):
    """`read(i)` gives slice i as an array [256, 256] in the type in which it is kept."""

    read: Callable[[int], np.ndarray]
    kib: float
    bits: int = 16


class Rates(NamedTuple):
    """Images a second of each round [rounds]: at the stored size, and resized to SMALL."""

    stored: np.ndarray
    small: np.ndarray


class Slices:
    """What a thin torch dataset over a Way would be: int16 (or uint8) [1, S, S]."""

    def __init__(self, way: Way, n: int, size: int) -> None:
        self.way, self.n, self.size = way, n, size

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Tensor:
        pixels = self.way.read(index)
        if self.size == STORED_SIZE:
            copy = np.array(pixels, dtype=np.uint8 if pixels.dtype == np.uint8 else np.int16)
        else:
            copy = resize(pixels, self.size)
        return torch.from_numpy(copy).unsqueeze(0)


def ways(slices: np.ndarray, folder: Path) -> Iterator[tuple[str, Way]]:
    """Write `slices` [n, 256, 256] uint16 in each way into `folder`."""
    kib = slices[0].nbytes / 1024
    bytes_8 = np.round(slices * (255 / (store.VALUES - 1))).astype(np.uint8)

    yield "`np.memmap`, uint16", Way(_memmap(slices, folder / "16.bin").__getitem__, kib)
    yield "`np.memmap`, uint8", Way(_memmap(bytes_8, folder / "8.bin").__getitem__, kib / 2, 8)

    raw = _saved({"pixels": [s.tobytes() for s in slices]}, {"pixels": Value("binary")}, folder / "raw")
    shape = (STORED_SIZE, STORED_SIZE)
    yield (
        "`datasets`, binary uint16, `ds[i]`",
        Way(lambda i: np.frombuffer(raw[i]["pixels"], store.DTYPE).reshape(shape), kib),
    )
    for name, pictures in (("PNG16", slices), ("PNG8", bytes_8)):
        encoded = [_encode(picture, "PNG", compress_level=PNG_LEVEL) for picture in pictures]
        # Undecoded, as the `datasets` image feature would add its own conversion.
        png = _saved({"pixels": encoded}, {"pixels": Value("binary")}, folder / name)
        yield f"`datasets`, {name}", Way(_png_reader(png), _mean_kib(encoded), 8 * pictures.itemsize)
    feature = {"pixels": Array2D(shape, "uint16")}
    array = _saved({"pixels": list(slices)}, feature, folder / "array")
    as_numpy = array.with_format("numpy")
    yield "`datasets`, Array2D, numpy format", Way(lambda i: as_numpy[i]["pixels"], kib)
    yield "`datasets`, Array2D, no format", Way(lambda i: np.asarray(array[i]["pixels"], np.uint16), kib)


def _memmap(pixels: np.ndarray, path: Path) -> np.ndarray:
    pixels.tofile(path)
    return np.memmap(path, pixels.dtype, "r", shape=pixels.shape)


def _saved(columns: dict[str, list], features: dict, folder: Path) -> Dataset:
    Dataset.from_dict(columns, Features(features)).save_to_disk(folder)
    return load_from_disk(folder)


def _png_reader(dataset: Dataset) -> Callable[[int], np.ndarray]:
    def read(i: int) -> np.ndarray:
        with Image.open(io.BytesIO(dataset[i]["pixels"])) as picture:
            return np.asarray(picture)

    return read


def _encode(picture: np.ndarray, form: str, **options: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, form, **options)
    return file.getvalue()


def _mean_kib(encoded: list[bytes]) -> float:
    return float(np.mean([len(content) for content in encoded])) / 1024


def photographs(n: int, folder: Path) -> tuple[Callable[[int], ImageSet], float]:
    """Crops of scikit-image's photographs as ImageNet-256 keeps its images, and KiB of one."""
    crops = photos.load(STORED_SIZE).train
    arrays = (crops[i % len(crops)].permute(1, 2, 0).numpy() for i in range(n))
    encoded = [_encode(array, "JPEG", quality=JPEG_QUALITY) for array in arrays]
    pq.write_table(pa.table({"image": [{"bytes": content} for content in encoded]}), folder / "photographs.parquet")
    stored = EncodedPhotos([folder / "photographs.parquet"])
    return lambda size: ParquetPhotos(stored, range(n), size), _mean_kib(encoded)


def check_same(name: str, images: ImageSet, of_store: ImageSet) -> None:
    """A way that keeps 16 bits must give the very pixels of the store. Raises ValueError otherwise."""
    for i in range(len(images)):
        if not torch.equal(images[i], of_store[i]):
            raise ValueError(f"{name}: slice {i} is not that of the store")


def seconds(images: ImageSet, order: np.ndarray) -> float:
    start = time.process_time()
    for i in order:
        images[int(i)]
    return time.process_time() - start


def measure(sets: Mapping[str, tuple[ImageSet, ImageSet]], n: int, rounds: int) -> dict[str, Rates]:
    """`sets`: of each way the images at the stored size and at SMALL."""
    random = np.random.default_rng(0)
    for images in (images for pair in sets.values() for images in pair):
        seconds(images, np.arange(n))  # warm-up, and the files into the page cache
    taken: dict[str, tuple[list, list]] = {name: ([], []) for name in sets}
    for _ in tqdm(range(rounds), unit="round"):
        order = random.choice(n, READS, replace=n < READS)
        for name in random.permutation(list(sets)):
            for images, times in zip(sets[name], taken[name], strict=True):
                times.append(seconds(images, order))
    return {name: Rates(*(READS / np.array(times) for times in pair)) for name, pair in taken.items()}


def table(rates: Mapping[str, Rates], kib: Mapping[str, float], heading: str) -> str:
    """Markdown: per-core rates, ratios to the store, and the cores that the paper's rate of consumption would take."""
    lines = [
        "# Reading slices: images a second and core",
        "",
        heading,
        "",
        "Brackets: 95 % bootstrap interval of the median over rounds. Ratio: of the rate to that of the store, more is "
        "faster. Cores: what the paper's training would keep busy with reading alone "
        f"({PAPER['CT']:,} CT slices a second; {PAPER['ImageNet']:,} photographs).",
    ]
    for field, title in (
        ("stored", f"To a tensor as stored, {STORED_SIZE} x {STORED_SIZE}"),
        ("small", f"To {SMALL} x {SMALL}"),
    ):
        lines += [
            "",
            f"## {title}",
            "",
            "| kept as | KiB | images/s | ratio to the store | cores |",
            "|---|---:|---:|---:|---:|",
        ]
        base = getattr(rates[STORE], field)
        for name in sorted(rates, key=lambda name: (name == JPEG, -np.median(getattr(rates[name], field)))):
            own = getattr(rates[name], field)
            need = PAPER["ImageNet" if name == JPEG else "CT"]
            low, high = interval(own)
            ratio_low, ratio_high = interval(own / base)
            lines.append(
                f"| {name} | {kib[name]:.0f} | {np.median(own):,.0f} [{low:,.0f}, {high:,.0f}] "
                f"| {np.median(own / base):.3f} [{ratio_low:.3f}, {ratio_high:.3f}] | {need / np.median(own):.2f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--store", type=Path, default=Path("data/ct"))
    parser.add_argument("--slices", type=int, default=1000, help="of the training split, evenly spaced; at most all")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, help="also write the table there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()

    facts = store.read_facts(arguments.store)
    pixels = store.Pixels(arguments.store, facts)
    train = store.positions(facts, store.read_index(arguments.store, facts, ["shard", "row"]), "train")
    chosen = train[np.linspace(0, len(train) - 1, min(arguments.slices, len(train))).round().astype(int)]
    sizes = (STORED_SIZE, SMALL)
    sets = {STORE: tuple(StoreSlices(pixels, chosen, size) for size in sizes)}
    n = len(chosen)
    slices = np.stack([sets[STORE][0][i][0].numpy() for i in range(n)]).astype(store.DTYPE)
    with tempfile.TemporaryDirectory() as folder:
        kib = {STORE: slices[0].nbytes / 1024}
        for name, way in ways(slices, Path(folder)):
            sets[name], kib[name] = tuple(Slices(way, n, size) for size in sizes), way.kib
            if way.bits == 16:
                for images, of_store in zip(sets[name], sets[STORE], strict=True):
                    check_same(name, images, of_store)
        of_size, kib[JPEG] = photographs(n, Path(folder))
        sets[JPEG] = tuple(of_size(size) for size in sizes)
        rates = measure(sets, n, arguments.rounds)

    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    heading = (
        f"{n} slices of the store, {arguments.rounds} rounds of {READS} random reads, page-cached, processor time "
        f"of one process on {platform.machine()} with {os.cpu_count()} cores. Python {platform.python_version()}, "
        f"{versions}."
    )
    text = table(rates, kib, heading)
    print(text)
    if arguments.out:
        write_text(arguments.out, text)


if __name__ == "__main__":
    main()

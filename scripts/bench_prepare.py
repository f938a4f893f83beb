"""What a CT file costs to prepare, per transfer syntax: CPU milliseconds of one core for headers and for pictures.

    python scripts/bench_prepare.py [--files 60] [--rounds 5] [--size 512] [--out results/bench/prepare.md]

Made heads with noise, one folder per syntax, page-cached. Syntaxes take turns, so that a machine whose speed drifts
slows them alike; a figure is the median over rounds, with its smallest and largest. A picture is everything between
the file and the 256 x 256 pixels of the store, whose writing is measured apart.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data_prep"))

from archive.header import read_header
from archive.listing import Entry, walk
from archive.merge import EXPECTED
from archive.pixels import read_picture
from fake import Head, write_slice
from write_store import write_shard

from gcond.files import write_text

SYNTAXES = {"uncompressed": "explicit", "JPEG lossless": "jpeg lossless 70"}
STEPS = ("header", "picture", "writing")


def make(folder: Path, syntax: str, files: int, size: int) -> list[Entry]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    head = Head(rng, (size, size), files)
    for z in range(files):
        stored = (head.hu(z) + 1024).clip(0, 4095).astype(np.uint16)
        write_slice(folder / f"{z}.dcm", stored, syntax, PatientID="made", RescaleIntercept=-1024)
    return list(walk("cspine", folder))


def measure(root: Path, entries: list[Entry]) -> dict[str, float]:
    """CPU ms per file of each step."""
    marks = [time.process_time()]
    rows = [read_header(root, entry) for entry in entries]
    marks.append(time.process_time())
    pictures = [read_picture(root, entry, row).stored.tobytes() for entry, row in zip(entries, rows, strict=True)]
    marks.append(time.process_time())
    write_shard(root.parent / "shard.arrow", pictures)
    marks.append(time.process_time())
    return dict(zip(STEPS, np.diff(marks) * 1e3 / len(entries), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=60, help="per syntax")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    times: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        entries = {
            label: make(root / str(i), syntax, options.files, options.size)
            for i, (label, syntax) in enumerate(SYNTAXES.items())
        }
        for _ in tqdm(range(options.rounds), unit="round"):
            for i, (label, own) in enumerate(entries.items()):
                for step, ms in measure(root / str(i), own).items():
                    times.setdefault((label, step), []).append(ms)
    text = table(times, options)
    print(text)
    if options.out:
        write_text(options.out, text)
    return 0


def table(times: dict[tuple[str, str], list[float]], options: argparse.Namespace) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("pydicom", "python-gdcm", "pillow", "numpy"))
    lines = [
        "# What a CT file costs to prepare",
        "",
        f"{options.size} x {options.size} pixels, {options.files} files per syntax, {options.rounds} rounds, "
        f"{platform.machine()} with {os.cpu_count()} cores, Python {platform.python_version()}, {packages}. "
        "CPU ms per file of one core: median [smallest, largest].",
        "",
        "| syntax | header | picture | writing | together | files/s per core |",
        "|---|---|---|---|---|---|",
    ]
    totals = {}
    for label in SYNTAXES:
        own = {step: np.array(times[label, step]) for step in STEPS}
        whole = sum(own.values())
        totals[label] = float(np.median(whole))
        cells = [f"{np.median(t):.2f} [{t.min():.2f}, {t.max():.2f}]" for t in (*own.values(), whole)]
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {1e3 / totals[label]:.0f} |")
    jpeg = EXPECTED["cspine"]
    raw = sum(EXPECTED.values()) - jpeg
    hours = (raw * totals["uncompressed"] + jpeg * totals["JPEG lossless"]) / 3.6e6
    lines += ["", f"{raw:,} uncompressed and {jpeg:,} JPEG files: {hours:.1f} core-hours, if the disk keeps up.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

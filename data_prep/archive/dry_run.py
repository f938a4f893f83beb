"""What is in the archives and how long it would take, from the listing and a few files of each."""

import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pydicom
from tqdm import tqdm

from archive import header, pixels
from archive.listing import Entry, walk
from archive.merge import EXPECTED, TITLES
from gcond.data.store import STORED_SIZE

HEADERS, PICTURES = 300, 30  # looked at per source


def describe(roots: Mapping[str, Path], workers: int) -> Iterator[str]:
    """Lines of text; nothing is written anywhere."""
    hours = images_of_all = 0.0
    for source, root in roots.items():
        entries = list(tqdm(walk(source, root), desc=f"listing {source}", unit="file", mininterval=1, leave=False))
        yield (
            f"{TITLES[source]}: {len(entries)} files, {sum(entry.size for entry in entries) / 1e9:.1f} GB "
            f"(the whole has {EXPECTED[source]} images)"
        )
        problems = {entry.problem: entry for entry in reversed(entries) if entry.problem}
        counts = Counter(entry.problem for entry in entries)
        yield from (f"  {counts[problem]} {problem}, {_named(entry)}" for problem, entry in problems.items())
        drawn = random.Random(0).sample(entries, min(HEADERS, len(entries)))
        share, seconds, lines = _look(root, [entry for entry in drawn if not entry.problem])
        yield from lines
        images_of_all += share * len(entries)
        hours += len(entries) * seconds / 3600
    yield f"a store of about {images_of_all:.0f} slices, {images_of_all * 2 * STORED_SIZE**2 / 1e9:.1f} GB"
    yield f"about {hours:.2f} core-hours, {hours / workers:.2f} hours with {workers} workers (if the disk keeps up)"


def _named(entry: Entry) -> str:
    return f"such as {entry.path}{entry.member and '!' + entry.member}"


def _look(root: Path, entries: list[Entry]) -> tuple[float, float, list[str]]:
    """Share of images, CPU seconds per file, and what was seen, in words."""
    started = time.process_time()
    rows = [header.read_header(root, entry) for entry in entries]
    seconds = (time.process_time() - started) / max(1, len(rows))
    images = [(entry, row) for entry, row in zip(entries, rows, strict=True) if row["status"] == "image"]
    rejected: dict[str, list[Entry]] = {}
    flags: Counter[str] = Counter()
    started = time.process_time()
    for entry, row in images[:PICTURES]:
        try:
            flags.update(pixels.read_picture(root, entry, row).flags)
        except pixels.Rejected as error:
            rejected.setdefault(error.reason, []).append(entry)
    per_picture = (time.process_time() - started) / max(1, len(images[:PICTURES]))
    share = len(images) / max(1, len(rows))
    syntaxes = Counter(pydicom.uid.UID(row["transfer_syntax"]).name for _, row in images if row["transfer_syntax"])
    others: dict[str, list[Entry]] = {}
    for entry, row in zip(entries, rows, strict=True):
        if row["status"] != "image":
            others.setdefault(f"{row['status']}: {row['reason']}", []).append(entry)
    lines = [f"  of {len(rows)} files looked at, {len(images)} are images"]
    lines += [f"  {count} {words}" for words, count in syntaxes.items()]
    lines += [f"  {len(own)} {words}, {_named(own[0])}" for words, own in others.items()]
    decoded = len(images[:PICTURES])
    lines += [f"  {len(own)} of {decoded} decoded: {reason}, {_named(own[0])}" for reason, own in rejected.items()]
    lines += [f"  {count} of {decoded} decoded: flagged {flag}" for flag, count in flags.items()]
    return share, seconds + share * per_picture, lines

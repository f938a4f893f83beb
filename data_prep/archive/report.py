"""Tables of every file's fate, rejected.csv with cause and remedy, and the estimate that `--dry-run` prints."""

import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
import pydicom
from archive import header, pixels
from archive.listing import Entry, walk
from archive.reasons import ARCHIVE, REJECTED
from tqdm import tqdm

from gcond.data import store
from gcond.data.ct import PAPER_MEAN, PAPER_STD
from gcond.files import write_text

TITLES = {"ich": "RSNA ICH", "cspine": "RSNA cervical spine", "radcure": "RADCURE"}
EXPECTED = {"ich": 874_035, "cspine": 711_601, "radcure": 613_808}
"""Images of the whole collections: ICH from its authors; the others add up to the paper's count (docs/data.md)."""
PAPER_FILES = 2_199_444
REJECTED_CSV = "rejected.csv"
REMEDIES = REJECTED | {ARCHIVE: "unpack it if slices are in it: it was not opened"}
EXAMPLES, LONGEST_NAME = 3, 120  # of a cause
HEADERS, PICTURES = 300, 30  # looked at per source by `--dry-run`


def of_store(facts: dict) -> Iterator[str]:
    """Lines about a store that was made from the archives."""
    yield from of_files(facts)
    if facts["flags"]:
        yield "\nflags of stored slices: " + ", ".join(f"{flag} {count}" for flag, count in facts["flags"].items())
    if ambiguous := facts["pixels_that_mends_place_differently"]:
        yield f"wrapped 12-bit group: {ambiguous} pixels that the usual mend would have placed differently"
    rows = [
        {"split": split, "source": source} | own
        for split, by in facts["by_split"].items()
        for source, own in by.items()
    ]
    yield f"\n{pd.DataFrame(rows).to_string(index=False)}"
    yield ", ".join(f"{split} {count}" for split, count in facts["counts"].items()) + " slices"
    if facts["linked_patients"]:
        yield (
            f"{facts['linked_patients']} patients share a picture or a study with another one and stay on one side; "
            f"{len(facts['patients_moved_by_links'])} of them moved for it"
        )
    if "ich" in facts["sources"]:
        found = facts.get("labels", {"labelled_slices": 0})
        yield "labels of ICH: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found.items())
    windows = pd.DataFrame.from_dict(facts["train_statistics"], orient="index")
    yield f"\nmean and deviation of the training split (the paper's: {PAPER_MEAN}, {PAPER_STD}):\n{windows.to_string()}"
    yield "\nThis store shows patients: a face can be rebuilt from a head CT. Do not redistribute it."


def of_files(facts: dict) -> Iterator[str]:
    """Files found beside those expected, and how many have which reason."""
    table = pd.DataFrame.from_dict(facts["sources"], orient="index").rename(index=TITLES)
    images = table[["stored", "duplicate", "rejected"]].sum(axis=1)
    yield table.assign(missing=table.images_of_the_whole - images).to_string()
    yield f"images found: {images.sum():,}; the paper names {PAPER_FILES:,} files of all three collections"
    if facts["reasons"]:
        yield f"\n{pd.DataFrame(facts['reasons']).to_string(index=False)}"
        yield f"bad (rejected, or under another patient's SOPInstanceUID) among images: {facts['bad_share']:.3%}"


def write_rejected(out: Path, files: pd.DataFrame) -> None:
    """Of all `files` those that count as bad, and archives that were not opened; where there are none, no table."""
    named = files[files.reason.isin(REMEDIES)].sort_values(["reason", "source", "path", "member"])
    if named.empty:
        (out / REJECTED_CSV).unlink(missing_ok=True)
        return
    table = named[["source", "path", "member", "reason"]].assign(remedy=named.reason.map(REMEDIES)).map(_cell)
    table.columns = ["source", "file", "member", "cause", "remedy"]
    write_text(out / REJECTED_CSV, table.to_csv(index=False, lineterminator="\n"))


def _cell(text: str) -> str:
    """A spreadsheet takes a cell that begins so for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def rejected_examples(out: Path) -> Iterator[str]:
    """The first few files of each cause, from the table in `out`; nothing where there is none."""
    if not (out / REJECTED_CSV).exists():
        return
    for cause, own in pd.read_csv(out / REJECTED_CSV, keep_default_na=False).groupby("cause"):
        names = [f"{row.source} {row.file}{row.member and '!' + row.member}" for row in own[:EXAMPLES].itertuples()]
        more = f" and {len(own) - EXAMPLES} more" if len(own) > EXAMPLES else ""
        yield f"{cause}: {', '.join(map(_printable, names))}{more}\n    remedy: {own.remedy.iloc[0]}"
    yield f"all of them, with cause and remedy: {out / REJECTED_CSV}"


def _printable(name: str) -> str:
    name = name if len(name) <= LONGEST_NAME else f"...{name[-LONGEST_NAME:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def estimate(roots: Mapping[str, Path], workers: int, size: int) -> Iterator[str]:
    """What is in the archives, how much room a store of `size` x `size` pixels takes and how long it would, from the
    listing and a few files of each."""
    hours = slices = 0.0
    for source, root in roots.items():
        entries = list(tqdm(walk(source, root), desc=f"listing {source}", unit="file", mininterval=1, leave=False))
        read = sum(entry.size for entry in entries) / 1e9
        yield f"{TITLES[source]}: {len(entries)} files, {read:.1f} GB (the whole has {EXPECTED[source]} images)"
        problems: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            problems[entry.problem].append(entry)
        sound = problems.pop("", [])
        yield from _counted(problems)
        drawn = random.Random(0).sample(sound, min(HEADERS, len(sound)))
        share, seconds, lines = _sample(root, drawn)
        yield from lines
        slices += share * len(sound)
        hours += len(sound) * seconds / 3600
    yield f"a store of about {slices:.0f} slices, {slices * store.stored_bytes(size) / 1e9:.1f} GB"
    yield f"about {hours:.2f} core-hours, {hours / workers:.2f} hours with {workers} workers (if the disk keeps up)"


def _counted(entries: Mapping[str, list[Entry]]) -> Iterator[str]:
    for words, own in entries.items():
        yield f"  {len(own)} {words}, such as {own[0].path}{own[0].member and '!' + own[0].member}"


def _sample(root: Path, entries: list[Entry]) -> tuple[float, float, Iterator[str]]:
    """Share of images, CPU seconds per file, and lines on the files that were looked at."""
    started = time.process_time()
    rows = [header.read_header(root, entry) for entry in entries]
    seconds = (time.process_time() - started) / max(1, len(rows))
    images, others = [], defaultdict(list)
    for entry, row in zip(entries, rows, strict=True):
        if row["status"] == header.IMAGE:
            images.append((entry, row))
        else:
            others[f"{row['status']}: {row['reason']}"].append(entry)
    flags: Counter[str] = Counter()
    decoded, started = images[:PICTURES], time.process_time()
    for entry, row in decoded:
        try:
            flags.update(pixels.read_picture(root, entry, row).flags)
        except pixels.Rejected as error:
            others[f"of {len(decoded)} decoded: {error.reason}"].append(entry)
    per_picture = (time.process_time() - started) / max(1, len(decoded))
    syntaxes = Counter(pydicom.uid.UID(row["transfer_syntax"]).name for _, row in images)
    lines = [f"  of {len(rows)} files looked at, {len(images)} are images"]
    lines += [f"  {count} {name}" for name, count in syntaxes.items()] + list(_counted(others))
    lines += [f"  {count} of {len(decoded)} decoded: flagged {flag}" for flag, count in flags.items()]
    share = len(images) / max(1, len(rows))
    return share, seconds + share * per_picture, lines

"""Tables of every file's fate, rejected.csv with cause and remedy, and the estimate that `--dry-run` prints."""

import csv
import io
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import groupby
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
    yield ""
    if facts["flags"]:
        yield "flags of stored slices: " + ", ".join(f"{flag} {count}" for flag, count in facts["flags"].items())
    if ambiguous := facts["pixels_that_mends_place_differently"]:
        yield f"wrapped 12-bit group: {ambiguous} pixels that the usual mend would have placed differently"
    yield f"\n{'split':12}{'slices':>10}{'share':>8}{'patients':>10}  by source"
    for split, own in facts["by_split"].items():
        slices, patients = facts["counts"][split], sum(found["patients"] for found in own.values())
        by_source = ", ".join(f"{source} {found['slices']}" for source, found in own.items())
        yield f"{split:12}{slices:10}{slices / sum(facts['counts'].values()):8.1%}{patients:10}  {by_source}"
    if facts["linked_patients"]:
        yield (
            f"{facts['linked_patients']} patients share a picture or a study with another one and stay on one side; "
            f"{len(facts['patients_moved_by_links'])} of them moved for it"
        )
    if labels := facts.get("labels"):
        yield (
            f"labels of ICH: {labels['labelled_slices']} slices, {labels['positive']['any']} with haemorrhage; "
            f"{labels['labels_without_slice']} slices have labels and are not here; "
            f"{labels['repeated_rows']} repeated rows dropped, {labels['contradicted']} contradicted labels left empty"
        )
    elif "ich" in facts["sources"]:
        yield "labels of ICH: none were found, so every label is empty"
    yield f"\n{'window':12}{'mean':>10}{'std':>10}  of the training split; the paper: {PAPER_MEAN}, {PAPER_STD}"
    yield from (f"{name:12}{own['mean']:10.6f}{own['std']:10.6f}" for name, own in facts["train_statistics"].items())
    yield "\nThis store shows patients: a face can be rebuilt from a head CT. Do not redistribute it."


def of_files(facts: dict) -> Iterator[str]:
    """Files found beside those expected, and how many have which reason."""
    columns = ("files", "stored", "duplicate", "rejected", "other", "patients")
    yield f"{'source':20}" + "".join(f"{name:>10}" for name in (*columns, "expected", "missing"))
    images = {source: own["stored"] + own["duplicate"] + own["rejected"] for source, own in facts["sources"].items()}
    for source, own in facts["sources"].items():
        whole = own["images_of_the_whole"]
        numbers = [*(own[name] for name in columns), whole, whole - images[source]]
        yield f"{TITLES[source]:20}" + "".join(f"{number:10}" for number in numbers)
    yield f"images found: {sum(images.values()):,}; the paper names {PAPER_FILES:,} files of all three collections"
    if facts["reasons"]:
        yield f"\n{'source':10}{'status':12}{'files':>8}  reason"
        for row in facts["reasons"]:
            yield f"{row['source']:10}{row['status']:12}{row['files']:8}  {row['reason']}"
        yield f"bad (rejected, or under another patient's SOPInstanceUID) among images: {facts['bad_share']:.3%}"


def write_rejected(out: Path, files: pd.DataFrame) -> None:
    """Of all `files` those that count as bad, and archives that were not opened; where there are none, no table."""
    named = files[files.reason.isin(REMEDIES)].sort_values(["reason", "source", "path", "member"])
    if named.empty:
        (out / REJECTED_CSV).unlink(missing_ok=True)
        return
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("source", "file", "member", "cause", "remedy"))
    for row in named.itertuples():
        table.writerow(map(_cell, (row.source, row.path, row.member, row.reason, REMEDIES[row.reason])))
    write_text(out / REJECTED_CSV, text.getvalue())


def _cell(text: str) -> str:
    """A spreadsheet takes a cell that begins so for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def rejected_examples(out: Path) -> Iterator[str]:
    """The first few files of each cause, from the table in `out`; nothing where there is none."""
    if not (out / REJECTED_CSV).exists():
        return
    with (out / REJECTED_CSV).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    yield ""
    for cause, group in groupby(rows, key=lambda row: row["cause"]):
        own = list(group)
        names = [f"{row['source']} {row['file']}{row['member'] and '!' + row['member']}" for row in own[:EXAMPLES]]
        more = f" and {len(own) - EXAMPLES} more" if len(own) > EXAMPLES else ""
        yield f"{cause}: {', '.join(map(_printable, names))}{more}\n    remedy: {own[0]['remedy']}"
    yield f"all of them, with cause and remedy: {out / REJECTED_CSV}"


def _printable(name: str) -> str:
    name = name if len(name) <= LONGEST_NAME else f"...{name[-LONGEST_NAME:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def estimate(roots: Mapping[str, Path], workers: int) -> Iterator[str]:
    """What is in the archives and how long it would take, from the listing and a few files of each."""
    hours = slices = 0.0
    for source, root in roots.items():
        entries = list(tqdm(walk(source, root), desc=f"listing {source}", unit="file", mininterval=1, leave=False))
        size = sum(entry.size for entry in entries) / 1e9
        yield f"{TITLES[source]}: {len(entries)} files, {size:.1f} GB (the whole has {EXPECTED[source]} images)"
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
    yield f"a store of about {slices:.0f} slices, {slices * store.STORED_BYTES / 1e9:.1f} GB"
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

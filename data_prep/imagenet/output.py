"""The folder that is made beside its place, then renamed; or found there and compared.

Every image of a file is checked, then the file is linked, or its kept rows are written anew.
"""

import os
import platform
import shutil
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from imagenet import source
from imagenet.source import Finding, SourceFile
from tqdm import tqdm

from gcond.files import folder_atomically, read_object, sha256, write_json

FORMAT_VERSION = 1
ROW_GROUP = 1000  # rows: a reader need not hold more at once


class Outcome(NamedTuple):
    """`made`: linked, copied, written, or left out (no row is kept). With findings, nothing has been made."""

    made: str
    split: str
    name: str
    facts: dict
    labels: np.ndarray
    findings: list[Finding]


def process(file: SourceFile, keep: np.ndarray | None, target: Path, size: int) -> Outcome:
    """Check every image of a file, of `size` pixels a side, and link or write it.

    `keep` [k]: its rows that are written, ascending; None is all, linked.
    """
    findings: list[Finding] = []
    chosen: list[pa.RecordBatch] = []
    row = 0
    try:
        for batch in source.batches(file.path):
            for i, encoded in enumerate(batch.column("image").field("bytes")):
                if fault := source.image_fault(encoded.as_py(), size):
                    findings.append(Finding(file.split, fault, f"{file.path.name} row {row + i}"))
            if keep is not None:
                inside = keep[(row <= keep) & (keep < row + len(batch))] - row
                chosen.append(batch.take(pa.array(inside)))
            row += len(batch)
    except source.Damaged:
        findings.append(Finding(file.split, "file unreadable", file.path.name))
    made, facts, labels = "left out", {}, np.empty(0, int)  # `datasets` reads no empty file
    if not findings and (keep is None or len(keep)):
        if keep is None:
            made = _link(file.path, target)
        else:
            made = "written"
            _write(pa.Table.from_batches(chosen), target)
        labels = source.labels_of(pq.read_table(target, columns=["label"]))
        facts = facts_of(target, len(labels))
    return Outcome(made, file.split, target.name, facts, labels, findings)


def facts_of(path: Path, images: int) -> dict:
    """What facts.json says of a file."""
    return {"images": images, "bytes": path.stat().st_size, "sha256": sha256(path)}


def _write(table: pa.Table, path: Path) -> None:
    """JPEG is dense already: no compression of it, no dictionary, no statistics."""
    pq.write_table(
        table, path, row_group_size=ROW_GROUP, compression="none", use_dictionary=False, write_statistics=["label"]
    )


def _link(source: Path, target: Path) -> str:
    """The hub's own cache holds symbolic links: link what they lead to."""
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
        return "copied"
    return "linked"


def prepare(
    root: Path,
    out: Path,
    subset: int | None = None,
    subset_validation: int | None = None,
    seed: int = 0,
    allow_partial: bool = False,
    size: int = 256,
) -> dict:
    """Check `root` and make `out`; the facts of `out`.

    Every image must have `size` x `size` pixels; the published counts are expected of 256 alone. Raises ValueError,
    after a table of what is wrong, for other counts, labels and images, for another layout and an `out` that is
    something else.
    """
    files, findings = source.read_listing(root)
    differing = source.deviations(files, published=size == 256)
    refuse(findings + source.bad_labels(files))
    if differing and not allow_partial:
        print("\n".join(differing))
        raise ValueError(f"`--from`: {root} is not the published copy: nothing was made; `--allow-partial` takes it")
    settings = {
        "format_version": FORMAT_VERSION,
        "size": size,
        "source": {"listing_sha256": source.listing_checksum(files), "images": source.count_by_split(files)},
        "subset": subset,
        "subset_validation": subset_validation,
        "seed": None if subset is None else seed,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "pillow", "pyarrow")},
    }
    if out.exists():
        return check_existing(out, settings)
    if subset is not None:
        files = [file for file in files if file.split != "test"]
    with folder_atomically(out) as building:
        (building / "data").mkdir()
        kept = source.kept_rows(files, subset, subset_validation, seed)
        outcomes = [
            process(file, keep, building / "data" / file.path.name, size)
            for file, keep in tqdm(list(zip(files, kept, strict=True)), desc="checking", unit="file", disable=None)
        ]
        refuse([finding for outcome in outcomes for finding in outcome.findings])
        facts = _facts(settings, differing, outcomes)
        write_json(building / "facts.json", facts)
    _print_made(out, facts, outcomes)
    return facts


def _facts(settings: dict, differing: list[str], outcomes: list[Outcome]) -> dict:
    made = [outcome for outcome in outcomes if outcome.facts]
    labels = {
        split: np.concatenate([outcome.labels for outcome in made if outcome.split == split])
        for split in dict.fromkeys(outcome.split for outcome in made)
    }
    for split, wanted in (("train", settings["subset"]), ("validation", settings["subset_validation"])):
        if wanted and (fewer := int((np.bincount(labels[split], minlength=source.CLASSES) < wanted).sum())):
            differing = [*differing, f"{split}: {fewer} classes have fewer than {wanted} images, all of them kept"]
    return {
        **settings,
        "counts": {split: len(found) for split, found in labels.items()},
        "classes": {split: len(np.unique(source.valid(found))) for split, found in labels.items()},
        "deviations": differing,
        "files": {f"data/{outcome.name}": outcome.facts for outcome in made},
    }


def check_existing(out: Path, settings: dict) -> dict:
    """The facts of a finished `out`, its checksums compared. Raises ValueError where it is another or damaged."""
    path = out / "facts.json"
    facts = {"size": 256} | (read_object(path) if path.is_file() else {})  # older facts name no size
    for key, wanted in settings.items():
        if key != "versions" and facts.get(key) != wanted:
            raise ValueError(
                f"`--out`: {out} exists and was not made by this command ({key}: wanted {wanted}, found "
                f"{facts.get(key)}); remove it or name another folder"
            )
    for name, file in tqdm(facts["files"].items(), unit="file", desc="comparing checksums"):
        if not (out / name).is_file() or sha256(out / name) != file["sha256"]:
            raise ValueError(f"`--out`: {out / name} does not match the checksum in facts.json; remove {out}")
    print(f"{out} is there and its checksums match")
    return facts


def refuse(findings: list[Finding]) -> None:
    """Raises ValueError where there are any."""
    if not findings:
        return
    grouped: dict[tuple[str, str], list[str]] = defaultdict(list)
    for finding in findings:
        grouped[finding.split, finding.what].append(finding.place)
    print(f"{'split':12}{'what is wrong':24}{'count':>9}  first")
    for (split, what), places in sorted(grouped.items()):
        print(f"{split:12}{what:24}{len(places):9,}  {places[0]}")
    raise ValueError(f"`--from`: {len(findings)} faults, of which the table shows the first; nothing was made")


def _print_made(out: Path, facts: dict, outcomes: list[Outcome]) -> None:
    for line in facts["deviations"]:
        print(line)
    for split, count in facts["counts"].items():
        print(f"{split}: {count:,} images of {facts['classes'][split] or 'unknown'} classes")
    made = Counter(outcome.made for outcome in outcomes)
    print("files: " + ", ".join(f"{count} {how}" for how, count in sorted(made.items())))
    if made["linked"]:
        print("A linked file is the source's own file under a second name: it takes no room; edit neither.")
    if made["copied"]:
        print("Copied, because the file system refused a hard link: these files take room twice.")
    print_hint(out, facts)


def print_hint(out: Path, facts: dict) -> None:
    dataset = "imagenet84" if facts["size"] == 84 else "imagenet256"
    print(f"train on it: gcond-train dataset={dataset} dataset.root={out}")

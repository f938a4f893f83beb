"""The folder that is made: begun beside its place, gone on with, then renamed; or found there and compared.

Each file goes its own way in a process of a pool: every image of it is checked, then it is linked or written anew.
"""

import fcntl
import json
import multiprocessing
import os
import platform
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import worker
from imagenet import source
from imagenet.source import Finding
from tqdm import tqdm

from gcond.files import sha256, write_atomically, write_json

FORMAT_VERSION = 1
ROW_GROUP = 1000  # rows: a reader need not hold more at once


class Job(NamedTuple):
    """One file's way through a worker. `keep` [k]: rows of the file, ascending; None is all, linked.
    `size`: the pixels of a side."""

    source: Path
    target: Path
    record: Path
    split: str
    keep: np.ndarray | None
    size: int


class Outcome(NamedTuple):
    """`made`: linked, copied, written, left out (no row of it is kept), or kept from an earlier call.

    With findings, nothing has been made.
    """

    rows: int
    bytes: int
    sha256: str
    made: str
    findings: list[Finding]


def process(job: Job) -> Outcome:
    """Check every image of a file, and link or write it; a file that is finished and intact is left alone."""
    stat = job.source.stat()
    state = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    if job.record.is_file():
        record = json.loads(job.record.read_text())
        if record["source"] == state and (not record["rows"] or matches(job.target, record["sha256"])):
            return Outcome(record["rows"], record["bytes"], record["sha256"], "kept", [])
    job.record.unlink(missing_ok=True)

    findings: list[Finding] = []
    chosen: list[pa.RecordBatch] = []
    row = 0
    try:
        for batch in source.batches(job.source):
            for i, encoded in enumerate(batch.column("image").field("bytes")):
                if fault := source.image_fault(encoded.as_py(), job.size):
                    findings.append(Finding(job.split, fault, f"{job.source.name} row {row + i}"))
            if job.keep is not None:
                inside = job.keep[(row <= job.keep) & (job.keep < row + len(batch))] - row
                chosen.append(batch.take(pa.array(inside)))
            row += len(batch)
    except source.Damaged:
        findings.append(Finding(job.split, "file unreadable", job.source.name))
    if findings:
        return Outcome(0, 0, "", "", findings)

    if job.keep is None:
        rows, made = row, _link(job.source, job.target)
    else:
        rows, made = len(job.keep), "written" if len(job.keep) else "left out"  # `datasets` reads no empty file
        if rows:
            table = pa.Table.from_batches(chosen)
            write_atomically(job.target, lambda path: _write(table, path))
    size, digest = (job.target.stat().st_size, sha256(job.target)) if rows else (0, "")
    outcome = Outcome(rows, size, digest, made, [])
    write_json(job.record, {"source": state, "rows": outcome.rows, "bytes": outcome.bytes, "sha256": outcome.sha256})
    return outcome


def _write(table: pa.Table, path: Path) -> None:
    """JPEG is dense already: no compression of it, no dictionary, no statistics."""
    pq.write_table(
        table, path, row_group_size=ROW_GROUP, compression="none", use_dictionary=False, write_statistics=["label"]
    )


def _link(source: Path, target: Path) -> str:
    """The hub's own cache holds symbolic links: link what they lead to."""
    source = source.resolve()
    made = "linked"

    def link_or_copy(path: Path) -> None:
        nonlocal made
        try:
            os.link(source, path)
        except OSError:  # another file system, or one without hard links
            made = "copied"
            shutil.copyfile(source, path)

    write_atomically(target, link_or_copy)
    return made


def matches(path: Path, expected: str) -> bool:
    return path.is_file() and sha256(path) == expected


def process_all(jobs: list[Job], rows: Mapping[Path, int], workers: int) -> dict[Path, Outcome]:
    """Outcomes by source file. `rows` is for the progress bar, which moves file by file."""
    outcomes = {}
    with tqdm(total=sum(rows.values()), unit="image", smoothing=0, desc="checking") as bar:
        if workers == 1:
            for job in jobs:
                outcomes[job.source] = process(job)
                bar.update(rows[job.source])
            return outcomes
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(workers, len(jobs)), context, worker.begin)
        try:
            futures = {pool.submit(process, job): job for job in jobs}
            for future in as_completed(futures):
                source = futures[future].source
                outcomes[source] = future.result()
                bar.update(rows[source])
        finally:
            pool.shutdown(cancel_futures=True)
    return outcomes


def prepare(
    root: Path,
    out: Path,
    subset: int | None = None,
    subset_validation: int | None = None,
    seed: int = 0,
    workers: int = 1,
    allow_partial: bool = False,
    size: int = 256,
) -> dict | None:
    """Check `root` and make `out`; the facts of `out`, or None where something is wrong, after a table of it.

    Every image must have `size` x `size` pixels; the published counts are expected of 256 alone.

    Work happens in a folder beside `out`, whose content is renamed to `out` when complete. Raises ValueError for a
    layout that is another one and for an `out` that is something else.
    """
    files, findings = source.read_listing(root)
    differing = source.deviations(files, published=size == 256)
    findings += source.bad_labels(files)
    if not allow_partial and differing:
        print("\n".join(differing))
        print("These counts are not those of the published copy; `--allow-partial` accepts them.")
    if findings or (differing and not allow_partial):
        print_findings(findings)
        print("No image has been looked at yet, nothing was written.")
        return None

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
    work = out.parent / f".{out.name}.work"
    with locked(work):
        tree = work / "tree"
        _start_or_go_on(work, settings)
        data, done = tree / "data", work / "done"
        jobs = [
            Job(file.path, data / file.path.name, done / f"{file.path.name}.json", file.split, keep, size)
            for file, keep in zip(files, source.kept_rows(files, subset, subset_validation, seed), strict=True)
        ]
        outcomes = process_all(jobs, {file.path: len(file.labels) for file in files}, workers)
        findings = [finding for job in jobs for finding in outcomes[job.source].findings]
        if findings:
            print_findings(findings)
            print(f"{out} was not made; the files without a fault need not be checked again ({work}).")
            return None
        facts = _facts(settings, differing, [job for job in jobs if outcomes[job.source].rows], outcomes)
        write_json(tree / "facts.json", facts)
        _remove_strays(tree / "data", {job.target for job in jobs})
        os.rename(tree, out)
        shutil.rmtree(work)
    _print_made(out, facts, list(outcomes.values()))
    return facts


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Raises ValueError where another process works in `folder`; the lock ends with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"`--out`: another process works in {folder}; wait for it or end it") from None
        yield


def _start_or_go_on(work: Path, settings: dict) -> None:
    """What was begun with other settings, sources or versions is removed: its files would not be the same."""
    path = work / "settings.json"
    if not path.is_file() or json.loads(path.read_text()) != settings:
        for folder in ("tree", "done"):
            shutil.rmtree(work / folder, ignore_errors=True)
    write_json(path, settings)


def _remove_strays(folder: Path, wanted: set[Path]) -> None:
    """Temporary files of a call that was killed."""
    for path in set(folder.iterdir()) - wanted:
        path.unlink()


def _facts(settings: dict, differing: list[str], jobs: list[Job], outcomes: Mapping[Path, Outcome]) -> dict:
    labels: dict[str, list[np.ndarray]] = {job.split: [] for job in jobs}
    for job in jobs:
        labels[job.split].append(source.labels_of(pq.read_table(job.target, columns=["label"])))
    joined = {split: np.concatenate(parts) for split, parts in labels.items()}
    for split, wanted in (("train", settings["subset"]), ("validation", settings["subset_validation"])):
        if wanted and (fewer := int((np.bincount(joined[split], minlength=source.CLASSES) < wanted).sum())):
            differing = [*differing, f"{split}: {fewer} classes have fewer than {wanted} images, all of them kept"]
    return {
        **settings,
        "counts": {split: len(found) for split, found in joined.items()},
        "classes": {split: len(np.unique(source.valid(found))) for split, found in joined.items()},
        "deviations": differing,
        "files": {
            f"data/{job.target.name}": {
                "images": outcomes[job.source].rows,
                "bytes": outcomes[job.source].bytes,
                "sha256": outcomes[job.source].sha256,
            }
            for job in jobs
        },
    }


def check_existing(out: Path, settings: dict) -> dict:
    """The facts of a finished `out`, its checksums compared. Raises ValueError where it is another or damaged."""
    path = out / "facts.json"
    facts = {"size": 256} | (json.loads(path.read_text()) if path.is_file() else {})  # older facts name no size
    for key, wanted in settings.items():
        if key != "versions" and facts.get(key) != wanted:
            raise ValueError(
                f"`--out`: {out} exists and was not made by this command ({key}: wanted {wanted}, found "
                f"{facts.get(key)}); remove it or name another folder"
            )
    for name, file in tqdm(facts["files"].items(), unit="file", desc="comparing checksums"):
        if not matches(out / name, file["sha256"]):
            raise ValueError(f"`--out`: {out / name} does not match the checksum in facts.json; remove {out}")
    print(f"{out} is there and its checksums match")
    return facts


def print_findings(findings: list[Finding]) -> None:
    grouped: dict[tuple[str, str], list[str]] = defaultdict(list)
    for finding in findings:
        grouped[finding.split, finding.what].append(finding.place)
    if grouped:
        print(f"{'split':12}{'what is wrong':24}{'count':>9}  first")
    for (split, what), places in sorted(grouped.items()):
        print(f"{split:12}{what:24}{len(places):9,}  {places[0]}")


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

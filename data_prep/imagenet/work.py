"""One file's way: checked, then linked or written anew; and all files', in several processes."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import worker
from tqdm import tqdm

from gcond.files import sha256, write_atomically, write_json
from imagenet import audit
from imagenet.source import Finding

ROW_GROUP = 1000
"""Rows of a row group of what is written: a reader need not hold more at once."""


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
        for batch in audit.batches(job.source):
            for i, encoded in enumerate(batch.column("image").field("bytes")):
                if fault := audit.image_fault(encoded.as_py(), job.size):
                    findings.append(Finding(job.split, fault, f"{job.source.name} row {row + i}"))
            if job.keep is not None:
                inside = job.keep[(row <= job.keep) & (job.keep < row + len(batch))] - row
                chosen.append(batch.take(pa.array(inside)))
            row += len(batch)
    except audit.Damaged:
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

"""The two passes over the shards, headers and then pictures, in processes that may be killed at any moment.

    .building/headers/00017.parquet   a row per file (header.SCHEMA)
    shards/00017.arrow                the pictures of the images that could be decoded
    .building/pictures/00017.parquet  a row per image: its fate, flags, fingerprint, sums; written after the shard

A file that is there is complete, and depends on the listing and the archives alone. A process that dies, or runs out of
memory, takes the pool with it: the shards under way are gone through file by file, and what kills is quarantined.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from archive import header, pixels
from archive.listing import Entry, read_shard
from write_store import write_shard

from gcond.data import store, windows
from gcond.files import write_atomically, write_json

CONTEXT = multiprocessing.get_context("spawn")  # not forked: this process has used threads (Arrow)
TASKS_PER_PROCESS = 64  # a decoder that leaks is replaced
DEATHS = (BrokenProcessPool, MemoryError)
KILLER = "kills the decoder"
PICTURES = pa.schema(
    [
        *((name, pa.string()) for name in ("source", "path", "member", "status", "reason", "flags")),
        ("ambiguous_pixels", pa.int64()),
        ("fingerprint", pa.string()),
        ("row", pa.int32()),
        *((f"{kind}_{name}", pa.int64()) for name in windows.PRESETS for kind in ("sum", "squares")),
    ]
)


def building(out: Path) -> Path:
    return out / ".building"


class Job(NamedTuple):
    """A shard of the store `out`, of slices of `size` x `size` pixels; `roots` are the archives', by source."""

    out: Path
    shard: int
    roots: dict[str, Path]
    size: int = store.STORED_SIZE

    @property
    def listing(self) -> Path:
        return building(self.out) / "listing.parquet"

    @property
    def headers(self) -> Path:
        return building(self.out) / "headers" / f"{self.shard:05}.parquet"

    @property
    def pictures(self) -> Path:
        return building(self.out) / "pictures" / f"{self.shard:05}.parquet"

    @property
    def arrow(self) -> Path:
        return self.out / "shards" / f"{self.shard:05}.arrow"

    def quarantine(self, stage: str) -> Path:
        return building(self.out) / "quarantine" / f"{stage}-{self.shard:05}.json"

    def killers(self, stage: str) -> set[tuple[str, str]]:
        path = self.quarantine(stage)
        return {(name, member) for name, member in json.loads(path.read_text())} if path.exists() else set()

    def images(self) -> list[dict]:
        return [row for row in pq.read_table(self.headers).to_pylist() if row["status"] == header.IMAGE]


class Stage(NamedTuple):
    """`work` on a shard returns the number of files done; `attempt` does the same with one file."""

    name: str
    work: Callable[[Job], int]
    attempt: Callable[[Job, Entry], None]


def read_headers(job: Job) -> int:
    """The header pass over a shard; returns the number of its files."""
    entries = read_shard(job.listing, job.shard)
    killers = job.killers("headers")
    entries = [e._replace(problem=KILLER) if (e.path, e.member) in killers else e for e in entries]
    rows = [header.read_header(job.roots[entry.source], entry) for entry in entries]
    table = pa.Table.from_pylist(rows, schema=header.SCHEMA)
    write_atomically(job.headers, lambda path: pq.write_table(table, path, compression="zstd"))
    return len(entries)


def read_pictures(job: Job) -> int:
    """The pixel pass over a shard whose headers are there; returns the number of its images."""
    images, killers, rows = job.images(), job.killers("pictures"), []

    def decode() -> Iterator[bytes]:
        stored = 0
        for head in images:
            row = {name: head[name] for name in ("source", "path", "member")} | {"reason": ""}
            rows.append(row)
            try:
                if (head["path"], head["member"]) in killers:
                    raise pixels.Rejected(KILLER)
                picture = pixels.read_picture(job.roots[head["source"]], entry_of(head), head, job.size)
            except pixels.Rejected as rejected:
                row |= {"status": "rejected", "reason": rejected.reason}
                continue
            row |= {"status": "stored", "row": stored, "flags": ",".join(picture.flags)}
            row |= {"ambiguous_pixels": picture.ambiguous_pixels, "fingerprint": picture.fingerprint}
            histogram = store.counted(picture.stored)
            for name, window in windows.PRESETS.items():
                row[f"sum_{name}"], row[f"squares_{name}"] = windows.sums(histogram, *window)
            stored += 1
            yield picture.stored.tobytes()

    line = write_shard(job.arrow, decode())
    table = pa.Table.from_pylist(rows, schema=PICTURES.with_metadata({"shard": json.dumps(line)}))
    write_atomically(job.pictures, lambda path: pq.write_table(table, path, compression="zstd"))
    return len(images)


def entry_of(head: dict) -> Entry:
    return Entry(*(head[name] for name in ("source", "path", "member", "size")))


def try_header(job: Job, entry: Entry) -> None:
    header.read_header(job.roots[entry.source], entry)


def try_picture(job: Job, entry: Entry) -> None:
    for row in job.images():
        if (row["path"], row["member"]) == (entry.path, entry.member):
            with contextlib.suppress(pixels.Rejected):
                pixels.read_picture(job.roots[entry.source], entry, row)


HEADERS = Stage("headers", read_headers, try_header)
PIXELS = Stage("pictures", read_pictures, try_picture)


def run_stage(stage: Stage, jobs: Iterable[Job], workers: int, done: Callable[[int], object]) -> None:
    """Work on every job; `done` gets the number of files of each that is finished."""
    suspects: list[Job] = []
    todo = list(jobs)[::-1]
    while todo:
        suspects += _until_broken(stage, todo, workers, done)
    for job in suspects:
        done(_alone(stage, job))


def _until_broken(stage: Stage, todo: list[Job], workers: int, done: Callable[[int], object]) -> list[Job]:
    """Take jobs off the end of `todo`, no more at a time than there are workers; returns those that were under way when
    a process died."""
    running: dict[Future, Job] = {}
    with contextlib.suppress(*DEATHS), _pool(workers) as pool:
        while todo or running:
            while todo and len(running) < workers:
                running[pool.submit(stage.work, todo[-1])] = todo[-1]
                todo.pop()
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                done(future.result())
                del running[future]
    return list(running.values())


def _alone(stage: Stage, job: Job) -> int:
    """Work on a job during which a process died, without the files that kill."""
    try:
        with _pool(1) as pool:
            return pool.submit(stage.work, job).result()
    except DEATHS:
        print(f"a process died in shard {job.shard}: looking for the file", file=sys.stderr)
    killers = list(_deadly(stage, job))
    if not killers:
        raise RuntimeError(
            f"the process that works on shard {job.shard} dies, but none of its files kills one alone; "
            "expected enough memory for every worker: try fewer --workers"
        )
    write_json(job.quarantine(stage.name), [[entry.path, entry.member] for entry in killers])
    with _pool(1) as pool:
        return pool.submit(stage.work, job).result()


def _deadly(stage: Stage, job: Job) -> Iterator[Entry]:
    """The files that kill a process twice, each time alone."""
    left = read_shard(job.listing, job.shard)
    while (place := _first_death(stage, job, left)) is not None:
        suspect, left = left[place], left[place + 1 :]
        if _first_death(stage, job, [suspect]) is not None:
            yield suspect


def _first_death(stage: Stage, job: Job, entries: list[Entry]) -> int | None:
    with _pool(1) as pool:
        for place, entry in enumerate(entries):
            try:
                pool.submit(stage.attempt, job, entry).result()
            except DEATHS:
                return place
    return None


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=CONTEXT, initializer=_begin, max_tasks_per_child=TASKS_PER_PROCESS)


def _begin() -> None:
    """A parent that is killed leaves nobody behind, one that is stopped is not interrupted in what its workers do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)

"""The work on one shard, in a process of its own: headers first, then pixels.

    .building/headers/00017.parquet   a row per file (header.SCHEMA)
    shards/00017.arrow                the pictures of the images that could be decoded
    .building/pictures/00017.parquet  a row per image: its fate, flags, fingerprint, sums; written after the shard

A file that is there is complete. What it holds depends on the listing and on the archives, not on who wrote it when.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from write_store import write_shard

from archive import header, pixels
from archive.listing import Entry, read_shard
from gcond.data import windows
from gcond.files import write_atomically

KILLER = "kills the decoder"
SUMS = [f"{kind}_{name}" for name in windows.PRESETS for kind in ("sum", "squares")]
PICTURES = pa.schema(
    [
        ("source", pa.string()),
        ("path", pa.string()),
        ("member", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("flags", pa.string()),
        ("ambiguous_pixels", pa.int64()),
        ("fingerprint", pa.string()),
        ("row", pa.int32()),
        *((name, pa.int64()) for name in SUMS),
    ]
)


class Job(NamedTuple):
    """A shard of the store `out`; `roots` are the archives', by source."""

    out: Path
    shard: int
    roots: dict[str, Path]

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


def building(out: Path) -> Path:
    return out / ".building"


def read_headers(job: Job) -> int:
    """The header pass over a shard; returns the number of its files."""
    entries = read_shard(job.listing, job.shard)
    killers = _killers(job.quarantine("headers"))
    entries = [e._replace(problem=KILLER) if (e.path, e.member) in killers else e for e in entries]
    rows = [header.read_header(job.roots[entry.source], entry) for entry in entries]
    table = pa.Table.from_pylist(rows, schema=header.SCHEMA)
    write_atomically(job.headers, lambda path: pq.write_table(table, path, compression="zstd"))
    return len(entries)


def read_pictures(job: Job) -> int:
    """The pixel pass over a shard whose headers are there; returns the number of its images."""
    images = [(Entry(*(row[n] for n in ("source", "path", "member", "size"))), row) for row in _images(job)]
    killers = _killers(job.quarantine("pictures"))
    rows: list[dict] = []

    def decode() -> Iterator[bytes]:
        stored = 0
        for entry, head in images:
            row = {"source": entry.source, "path": entry.path, "member": entry.member, "reason": ""}
            rows.append(row)
            try:
                if (entry.path, entry.member) in killers:
                    raise pixels.Rejected(KILLER)
                picture = pixels.read_picture(job.roots[entry.source], entry, head)
            except pixels.Rejected as rejected:
                row |= {"status": "rejected", "reason": rejected.reason}
                continue
            row |= {"status": "stored", "row": stored, "flags": ",".join(picture.flags)}
            row |= {"ambiguous_pixels": picture.ambiguous_pixels, "fingerprint": picture.fingerprint}
            sums = windows.sums(picture.stored)
            row |= dict(zip(SUMS, (number for pair in sums.values() for number in pair), strict=True))
            stored += 1
            yield picture.stored.tobytes()

    line = write_shard(job.arrow, decode())
    table = pa.Table.from_pylist(rows, schema=PICTURES.with_metadata({"shard": json.dumps(line)}))
    write_atomically(job.pictures, lambda path: pq.write_table(table, path, compression="zstd"))
    return len(images)


def try_header(job: Job, entry: Entry) -> None:
    """What the header pass does with one file, to see whether it survives it."""
    header.read_header(job.roots[entry.source], entry)


def try_picture(job: Job, entry: Entry) -> None:
    """What the pixel pass does with one file, to see whether it survives it."""
    row = next((row for row in _images(job) if (row["path"], row["member"]) == (entry.path, entry.member)), None)
    if row is not None:
        with contextlib.suppress(pixels.Rejected):
            pixels.read_picture(job.roots[entry.source], entry, row)


def _images(job: Job) -> list[dict]:
    return [row for row in pq.read_table(job.headers).to_pylist() if row["status"] == "image"]


def _killers(path: Path) -> set[tuple[str, str]]:
    return {(name, member) for name, member in json.loads(path.read_text())} if path.exists() else set()

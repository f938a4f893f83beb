"""Every file of the archives, once, in an order that depends on nothing but their names; in shards of about 1000.

A file's shard and its place in it follow from a hash of its name, so that neighbours in the store are strangers, and
neither workers nor parts have any say in where a slice ends up.
"""

import errno
import hashlib
import io
import itertools
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gcond.files import write_atomically

SOURCES = ("ich", "cspine", "radcure")
SHARD_FILES = 1000
LARGEST_IN_MEMORY = 1 << 26  # bytes of an entry of a zip; a longer one, no slice, is read as far as it is looked at
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
ENCRYPTED = 1  # of the flags of an entry
ERRORS_OF_A_FILE = {
    *(errno.EACCES, errno.EPERM, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR),
    None,  # pydicom raises OSError without a number
}
FAULTS_OF_A_PATH = {
    errno.ELOOP: "symlink loop",
    errno.ENAMETOOLONG: "path too long",
    errno.ENOENT: "broken link",
}

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("path", pa.string()),
        ("member", pa.string()),
        ("size", pa.int64()),
        ("problem", pa.string()),
    ]
)


class Entry(NamedTuple):
    """A file, or an entry of a zip."""

    source: str  # of SOURCES: which option named the root
    path: str  # POSIX, relative to the root
    member: str  # "" or the name of an entry inside the zip at `path`
    size: int  # bytes, uncompressed
    problem: str = ""  # why it is not to be opened


def open_entry(root: Path, entry: Entry) -> BinaryIO:
    """The content, seekable. Raises OSError or zipfile.BadZipFile."""
    if not entry.member:
        return (root / entry.path).open("rb")
    with zipfile.ZipFile(root / entry.path) as archive:
        if entry.size > LARGEST_IN_MEMORY:
            return archive.open(entry.member)
        return io.BytesIO(archive.read(entry.member))


def is_of_the_file(error: Exception) -> bool:
    """Whether an error speaks of one file alone: not of a share that is gone, of too many open files, of the memory."""
    if isinstance(error, OSError):
        return error.errno in ERRORS_OF_A_FILE
    return not isinstance(error, MemoryError)


def walk(source: str, folder: Path, below: str = "", inside: tuple[tuple[int, int], ...] = ()) -> Iterator[Entry]:
    """All files in `folder`, which lies at `below` in the root and in the folders `inside`; symbolic links are
    followed, except into one of these."""
    try:
        status = folder.stat()
        found = list(os.scandir(folder))
    except OSError as error:
        yield Entry(source, below.rstrip("/"), "", 0, FAULTS_OF_A_PATH.get(error.errno, "unreadable folder"))
        return
    here = (status.st_dev, status.st_ino)
    if here in inside:
        yield Entry(source, below.rstrip("/"), "", 0, "symlink loop")
        return
    for item in sorted(found, key=lambda item: item.name):
        try:
            path = below + item.name
            path.encode()
            facts = item.stat()
        except UnicodeEncodeError:
            yield Entry(source, path.encode(errors="backslashreplace").decode(), "", 0, "file name is not text")
            continue
        except OSError as error:
            yield Entry(source, path, "", 0, FAULTS_OF_A_PATH.get(error.errno, "unreadable"))
            continue
        if stat.S_ISDIR(facts.st_mode):
            yield from walk(source, folder / item.name, path + "/", (*inside, here))
        elif not stat.S_ISREG(facts.st_mode):
            yield Entry(source, path, "", 0, "not a regular file")
        elif item.name.lower().endswith(".zip") and not item.name.startswith("._"):  # macOS's shadow of a zip is none
            yield from _members(source, folder / item.name, path, facts.st_size)
        else:
            yield Entry(source, path, "", facts.st_size)


def _members(source: str, archive: Path, path: str, size: int) -> Iterator[Entry]:
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
    except PermissionError:
        yield Entry(source, path, "", size, "unreadable")
        return
    except (OSError, zipfile.BadZipFile):
        yield Entry(source, path, "", size, "damaged zip")
        return
    if not members:
        yield Entry(source, path, "", size, "empty zip")
    last = {member.filename: member for member in members}  # of entries with one name, the one that zipfile reads
    again = Counter(member.filename for member in members)
    for name, member in sorted(last.items()):
        yield Entry(source, path, name, member.file_size, _fault_of_member(member))
        for number in range(2, again[name] + 1):
            yield Entry(source, path, f"{name} ({number})", member.file_size, "zip entry again")


def _fault_of_member(member: zipfile.ZipInfo) -> str:
    parts = member.filename.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or ":" in parts[0]:
        return "zip entry leaves its folder"
    if member.flag_bits & ENCRYPTED:
        return "encrypted zip"
    return "" if member.compress_type in ZIP_METHODS else "zip method that is not known"


def write_listing(
    path: Path,
    roots: Mapping[str, Path],
    shard_files: int = SHARD_FILES,
    progress: Callable[[int], object] = lambda n: None,
) -> int:
    """Walk the roots and write the listing: a row group per shard. Returns the number of shards.

    `progress` is told of every file. Raises ValueError where nothing is found.
    """
    columns: dict[str, list] = {name: [] for name in SCHEMA.names}
    keys: list[int] = []
    for source in sorted(roots):
        for entry in walk(source, roots[source]):
            for name, value in zip(SCHEMA.names, entry, strict=True):
                columns[name].append(value)
            keys.append(_key(entry))
            progress(1)
    if not keys:
        raise ValueError(f"no file below {', '.join(map(str, roots.values()))}")
    place = np.array(keys, dtype=np.uint64)
    order = np.argsort(place, kind="stable")
    shards = -(-len(keys) // shard_files)
    shard_of = (place[order] >> np.uint64(32)) * np.uint64(shards) >> np.uint64(32)
    starts = np.searchsorted(shard_of, np.arange(shards + 1))
    table = pa.table(columns, schema=SCHEMA).take(pa.array(order))

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
            for start, stop in itertools.pairwise(starts):
                writer.write_table(table.slice(start, stop - start), row_group_size=max(1, stop - start))

    write_atomically(path, write)
    return shards


def _key(entry: Entry) -> int:
    name = f"{entry.source}\0{entry.path}\0{entry.member}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())


def shard_sizes(path: Path) -> list[int]:
    """The number of files of each shard."""
    footer = pq.read_metadata(path)
    return [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]


def read_shard(path: Path, shard: int) -> list[Entry]:
    """The entries of one shard, in their order."""
    table = pq.ParquetFile(path).read_row_group(shard)
    return [Entry(*row) for row in zip(*(table.column(name).to_pylist() for name in SCHEMA.names), strict=True)]

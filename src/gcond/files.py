"""Whole files or none: written beside their target, then renamed, so that no reader ever sees half of one.

What is read is whole too, or a ValueError names file and line.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PACKED = Path(__file__).with_name("_repository")
ROOT = _PACKED if _PACKED.exists() else Path(__file__).resolve().parents[2]
"""The clone; for an installed wheel the folder that holds its `conf` and `study`."""
OWN, RECORDED = Path("reproduced"), ROOT / "results"
"""Tables and records of what was run here, which git ignores, and of what this project has recorded."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path` (same suffix), then rename it to `path`.

    Content and name are on the disk when it returns, so that what is written after it never survives a power cut alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")  # other machines may write it too
    try:
        write(temporary)
        _to_disk(temporary)
        os.replace(temporary, path)
        _to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, to be filled: renamed to `path` at the end, or removed if anything is raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield building
        building.chmod(0o755)
        os.rename(building, path)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def cache(name: str) -> Path:
    """Where what can be made again is kept between runs: below $GCOND_CACHE, else $XDG_CACHE_HOME or ~/.cache."""
    below = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("GCOND_CACHE") or Path(below, "gcond")) / name


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises FileNotFoundError where the file is not there, and ValueError where it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"{path}: expected a JSON object, found something else: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def write_json(path: Path, content: Any) -> None:
    """Raises ValueError for nan and infinities, which JSON does not know."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file.

    Raises ValueError where it is not UTF-8, a row has not as many cells as the header, or the last line does not end.
    """
    try:
        text = path.read_bytes().decode()
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows = list(reader)
        if not text.endswith("\n") or "\0" in text:
            raise ValueError("expected lines of text that end")
        if uneven := [place for place, row in enumerate(rows, start=1) if None in row or None in row.values()]:
            raise ValueError(f"expected {len(reader.fieldnames or ())} cells in row {uneven[0]}, found another number")
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: damaged: {error}; mend it, or move it away") from None
    return rows


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFull(OSError):
    """What was being written is not there; what was written before is."""


@contextmanager
def disk_full_hint(folder: Path) -> Iterator[None]:
    """Raises DiskFull in place of whatever a full disk caused while something was written in `folder`."""
    try:
        yield
    except Exception as error:
        cause = next((each for each in _chain(error) if isinstance(each, OSError) and each.errno in FULL), None)
        if cause is None or isinstance(error, DiskFull):
            raise
        free = shutil.disk_usage(folder).free / 2**20
        raise DiskFull(
            cause.errno,
            f"{cause.strerror}, {free:.0f} MB are free. What was written before is intact: free some space, then the "
            "same command goes on from the last checkpoint",
            str(folder),
        ) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    seen: list[BaseException] = []
    while current is not None and current not in seen:  # an error raised again by name can be its own context
        yield current
        seen.append(current)
        current = current.__cause__ or current.__context__

"""A full disk, told as such: PyTorch calls it "unexpected pos" or "iostream error"."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFull(OSError):
    """What was being written is not there; what was written before is."""


@contextmanager
def explaining_a_full_disk(folder: Path) -> Iterator[None]:
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

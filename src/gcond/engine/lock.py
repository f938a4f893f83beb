"""A run's lock: held by the process at work on it, and free as soon as that has ended, however it ended."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

NAME = ".lock"
TRIES, SECONDS = 10, 0.05  # `make status` holds a run's lock for a moment to see whether it is free
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_held: list[TextIO] = []  # by this process


def _let_go() -> None:
    """A DataLoader's worker outlives a training process that was killed by seconds; it must not keep the run locked."""
    for lock in _held:
        lock.close()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the run in `folder`.

    Raises RuntimeError where another process holds it, ValueError where the file system has no locks.
    """
    with _opened(folder, "w") as lock:
        for _ in range(TRIES):
            if _take(lock, folder, fcntl.LOCK_EX):
                break
            time.sleep(SECONDS)
        else:
            raise RuntimeError(f"another process is at work on {folder}; wait for it or end it")
        _held.append(lock)
        try:
            yield
        finally:
            _held.remove(lock)


def running(folder: Path) -> bool:
    """Whether a process holds the run's lock, here or, where the file system shares locks, on another machine."""
    try:
        lock = _opened(folder, "r")
    except FileNotFoundError:
        return False
    with lock:
        return not _take(lock, folder, fcntl.LOCK_SH)


def _opened(folder: Path, mode: str) -> TextIO:
    try:
        return (folder / NAME).open(mode)  # type: ignore[return-value]
    except IsADirectoryError:
        raise ValueError(f"{folder / NAME}: expected a file, found a folder; remove it") from None


def _take(lock: TextIO, folder: Path, kind: int) -> bool:
    """False where another process holds it."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise ValueError(
            f"{folder}: its file system has no locks ({error.strerror}), so two processes could work on one run; "
            "set `runs` to a folder on a local disk, or have the file system mounted with locks"
        ) from error
    return True

"""Standard output and standard error may be lost; what a program does must not depend on them.

The reader goes away (`| head`, a closed terminal), or the disk of a log is full: a write then fails, in whatever
happened to say something.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Lossy:
    """A text stream of which a write never fails: after the first that would, nothing more is written."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError:
            self._to_nowhere()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._to_nowhere()

    def _to_nowhere(self) -> None:
        """Also what the stream still holds, which Python would write when it ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with suppress(OSError):
            os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def output_may_be_lost() -> Iterator[None]:
    """While open, or around a function: what is said goes where it can."""
    for number in (0, 1, 2):  # one that is closed (`2>&-`) would be given to the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        lossy = [Lossy(nowhere if stream is None else stream) for stream in before]
        sys.stdout, sys.stderr = lossy  # type: ignore[assignment]
        try:
            yield
        finally:
            for stream in lossy:
                stream.flush()
            sys.stdout, sys.stderr = before

"""What people see on standard output and error, which may be lost; what a program does must not depend on them.

The reader goes away (`| head`, a closed terminal), or the disk of a log is full: a write then fails, in whatever
happened to say something.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


def status_of(act: Callable[[], int | None]) -> int:
    """The exit status of a command: its own, or 2 where it refuses its input (a ValueError), told on stderr."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        return act() or 0
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def at_least_one(text: str) -> int:
    """The type of an option such as --jobs."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, found {text}")
    return int(text)


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


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Of `count` bytes."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


SECONDS_BETWEEN_LINES = 60  # in a file
TITLES = {"l1": "L1", "ssim": "1-SSIM"}  # of tasks; others go by their names


class Progress:
    """A bar with ETA and current losses (`bar`), lines after epochs (`lines`), or lines at start and end (`quiet`).

    `auto` is a bar on a terminal, else lines. "silent", for all but one of several processes, says nothing. In a file a
    bar is drawn, and a line about an epoch before the last is written, once a minute at most.
    """

    def __init__(self, name: str, kind: str, start: int, total: int) -> None:
        if kind == "auto":
            kind = "bar" if sys.stderr.isatty() else "lines"
        from tqdm import tqdm  # here, so that a core install can show `gcond --help`

        self._name, self._kind = name, kind
        self._bar = tqdm(
            total=total,
            initial=start,
            unit="step",
            desc=name,
            disable=kind != "bar",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES,
        )
        self._said = -math.inf  # when the last line about an epoch was written
        origin = f"from step {start}" if start else "from the start"
        self._say(f"{name}: {total} steps, {origin}")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._bar.close()

    def log(self, record: dict[str, Any]) -> None:
        """Show a record of metrics.jsonl, where it is for people."""
        kind, quiet = record["kind"], self._kind == "quiet"
        if kind == "step":
            own = {key.removeprefix("loss/"): value for key, value in record.items() if key.startswith("loss/")}
            self._bar.set_postfix({task: f"{value:.3f}" for task, value in own.items()}, refresh=False)
            self._bar.update()
        elif kind == "validation":
            now = time.monotonic()
            soon = now - self._said < SECONDS_BETWEEN_LINES and not sys.stderr.isatty()
            if record["step"] == self._bar.total or not (quiet or soon):
                self._said = now
                said = _losses(record, "val_")
                self._say(f"{self._name}: epoch {record['epoch']}, step {record['step']}: validation {said}")
        elif kind == "final" and record["at"] == "best" and not quiet:
            said = f"validation {_losses(record, 'val_')}; test {_losses(record, 'test_')}"
            self._say(f"{self._name}: best epoch {record['epoch']}, all images: {said}")

    def _say(self, line: str) -> None:
        if self._kind == "bar":
            self._bar.write(line, file=sys.stderr)
        elif self._kind != "silent":
            print(line, file=sys.stderr, flush=True)


def _losses(scores: dict[str, Any], split: str) -> str:
    found = {key.removeprefix(split): value for key, value in scores.items() if key.startswith(split)}
    return ", ".join(f"{TITLES[name]} {value:.4f}" for name, value in found.items() if name in TITLES)

"""What a person sees while a run is under way."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

KINDS = ("auto", "bar", "lines", "quiet")
SECONDS_BETWEEN_LINES = 60  # in a file
TITLES = {"l1": "L1", "ssim": "1-SSIM"}  # of tasks; others go by their names


class Progress:
    """A bar with ETA and current losses (`bar`), lines after epochs (`lines`), or lines at start and end (`quiet`).

    `auto` is a bar on a terminal, else lines. "silent", for all but one of several processes, says nothing. In a file a
    bar is drawn, and a line about an epoch before the last is written, once a minute at most.
    """

    def __init__(self, name: str, kind: str, start: int, total: int) -> None:
        if kind not in (*KINDS, "silent"):
            raise ValueError(f"`progress`: expected auto, bar, lines or quiet, found {kind!r}")
        if kind == "auto":
            kind = "bar" if sys.stderr.isatty() else "lines"
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(self, record: dict[str, Any]) -> None:
        losses = {key.removeprefix("loss/"): f"{value:.3f}" for key, value in record.items() if key.startswith("loss/")}
        self._bar.set_postfix(losses, refresh=False)
        self._bar.update()

    def epoch(self, scores: dict[str, Any], last: bool) -> None:
        now = time.monotonic()
        soon = now - self._said < SECONDS_BETWEEN_LINES and not sys.stderr.isatty()
        if last or not (self._kind == "quiet" or soon):
            self._said = now
            said = _losses(scores, "val_")
            self._say(f"{self._name}: epoch {scores['epoch']}, step {scores['step']}: validation {said}")

    def best(self, scores: dict[str, Any]) -> None:
        """The whole of validation and test at the best epoch."""
        if self._kind != "quiet":
            said = f"validation {_losses(scores, 'val_')}; test {_losses(scores, 'test_')}"
            self._say(f"{self._name}: best epoch {scores['epoch']}, all images: {said}")

    def _say(self, line: str) -> None:
        if self._kind == "silent":
            return
        if self._kind == "bar":
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)


def _losses(scores: dict[str, Any], split: str) -> str:
    found = {key.removeprefix(split): value for key, value in scores.items() if key.startswith(split)}
    return ", ".join(f"{TITLES[name]} {value:.4f}" for name, value in found.items() if name in TITLES)

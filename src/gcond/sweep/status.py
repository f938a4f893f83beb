"""What the runs on this disk are doing, read from their folders alone: it works beside a sweep and on a login node.

A run that waits in a queue has no folder yet: `make plan` counts what is missing.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from gcond.engine.run_state import STATES, states_of


def print_states(runs: Path, scale: str | None = None) -> None:
    """A line a run below the folder `runs`, the ones that need a look first; of one scale, or of all."""
    found = states_of(sorted(path for path in runs.glob(scale or "*") if path.is_dir()), time.time())
    if not found:
        print(f"no runs in {runs / (scale or '')}")
        return
    counts = Counter(each.state for each in found)
    print(f"{len(found)} runs: " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]))
    names = [f"{each.folder.parent.name}/{each.folder.name}" for each in found]
    for each, name in zip(found, names, strict=True):
        steps = f"{each.steps}/{'?' if each.total is None else each.total}"
        print(f"{each.state:<11}  {steps:>11}  {name:<{max(map(len, names))}}  {each.detail}")

"""What the runs on this disk are doing: python -m gcond.sweep.status [--runs DIR] [--scale NAME]

Read from their folders alone, so it works beside a sweep and on a cluster's login node. A run that waits in a queue has
no folder yet: `make plan` counts what is missing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gcond.engine.run_state import STATES, RunState, states_of
from gcond.output import output_may_be_lost


def print_statuses(found: Sequence[RunState]) -> None:
    counts = Counter(status.state for status in found)
    print(f"{len(found)} runs: " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]))
    names = {status.folder: f"{status.folder.parent.name}/{status.folder.name}" for status in found}
    width = max(len(name) for name in names.values())
    for status in found:
        steps = f"{status.steps}/{'?' if status.total is None else status.total}"
        print(f"{status.state:<11}  {steps:>11}  {names[status.folder]:<{width}}  {status.detail}")


@output_may_be_lost()
def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gcond.sweep.status", description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of local runs (default: runs)")
    parser.add_argument("--scale", help="only the runs of this scale (default: all)")
    arguments = parser.parse_args(words)
    scales = sorted(path for path in arguments.runs.glob(arguments.scale or "*") if path.is_dir())
    found = states_of(scales, time.time())
    if found:
        print_statuses(found)
    else:
        print(f"no runs in {arguments.runs / (arguments.scale or '')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

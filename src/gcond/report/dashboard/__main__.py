"""Command line of the page: `python -m gcond.report.dashboard --runs runs --out runs/dashboard.html`.

Exit code 0: the page is written, however few runs there are; 2: bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path

from tqdm import tqdm

from gcond.files import write_text
from gcond.output import output_may_be_lost
from gcond.report.dashboard.page import content, render
from gcond.report.dashboard.read import STATUSES, held_locks, mark_superseded, read_folder, run_folders
from gcond.report.dashboard.recorded import read_recorded


@output_may_be_lost()
def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        print(write_page(options.runs, options.out or options.runs / "dashboard.html", options.recorded))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write_page(runs: Path, out: Path, results: Path | None = None) -> str:
    """Write the page of all runs below `runs`, or of those recorded in `results` if there are none; says what it wrote.

    Raises ValueError if `runs` is not a folder of scales.
    """
    held = held_locks()
    folders = tqdm(run_folders(runs), desc="reading runs", unit="run", delay=2, leave=False, disable=None)
    entries = [read_folder(folder, held) for folder in folders]
    mark_superseded(entries)
    source, recorded, remarks = f"the folder {runs}", False, []
    if not entries and results is not None:
        entries, remarks = read_recorded(results)
        recorded = bool(entries)
        source = f"the recorded results in {results}, since {runs} holds no runs" if recorded else source

    made = datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")
    data = content(entries, made=made, source=source, recorded=recorded, remarks=remarks)
    page = render(data)
    write_text(out, page)

    counts = Counter(entry.status for entry in entries)
    listed = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status]) or "no runs"
    pictures = sum("picture" in run for run in data["runs"])
    return f"written: {out} ({len(page) / 1e6:.2f} MB) from {source}: {listed}; {pictures} pictures"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gcond.report.dashboard", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of local runs (default: runs)")
    parser.add_argument("--out", type=Path, help="file to write (default: dashboard.html in the folder of runs)")
    parser.add_argument("--recorded", type=Path, help="folder of recorded results, shown where there are no local runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())

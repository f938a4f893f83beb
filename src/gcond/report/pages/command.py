"""`python -m gcond.report PAGE`, one of `PAGES`: table, CSV, figure and caption from recorded runs.

Exit code 0: complete; 1: written, but runs of it are missing (the page names them); 2: nothing to write.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from gcond.files import OWN
from gcond.report.pages import ablations, conflict, o1, o6, o7, o9, o10, windows
from gcond.report.pages.page import write

PAGES = {
    "ablations": ablations,
    "o1": o1,
    "o6": o6,
    "o7": o7,
    "o9": o9,
    "o10": o10,
    "windows": windows,
    "conflict": conflict,
}


def add_parsers(
    tables: "argparse._SubParsersAction[argparse.ArgumentParser]", name_list: Callable[[str], tuple[str, ...]]
) -> None:
    for name, page in PAGES.items():
        parser = tables.add_parser(name, help=f"{page.TITLE}, from recorded runs")
        parser.add_argument("--scale", default="mini", help="folder below --results (default: mini)")
        parser.add_argument("--results", type=Path, default=OWN, help=f"folder of records (default: {OWN})")
        parser.add_argument("--datasets", type=name_list, help="comma-separated (default: the page's)")


def run(options: argparse.Namespace) -> int:
    """Raises ValueError, naming the command that makes the runs, where there is nothing to write."""
    return write(PAGES[options.table].build(options.scale, options.results, options.datasets), options.results)

"""`python -m gcond.report table1` and `table5`: pages that need no run, from what scripts/ sampled and composed."""

import argparse
from pathlib import Path

from gcond.files import OWN
from gcond.report import table1, table5

PAGES = {
    "table1": (table1.write, "table1", "Table 1 of the paper: GCond's zones, as sampled from the resolver"),
    "table5": (
        table5.write,
        "paper_settings",
        "Table 5 of the paper: hyper-parameters as composed, differences marked",
    ),
}


def add_parsers(tables: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    for name, (_, _, words) in PAGES.items():
        parser = tables.add_parser(name, help=words)
        parser.add_argument("--results", type=Path, default=OWN, help=f"folder of records (default: {OWN})")


def report(name: str, results: Path) -> int:
    """Write and print one page; returns the exit code. Raises ValueError where nothing is sampled."""
    write, folder, _ = PAGES[name]
    print(write(results / folder))
    print(f"written: {results / folder}")
    return 0

"""`python -m gcond.report table1` and `table5`: pages that need no run, of samples and composed settings."""

import argparse
from pathlib import Path

import pandas as pd

from gcond.files import OWN
from gcond.report import zones_figure
from gcond.report.figures.save import save
from gcond.study import pages

PAGES = {"table1": "GCond's zones, as sampled from the resolver", "table5": "hyper-parameters beside the paper's"}


def add_parsers(tables: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    for name, words in PAGES.items():
        parser = tables.add_parser(name, help=words)
        parser.add_argument("--results", type=Path, default=OWN, help=f"folder of records (default: {OWN})")


def report(name: str, results: Path) -> int:
    """Write and print one page; returns the exit code. Raises ValueError where nothing is sampled."""
    (page,) = pages.make(name, results)
    if name == "table1":
        save(zones_figure.draw(pd.read_csv(results / name / "zones.csv")), page.parent / "figures" / "zones")
    print(page.read_text(encoding="utf-8"))
    return 0

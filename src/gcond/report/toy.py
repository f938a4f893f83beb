"""results/toy/*.csv -> figures, endpoints.md and toy.md: python -m gcond.report.toy [--results reproduced/toy]

Exit code 0: complete; 1: a descent is missing; 2: bad input.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from pandas.api.types import is_numeric_dtype

from gcond.files import OWN
from gcond.output import output_may_be_lost
from gcond.report import toy_figures, toy_tables
from gcond.report.records import read_table
from gcond.report.render import write_page

MADE_BY = "python -m gcond.toy"


@output_may_be_lost()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gcond.report.toy", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=OWN / "toy", help=f"default: {OWN}/toy")
    folder = parser.parse_args(arguments).results
    try:
        ends, noise, tradeoff = (_read(folder / name) for name in ("endpoints.csv", "noise.csv", "tradeoff.csv"))
        paths = {name: _read(folder / "trajectories" / f"{name}.csv") for name in ends.method.unique()}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    # Figures.
    figures = folder / "figures"
    toy_figures.draw_trajectories(ends, paths, figures / "trajectories.png")
    toy_figures.draw_noise(noise, figures / "noise.png")
    toy_figures.draw_tradeoff(tradeoff, figures / "tradeoff.png")

    # Tables.
    missing = toy_tables.missing(ends)
    write_page(folder / "endpoints.md", toy_tables.endpoints(ends))
    write_page(folder / "toy.md", toy_tables.overview(ends, paths, noise, tradeoff))
    print(toy_tables.endpoints(ends))
    print(f"written: {folder}/{{toy.md,endpoints.md,figures/*.png}}")
    for line in missing:
        print(f"incomplete: {line}", file=sys.stderr)
    return 1 if missing else 0


def _read(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise ValueError(f"expected {path}, which does not exist; `{MADE_BY}` makes it")
    columns = toy_tables.COLUMNS.get(path.name, toy_tables.COLUMNS["trajectories"])
    table = read_table(path, toy_tables.TEXT, columns, na_filter=False)
    for name in set(table) - set(toy_tables.TEXT):
        if not is_numeric_dtype(table[name]):
            raise ValueError(f"{path}: expected numbers in the column `{name}`, found a gap; run {MADE_BY} again")
    return table


if __name__ == "__main__":
    sys.exit(main())

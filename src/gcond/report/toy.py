"""results/toy/*.csv -> figures and toy.md: python -m gcond.report.toy [--results reproduced/toy]

Exit code 2: a file or an end point is missing.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from gcond.files import OWN
from gcond.output import output_may_be_lost
from gcond.report import toy_figures
from gcond.study import pages


@output_may_be_lost()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gcond.report.toy", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=OWN / "toy", help=f"default: {OWN}/toy")
    folder = parser.parse_args(arguments).results
    try:
        (page,) = pages.make("toy", folder.parent)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    ends, noise, tradeoff = (pd.read_csv(folder / f"{name}.csv") for name in ("endpoints", "noise", "tradeoff"))
    paths = {name: pd.read_csv(folder / "trajectories" / f"{name}.csv") for name in ends.method.unique()}
    toy_figures.draw_trajectories(ends, paths, folder / "figures" / "trajectories.png")
    toy_figures.draw_noise(noise, folder / "figures" / "noise.png")
    toy_figures.draw_tradeoff(tradeoff, folder / "figures" / "tradeoff.png")
    print(page.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Compute what results/toy shows: python -m gcond.toy [--out reproduced/toy] [--jobs N] [--all]

Three parts, in this order: descents on the two-dimensional problem (a finished one, kept in --cache, is not repeated),
the noisy quadratic, GradOPS's trade-off. `make reproduce-toy` then draws figures and tables.
Exit status 1 if a descent failed; the rest is done all the same.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from gcond.files import OWN
from gcond.output import at_least_one, output_may_be_lost
from gcond.toy import noise, tradeoff
from gcond.toy.descents import SLOW, descend, lineup, record, write_csv


@output_may_be_lost()
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gcond.toy", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OWN / "toy", help=f"what is recorded (default: {OWN}/toy)")
    parser.add_argument("--cache", type=Path, default=Path("runs/toy"), help="finished descents (default: runs/toy)")
    parser.add_argument("--jobs", type=at_least_one, default=os.cpu_count(), help="processes (default: one per core)")
    parser.add_argument("--all", action="store_true", help=f"also those that take long: {', '.join(SLOW)}")
    options = parser.parse_args(arguments)
    methods = lineup()
    gradops = tradeoff.variants(methods["gradops"])
    asked = [method for name, method in methods.items() if options.all or name not in SLOW]

    descents, failures = descend([*asked, *gradops.values()], options.cache, options.jobs)
    record(list(methods.values()), descents, options.out)
    write_csv(options.out / "noise.csv", noise.measure())
    write_csv(options.out / "tradeoff.csv", [*tradeoff.ends(gradops, descents), *tradeoff.regressions()])

    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

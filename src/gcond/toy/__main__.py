"""Compute what results/toy shows: python -m gcond.toy [--out reproduced/toy] [--jobs N] [--all] [--methods a,b]

Three parts, in this order: descents on the two-dimensional problem (a finished one, kept in --parts, is not repeated),
the noisy quadratic, GradOPS's trade-off. `make reproduce-toy` then draws figures and tables.
Exit status 1 if a descent failed; the rest is done all the same.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from gcond.files import OWN
from gcond.output import output_may_be_lost
from gcond.toy import noise, tradeoff
from gcond.toy.descents import SLOW, descend, end_point, lineup, record, write_csv
from gcond.toy.problem import STARTS


@output_may_be_lost()
def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    methods = lineup()
    asked = options.methods or [name for name in methods if options.all or name not in SLOW]
    if unknown := sorted(set(asked) - set(methods)):
        print(f"error: `--methods`: expected some of {', '.join(methods)}, found {', '.join(unknown)}", file=sys.stderr)
        return 2

    if kept := [name for name in methods if name not in asked]:
        print(f"not descended anew, kept as recorded if they are: {', '.join(kept)}", file=sys.stderr)

    # All strategies on the two-dimensional problem.
    failures = descend([methods[name] for name in asked], options.parts, options.jobs)
    record(list(methods.values()), asked, options.parts, options.out)

    # Variance and conflict signs of accumulated gradients.
    write_csv(options.out / "noise.csv", noise.COLUMNS, noise.measure())

    # GradOPS over alpha.
    variants = tradeoff.variants(methods["gradops"])
    failures += descend(list(variants.values()), options.parts, options.jobs)
    ends = [
        ["two-dimensional", alpha, start, method.steps, task, f"{value:.5f}"]
        for alpha, method in variants.items()
        for start in range(len(STARTS))
        if (end := end_point(method, start, options.parts))
        for task, value in end.items()
    ]
    write_csv(options.out / "tradeoff.csv", tradeoff.COLUMNS, [*ends, *tradeoff.regressions()])

    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gcond.toy", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OWN / "toy", help=f"what is recorded (default: {OWN}/toy)")
    parser.add_argument("--parts", type=Path, default=Path("runs/toy"), help="finished descents (default: runs/toy)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--methods", type=lambda text: text.split(","), help="only these, by strategy name")
    parser.add_argument("--all", action="store_true", help=f"also those that take long: {', '.join(SLOW)}")
    return parser


if __name__ == "__main__":
    sys.exit(main())

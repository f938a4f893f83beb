"""Command line of the report: `python -m gcond.report table2 --scale mini`; `collect` only records.

Exit code 0: complete; 1: a cell is missing or failed; 2: bad input.
"""

import argparse
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from gcond.files import OWN, RECORDED, write_text
from gcond.output import output_may_be_lost
from gcond.report import curves, lineup, render, settings_pages, table2
from gcond.report.claims import frozen
from gcond.report.claims import page as claims_page
from gcond.report.claims.evidence import read
from gcond.report.claims.rates import rows_at, written
from gcond.report.collect import collect, other_images
from gcond.report.figures import command as figures
from gcond.report.notes import Notes, write_notes
from gcond.report.pages import command as pages
from gcond.report.records import CURVE_COLUMNS, CURVE_KEY, read_csv
from gcond.report.summary import page as summary

RESULTS = f"folder of records (default: {OWN}, of what was run here; {RECORDED}: of what this project recorded)"


@output_may_be_lost()
def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.table == "collect":
            return report_collected(options.scale, options.runs, options.results)
        if options.table in figures.NAMES:
            return figures.run(options)
        if options.table in pages.PAGES:
            return pages.run(options)
        if options.table in settings_pages.PAGES:
            return settings_pages.report(options.table, options.results)
        if options.table == "frozen":
            return print_frozen(options.scale, options.results, options.datasets)
        if options.table == "claims":
            return claims_page.report(options.results, options.scale)
        if options.table == "readme":
            return summary.report(options.results)
        return report_table2(
            options.scale,
            options.runs,
            options.results,
            beside=options.beside,
            recorded_only=options.recorded,
            seeds=options.seeds,
            datasets=options.datasets,
            model=options.model,
            rate=options.lr,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def report_collected(scale: str, runs: Path, results: Path) -> int:
    """Record the local runs of `scale`, whatever they belong to; returns the exit code."""
    for remark in collect(runs / scale, results / scale):
        print(remark)
    if not (results / scale / "runs.csv").exists():
        raise ValueError(f"nothing to record: no finished run in {runs / scale}")
    return 0


def print_frozen(scale: str, results: Path, datasets: tuple[str, ...] | None) -> int:
    """The static runs that O9 needs, as overrides for `python -m gcond.sweep`: a line for each sweep."""
    evidence = read(results, scale)
    found = frozen.averages(evidence, datasets or evidence.datasets)
    if not found:
        raise ValueError(
            f"nothing to freeze: no run in {results / scale / 'steps.csv'} has implied weights; "
            f"`make reproduce-table2 SCALE={scale}` makes them"
        )
    for each in found:
        print(frozen.weighed(each), file=sys.stderr)
    for line in frozen.sweeps(found):
        print(line)
    return 0


@dataclass(frozen=True)
class Asked:
    """Which runs of a scale Table 2 is made of. `rate`: those that were told this learning rate, not the scale's."""

    scale: str
    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    model: str | None
    rate: float | None

    @property
    def name(self) -> str:
        """Of the files, and of the table."""
        return f"table2_lr{written(self.rate)}" if self.rate else "table2"

    @property
    def command(self) -> str:
        """What makes the same table again from the same records."""
        words = f"python -m gcond.report table2 --recorded --scale {self.scale} --datasets {','.join(self.datasets)}"
        words += f" --seeds {','.join(map(str, self.seeds))}" + (f" --model {self.model}" if self.model else "")
        return words + (f" --lr {written(self.rate)}" if self.rate else "")


@dataclass(frozen=True)
class Built:
    """Table 2 of one folder of records: the rows of runs.csv behind it, its numbers, its words."""

    model: str
    rows: pd.DataFrame
    table: table2.Table2
    notes: Notes


def report_table2(
    scale: str,
    runs: Path,
    results: Path,
    *,
    beside: Path = RECORDED,
    recorded_only: bool = False,
    seeds: tuple[int, ...] = lineup.PAPER_SEEDS,
    datasets: tuple[str, ...] | None = None,
    model: str | None = None,
    rate: float | None = None,
) -> int:
    """Collect local runs in `results` (unless `recorded_only`), write table and figure of `scale`, and print them.

    What `beside` records of the same table follows, marked, and counts for nothing: the exit code says whether the
    table of `results` is complete. Where that holds no run at all, what is recorded is printed alone.
    """
    asked = Asked(scale, datasets or lineup.default_datasets(scale), seeds, model, rate)
    folder = results / scale
    if not recorded_only:
        for remark in collect(runs / scale, folder):
            print(remark)
    own = build_table2(folder, asked) if (folder / "runs.csv").exists() else None
    marked = _recorded_beside(beside / scale, asked, own) if beside.resolve() != results.resolve() else []
    if own is None:
        if not marked:
            raise ValueError(f"nothing to report: neither runs in {runs / scale} nor {folder / 'runs.csv'}")
        print("\n\n".join([f"Nothing of scale {scale} was run here yet (no {folder / 'runs.csv'}).", *marked]))
        return 0

    # Files.
    markdown = render.markdown(own.table, own.notes, asked.command, marked)
    base = folder / "tables" / asked.name
    render.write_page(base.with_suffix(".md"), markdown)
    write_text(base.with_suffix(".tex"), render.latex(own.table, own.notes, asked.command))
    write_text(base.with_suffix(".csv"), render.tidy_csv(own.table, scale))
    print(markdown)
    print(f"written: {base}.{{md,tex,csv}}")
    _draw_curves(folder, own, asked)
    if not own.table.complete:
        print("incomplete: a cell above is not run or failed", file=sys.stderr)
    return 0 if own.table.complete else 1


def build_table2(folder: Path, asked: Asked) -> Built:
    """From what `folder` records alone, so that recorded and fresh tables are the same bytes."""
    recorded = read_csv(folder / "runs.csv")
    if asked.rate:
        trivial = recorded.strategy.str.startswith(lineup.TRIVIAL)
        recorded = pd.concat([recorded[trivial], rows_at(recorded[~trivial], asked.rate)])
    model = asked.model or lineup.choose_model(recorded, asked.datasets)
    others = sorted(set(recorded.model[lineup.in_lineup(recorded, asked.datasets)]) - {model})
    if others and not asked.model:
        print(f"Table 2 of {model}; {folder} has others too: --model {' or '.join(others)}")
    rows = table2.select(recorded, asked.datasets, model, asked.seeds)
    table = table2.build(rows, asked.datasets, len(asked.seeds))
    return Built(model, rows, table, write_notes(asked.scale, rows, table, model, asked.seeds, asked.rate))


def _recorded_beside(folder: Path, asked: Asked, own: Built | None) -> list[str]:
    """What `folder` records of the same table, as parts of a page; none where it has no finished run of it."""
    if not (folder / "runs.csv").exists():
        return []
    try:
        found = build_table2(folder, replace(asked, model=own.model) if own else asked)
    except ValueError as error:
        return [f"## Recorded in {folder}, not run here", f"Not shown: {error}"]
    if not (found.rows.status[found.rows.seed.notna()] == "done").any():
        return []
    differ = other_images(own.rows, found.rows) if own else []
    return render.beside(folder, found.table, found.notes, differ)


def _draw_curves(folder: Path, own: Built, asked: Asked) -> None:
    path, name = folder / "curves.csv", f"{asked.name}_curves.png"
    if not path.exists():
        print(f"no figure: {path} does not exist")
        return
    recorded = read_csv(path, CURVE_COLUMNS, CURVE_KEY)
    recorded = rows_at(recorded, asked.rate) if asked.rate else recorded
    mine = recorded[(recorded.model == own.model) & (recorded.variant == "") & recorded.seed.isin(asked.seeds)]
    title = own.notes.title.replace("Table 2", "Validation during training", 1)
    curves.draw(mine, own.rows, asked.datasets, title, folder / "figures" / name)
    print(f"written: {folder / 'figures' / name}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gcond.report", description=__doc__.splitlines()[0])
    tables = parser.add_subparsers(dest="table", required=True)
    below = argparse.ArgumentParser(add_help=False)  # what every part of the study takes
    below.add_argument("--scale", default="mini", help="folder below --runs and --results (default: mini)")
    below.add_argument("--runs", type=Path, default=Path("runs"), help="folder of local runs")
    below.add_argument("--results", type=Path, default=OWN, help=RESULTS)
    tables.add_parser("collect", parents=[below], help="record the local runs of a scale, without making a table")
    table = tables.add_parser(
        "table2", parents=[below], help="Table 2 of the paper, and the validation curves behind it"
    )
    table.add_argument("--recorded", action="store_true", help="use only what is recorded, collect nothing")
    shown = f"records to show beside it, marked (default: {RECORDED})"
    table.add_argument("--beside", type=Path, default=RECORDED, metavar="DIR", help=shown)
    seeds = "comma-separated (default: 11,42,2025)"
    table.add_argument("--seeds", type=_seed_list, default=lineup.PAPER_SEEDS, help=seeds)
    table.add_argument("--datasets", type=_name_list, help="comma-separated, in the order of the columns")
    table.add_argument("--model", help="needed only where Table 2 was run with several")
    table.add_argument("--lr", type=_rate, help="the runs with this optimizer.lr (default: those with the scale's)")
    static = tables.add_parser(
        "frozen", parents=[below], help="O9's static runs from recorded weights: overrides for gcond.sweep"
    )
    static.add_argument("--datasets", type=_name_list, help="comma-separated (default: those that ran)")
    settings_pages.add_parsers(tables)
    figures.add_parsers(tables, _seed_list, _name_list)
    pages.add_parsers(tables, _name_list)
    judged = tables.add_parser("claims", help="what holds of the paper's claims, from recorded results")
    judged.add_argument("--scale", help="largest scale to look at (default: every recorded one)")
    judged.add_argument("--results", type=Path, default=OWN, help=RESULTS)
    summed = tables.add_parser("readme", help="one page: what came of the paper, from recorded results")
    summed.add_argument("--results", type=Path, default=OWN, help=RESULTS)
    return parser


def _seed_list(text: str) -> tuple[int, ...]:
    seeds = tuple(int(part) for part in _name_list(text))
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"a seed is named twice in {text!r}")
    return seeds


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"expected a learning rate above 0, found {text!r}")
    return rate


def _name_list(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"empty entry in {text!r}")
    return names


if __name__ == "__main__":
    sys.exit(main())

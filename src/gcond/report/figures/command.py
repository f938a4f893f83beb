"""`python -m gcond.report figureN`: PNG, PDF and caption of one figure from the recorded runs of a scale.

Exit code 0: complete; 1: drawn, but runs of it are missing (the caption names them); 2: nothing to draw.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure as Drawing

from gcond.files import OWN
from gcond.report import records
from gcond.report.figures import activations, caption, cosines, lines, reconstructions
from gcond.report.figures.lineup import FIGURES, Figure
from gcond.report.figures.save import save
from gcond.report.figures.select import Asked, Selection, read_runs, select, with_records
from gcond.report.folders import read_folders
from gcond.report.render import grid, write_page

NAMES = {figure.name: figure for figure in FIGURES.values()}
_STEPS = ("steps.csv", records.STEP_COLUMNS, records.STEP_KEY)
FILES = {
    "validation": ("curves.csv", records.CURVE_COLUMNS, records.CURVE_KEY),
    "training": _STEPS,
    "conflict": _STEPS,
    "cosines": _STEPS,
    "activations": ("activations.csv", records.ACTIVATION_COLUMNS, records.ACTIVATION_KEY),
}
Drawn = tuple[Selection, Drawing, str]  # what was drawn, the drawing, its caption


def report(name: str, scale: str, results: Path, runs: Path, asked: Asked) -> int:
    """Draw one figure; returns the exit code. Raises ValueError, naming the command, where there is nothing to draw."""
    figure = NAMES[name]
    command = _command(figure, scale, asked)
    if figure.kind == "reconstructions":
        selection, drawing, words = _reconstructions(figure, scale, runs, asked, command)
    else:
        selection, drawing, words = _recorded(figure, scale, results, asked, command)
    base = results / scale / "figures" / name
    save(drawing, base)
    write_page(base.with_name(f"{name}.md"), words)
    print(words)
    print(f"written: {base}.{{png,pdf,md}}")
    for gap in selection.gaps:
        print(f"incomplete: {gap}", file=sys.stderr)
    return 1 if selection.gaps else 0


def _recorded(figure: Figure, scale: str, results: Path, asked: Asked, command: str) -> Drawn:
    selection = select(figure, scale, read_runs(figure, scale, results), asked)
    file, columns, key = FILES[figure.kind]
    selection = with_records(selection, results / scale / file, columns, key)
    if figure.kind == "activations":
        words = caption.write(selection, activations.SHOWN, activations.NUMBERS, command, activations.widths(selection))
        return selection, activations.draw(selection), words
    if figure.kind == "cosines":
        selection = replace(selection, records=cosines.with_published(selection.records))
        return _finished(selection, cosines.draw, cosines.SHOWN, cosines.NUMBERS, command)
    return _finished(selection, lines.draw, lines.SHOWN[figure.kind], lines.NUMBERS[figure.kind], command)


def _finished(
    selection: Selection, draw: Callable[[Selection], Drawing], shown: str, wanted: list, command: str
) -> Drawn:
    trivial = [
        f"Best trivial predictor on {dataset} (no training): L1 {own.best_val_l1.min():.4f}, "
        f"1 - SSIM {own.best_val_ssim.min():.4f}."
        for dataset, own in selection.trivial.groupby("dataset")
        if selection.figure.kind == "validation"
    ]
    return selection, draw(selection), caption.write(selection, shown, wanted, command, trivial)


def _reconstructions(figure: Figure, scale: str, runs: Path, asked: Asked, command: str) -> Drawn:
    """From local runs: pictures are not recorded in results/."""
    reconstructions.check_datasets(asked.datasets or ())
    collected = read_folders(runs / scale)
    local = collected.runs
    for name, error in collected.unreadable.items():
        print(f"{name}: unreadable, left out: {error}", file=sys.stderr)
    selection = select(figure, scale, records.frame([run.row for run in local]), asked)
    found, without = {}, []
    for run in local:
        row = run.row
        if not _is_drawn(selection, row):
            continue
        path = runs / scale / run.folder / reconstructions.FILE
        if path.exists():
            found[str(row["strategy"]), int(str(row["seed"]))] = path
        else:
            without.append(f"{run.folder}: no {reconstructions.FILE}")
    if not found:
        raise ValueError(f"nothing to draw: no run has {reconstructions.FILE}; `{figure.make(scale)}` makes it")
    seed = reconstructions.choose_seed(found)
    selection = replace(selection, runs=selection.runs[selection.runs.seed == seed],
                        gaps=tuple(f"{reconstructions.style.label(name)}: no pictures of seed {seed}"
                                   for name in figure.strategies if (name, seed) not in found))  # fmt: skip
    pictures = reconstructions.load(selection, found, seed)
    remarks = [grid(reconstructions.error_table(pictures)), *without]
    words = caption.write(selection, reconstructions.SHOWN, [], command, remarks)
    return selection, reconstructions.draw(selection, pictures), words


def _is_drawn(selection: Selection, row: dict[str, object]) -> bool:
    names = [tuple(run) for run in selection.runs[records.KEY].itertuples(index=False)]
    return tuple(row[name] for name in records.KEY) in names


def _command(figure: Figure, scale: str, asked: Asked) -> str:
    """What draws the same figure again from the same records."""
    words = f"python -m gcond.report {figure.name} --scale {scale}"
    words += f" --datasets {','.join(asked.datasets)}" if asked.datasets else ""
    words += f" --seeds {','.join(map(str, asked.seeds))}" if asked.seeds else ""
    return words + (f" --model {asked.model}" if asked.model else "")


def add_parsers(
    tables: "argparse._SubParsersAction[argparse.ArgumentParser]",
    seed_list: Callable[[str], tuple[int, ...]],
    name_list: Callable[[str], tuple[str, ...]],
) -> None:
    for name, figure in NAMES.items():
        parser = tables.add_parser(name, help=f"Figure {figure.number} of the paper: {figure.title}")
        parser.add_argument("--scale", default="mini", help="folder below --results (default: mini)")
        parser.add_argument("--results", type=Path, default=OWN, help=f"folder of records (default: {OWN})")
        parser.add_argument("--runs", type=Path, default=Path("runs"), help="local runs (figure10 alone needs them)")
        parser.add_argument("--seeds", type=seed_list, help="comma-separated (default: all that are recorded)")
        parser.add_argument("--datasets", type=name_list, help="comma-separated (default: the figure's)")
        parser.add_argument("--model", help=f"default: {figure.model}")


def run(options: argparse.Namespace) -> int:
    asked = Asked(options.seeds, options.datasets, options.model)
    return report(options.table, options.scale, options.results, options.runs, asked)

"""C1: where two of three tasks contradict each other, how each method divides the trade-off."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from gcond.report.claims.conflict import FREQUENCIES, frequencies
from gcond.report.claims.evidence import BLOCKS, TASKS, Arm
from gcond.report.claims.judge import number
from gcond.report.claims.tradeoff import (
    FULL,
    LAMBDAS,
    METHODS,
    SHOWN,
    UNRESOLVED,
    Regime,
    cosine,
    delta,
    mean_image,
    measures,
    ran,
    regime,
    resolving,
    weighted,
)
from gcond.report.pages import conflict_figure
from gcond.report.pages.conflict_figure import bound
from gcond.report.pages.o6 import COLUMNS
from gcond.report.pages.page import Page, command, finish, numbers, scores, table
from gcond.report.pages.source import Run, Source, load, name, nothing
from gcond.report.statistics import Effect, single
from gcond.report.table2 import Cell, printed

TITLE = "C1: where tasks do conflict"
SWEPT = ("baseline", "gcond_stochastic", "pcgrad")  # of conf/experiment/conflict_strength.yaml
COSINES = {
    "own": "smallest cosine, own steps",
    "shared": "probed, shared samples",
    "disjoint": "probed, disjoint samples",
}
READING = (
    f"Three tasks with the lambdas {', '.join(f'{TASKS[task]} {weight}' for task, weight in LAMBDAS.items())}. flipped "
    "is the L1 in z-space to (1 - 2 s) times the image x, here with s = 1 to the inverted image. Between the two "
    "targets a pixel's gradients of L1 and flipped are exactly opposed. Best epoch: smallest sum of lambda x loss on "
    "validation, for every method. Mean ± sample standard deviation over n seeds; lower is better. †: not below the "
    "best predictor that needs no training, of the weighted sum not below the mean image."
)
BOUND = (
    "No predictor can bring L1 + flipped below 2 s times the mean of the absolute x, which is 2 s times the L1 of "
    "the mean image (|p - x| + |p - (1 - 2 s) x| >= 2 s |x|). Towards the image: flipped / (L1 + flipped), 100 % at "
    "the image and 0 at the inverted one; where a method lies on it is its division of the trade-off. Above the "
    "bound: what it wastes, in percent of the bound."
)
DIFFERENCES = (
    "Differences to Baseline by seed, with the same lambdas, in percent of Baseline's mean, with a 95 % t-interval "
    "over seeds; negative is better. Mean: over the three losses (as Delta-m). Weighted sum: with the lambdas, what "
    "Baseline minimises. Intervals are not corrected for their number."
)
RESOLUTION = (
    "Differences to Baseline integrated, which smooths the gradient as GCond does and looks at no task's: what "
    "resolving conflicts does by itself, in percent of Baseline integrated's mean."
)
COSINE_WORDS = (
    "Smallest cosine of two tasks' gradients. Own steps: as O6 counts, which is another quantity for methods whose "
    "tasks share their images, for those whose tasks have different ones, and for those that resolve every "
    "micro-batch. Probed: on the same images for all methods, at each method's own weights after every epoch; shared "
    "samples: both tasks on the same images, disjoint: on other ones."
)
STRENGTHS = (
    "How much the third task contradicts the first: at s = 0 it is L1 itself, at 0.5 it wants the mean image, at 1 "
    "the inverted one. Mean over the three losses against Baseline at the same strength."
)


def build(scale: str, results: Path, asked: tuple[str, ...] | None) -> Page:
    source = load("conflict", scale, results, asked, ("ct", "photos"))
    where = regime(source.evidence)
    there = {dataset: ran(source.evidence, dataset, where.full) for dataset in source.datasets}
    if not any(there.values()):
        raise nothing(source, f"no run with a flipped target is recorded on {' or '.join(source.datasets)}")
    parts, rows = [READING, BOUND, DIFFERENCES, "![how each method divides it](../figures/conflict.png)"], []
    for dataset, arms in there.items():
        parts.append(f"## {source.title(dataset)}")
        parts += _measured(source, dataset, arms, rows) if arms else ["Not run."]
    swept = [run for dataset in source.datasets for run in _swept(source, where, dataset)]
    if swept:
        parts += ["## Against the strength of the contradiction", STRENGTHS, _strengths(source, where, swept, rows)]
    if where.others:
        parts.append(f"Recorded with another window, and not shown: {'; '.join(where.others)}.")
    wanted: list[Run] = [(dataset, arm) for dataset, arms in there.items() for arm in arms]
    runs = source.rows(dict.fromkeys([*wanted, *((dataset, arm) for dataset, _, arm in swept)]))
    drawing = conflict_figure.draw(source, where, {dataset: arms for dataset, arms in there.items() if arms}, swept)
    finish(drawing, TITLE, source, runs, conflict_figure.READING)
    gaps = _gaps(source, where)
    return Page(source, TITLE, parts, rows, runs, drawing, conflict_figure.SHOWN, gaps, command(source, asked))


def _gaps(source: Source, where: Regime) -> list[str]:
    lines = []
    for dataset in source.datasets:
        arms = [Arm(strategy, where.full) for strategy in METHODS]
        seeds = {seed for arm in arms for seed in source.evidence.by_seed(dataset, arm).index}
        lines += source.gaps([(dataset, arm) for arm in arms], seeds) if seeds else [f"{dataset}: not run"]
    return [line.replace(f", {_readable(where.full)}", "") for line in lines]


def _readable(variant: str) -> str:
    return name(Arm("baseline", variant)).removeprefix("Baseline, ")


def _measured(source: Source, dataset: str, arms: list[Arm], rows: list[dict[str, object]]) -> list[str]:
    parts = [_losses(source, dataset, arms, rows)]
    lowest = bound(source, dataset, FULL)
    if lowest is not None:
        on_test = bound(source, dataset, FULL, "best_test")
        parts.append(
            f"The bound of L1 + flipped on validation: {lowest:.4f}; the mean image lies on it, half way. On test: "
            f"{on_test:.4f}."
        )
    if arms[0] != Arm("baseline", arms[0].variant):
        return [*parts, "No differences: they are to Baseline, which was not run."]
    parts += [_differences(source, dataset, arms[1:], rows)] if arms[1:] else []
    resolved = resolving(source.evidence, dataset, arms[0].variant)
    parts += [RESOLUTION, _differences(source, dataset, resolved, rows, UNRESOLVED)] if resolved else []
    return [*parts, "### How much conflict", FREQUENCIES, COSINE_WORDS, _conflicts(source, dataset, arms, rows)]


def _losses(source: Source, dataset: str, arms: list[Arm], rows: list[dict[str, object]]) -> str:
    heads = [*TASKS.values(), "weighted sum", *PLACE]
    lines = [["method", "n", *heads, *(f"test, {head}" for head in heads)], []]
    for arm in arms:
        runs = source.evidence.by_seed(dataset, arm)
        places = {block: _place(source, dataset, runs, block) for block in CHOSEN}
        cells = []
        for block, own in places.items():
            cells += [scores(source.cell(dataset, arm, f"{block}_{task}")) for task in TASKS]
            cells.append(scores(_total(source, dataset, runs, block)))
            cells += [number(own[what], "share") if what in own else "-" for what in PLACE]
        lines.append([name(Arm(arm.strategy)), str(len(runs)), *cells])
        rows += [
            _row(source, dataset, arm, "loss", task, block)
            | {"unit": "loss"}
            | numbers(single(runs[f"{block}_{task}"]))
            for task in TASKS
            for block in BLOCKS
        ]
        rows += [
            _row(source, dataset, arm, what, "", block) | {"unit": "percent"} | numbers(effect)
            for block, own in places.items()
            for what, effect in own.items()
        ]
    images = [mean_image(source.recorded, dataset, block) for block in CHOSEN]
    if all(images):
        said = [
            [*(printed(image[task]) for task in TASKS), printed(weighted(image)), "50.0 %", "0.0 %"] for image in images
        ]
        lines.append(["Mean image (no training)", "", *said[0], *said[1]])
    return table(lines)


PLACE = ("towards the image", "above the bound")
CHOSEN = ("best_val", "best_test")


def _total(source: Source, dataset: str, runs: pd.DataFrame, block: str) -> Cell:
    """The weighted sum, which every method is to minimise; `beaten` where the mean image reaches it."""
    values = weighted({task: runs[f"{block}_{task}"] for task in LAMBDAS})
    image = mean_image(source.recorded, dataset, block)
    cell = Cell(tuple(values), 0, len(values))
    return replace(cell, beaten=bool(image) and round(cell.mean, 4) >= round(float(weighted(image)), 4))


def _place(source: Source, dataset: str, runs: pd.DataFrame, block: str) -> dict[str, Effect]:
    """PLACE in percent; the second where the bound is known."""
    both = runs[f"{block}_l1"] + runs[f"{block}_flipped"]
    lowest = bound(source, dataset, FULL, block)
    towards, above = PLACE
    found = {towards: single(100 * runs[f"{block}_flipped"] / both)}
    return found | ({above: single(100 * (both / lowest - 1))} if lowest else {})


def _differences(
    source: Source, dataset: str, arms: list[Arm], rows: list[dict[str, object]], other: str = "baseline"
) -> str:
    whole = {"sum": "weighted sum", "mean": "mean"}
    blocks = {"last_val": "last epoch", "best_test": "test"}
    titles = [
        *TASKS.values(),
        *whole.values(),
        *(f"{title}, {when}" for when in blocks.values() for title in whole.values()),
    ]
    kind = "difference" if other == "baseline" else f"difference to {other}"
    lines = [[f"against {Arm(other).label}", "n", *titles], []]
    for arm in arms:
        found = {block: measures(source.evidence, dataset, arm, block, other) for block in SHOWN}
        shown = [found["best_val"][key] for key in (*TASKS, *whole)]
        shown += [found[block][key] for block in blocks for key in whole]
        cells = [number(each.effect, "%") for each in shown]
        lines.append([name(Arm(arm.strategy)), str(found["best_val"]["mean"].effect.n), *cells])
        rows += [
            _row(source, dataset, arm, kind, key, block) | {"unit": "percent"} | numbers(each.effect)
            for block, own in found.items()
            for key, each in own.items()
        ]
    return table(lines)


def _conflicts(source: Source, dataset: str, arms: list[Arm], rows: list[dict[str, object]]) -> str:
    lines = [["method", "n", *COLUMNS.values(), *COSINES.values()], []]
    for arm in arms:
        found = frequencies(source.evidence, dataset, arm)
        cosines = cosine(source.evidence, dataset, arm)
        cells = [number(found[key].effect, found[key].unit) if key in found else "-" for key in COLUMNS]
        cells += [number(cosines[key], "cosine") if key in cosines else "-" for key in COSINES]
        lines.append([name(Arm(arm.strategy)), str(len(source.evidence.by_seed(dataset, arm))), *cells])
        rows += [
            _row(source, dataset, arm, "conflict", key, "")
            | {"unit": "times a step" if each.unit == "number" else "percent"}
            | numbers(each.effect)
            for key, each in found.items()
        ]
        rows += [
            _row(source, dataset, arm, "conflict", COSINES[key], "") | {"unit": "cosine"} | numbers(effect)
            for key, effect in cosines.items()
        ]
    return table(lines)


def _swept(source: Source, where: Regime, dataset: str) -> list[tuple[str, float, Arm]]:
    """Nothing where only the full strength was run."""
    found = [
        (dataset, strength, Arm(strategy, text))
        for strategy in SWEPT
        for strength, text in where.settings.items()
        if source.evidence.ran(dataset, Arm(strategy, text))
    ]
    return found if len({strength for _, strength, _ in found}) > 1 else []


def _strengths(
    source: Source, where: Regime, swept: list[tuple[str, float, Arm]], rows: list[dict[str, object]]
) -> str:
    lines = [["data", "method", "s", "n", *TASKS.values(), "mean against Baseline", "steps with a conflict",
              *COSINES.values()], []]  # fmt: skip
    for dataset, strength, arm in swept:
        evidence = source.evidence
        compared = arm.strategy != "baseline" and evidence.ran(dataset, Arm("baseline", arm.variant))
        change = delta(evidence, dataset, arm) if compared else None
        often = frequencies(evidence, dataset, arm).get("steps with a conflict")
        cosines = cosine(evidence, dataset, arm)
        cells = [source.cell(dataset, arm, f"best_val_{task}") for task in TASKS]
        lines.append(
            [dataset, name(Arm(arm.strategy)), f"{strength:g}", str(len(cells[0].values)), *map(scores, cells)]
            + [number(change.effect, "%") if change else "-", number(often.effect, "share") if often else "-"]
            + [number(cosines[key], "cosine") if key in cosines else "-" for key in COSINES]
        )
        if strength != FULL:  # those are above
            rows += [
                _row(source, dataset, arm, "loss", task, "best_val", strength)
                | {"unit": "loss"}
                | numbers(single(evidence.by_seed(dataset, arm)[f"best_val_{task}"]))
                for task in TASKS
            ]
            rows += [
                _row(source, dataset, arm, kind, what, block, strength) | {"unit": unit} | numbers(effect)
                for kind, what, block, unit, effect in (
                    ("difference", "mean", "best_val", "percent", change and change.effect),
                    ("conflict", "steps with a conflict", "", "percent", often and often.effect),
                    *(("conflict", COSINES[key], "", "cosine", effect) for key, effect in cosines.items()),
                )
                if effect
            ]
    return table(lines)


def _row(
    source: Source, dataset: str, arm: Arm, kind: str, what: str, block: str, strength: float = FULL
) -> dict[str, object]:
    return {"scale": source.scale, "dataset": dataset, "strategy": arm.strategy, "strength": strength, "kind": kind,
            "name": what, "block": block}  # fmt: skip

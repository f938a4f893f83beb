"""O1: the arms of the factorial as trained, and what each factor explains, with intervals."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd

from gcond.report.claims.evidence import BLOCKS, METRICS, RATE, Evidence, overrides, tune, without
from gcond.report.claims.factorial import LEVELS, STRATEGY, arm, effects, micro_batch_arm
from gcond.report.claims.judge import number
from gcond.report.claims.reconstruction import BASELINE
from gcond.report.pages import o1_figure
from gcond.report.pages.page import DAGGER, Page, command, finish, numbers, scores, table, trivial_line
from gcond.report.pages.source import Run, Source, load, name, nothing

TITLE = "O1: the gap of Table 2 taken apart"
UPDATES = {"adamw": "AdamW (.9, .95)", "ema": "EMA, beta1 = 0"}
RESOLUTIONS = {"none": "none", "sequential": "sequential", "stochastic": "stochastic"}
ARMS = [
    *(
        (
            (mode, UPDATES[update], RESOLUTIONS[resolution]),
            arm({"mode": mode, "update": update, "resolution": resolution}),
        )
        for mode, update, resolution in product(*LEVELS.values())
    ),
    *(
        ((mode, UPDATES[update], "sequential, per micro-batch"), micro_batch_arm(mode, update))
        for mode, update in product(LEVELS["mode"], LEVELS["update"])
    ),
]
READING = (
    "Every arm is trained on the same images, masks and initial weights per seed. Mean ± sample standard "
    "deviation over n seeds; lower is better. Best and test: at the epoch with the smallest 0.85 L1 + 0.15 (1 - "
    "SSIM) on validation."
)
EFFECTS = (
    "Each effect is the mean of its paired differences over the levels of the other factors (those run with the "
    "most seeds), by seed, in percent of Baseline's mean (train mode), with a 95 % t-interval over seeds; "
    'negative is better. "A x B": how much larger the effect of A is with B than without. The share is of the gap '
    "between Baseline and GCond stochastic in train mode, with Fieller's interval; none where the gap may be "
    "zero. Intervals are not corrected for their number."
)


def build(scale: str, results: Path, asked: tuple[str, ...] | None) -> Page:
    source = load("o1", scale, results, asked, ("photos", "ct"))
    wanted: list[Run] = [(dataset, own) for dataset in source.datasets for _, own in ARMS]
    ran = [run for run in wanted if source.evidence.ran(*run)]
    if not any(own.strategy != BASELINE.strategy or own.variant for _, own in ran):
        raise nothing(source, f"no arm but Baseline is recorded on {' or '.join(source.datasets)}")
    parts, rows = [READING, EFFECTS, DAGGER, "![interaction plot](../figures/o1.png)"], []
    for dataset in source.datasets:
        parts += [f"## {source.title(dataset)}", *_measured(source, source.evidence, dataset, "", rows)]
    for words, evidence in _rates(source):
        parts.append(f"## {words}")
        for dataset in source.datasets:
            if any(evidence.ran(dataset, own) for _, own in ARMS):
                parts += [f"### {source.title(dataset)}", *_measured(source, evidence, dataset, words, rows)]
    runs = source.rows(wanted)
    drawing = o1_figure.draw(source, runs)
    finish(drawing, TITLE, source, runs, o1_figure.READING)
    gaps = [gap for dataset in source.datasets for gap in _gaps(source, dataset)]
    return Page(source, TITLE, parts, rows, _behind(source), drawing, o1_figure.SHOWN, gaps, command(source, asked))


def _behind(source: Source) -> pd.DataFrame:
    """Rows of runs.csv of every arm, at whatever learning rate."""
    known = {(own.strategy, own.variant) for _, own in ARMS}
    runs = source.recorded[source.recorded.dataset.isin(source.datasets)]
    names = zip(runs.strategy, runs.variant.map(lambda text: without(text, [RATE])), strict=True)
    return runs[[name in known for name in names]]


def _gaps(source: Source, dataset: str) -> list[str]:
    """Seeds are expected of every arm that any arm of this experiment alone has (Table 2's runs may be more)."""
    arms = [own for _, own in ARMS]
    if not any(source.evidence.ran(dataset, own) for own in arms):
        return [f"{dataset}: not run"]
    own_arms = [own for own in arms if own.variant and source.evidence.ran(dataset, own)]
    seeds = {seed for own in own_arms for seed in source.evidence.by_seed(dataset, own).index}
    return source.gaps([(dataset, own) for own in arms], seeds)


def _rates(source: Source) -> list[tuple[str, Evidence]]:
    """The same arms at other learning rates: each that any arm beside Baseline has, then each arm at its best."""
    runs = source.evidence.runs
    strategies = runs.strategy.isin(STRATEGY.values()) & runs.dataset.isin(source.datasets)
    rates = sorted({overrides(text)[RATE] for text in runs.variant[strategies] if RATE in overrides(text)}, key=float)
    found = []
    for rate in rates:
        own = runs[strategies & runs.variant.map(lambda text, rate=rate: overrides(text).get(RATE) == rate)]
        own = own.assign(variant=own.variant.map(lambda text: without(text, [RATE])))
        known = {(each.strategy, each.variant) for _, each in ARMS}
        there = {pair for pair in zip(own.strategy, own.variant, strict=True) if pair in known}
        if len(there) > 1:
            found.append((f"At learning rate {rate}", replace(source.evidence, runs=own)))
    tuned = tune(source.evidence)
    if len(tuned.runs):
        found.append(("Each arm at its best learning rate", replace(source.evidence, runs=tuned.runs)))
    return found


def _measured(source: Source, evidence: Evidence, dataset: str, where: str, rows: list[dict[str, object]]) -> list[str]:
    own = replace(source, evidence=evidence)
    present = [(levels, each) for levels, each in ARMS if evidence.ran(dataset, each)]
    if not present:
        return ["Not run."]
    parts = [_arms(own, dataset, where, present, rows), *trivial_line(source, dataset)]
    missing = [name(each) for _, each in ARMS if not evidence.ran(dataset, each)]
    if missing:
        parts.append(f"Arms not run: {'; '.join(missing)}. The effects are means over the arms that were.")
    if not evidence.ran(dataset, BASELINE):
        return [*parts, "No effects: they are in percent of Baseline, which was not run."]
    for metric, title in METRICS.items():
        found = {block: effects(evidence, dataset, metric, block) for block in BLOCKS}
        names = list(found["best_val"])
        lines = [["effect on " + title, "n", *BLOCKS.values()], []]
        for effect in names:
            cells = [found[block].get(effect) for block in BLOCKS]
            lines.append([effect, str(cells[0].effect.n), *(_effect(cell) for cell in cells)])
            rows += [
                _row(source, dataset, where, "effect", effect, metric, block)
                | {"unit": "percent"}
                | numbers(cell.effect)
                | {"sample_sd": float("nan")}
                for block, cell in zip(BLOCKS, cells, strict=True)
                if cell
            ]
        if names:
            parts.append(table(lines))
            parts += [f"{remark}." for remark in dict.fromkeys(found["best_val"][names[0]].remarks)]
    return parts


def _effect(cell) -> str:
    if cell is None:
        return "none"
    if cell.unit == "share" and cell.effect.low != cell.effect.low:
        return "the gap may be zero"
    return number(cell.effect, cell.unit)


def _arms(source: Source, dataset: str, where: str, present: list, rows: list[dict[str, object]]) -> str:
    columns = {
        f"{words} {title}": f"{block}_{metric}"
        for block, words in (("best_val", "best"), ("last_val", "last"), ("best_test", "test"))
        for metric, title in METRICS.items()
    }
    lines = [["mode", "update", "resolution", "as", "n", *columns], []]
    for levels, each in present:
        cells = [source.cell(dataset, each, column) for column in columns.values()]
        lines.append([*levels, name(each).split(",")[0], str(len(cells[0].values)), *map(scores, cells)])
        for column, cell in zip(columns.values(), cells, strict=True):
            block, metric = column.rsplit("_", 1)
            rows.append(
                _row(source, dataset, where, "arm", f"{each.strategy} {each.variant}".strip(), metric, block)
                | {"unit": "loss", "mean": cell.mean if cell.values else float("nan")}
                | {"low": float("nan"), "high": float("nan"), "n": len(cell.values)}
                | {"sample_sd": float("nan") if cell.deviation is None else cell.deviation}
            )
    return table(lines)


def _row(source: Source, dataset: str, where: str, kind: str, what: str, metric: str, block: str) -> dict[str, object]:
    return {"scale": source.scale, "dataset": dataset, "learning_rate": where, "kind": kind, "name": what,
            "metric": metric, "block": block}  # fmt: skip

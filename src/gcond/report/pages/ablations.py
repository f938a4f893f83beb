"""GCond's own parameters, one at a time: what a value changes, and how often it can change anything."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from gcond.report.claims.ablations import ablated
from gcond.report.claims.evidence import BLOCKS, METRICS, Arm, overrides, per_run, without
from gcond.report.claims.judge import Finding, compare, number
from gcond.report.pages import ablations_figure
from gcond.report.pages.page import DAGGER, Page, command, finish, numbers, scores, table, trivial_line
from gcond.report.pages.parameters import PARAMETERS, ZONES, Parameter, Row, Setting, frequency, parsed, shown
from gcond.report.pages.source import Source, load, name, nothing

TITLE = "Ablations of GCond's parameters, one at a time"
READING = (
    "Validation losses at the best epoch, mean ± sample standard deviation over n seeds; lower is better. "
    "Difference: value less default, paired by seed (same images, masks, initial weights), in percent of the "
    "default's loss, with a 95 % t-interval over seeds; negative is better than the default. Last epoch and test "
    "are in the CSV."
)
CAVEAT = (
    "**Where a parameter can act.** In the mild zone (`weak`: main threshold <= cosine < weak threshold) both "
    "gradients are projected by the same share, whoever wins. So winner selection (the arbitration weights), the "
    "dominance window and the critical threshold can have no effect there, and the remap power acts between the "
    "critical and the main threshold only: a difference under one of them means something only as far as the zone "
    "is reached. The zones' columns count arbitrated pairs a step, with the row's own thresholds; can act is "
    "the mean over the seeds."
)


def build(scale: str, results: Path, asked: tuple[str, ...] | None) -> Page:
    source = load("ablations", scale, results, asked, ("ct",))
    settings = [setting for dataset in source.datasets for setting in _settings(source, dataset)]
    if not settings:
        raise nothing(source, f"no ablated run of GCond with its default is recorded on {' or '.join(source.datasets)}")
    parts, tidy_rows, gaps, arms = [READING, DAGGER, CAVEAT, "![differences](../figures/ablations.png)"], [], [], []
    for setting in settings:
        parts += [
            f"## {source.title(setting.dataset)}, {name(setting.default)}",
            *trivial_line(source, setting.dataset),
        ]
        for parameter in PARAMETERS:
            own = [row for row in setting.rows if row.parameter == parameter]
            parts += [f"### {parameter.title}", f"`{parameter.key}`. It can act {parameter.acts}."]
            if len(own) > 1:
                parts += [_table(source, setting, own, tidy_rows), *_remarks(source, setting, own)]
            else:
                parts.append("Not run.")
        gaps += _gaps(source, setting)
        arms += [(setting.dataset, row.arm) for row in setting.rows]
    gaps += [f"{dataset}: not run" for dataset in source.datasets if dataset not in {each.dataset for each in settings}]
    runs = source.rows(arms)
    drawing = ablations_figure.draw(source, settings, PARAMETERS)
    finish(drawing, TITLE, source, runs, ablations_figure.READING)
    return Page(source, TITLE, parts, tidy_rows, runs, drawing, ablations_figure.SHOWN, gaps, command(source, asked))


def _settings(source: Source, dataset: str) -> list[Setting]:
    runs = source.evidence.runs
    runs = runs[(runs.dataset == dataset) & runs.strategy.str.startswith("gcond")]
    keys = {parameter.key for parameter in PARAMETERS}
    rests = sorted({
        (strategy, without(text, [key]))
        for strategy, text in zip(runs.strategy, runs.variant, strict=True)
        for key in overrides(text)
        if key in keys and not set(overrides(without(text, [key]))) & keys
    })  # fmt: skip
    found = []
    for strategy, rest in rests:
        default = Arm(strategy, rest)
        rows = [row for parameter in PARAMETERS for row in _rows(source, dataset, default, parameter)]
        if any(not row.is_default for row in rows):
            found.append(Setting(dataset, default, tuple(rows)))
    return found


def _rows(source: Source, dataset: str, default: Arm, parameter: Parameter) -> list[Row]:
    """In the order of the experiment, the default in its place, other values after them."""
    own = [arm for where, arm in ablated(source.evidence, parameter.key, default.variant)
           if where == dataset and arm.strategy == default.strategy]  # fmt: skip
    if not own:
        return []
    order = [parsed(value) for value in parameter.values]
    arms = {overrides(arm.variant)[parameter.key]: arm for arm in own} | {parameter.default: default}
    values = sorted(arms, key=lambda text: (order.index(parsed(text)) if parsed(text) in order else len(order), text))
    return [_row(source, dataset, default, parameter, value, arms[value]) for value in values]


def _row(source: Source, dataset: str, default: Arm, parameter: Parameter, value: str, arm: Arm) -> Row:
    found = {metric: compare(source.evidence, dataset, arm, default, metric) for metric in METRICS if arm != default}
    steps = source.evidence.own(source.evidence.steps, dataset, arm)
    zones = {zone: _mean(per_run(steps, f"zone_{zone}")) for zone in ZONES}
    n = len(source.evidence.by_seed(dataset, arm))
    return Row(parameter, value, arm, arm == default, n, found, zones, _mean(parameter.often(steps, value)))


def _table(source: Source, setting: Setting, rows: list[Row], tidy_rows: list[dict[str, object]]) -> str:
    titles = list(METRICS.values())
    header = ["value", "n", *titles, *(f"{title}: difference" for title in titles), *(f"zone {z}" for z in ZONES)]
    lines = [[*header, "can act"], []]
    for row in rows:
        cells = [source.cell(setting.dataset, row.arm, f"best_val_{metric}") for metric in METRICS]
        differences = [
            "default" if row.is_default else _difference(row.differences[metric], row.n) for metric in METRICS
        ]
        zones = map(frequency, row.zones.values())
        lines.append([shown(row.value), str(row.n), *map(scores, cells), *differences, *zones, row.acts])
        tidy_rows += _tidy(source, setting, row)
    return table(lines)


def _difference(found: Finding, n: int) -> str:
    remark = f" (n = {found.effect.n})" if found.effect.n != n else ""
    return number(found.effect, "%") + remark


def _mean(values: pd.Series) -> float:
    return float(values.mean()) if values.notna().any() else math.nan


def _tidy(source: Source, setting: Setting, row: Row) -> list[dict[str, object]]:
    rows = []
    for metric in METRICS:
        for block in BLOCKS:
            cell = source.cell(setting.dataset, row.arm, f"{block}_{metric}")
            effect = None
            if not row.is_default:
                effect = compare(source.evidence, setting.dataset, row.arm, setting.default, metric, block=block).effect
            nothing_ = dict.fromkeys(("mean", "low", "high", "n"), math.nan)
            difference = numbers(effect) if effect else nothing_
            rows.append(
                {"scale": source.scale, "dataset": setting.dataset, "strategy": row.arm.strategy,
                 "settings": setting.default.variant, "parameter": row.parameter.key, "value": row.value,
                 "default": row.is_default, "metric": metric, "block": block, "n": len(cell.values),
                 "mean": cell.mean if cell.values else math.nan,
                 "sample_sd": math.nan if cell.deviation is None else cell.deviation}
                | {f"difference_{key}": value for key, value in difference.items()}
                | {f"zone_{zone}": value for zone, value in row.zones.items()}
                | {"can_act": row.often}
            )  # fmt: skip
    return rows


def _remarks(source: Source, setting: Setting, rows: list[Row]) -> list[str]:
    """Dropped pairs; and for a parameter that acts in a zone only, what never being there must mean."""
    said = list(dict.fromkeys(
        f"{remark}." for row in rows for found in row.differences.values() for remark in found.remarks
    ))  # fmt: skip
    if rows[0].parameter.zoned:
        said += _silent(source, setting, rows)
    return said


def _silent(source: Source, setting: Setting, rows: list[Row]) -> list[str]:
    """A run in which the zone is never reached must be the default's own run over again."""
    steps = source.evidence.steps
    often = [row.parameter.often(source.evidence.own(steps, setting.dataset, row.arm), row.value) for row in rows]
    never = [{seed for seed, value in own.items() if value == 0} for own in often]
    default = next(seeds for row, seeds in zip(rows, never, strict=True) if row.is_default)
    same = differ = 0
    for row, seeds in zip(rows, never, strict=True):
        for seed in set() if row.is_default else seeds & default:
            ours, theirs = (source.evidence.by_seed(setting.dataset, arm) for arm in (row.arm, setting.default))
            losses = [f"best_val_{metric}" for metric in METRICS]
            if seed in ours.index and seed in theirs.index:
                equal = np.array_equal(ours.loc[seed, losses].to_numpy(float), theirs.loc[seed, losses].to_numpy(float))
                same, differ = same + equal, differ + (not equal)
    if not same + differ:
        return []
    text = f"In {same + differ} pairs of runs neither was ever in that zone, so that both must have the same losses: "
    return [
        text + (f"{same} have, {differ} have not (another commit or device, or a mistake)." if differ else "all have.")
    ]


def _gaps(source: Source, setting: Setting) -> list[str]:
    """Values of the experiments that did not run; seeds are expected that any ablated run here has."""
    ran = [row.arm for row in setting.rows if not row.is_default]
    seeds = {seed for arm in ran for seed in source.evidence.by_seed(setting.dataset, arm).index}
    lines = []
    for parameter in PARAMETERS:
        there = {parsed(row.value) for row in setting.rows if row.parameter == parameter}
        lacking = [value for value in parameter.values if parsed(value) not in there | {parsed(parameter.default)}]
        if lacking:
            values = ", ".join(map(shown, lacking))
            lines.append(f"{parameter.title} {values} ({name(setting.default)} on {setting.dataset}): not run")
    arms = [setting.default, *ran]
    lines += source.gaps([(setting.dataset, arm) for arm in arms], seeds)
    if source.evidence.own(source.evidence.steps, setting.dataset, setting.default).empty:
        lines.append(f"zones of {name(setting.default)} on {setting.dataset}: nothing in steps.csv")
    return lines

"""O1: the arms of the factorial as trained, and what each change explains, at every learning rate that was run."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd

from gcond.report.claims.evidence import BLOCKS, METRICS, RATE, TRAINING, column, without
from gcond.report.claims.factorial import (
    CHANGES,
    LEVELS,
    SHARE,
    arm,
    averages,
    blocks_arm,
    changes,
    micro_batch_arm,
    share,
)
from gcond.report.claims.gap import KINDS, STOCHASTIC_IS_TWO
from gcond.report.claims.judge import Finding, number
from gcond.report.claims.rates import AtRate, at_best_rates, at_rates
from gcond.report.claims.reconstruction import BASELINE
from gcond.report.pages import o1_figure
from gcond.report.pages.page import DAGGER, Page, command, finish, numbers, scores, table, trivial_line
from gcond.report.pages.source import Run, Source, load, name, nothing
from gcond.report.statistics import sign_flip_text

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
BESIDE = [((mode, UPDATES["ema"], "none, a block per task"), blocks_arm(mode)) for mode in LEVELS["mode"]]
READING = (
    "Every arm is trained on the same images, masks and initial weights per seed; lower is better. Best and test: at "
    "the epoch with the smallest 0.85 L1 + 0.15 (1 - SSIM) on validation. Training: mean over the last tenth of the "
    "steps; a model in eval mode has other training losses, so these are compared in train mode only."
)
EFFECTS = (
    '**Changes.** "A vs B" is A less B, paired by seed, in percent of Baseline\'s mean at the same learning rate (in '
    "train mode), with a 95 % t-interval over n seeds; negative is better. A change needs its two arms only: an arm "
    "that was not run takes away its own rows and no others. `gap`: what the paper reports; `EMA update`: the gradient "
    "is smoothed inside and AdamW runs with beta1 = 0; `resolution`: conflicts are resolved. The gap is the sum of EMA "
    f"update and resolution along either way from Baseline to GCond. {STOCHASTIC_IS_TWO}"
)
AVERAGES = (
    "Means over changes of one kind (those run with the most seeds; a mean of one change is that change), and "
    'interactions: how much larger the effect of A is with B than without ("A x B"). The share is of the gap of GCond '
    "stochastic in train mode, with Fieller's interval; none where the gap may be zero. Intervals are not corrected "
    "for their number."
)
ALL_BLOCKS = BLOCKS | TRAINING
Rows = list[dict[str, object]]


def build(scale: str, results: Path, asked: tuple[str, ...] | None) -> Page:
    source = load("o1", scale, results, asked, ("photos", "ct"))
    wanted: list[Run] = [(dataset, own) for dataset in source.datasets for _, own in ARMS]
    settings = _settings(source)
    ran = [own for setting in settings for dataset, own in wanted if setting.evidence.ran(dataset, own)]
    if not any(own.strategy != BASELINE.strategy or own.variant for own in ran):
        raise nothing(source, f"no arm but Baseline is recorded on {' or '.join(source.datasets)}")
    parts, rows = [READING, EFFECTS, DAGGER, "![interaction plot](../figures/o1.png)"], []
    for dataset in source.datasets:
        own = [setting for setting in settings if any(setting.evidence.ran(dataset, each) for _, each in ARMS)]
        parts += [f"## {source.title(dataset)}", *(_dataset(source, own, dataset, rows) if own else ["Not run."])]
    behind = _behind(source)
    drawing = o1_figure.draw(source, settings)
    finish(drawing, TITLE, source, behind, o1_figure.READING)
    gaps = [gap for dataset in source.datasets for gap in _gaps(source, dataset)]
    return Page(source, TITLE, parts, rows, behind, drawing, o1_figure.SHOWN, gaps, command(source, asked))


def _settings(source: Source) -> list[AtRate]:
    """Learning rates at which any arm beside Baseline ran, and each arm's best."""
    found = [*at_rates(source.evidence), *filter(None, [at_best_rates(source.evidence)])]
    return [
        setting
        for setting in found
        if setting.own
        or any(
            setting.evidence.ran(dataset, each)
            for dataset, (_, each) in product(source.datasets, ARMS)
            if each != BASELINE
        )
    ]


def _behind(source: Source) -> pd.DataFrame:
    """Rows of runs.csv of every arm, at whatever learning rate."""
    known = {(own.strategy, own.variant) for _, own in [*ARMS, *BESIDE]}
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


def _dataset(source: Source, settings: list[AtRate], dataset: str, rows: Rows) -> list[str]:
    parts = ["### One change at a time (validation, best epoch)", _side_by_side(settings, dataset)]
    for setting in settings:
        parts += [f"### {setting.words[:1].upper()}{setting.words[1:]}"]
        parts += _measured(replace(source, evidence=setting.evidence), setting, dataset, rows)
    return parts


def _side_by_side(settings: list[AtRate], dataset: str) -> str:
    """The key table: a row for each change, a column for each learning rate and loss."""
    found = [
        {metric: changes(setting.evidence, dataset, metric) for metric in METRICS}
        for setting in settings
        if setting.evidence.ran(dataset, BASELINE)
    ]
    shown = [change for change in CHANGES if any(change in own["l1"] for own in found)]
    if not shown:
        return "No two arms that differ in one factor ran, or no Baseline."
    there = [setting.short for setting in settings if setting.evidence.ran(dataset, BASELINE)]
    heads = [f"{words}: {title}" for words in there for title in (*METRICS.values(), "n")]
    lines: list[list[str]] = [["", "change", *heads], []]
    for change in shown:
        cells = []
        for own in found:
            each = [own[metric].get(change) for metric in METRICS]
            cells += [number(cell.effect, cell.unit) if cell else "not run" for cell in each]
            cells.append(str(each[0].effect.n) if each[0] else "0")
        lines.append([KINDS[change.kind], change.name, *cells])
    return table(lines)


def _measured(source: Source, setting: AtRate, dataset: str, rows: Rows) -> list[str]:
    present = [(levels, each) for levels, each in [*ARMS, *BESIDE] if source.evidence.ran(dataset, each)]
    parts = [_arms(source, dataset, setting, present, rows), *trivial_line(source, dataset)]
    missing = [name(each) for _, each in ARMS if not source.evidence.ran(dataset, each)]
    if missing:
        parts.append(f"Arms not run: {'; '.join(missing)}.")
    if not source.evidence.ran(dataset, BASELINE):
        return [*parts, "No effects: they are in percent of Baseline, which was not run."]
    for metric in METRICS:
        found = {block: changes(source.evidence, dataset, metric, block) for block in ALL_BLOCKS}
        named = {
            block: {f"{KINDS[change.kind]}: {change.name}": each for change, each in own.items()}
            for block, own in found.items()
        }
        parts += _effects(source, setting, dataset, metric, "change", named, rows)
        means = {
            block: {key: each.finding for key, each in averages(source.evidence, dataset, metric, block).items()}
            for block in BLOCKS
        }
        counts = {key: each.over for key, each in averages(source.evidence, dataset, metric).items()}
        shares = {block: share(source.evidence, dataset, metric, block) for block in BLOCKS}
        titled = {
            block: {f"{key} (mean of {counts[key]})": each for key, each in own.items() if key in counts}
            | ({SHARE: part} if (part := shares[block]) else {})
            for block, own in means.items()
        }
        parts += _effects(source, setting, dataset, metric, "average", titled, rows)
    return [*parts, *([AVERAGES] if any(row["kind"] == "average" for row in rows) else [])]


def _effects(
    source: Source,
    setting: AtRate,
    dataset: str,
    metric: str,
    kind: str,
    found: dict[str, dict[str, Finding]],
    rows: Rows,
) -> list[str]:
    """A table of effects by block, and their remarks."""
    names = list(found["best_val"])
    if not names:
        return []
    lines: list[list[str]] = [[f"{kind}, {METRICS[metric]}", "n", "p", *(ALL_BLOCKS[block] for block in found)], []]
    for effect in names:
        cells = [own.get(effect) for own in found.values()]
        first = found["best_val"][effect].effect
        lines.append([effect, str(first.n), sign_flip_text(first), *map(_effect, cells)])
        rows += [
            _row(source, dataset, setting, kind, effect, metric, block)
            | {"unit": "percent"}
            | numbers(cell.effect)
            | {"sample_sd": float("nan"), "p_sign_flip": cell.effect.p_sign_flip}
            for block, cell in zip(found, cells, strict=True)
            if cell
        ]
    remarks = dict.fromkeys(remark for each in found["best_val"].values() for remark in each.remarks)
    return [table(lines), *(f"{remark}." for remark in remarks)]


def _effect(cell: Finding | None) -> str:
    if cell is None:
        return "none"
    if cell.unit == "share" and cell.effect.low != cell.effect.low:
        return "the gap may be zero"
    return number(cell.effect, cell.unit)


def _arms(source: Source, dataset: str, setting: AtRate, present: list, rows: Rows) -> str:
    columns = {
        f"{words} {title}": (block, metric)
        for block, words in (("best_val", "best"), ("last_val", "last"), ("best_test", "test"), ("train", "training"))
        for metric, title in METRICS.items()
    }
    lines: list[list[str]] = [["mode", "update", "resolution", "as", "n", *columns], []]
    for levels, each in present:
        cells = [source.cell(dataset, each, column(*which)) for which in columns.values()]
        lines.append([*levels, name(each).split(",")[0], str(len(cells[0].values)), *map(scores, cells)])
        for (block, metric), cell in zip(columns.values(), cells, strict=True):
            rows.append(
                _row(source, dataset, setting, "arm", f"{each.strategy} {each.variant}".strip(), metric, block)
                | {"unit": "loss", "mean": cell.mean if cell.values else float("nan")}
                | {"low": float("nan"), "high": float("nan"), "n": len(cell.values)}
                | {"sample_sd": float("nan") if cell.deviation is None else cell.deviation}
                | {"p_sign_flip": float("nan")}
            )
    return table(lines)


def _row(source: Source, dataset: str, at: AtRate, kind: str, what: str, metric: str, block: str) -> dict[str, object]:
    return {"scale": source.scale, "dataset": dataset, "learning_rate": at.words, "kind": kind, "name": what,
            "metric": metric, "block": block}  # fmt: skip

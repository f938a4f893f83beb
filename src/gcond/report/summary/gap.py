"""What became of Table 2's gap, and what makes it (O1)."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from gcond.report.claims.evidence import METRICS, Arm, Evidence, per_run
from gcond.report.claims.factorial import CHANGES, Change, changes, share
from gcond.report.claims.judge import Finding, number
from gcond.report.claims.rates import AtRate, at_best_rates, at_rates, written
from gcond.report.claims.reconstruction import BASELINE, SEQUENTIAL, STOCHASTIC
from gcond.report.lineup import PAPER_RATE
from gcond.report.paper import COUNTERPART, table2_column
from gcond.report.render import bullets, grid
from gcond.report.statistics import Effect, paired, ratio
from gcond.report.summary.say import FEW, against, bold, data, enough, listed, place, settings_and_seeds, span, with_n
from gcond.report.summary.section import Section, dataset_title, not_run

TITLE = "The gap of Table 2, and what makes it"
COMMAND = "make reproduce-o1 SCALE=sample SEEDS=10"
CONTROL = Arm("baseline_integrated")
SHOWN = {  # rows of the table and of the figure
    "GCond stochastic vs Baseline": "the gap: GCond stochastic against Baseline",
    "GCond sequential vs Baseline": "the gap: GCond sequential against Baseline",
    "Baseline integrated vs Baseline": "the update alone (EMA inside, beta1 = 0), nothing resolved",
    "GCond stochastic vs Baseline integrated": "resolution on top of it, stochastic",
    "GCond sequential vs Baseline integrated": "resolution on top of it, sequential",
    "Stochastic integrated vs Baseline integrated": "of stochastic's: a block per task, nothing resolved",
    "GCond stochastic vs Stochastic integrated": "of stochastic's: resolution alone, on the same blocks",
    "GCond pure vs Baseline": "resolution alone (GCond pure), AdamW as Baseline's",
    "Baseline, eval mode vs Baseline": "eval mode alone, Baseline",
    "GCond stochastic, eval mode vs GCond stochastic": "eval mode, GCond stochastic",
    "GCond stochastic, eval mode vs Baseline, eval mode": "the gap with both in eval mode, stochastic",
    "Baseline integrated, eval mode vs Baseline, eval mode": "the update alone, both in eval mode",
    "GCond stochastic, eval mode vs Baseline integrated, eval mode": "resolution on top of it, both in eval mode",
}
NAMED = {change.name: change for change in CHANGES}
LEGEND = (
    "Each row changes one thing, everything else (images, masks, initial weights) equal by seed; in percent of "
    "Baseline's loss at the same learning rate, negative is better. *EMA inside, beta1 = 0* is how GCond smooths the "
    "gradient before AdamW; it needs no task gradients. Stochastic resolution changes a second thing: each task's "
    "gradient then comes from its own block, half of the micro-batches."
)


class Parts(NamedTuple):
    """GCond stochastic's gap to Baseline and the two changes that it is the sum of, in one model mode."""

    gap: Change
    update: Change
    on_top: Change


def _parts(mode: str) -> Parts:
    pairs = (
        ("GCond stochastic", "Baseline"),
        ("Baseline integrated", "Baseline"),
        ("GCond stochastic", "Baseline integrated"),
    )
    return Parts(*(NAMED[f"{ours}{mode} vs {theirs}{mode}"] for ours, theirs in pairs))


TRAIN, EVAL = _parts(""), _parts(", eval mode")


def settings(evidence: Evidence, dataset: str) -> list[AtRate]:
    """Learning rates at which two arms of O1 ran; each arm's best last."""
    found = [*at_rates(evidence), *filter(None, [at_best_rates(evidence)])]
    return [each for each in found if each.evidence.ran(dataset, BASELINE) and changes(each.evidence, dataset, "l1")]


def gap(evidence: Sequence[Evidence]) -> Section:
    """Of every scale at which two arms of O1 ran."""
    own = [
        (each, dataset, found)
        for each in evidence
        for dataset in reversed(each.datasets)
        if (found := settings(each, dataset))
    ]
    if not own:
        return not_run(TITLE, "no two arms of O1 at a scale that is evidence", COMMAND)
    answers = _answers([(dataset, found) for _, dataset, found in own])
    return Section(TITLE, answers, [LEGEND, *(part for where in own for part in _dataset(*where))])


def _dataset(evidence: Evidence, dataset: str, own: list[AtRate]) -> list[str]:
    page = f"{evidence.scale}/tables/o1.md"
    return [
        f"### {dataset_title(evidence, dataset)}, scale {evidence.scale}",
        f"{_paper(dataset)} All numbers, with last epoch and test: [{page}]({page}).",
        _table(own, dataset),
        bullets(
            [
                *_training(own, dataset),
                *_shares(own, dataset),
                *_steps(own, dataset),
                *(f"**A larger learning rate instead.** {line}" for line in _larger_rate(own, dataset)),
            ]
        ),
    ]


def _paper(dataset: str) -> str:
    parts = []
    for arm in (STOCHASTIC, SEQUENTIAL):
        columns = {title: table2_column(dataset, metric) for metric, title in METRICS.items()}
        numbers = [
            f"{100 * (column[arm.strategy] / column['baseline'] - 1):+.1f} % {title}"
            for title, column in columns.items()
        ]
        parts.append(f"{arm.label} {' and '.join(numbers)}")
    return (
        f"The paper's {COUNTERPART[dataset]} (256 pixels, all its data, learning rate {written(PAPER_RATE)}) against "
        f"Baseline: {'; '.join(parts)}."
    )


def _table(own: list[AtRate], dataset: str) -> str:
    found = [{metric: changes(each.evidence, dataset, metric) for metric in METRICS} for each in own]
    heads = [f"{each.short}: {title}" for each in own for title in (*METRICS.values(), "n")]
    lines = [["what changes", *heads], []]
    for name, words in SHOWN.items():
        change = NAMED[name]
        if not any(change in each["l1"] for each in found):
            continue
        cells = []
        for each in found:
            pair = [each[metric].get(change) for metric in METRICS]
            cells += [bold(cell) if cell else "not run" for cell in pair]
            cells.append(str(pair[0].effect.n) if pair[0] else "0")
        lines.append([words, *cells])
    return grid(lines) + "\n\nBold: the interval excludes zero, n is at least 6. Validation, best epoch."


def _answers(own: Sequence[tuple[str, list[AtRate]]]) -> list[str]:
    """What GCond's update does besides smoothing; of scales with enough seeds."""
    sizes = enough(size for dataset, rates in own for _, size in _step_sizes(rates, dataset))
    told = [line for dataset, rates in own for line in _larger_rate(rates, dataset, ("l1",))]
    if not sizes:
        return []
    return [
        f"**What does its update do?** At the same learning rate its steps are {span(sizes)} times as long as "
        f"Baseline's (RMS; {settings_and_seeds(sizes)}). {' '.join(told)}".rstrip()
    ]


def _training(own: list[AtRate], dataset: str) -> list[str]:
    """What the changes do to the losses that are trained, where there are two rates or one."""
    lines = []
    for each in own:
        if each.best:
            continue
        parts = []
        for change in TRAIN:
            found = [changes(each.evidence, dataset, metric, "train").get(change) for metric in METRICS]
            if all(found):
                parts.append(f"{SHOWN[change.name]}: {', '.join(map(_titled, METRICS.values(), found))}")
        if parts:
            lines.append(f"**Training loss, {each.short}** (mean of the last tenth of the steps): {'; '.join(parts)}.")
    return lines


def _titled(title: str, found: Finding) -> str:
    return f"{title} {bold(found)}"


def _shares(own: list[AtRate], dataset: str) -> list[str]:
    """Where there is a gap to share."""
    lines = []
    for each in own:
        for metric, title in METRICS.items():
            part = share(each.evidence, dataset, metric)
            if part and place(part.effect) != FEW:
                lines.append(f"**{title} {each.words}.** The update alone gives {with_n(part)} of the gap.")
    return lines


def _step_sizes(own: list[AtRate], dataset: str) -> list[tuple[AtRate, Finding]]:
    """RMS of the update's steps over Baseline's, at each rate."""
    sizes = [(each, step_size(each, dataset)) for each in own if not each.best]
    return [(each, Finding("", size, "ratio")) for each, size in sizes if size and size.n]


def step_size(at: AtRate, dataset: str) -> Effect | None:
    """RMS of the update's steps over Baseline's; None where one of them has none recorded."""
    sizes = [per_run(at.evidence.own(at.evidence.steps, dataset, arm), "step_rms_over_lr")
             for arm in (CONTROL, BASELINE)]  # fmt: skip
    return ratio(*sizes) if all(len(size) for size in sizes) else None


def _steps(own: list[AtRate], dataset: str) -> list[str]:
    parts = [f"{with_n(found)} times Baseline's at {each.short}" for each, found in _step_sizes(own, dataset)]
    words = "**The step.** The update makes steps of another size at the same learning rate: their RMS is"
    return [f"{words} {listed(parts)}."] if parts else []


def _larger_rate(own: list[AtRate], dataset: str, metrics: Sequence[str] = tuple(METRICS)) -> list[str]:
    """Baseline at the larger of two rates against everything at the smaller."""
    rates = sorted((each for each in own if not each.best), key=lambda each: each.rate)
    if len(rates) < 2:
        return []
    small, large = rates[0], rates[-1]
    sentences = []
    for metric in metrics:
        title, column = METRICS[metric], f"best_val_{metric}"
        faster = large.evidence.by_seed(dataset, BASELINE)[column]
        base = small.evidence.by_seed(dataset, BASELINE)[column]
        for arm in (BASELINE, STOCHASTIC):
            slower = small.evidence.by_seed(dataset, arm)[column]
            found = in_percent(faster, slower, base)
            if found.n:
                sentences.append(
                    f"Baseline's {title} at {large.short} {against(found)} {arm.label}'s at {small.short} "
                    f"({number(found, '%')}, n = {found.n})"
                )
    return [f"{data(dataset)}: {'; '.join(sentences)}."] if sentences else []


def in_percent(a: pd.Series, b: pd.Series, base: pd.Series) -> Effect:
    found = paired(a, b)
    return found.times(100 / float(base.astype(float).mean())) if len(base) else found

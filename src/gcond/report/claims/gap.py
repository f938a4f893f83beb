"""O1: what makes the gap of Table 2? At every learning rate that was run."""

import math
from dataclasses import replace
from itertools import product

from gcond.report.claims.evidence import BLOCKS, METRICS, Evidence
from gcond.report.claims.factorial import CHANGES, Change, arms_not_run, averages, changes, share
from gcond.report.claims.judge import Answer, Claim, Finding, answer, number
from gcond.report.claims.rates import AtRate, at_best_rates, at_rates, with_rate
from gcond.report.claims.reconstruction import BASELINE
from gcond.report.statistics import FEWEST

KINDS = {
    "gap": "gap",
    "update": "EMA update",
    "resolution": "resolution",
    "mode": "eval mode",
    "window": "per micro-batch",
    "blocks": "a block per task",
    "resolution_alone": "resolution alone",
}
ALONE = next(change for change in CHANGES if change.kind == "update")  # Baseline integrated vs Baseline
STOCHASTIC_IS_TWO = (
    "A stochastic arm differs from an unresolved one in two things: conflicts are resolved, and each task's gradient "
    "comes from its share of the micro-batches only. The sequential arms differ in the first alone; Stochastic "
    "integrated, where it ran, has the second alone."
)


def what_makes_the_gap(evidence: Evidence) -> Answer | None:
    settings = [*at_rates(evidence), *filter(None, [at_best_rates(evidence)])]
    findings, words, shown = [], [], []
    for setting in settings:
        own = {
            (dataset, metric, block): changes(setting.evidence, dataset, metric, block)
            for dataset, metric, block in product(evidence.datasets, METRICS, BLOCKS)
            if setting.evidence.ran(dataset, BASELINE)
        }
        if not any(own.values()):
            continue
        for (dataset, metric, block), found in own.items():
            more = [each.finding for each in averages(setting.evidence, dataset, metric, block).values()]
            part = share(setting.evidence, dataset, metric, block)
            findings += [with_rate(each, setting) for each in [*found.values(), *more, *([part] if part else [])]]
        words += _words(setting, own)
        first = own.get((_first(evidence), "l1", "best_val"), {})
        shown += [
            with_rate(found, setting)
            for change, found in first.items()
            if change == ALONE and not math.isnan(setting.rate)
        ]
    if not findings:
        return None
    words += [STOCHASTIC_IS_TWO, *_lacking(evidence)]
    found = answer(findings, (shown or findings)[0], words, "claims.csv")
    return found and replace(found, beside=tuple(shown[1:]))


def _first(evidence: Evidence) -> str:
    return "ct" if "ct" in evidence.datasets else evidence.datasets[0]


def _words(setting: AtRate, own: dict[tuple[str, str, str], dict[Change, Finding]]) -> list[str]:
    lines = []
    for (dataset, metric, block), found in own.items():
        if block != "best_val" or not found:
            continue
        parts = [
            f"{KINDS[kind]} " + ", ".join(_said(change, each) for change, each in found.items() if change.kind == kind)
            for kind in KINDS
            if any(change.kind == kind for change in found)
        ]
        part = share(setting.evidence, dataset, metric)
        if part:
            said = (
                "not determined, the gap may be zero" if math.isnan(part.effect.low) else number(part.effect, "share")
            )
            parts.append(f"share of GCond stochastic's gap that EMA alone gives: {said}")
        clear = [
            f"{name} {number(each.finding.effect, '%')}"
            for name, each in averages(setting.evidence, dataset, metric).items()
            if " x " in name and each.finding.effect.n >= FEWEST and _excludes_zero(each.finding)
        ]
        interactions = (
            f" Interactions whose interval excludes zero (n >= {FEWEST}): {'; '.join(clear)}." if clear else ""
        )
        lines.append(f"{dataset} {METRICS[metric]}, {setting.words}: {'; '.join(parts)}.{interactions}")
    return lines


def _said(change: Change, found: Finding) -> str:
    return f"({change.name}) {number(found.effect, '%')}, n = {found.effect.n}"


def _excludes_zero(found: Finding) -> bool:
    return found.effect.low > 0 or found.effect.high < 0


def _lacking(evidence: Evidence) -> list[str]:
    lines = []
    for dataset in evidence.datasets:
        arms = arms_not_run(evidence, dataset)
        if arms and evidence.ran(dataset, BASELINE):
            lines.append(f"Arms not run on {dataset} at the scale's rate: {', '.join(arm.label for arm in arms)}.")
    return lines


CLAIMS = (
    Claim(
        "O1",
        "What makes the gap of Table 2: model mode, smoothing (EMA, beta1 = 0) or conflict resolution?",
        "factorial of mode x update x resolution at each learning rate, changes paired by seed, percent of Baseline at "
        "the same rate",
        "make reproduce-o1 SCALE=sample SEEDS=10; make reproduce-o1 SCALE=sample SEEDS=10 MORE=optimizer.lr=2e-4",
        "360 runs at each of two rates, the scale's and the paper's, 5 to 8 minutes each on one core",
        what_makes_the_gap,
        question=True,
    ),
)

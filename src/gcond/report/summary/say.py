"""Words for an interval. They follow from it alone, so that they stay true when the numbers change."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from gcond.report.claims.judge import Finding, number
from gcond.report.lineup import PAPER_RATE
from gcond.report.statistics import FEWEST, Effect

BELOW, ABOVE, OPEN, FEW = "below", "above", "open", "few"


def place(effect: Effect, border: float = 0.0) -> str:
    """Where the interval lies to `border`: BELOW or ABOVE it, OPEN where it contains it, FEW with too few seeds."""
    if effect.n < FEWEST or math.isnan(effect.low) or math.isnan(effect.high):
        return FEW
    if effect.high < border:
        return BELOW
    return ABOVE if effect.low > border else OPEN


def against(effect: Effect) -> str:
    """The verb of a paired difference of losses: "A's loss … B's"."""
    return {
        BELOW: "lies below",
        ABOVE: "lies above",
        OPEN: "cannot be told apart from",
        FEW: "has too few seeds to be told apart from",
    }[place(effect)]


def bold(found: Finding) -> str:
    """The number, in bold where its interval excludes zero and the seeds are enough."""
    text = number(found.effect, found.unit)
    return f"**{text}**" if place(found.effect) in (BELOW, ABOVE) else text


def with_n(found: Finding) -> str:
    """ "-3.1 % [-4.0, -2.2], n = 6"."""
    return f"{number(found.effect, found.unit)}, n = {found.effect.n}"


def enough(findings: Iterable[Finding]) -> list[Finding]:
    """Those with enough seeds for a conclusion."""
    return [found for found in findings if found.effect.n >= FEWEST]


def span(findings: Iterable[Finding]) -> str:
    """One number with its interval; of several the smallest and the largest mean: "8.8 % to 30.9 %"."""
    found = sorted(findings, key=lambda each: each.effect.mean)
    if len(found) == 1:
        return number(found[0].effect, found[0].unit)
    ends = [number(replace(each.effect, low=math.nan, high=math.nan), each.unit) for each in found]
    return ends[0] if ends[0] == ends[-1] else f"{ends[0]} to {ends[-1]}"


def settings_and_seeds(findings: Sequence[Finding]) -> str:
    """ "3 settings, n = 6"."""
    counts = sorted({found.effect.n for found in findings})
    seeds = f"n = {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "")
    return f"{len(findings)} settings, {seeds}" if len(findings) > 1 else seeds


def whether(effect: Effect, region: str) -> str:
    """The answer to "is it BELOW (or ABOVE) zero?"."""
    where = place(effect)
    other = "no, the other way round" if where in (BELOW, ABOVE) else "cannot be told"
    return "yes" if where == region else "too few seeds to tell" if where == FEW else other


def papers(rate: float) -> str:
    """What follows the name of a learning rate."""
    return " (the paper's)" if rate == PAPER_RATE else ""


def listed(parts: list[str]) -> str:
    """ "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def data(dataset: str) -> str:
    """A data set in a sentence."""
    return {"ct": "CT", "photos": "photographs", "imagenet256": "ImageNet"}.get(dataset, dataset)

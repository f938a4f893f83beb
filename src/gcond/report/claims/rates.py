"""The same arms at each learning rate that was run, and each at its best."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import pandas as pd

from gcond.report.claims.evidence import RATE, Evidence, overrides, tune, without
from gcond.report.claims.judge import Finding
from gcond.report.lineup import SCALE_RATES


@dataclass(frozen=True)
class AtRate:
    """`evidence`: its runs and their records, named without the rate. `rate`: nan where it
    is each arm's own best, or not known."""

    evidence: Evidence
    words: str  # "at learning rate 2e-4"
    short: str  # "rate 2e-4"
    rate: float
    own: bool = False  # the scale's
    best: bool = False  # each arm's own

    @property
    def after(self) -> str:
        """What a comparison's name gets, to be told from the same at the scale's own rate."""
        return "" if self.own else f", {self.words}"


def with_rate(finding: Finding, setting: AtRate) -> Finding:
    title, what = finding.about.split(": ", 1)
    return replace(finding, about=f"{title}{setting.after}: {what}")


def written(rate: float) -> str:
    """ "2e-4", as a command has it; "1.25e-4"."""
    mantissa, exponent = f"{rate:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def at_own_rate(evidence: Evidence) -> AtRate:
    rate = SCALE_RATES.get(evidence.scale, math.nan)
    if math.isnan(rate):
        return AtRate(evidence, "at the scale's learning rate", "the scale's rate", rate, own=True)
    words = f"at the scale's learning rate {written(rate)}"
    return AtRate(evidence, words, f"rate {written(rate)}", rate, own=True)


@lru_cache(maxsize=8)
def at_rates(evidence: Evidence) -> list[AtRate]:
    """The scale's own first, then the others by size."""
    rates = {_rate(text) for text in evidence.runs.variant.unique()}
    others = sorted(rate for rate in rates if not math.isnan(rate))
    found = [at_own_rate(evidence)]
    for rate in others:
        number = written(rate)
        found.append(AtRate(_at(evidence, rate), f"at learning rate {number}", f"rate {number}", rate))
    return found


@lru_cache(maxsize=8)
def at_best_rates(evidence: Evidence) -> AtRate | None:
    """None where no arm was run at two rates."""
    best = tune(evidence)
    if best.runs.empty:
        return None
    counts = sorted(set(best.tried.values())) or [2]
    many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    words = f"each arm at the best of its {many} learning rates"
    return AtRate(replace(evidence, runs=best.runs), words, f"best of {many} rates", math.nan, best=True)


def _rate(variant: str) -> float:
    return float(overrides(variant).get(RATE, "nan"))


def _at(evidence: Evidence, rate: float) -> Evidence:
    names = ("runs", "curves", "steps", "probes", "activations", "windows")
    return replace(evidence, **{name: rows_at(getattr(evidence, name), rate) for name in names})


def rows_at(table: pd.DataFrame, rate: float) -> pd.DataFrame:
    """Rows of runs that were told this rate, their `variant` without it."""
    if table.empty:
        return table
    names = {text: without(text, [RATE]) for text in table.variant.unique() if _rate(text) == rate}
    there = table[table.variant.isin(names)]
    return there.assign(variant=there.variant.map(names))

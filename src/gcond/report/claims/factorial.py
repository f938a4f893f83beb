"""O1's factorial: model mode x update x resolution. Every effect is a contrast paired by seed, in percent of Baseline.

A *change* compares two arms that differ in one factor; it needs these two alone, so an incomplete factorial still has
those of the arms that ran, each with its own n. *Average* effects are means of changes, interactions their differences.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product

import pandas as pd

from gcond.report.claims.evidence import METRICS, MODE, TRAINING, WINDOW, Arm, Evidence, column, overrides, variant
from gcond.report.claims.judge import Finding, compare
from gcond.report.claims.reconstruction import BASELINE
from gcond.report.statistics import Effect, paired, ratio

STRATEGY = {  # (resolution, update) -> strategy
    ("none", "adamw"): "baseline",
    ("none", "ema"): "baseline_integrated",
    ("sequential", "adamw"): "gcond_sequential_pure",
    ("sequential", "ema"): "gcond_sequential",
    ("stochastic", "adamw"): "gcond_pure",
    ("stochastic", "ema"): "gcond_stochastic",
}
BLOCKS_ALONE = "stochastic_integrated"  # beside the factorial: stochastic's blocks of micro-batches, nothing resolved
LEVELS = {"mode": ("train", "eval"), "update": ("adamw", "ema"), "resolution": ("none", "sequential", "stochastic")}
CONTRASTS = {  # name -> (factor, from, to)
    "EMA update (beta1 = 0)": ("update", "adamw", "ema"),
    "eval mode": ("mode", "train", "eval"),
    "sequential resolution": ("resolution", "none", "sequential"),
    "stochastic resolution": ("resolution", "none", "stochastic"),
}
SHARE = "share of the gap that EMA alone gives"
Cell = dict[str, str]


def arm(cell: Cell) -> Arm:
    return Arm(STRATEGY[cell["resolution"], cell["update"]], f"{MODE}=eval" if cell["mode"] == "eval" else "")


def micro_batch_arm(mode: str, update: str) -> Arm:
    """The sequential arm that resolves every micro-batch."""
    window = arm({"mode": mode, "update": update, "resolution": "sequential"})
    return Arm(window.strategy, variant(overrides(window.variant) | {WINDOW: "micro_batch"}))


def blocks_arm(mode: str) -> Arm:
    """Each task's gradient from its own block of micro-batches, as of GCond stochastic, and nothing resolved."""
    return replace(arm({"mode": mode, "update": "ema", "resolution": "stochastic"}), strategy=BLOCKS_ALONE)


@dataclass(frozen=True)
class Change:
    """`ours` against `theirs`; `kind`: gap, update, resolution, mode, window, or blocks and resolution_alone, the two
    parts of a stochastic resolution."""

    kind: str
    ours: Arm
    theirs: Arm

    @property
    def name(self) -> str:
        return f"{_named(self.ours)} vs {_named(self.theirs)}"

    @property
    def eval_only(self) -> bool:
        return MODE in self.theirs.variant


def _named(arm: Arm) -> str:
    words = [Arm(arm.strategy).label, *(["eval mode"] if MODE in arm.variant else [])]
    return ", ".join([*words, *(["per micro-batch"] if WINDOW in arm.variant else [])])


def _changes() -> Iterable[Change]:
    """The gap, then one factor at a time, train mode first."""
    for mode, resolution in product(LEVELS["mode"], ("stochastic", "sequential")):
        base = {"mode": mode, "update": "adamw", "resolution": "none"}
        yield Change("gap", arm(base | {"update": "ema", "resolution": resolution}), arm(base))
    for mode, resolution in product(LEVELS["mode"], ("none", "stochastic", "sequential")):
        cell = {"mode": mode, "resolution": resolution}
        yield Change("update", arm(cell | {"update": "ema"}), arm(cell | {"update": "adamw"}))
    for mode, resolution, update in product(LEVELS["mode"], ("stochastic", "sequential"), ("ema", "adamw")):
        cell = {"mode": mode, "update": update}
        yield Change("resolution", arm(cell | {"resolution": resolution}), arm(cell | {"resolution": "none"}))
    for update, resolution in product(LEVELS["update"], ("none", "stochastic", "sequential")):
        cell = {"update": update, "resolution": resolution}
        yield Change("mode", arm(cell | {"mode": "eval"}), arm(cell | {"mode": "train"}))
    for mode, update in product(LEVELS["mode"], LEVELS["update"]):
        window = arm({"mode": mode, "update": update, "resolution": "sequential"})
        yield Change("window", micro_batch_arm(mode, update), window)
    for mode in LEVELS["mode"]:
        cell = {"mode": mode, "update": "ema"}
        unresolved, stochastic = (arm(cell | {"resolution": level}) for level in ("none", "stochastic"))
        yield Change("blocks", blocks_arm(mode), unresolved)
        yield Change("resolution_alone", stochastic, blocks_arm(mode))


CHANGES = tuple(_changes())


def changes(evidence: Evidence, dataset: str, metric: str, block: str = "best_val") -> dict[Change, Finding]:
    """Those whose two arms ran, in percent of Baseline (train mode), which must have run; by common seeds. Of training
    losses those within train mode only."""
    found = {}
    for change in CHANGES:
        if block in TRAINING and MODE in change.ours.variant:
            continue
        if evidence.ran(dataset, change.ours, change.theirs):
            each = compare(evidence, dataset, change.ours, change.theirs, metric, block=block, reference=BASELINE)
            if each.effect.n:
                found[change] = replace(each, about=f"{dataset} {METRICS[metric]}: {change.name}")
    return found


@dataclass(frozen=True)
class Average:
    """`finding`: the mean of `over` changes, or of their differences."""

    finding: Finding
    over: int


def averages(evidence: Evidence, dataset: str, metric: str, block: str = "best_val") -> dict[str, Average]:
    """Of each factor the mean of two changes or more; and interactions: how much larger the first's effect is with the
    second than without."""
    own = _Measured(evidence, dataset, column(block, metric))
    found = {name: own.main(name) for name in CONTRASTS} | {f"{a} x {b}": own.interaction(a, b) for a, b in _pairs()}
    title = f"{dataset} {METRICS[metric]}"
    return {
        name: Average(Finding(f"{title}: {name}, mean of {over}", effect, block=block, remarks=own.remarks), over)
        for name, (effect, over) in found.items()
        if effect.n and (over > 1 or " x " in name)
    }


def share(evidence: Evidence, dataset: str, metric: str, block: str = "best_val") -> Finding | None:
    """Of the gap between Baseline and GCond stochastic (train mode), in percent; Fieller's interval, nan where the gap
    may be zero."""
    effect = _Measured(evidence, dataset, column(block, metric)).share()
    return Finding(f"{dataset} {METRICS[metric]}: {SHARE}", effect, "share", block=block) if effect.n else None


def _pairs() -> Iterable[tuple[str, str]]:
    names = list(CONTRASTS)
    for place, a in enumerate(names):
        yield from ((a, b) for b in names[place + 1 :] if CONTRASTS[a][0] != CONTRASTS[b][0])


class _Measured:
    """One metric of every arm by seed, in percent of Baseline's mean; not of another device than Baseline's."""

    def __init__(self, evidence: Evidence, dataset: str, column: str) -> None:
        self._evidence, self._dataset, self._column = evidence, dataset, column
        self.remarks: tuple[str, ...] = ()
        base = evidence.by_seed(dataset, BASELINE)[column].astype(float)
        self._factor = 100 / float(base.mean())
        cells = [dict(zip(LEVELS, levels, strict=True)) for levels in product(*LEVELS.values())]
        self._values = {_name(cell): self._of(arm(cell)) for cell in cells}

    def _of(self, own: Arm) -> pd.Series:
        values = self._evidence.by_seed(self._dataset, own)[self._column].astype(float)
        dropped, said = self._evidence.comparable(self._dataset, own, BASELINE)
        self.remarks = tuple(dict.fromkeys([*self.remarks, *said]))
        return self._factor * values[~values.index.isin(dropped)]

    def main(self, name: str) -> tuple[Effect, int]:
        factor, low, high = CONTRASTS[name]
        return self._mean(self._step(cell, factor, low, high) for cell in _others(factor))

    def interaction(self, a: str, b: str) -> tuple[Effect, int]:
        (first, *ends), (second, low, high) = CONTRASTS[a], CONTRASTS[b]
        return self._mean(
            self._step(cell | {second: high}, first, *ends) - self._step(cell | {second: low}, first, *ends)
            for cell in _others(first, second)
        )

    def share(self) -> Effect:
        base, ema, gcond = (
            self._values[_name({"mode": "train", "update": update, "resolution": resolution})]
            for update, resolution in (("adamw", "none"), ("ema", "none"), ("ema", "stochastic"))
        )
        gap, part = (base - gcond).dropna(), (base - ema).dropna()
        shared = gap.index.intersection(part.index)
        return replace(ratio(part[shared], gap[shared]), missing=()).times(100)

    def _step(self, cell: Cell, factor: str, low: str, high: str) -> pd.Series:
        return self._values[_name(cell | {factor: high})] - self._values[_name(cell | {factor: low})]

    @staticmethod
    def _mean(contrasts: Iterable[pd.Series]) -> tuple[Effect, int]:
        """Over the levels of the other factors that were run with the most seeds; their common seeds."""
        found = [contrast.dropna() for contrast in contrasts]
        most = max((len(contrast) for contrast in found), default=0)
        full = [contrast for contrast in found if most and len(contrast) == most]
        mean = pd.concat(full, axis=1).dropna().mean(axis=1) if full else pd.Series(dtype=float)
        return paired(mean, 0 * mean), len(full)


def _name(cell: Cell) -> tuple[str, ...]:
    return tuple(cell[factor] for factor in LEVELS)


def _others(*factors: str) -> list[Cell]:
    """Every combination of the factors that are not named."""
    rest = {name: levels for name, levels in LEVELS.items() if name not in factors}
    return [dict(zip(rest, levels, strict=True)) for levels in product(*rest.values())]


def arms_not_run(evidence: Evidence, dataset: str) -> list[Arm]:
    cells = [dict(zip(LEVELS, levels, strict=True)) for levels in product(*LEVELS.values())]
    return [own for cell in cells if not evidence.ran(dataset, own := arm(cell))]

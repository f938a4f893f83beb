"""O1: what makes the gap of Table 2? Model mode x update x resolution, every effect a contrast paired by seed."""

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import product

import pandas as pd

from gcond.report.claims.evidence import BLOCKS, METRICS, MODE, WINDOW, Arm, Evidence, overrides, tune, variant
from gcond.report.claims.judge import Answer, Claim, Finding, answer, number, sweep
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


def what_makes_the_gap(evidence: Evidence) -> Answer | None:
    findings = _study(evidence, "")
    if not findings:
        return None
    words = _words(evidence, findings)
    tuned = tune(evidence)
    if len(tuned.runs):
        own = replace(evidence, runs=tuned.runs)
        best = _study(own, ", each at its best learning rate")
        findings += best
        words += [f"Each arm at its best learning rate. {line}" for line in _words(own, best)]
    own = [
        found for found in findings if found.block == "best_val" and found.about.startswith(f"{_first(evidence)} L1: ")
    ]
    shares = [found for found in own if "share of the gap" in found.about and not math.isnan(found.effect.low)]
    return answer(findings, (shares or own or findings)[0], words, "claims.csv")


def _first(evidence: Evidence) -> str:
    return "ct" if "ct" in evidence.datasets else evidence.datasets[0]


def _study(evidence: Evidence, after: str) -> list[Finding]:
    findings = []
    for dataset, metric, block in product(evidence.datasets, METRICS, BLOCKS):
        if not evidence.ran(dataset, BASELINE):
            continue
        findings += effects(evidence, dataset, metric, block, after).values()
    return findings


def effects(evidence: Evidence, dataset: str, metric: str, block: str, after: str = "") -> dict[str, Finding]:
    """Every effect and interaction that the recorded arms allow, in percent of Baseline, which must have run."""
    own = _Measured(evidence, dataset, f"{block}_{metric}")
    title = f"{dataset} {METRICS[metric]}{after}"
    found = {name: own.main(name) for name in CONTRASTS}
    found |= {f"{a} x {b}": own.interaction(a, b) for a, b in _pairs()}
    found |= own.per_micro_batch()
    findings = {
        name: Finding(f"{title}: {name}", effect, block=block, remarks=own.remarks)
        for name, effect in found.items()
        if effect.n
    }
    share = own.share()
    if share.n:
        findings[SHARE] = Finding(f"{title}: {SHARE}", share, "share", block=block)
    return findings


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

    def main(self, name: str) -> Effect:
        factor, low, high = CONTRASTS[name]
        return self._mean(self._step(cell, factor, low, high) for cell in _others(factor))

    def interaction(self, a: str, b: str) -> Effect:
        """How much larger the effect of `a` is with `b` than without."""
        (first, *ends), (second, low, high) = CONTRASTS[a], CONTRASTS[b]
        return self._mean(
            self._step(cell | {second: high}, first, *ends) - self._step(cell | {second: low}, first, *ends)
            for cell in _others(first, second)
        )

    def per_micro_batch(self) -> dict[str, Effect]:
        """Resolving every micro-batch instead of the window, of the sequential arms."""
        found = {}
        for mode, update in product(LEVELS["mode"], LEVELS["update"]):
            each = micro_batch_arm(mode, update)
            effect = paired(self._of(each), self._values[mode, update, "sequential"])
            if effect.n:
                where = f"{each.strategy}, eval mode" if mode == "eval" else each.strategy
                found[f"per micro-batch instead of per window ({where})"] = effect
        return found

    def share(self) -> Effect:
        """Of the gap between Baseline and GCond stochastic, in percent."""
        base, ema, gcond = (
            self._values[_name({"mode": "train", "update": update, "resolution": resolution})]
            for update, resolution in (("adamw", "none"), ("ema", "none"), ("ema", "stochastic"))
        )
        gap, part = (base - gcond).dropna(), (base - ema).dropna()
        shared = gap.index.intersection(part.index)
        return replace(ratio(part[shared], gap[shared]), missing=()).times(100)

    def gap(self) -> Effect:
        return self._mean(
            [
                self._values[_name({"mode": "train", "update": "ema", "resolution": "stochastic"})]
                - self._values[_name({"mode": "train", "update": "adamw", "resolution": "none"})]
            ]
        )

    def _step(self, cell: Cell, factor: str, low: str, high: str) -> pd.Series:
        return self._values[_name(cell | {factor: high})] - self._values[_name(cell | {factor: low})]

    @staticmethod
    def _mean(contrasts: Iterable[pd.Series]) -> Effect:
        """Over the levels of the other factors that were run with the most seeds; their common seeds."""
        found = [contrast.dropna() for contrast in contrasts]
        most = max((len(contrast) for contrast in found), default=0)
        full = [contrast for contrast in found if most and len(contrast) == most]
        mean = pd.concat(full, axis=1).dropna().mean(axis=1) if full else pd.Series(dtype=float)
        return paired(mean, 0 * mean)


def _name(cell: Cell) -> tuple[str, ...]:
    return tuple(cell[factor] for factor in LEVELS)


def _others(*factors: str) -> list[Cell]:
    """Every combination of the factors that are not named."""
    rest = {name: levels for name, levels in LEVELS.items() if name not in factors}
    return [dict(zip(rest, levels, strict=True)) for levels in product(*rest.values())]


def _words(evidence: Evidence, findings: list[Finding]) -> list[str]:
    lines = []
    for dataset, metric in product(evidence.datasets, METRICS):
        if not evidence.ran(dataset, BASELINE):
            continue
        title = f"{dataset} {METRICS[metric]}"
        own = [found for found in findings if found.block == "best_val" and found.about.startswith(title)]
        named = {found.about.split(": ", 1)[1]: found for found in own}
        mains = [f"{name} {number(named[name].effect, '%')}" for name in CONTRASTS if name in named]
        clear = [
            f"{name} {number(found.effect, '%')}"
            for name, found in named.items()
            if " x " in name and (found.effect.low > 0 or found.effect.high < 0)
        ]
        gap = _Measured(evidence, dataset, f"best_val_{metric}").gap()
        line = f"{title}: {'; '.join(mains)}."
        if any(" x " in name for name in named):
            line += f" Interactions whose interval excludes zero: {'; '.join(clear) or 'none'}."
        share = named.get(SHARE)
        if gap.n and share:
            undetermined = "share not determined, the gap may be zero"
            said = undetermined if math.isnan(share.effect.low) else number(share.effect, "share")
            line += f" Gap of GCond stochastic to Baseline {number(gap, '%')}; EMA alone gives: {said}."
        lines.append(line)
    present = {(found.strategy, found.variant) for found in evidence.runs.itertuples()}
    lacking = [
        own.label
        for levels in product(*LEVELS.values())
        if ((own := arm(dict(zip(LEVELS, levels, strict=True)))).strategy, own.variant) not in present
    ]
    if lacking:
        lines.append(f"Arms not run: {', '.join(lacking)}. Effects are means over the arms that were.")
    return lines


CLAIMS = (
    Claim(
        "O1",
        "What makes the gap of Table 2: model mode, smoothing (EMA, beta1 = 0) or conflict resolution?",
        "factorial of mode x update x resolution, contrasts paired by seed, percent of Baseline",
        sweep(f"strategy={','.join(STRATEGY.values())}", f"{MODE}=train,eval"),
        "240 runs, 5 to 8 minutes each on one core",
        what_makes_the_gap,
        question=True,
    ),
)

"""O8: each method against the front of static weights, and against runs that train one loss only."""

import math
from itertools import product

import pandas as pd

from gcond.report.claims.controls import METHODS, MINUTES, listed
from gcond.report.claims.evidence import METRICS, RATE, Arm, Evidence, overrides
from gcond.report.claims.judge import Answer, Claim, Finding, answer
from gcond.report.claims.reconstruction import BASELINE
from gcond.report.statistics import single

WEIGHTS = ("loss.tasks",)
CONTROL = Arm("baseline_integrated")
ALONE = {metric: Arm("baseline", f"loss={metric}") for metric in METRICS}
SHOWN = ("best_val", "last_val", "best_test")


def against_static(evidence: Evidence) -> Answer | None:
    """Two measures, both in percent: how far ahead of the front of static settings, and Delta-m."""
    ahead, delta = _fronts(evidence), _deltas(evidence)
    words = []
    if ahead:
        words.append("Front: above zero, no static weights were as good in L1 and SSIM at once, by at least this much.")
        words += listed(ahead)
    if delta:
        words.append(
            "Delta-m (Maninis et al. 2019): mean over L1 and 1 - SSIM of the loss against the run that trains this "
            "loss only; above zero the method is worse."
        )
        words += listed(delta)
    return answer([*ahead, *delta], words=words, where="claims.csv")


def _fronts(evidence: Evidence) -> list[Finding]:
    """Per seed: the smallest over static points of the larger of the two gaps, point - method."""
    findings = []
    runs = evidence.runs[evidence.runs.model == evidence.model]
    for dataset in evidence.datasets:
        static = runs[(runs.dataset == dataset) & (runs.strategy == "baseline")]
        static = static[static.variant.map(_is_a_point).astype(bool)]
        weighted = any(set(overrides(text)) & set(WEIGHTS) for text in static.variant)
        if not weighted or not evidence.ran(dataset, BASELINE):
            continue
        means = evidence.by_seed(dataset, BASELINE)
        for arm, block in product((CONTROL, *METHODS), SHOWN):
            if evidence.ran(dataset, arm):
                columns = [f"{block}_{metric}" for metric in METRICS]
                ahead = _ahead(static, evidence.by_seed(dataset, arm), columns, means)
                about = f"{dataset}: {arm.label} ahead of the front of {static.variant.nunique()} static settings"
                findings.append(Finding(about, single(ahead), block=block))
    return findings


def _is_a_point(text: str) -> bool:
    """Of the front: lambdas that sum to 1, at any rate. O9's frozen weights need not."""
    choices = overrides(text)
    lambdas = choices.get("loss.tasks", "{}").strip("{}")
    weights = [float(part.split(":")[1]) for part in lambdas.split(",") if part]
    return set(choices) <= {*WEIGHTS, RATE} and (not weights or math.isclose(sum(weights), 1))


def _ahead(static: pd.DataFrame, own: pd.DataFrame, columns: list[str], base: pd.DataFrame) -> pd.Series:
    found = {}
    for seed in own.index:
        points = static[static.seed == seed]
        if len(points):
            gaps = [100 * (points[name] - own.loc[seed, name]) / base[name].mean() for name in columns]
            found[seed] = float(pd.concat(gaps, axis=1).max(axis=1).min())
    return pd.Series(found, dtype=float)


def _deltas(evidence: Evidence) -> list[Finding]:
    findings = []
    for dataset in evidence.datasets:
        if not evidence.ran(dataset, *ALONE.values()):
            continue
        for arm, block in product((BASELINE, CONTROL, *METHODS), SHOWN):
            if evidence.ran(dataset, arm):
                delta = single(_delta(evidence, dataset, arm, block))
                findings.append(Finding(f"{dataset}: {arm.label}, Delta-m", delta, block=block))
    return findings


def _delta(evidence: Evidence, dataset: str, arm: Arm, block: str) -> pd.Series:
    own = evidence.by_seed(dataset, arm)
    worse = []
    for metric, alone in ALONE.items():
        column = f"{block}_{metric}"
        reference = evidence.by_seed(dataset, alone)[column]
        worse.append(100 * (own[column] - reference) / reference)
    return pd.concat(worse, axis=1).mean(axis=1, skipna=False).dropna()


CLAIMS = (
    Claim(
        "O8",
        "Where does each method lie against the front of static weights, and against single-task runs?",
        "Baseline over lambda_L1 (1 - lambda_SSIM) x learning rate; runs that train one loss only",
        "make reproduce-table2 reproduce-o8 SCALE=sample SEEDS=10",
        f"480 + 40 runs beside Table 2's, {MINUTES}; the rates are mini's (at sample, for o8_weights: "
        "MORE=optimizer.lr=5e-4,1e-3,2e-3)",
        against_static,
        question=True,
    ),
)

"""O7: does a run with a lower reconstruction loss have an encoder of which a linear probe reads more?"""

import math

import pandas as pd
from scipy.stats import spearmanr

from gcond.report.claims.evidence import Evidence
from gcond.report.claims.judge import Answer, Claim, Finding, answer, number
from gcond.report.records import KEY
from gcond.report.statistics import paired, single

TASKS = ("class", "rotation", "height")
FEWEST_RUNS = 5  # of a seed, for a rank correlation over them
READING = (
    "Loss: 0.85 L1 + 0.15 (1 - SSIM) on test after the last epoch, the epoch of the probed weights. Its rank "
    f"correlation (Spearman) with the probe's test score is taken over the runs of a seed (at least {FEWEST_RUNS}), "
    "which share initial weights and images, then averaged over seeds: below zero, a lower loss goes with a better "
    "representation."
)


def better(evidence: Evidence) -> Answer | None:
    findings = [
        found for dataset in evidence.datasets for task in TASKS for found in measured(evidence, dataset, task).values()
    ]
    if not findings:
        return None
    words = [f"{found.about} {number(found.effect, found.unit)}." for found in findings]
    words += [READING, "Where no encoder beats its own initial weights and the pixels, the probe says nothing of it."]
    return answer(findings, words=words, where="linear_probe.csv")


def measured(evidence: Evidence, dataset: str, task: str) -> dict[str, Finding]:
    """By what it is: the correlation, and what training adds to the untrained encoder and to pixels."""
    rows = probed(evidence, dataset, task)
    if rows.empty:
        return {}
    by_seed = rows.groupby("seed")[["test_score", "untrained_test", "pixels_test"]].mean()
    about = f"{dataset}, {task}:"
    found = {
        "correlation": Finding(f"{about} rank correlation of loss and score", single(correlations(rows)), "correlation")
    }
    if not found["correlation"].effect.n:
        found = {}
    for control, name in (("untrained", "its own initial weights"), ("pixels", "pixels")):
        difference = paired(by_seed.test_score, by_seed[f"{control}_test"])
        found[control] = Finding(f"{about} score of the trained encoder less that of {name}", difference, "difference")
    return found


def probed(evidence: Evidence, dataset: str, task: str) -> pd.DataFrame:
    """Probed runs that are on record too, with their `loss`."""
    table = evidence.linear_probe
    if table.empty:
        return table
    own = table[(table.dataset == dataset) & (table.task == task) & (table.model == evidence.model)]
    runs = evidence.runs[[*KEY, "hash", "last_test_l1", "last_test_ssim"]]
    rows = own.merge(runs, on=[*KEY, "hash"])
    return rows.assign(loss=0.85 * rows.last_test_l1.astype(float) + 0.15 * rows.last_test_ssim.astype(float))


def correlations(rows: pd.DataFrame) -> pd.Series:
    """By seed; a seed with too few runs, or whose runs all score the same, is left out."""
    found = {}
    for seed, own in rows.groupby("seed"):
        if len(own) >= FEWEST_RUNS and own.test_score.nunique() > 1 and own.loss.nunique() > 1:
            found[seed] = float(spearmanr(own.loss, own.test_score).statistic)
    return pd.Series({seed: value for seed, value in found.items() if not math.isnan(value)}, dtype=float)


CLAIMS = (
    Claim(
        "O7",
        "Does lower reconstruction loss mean a better representation?",
        "linear probes on the frozen encoders of finished runs: rotation on every data set, slice height on CT, class "
        "on labelled ImageNet-256",
        "make reproduce-o7 SCALE=sample SEEDS=10",
        "Table 2's runs with their checkpoints, then 5 seconds a run; for a meaning, more than ten patients or labels",
        better,
        question=True,
    ),
)

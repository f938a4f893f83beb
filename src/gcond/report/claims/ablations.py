"""A1 and A2: GCond's own parameters, changed one at a time."""

import pandas as pd

from gcond.report.claims.evidence import BLOCKS, METRICS, Arm, Evidence, overrides, per_run, without
from gcond.report.claims.judge import Answer, Claim, Finding, compare, judge
from gcond.report.statistics import REGIONS, paired

RESOLVER = "strategy.conductor.resolver."
THRESHOLDS = f"{RESOLVER}thresholds"
FAST = "-1,-0.4,0.1"
EARLY = 1 / 3  # of the epochs
BEST = {  # key -> what A2 says of it, and values that it holds for equally good as the default
    f"{RESOLVER}remap_power": ("remap power 2", ()),
    "strategy.conductor.update.beta": ("momentum .9", ()),
    f"{RESOLVER}dominance_window": ("dominance window 0 or 3", ("3",)),
    f"{RESOLVER}tie_breaking_weights": ("uneven arbitration weights", ()),
}
ITERATIONS = f"{RESOLVER}projection_max_iters"
COMMAND = "make reproduce-ablations SCALE=sample SEEDS=10"
NEEDS = "two cores, 5 minutes a run; a setting in which the critical zone is reached, else most of them do nothing"
WHERE = "claims.csv"


def thresholds(evidence: Evidence) -> Answer | None:
    findings, words = [], []
    fast_ran = False
    for dataset, arm in ablated(evidence, THRESHOLDS):
        default = Arm(arm.strategy)
        findings += _default_is_best(evidence, dataset, arm)
        if _numbers(overrides(arm.variant)[THRESHOLDS]) == _numbers(FAST) and len(evidence.curves):
            fast_ran = True
            early = [_early(evidence, dataset, each) for each in (arm, default)]
            effect = paired(*early)
            base = float(early[1].mean())
            about = f"{dataset} L1 in the first third of the epochs: thresholds ({FAST}) vs default"
            findings.append(Finding(about, effect.times(100 / base), region=REGIONS["lower"]))
        words += _reached(evidence, dataset, default)
    missing = [] if fast_ran else [f"thresholds ({FAST}), early"]
    return judge(findings, missing, list(dict.fromkeys(words)), WHERE)


def others(evidence: Evidence) -> Answer | None:
    findings, missing, words = [], [], []
    for key, (name, as_good) in BEST.items():
        arms = [(dataset, arm) for dataset, arm in ablated(evidence, key) if overrides(arm.variant)[key] not in as_good]
        if not arms:
            missing.append(name)
        for dataset, arm in arms:
            findings += _default_is_best(evidence, dataset, arm)
            words += _reached(evidence, dataset, Arm(arm.strategy))
    for dataset, arm in ablated(evidence, ITERATIONS):
        found = [compare(evidence, dataset, arm, Arm(arm.strategy), metric) for metric in METRICS]
        numbers = ", ".join(
            f"{METRICS[metric]} {each.effect.mean:+.1f} %" for metric, each in zip(METRICS, found, strict=True)
        )
        words.append(f"Iterations {overrides(arm.variant)[ITERATIONS]} against 3 on {dataset}: {numbers}.")
    return judge(findings, missing, list(dict.fromkeys(words)), WHERE)


def ablated(evidence: Evidence, key: str, rest: str = "") -> list[tuple[str, Arm]]:
    """(data set, arm) of every GCond run that differs from its default in `key` alone, where the default ran; all of
    them with the overrides `rest`."""
    runs = evidence.runs[evidence.runs.strategy.str.startswith("gcond") & evidence.runs.dataset.isin(evidence.datasets)]
    names = runs[["dataset", "strategy", "variant"]].drop_duplicates().itertuples(index=False)
    found = [
        (d, Arm(s, v))
        for d, s, v in names
        if key in overrides(v) and without(v, [key]) == rest and evidence.ran(d, Arm(s, rest), Arm(s, v))
    ]
    return sorted(found, key=lambda pair: (pair[0], pair[1].strategy, pair[1].variant))


def _default_is_best(evidence: Evidence, dataset: str, arm: Arm) -> list[Finding]:
    return [
        compare(evidence, dataset, Arm(arm.strategy), arm, metric, "lower", block=block)
        for metric in METRICS
        for block in BLOCKS
    ]


def _early(evidence: Evidence, dataset: str, arm: Arm) -> pd.Series:
    rows = evidence.own(evidence.curves, dataset, arm)
    return rows[rows.epoch <= EARLY * rows.epoch.max()].groupby("seed").val_l1.mean()


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.strip("[]").split(",")]


def _reached(evidence: Evidence, dataset: str, arm: Arm) -> list[str]:
    rows = evidence.own(evidence.steps, dataset, arm)
    zones = [per_run(rows, f"zone_{zone}").mean() for zone in ("main", "critical")]
    if any(pd.isna(zone) for zone in zones):
        return []
    return [
        f"{arm.label} on {dataset} was in the main zone {zones[0]:.3f} and in the critical zone {zones[1]:.3f} times a "
        "step; outside them winner, dominance and the critical threshold change nothing."
    ]


CLAIMS = (
    Claim(
        "A1",
        f"Thresholds (-.8, -.5, 0) are best in the long run, ({FAST}) is faster early",
        "final losses of the default against each other choice; L1 in the first third of the epochs",
        COMMAND,
        NEEDS,
        thresholds,
    ),
    Claim(
        "A2",
        "Remap power 2, momentum .9, dominance window 0 or 3, uneven arbitration weights are best; iterations 1 to 4",
        "final losses of the default against each other choice, one parameter at a time",
        COMMAND,
        NEEDS,
        others,
    ),
)

"""O6 and O10: how often there is a conflict, how strong it is, and how much of its resolution is left in the step."""

import pandas as pd

from gcond.report.claims.evidence import Arm, Evidence, per_run
from gcond.report.claims.judge import Answer, Claim, Finding, answer, number
from gcond.report.claims.reconstruction import STOCHASTIC
from gcond.report.lineup import STRATEGIES
from gcond.report.statistics import single

GROUPS = ("all", "encoder", "body", "head")
ZONES = ("weak", "main", "critical")
FREQUENCIES = (
    "A conflict: a negative cosine of accumulated gradients, of the steps where it was measured; of methods that "
    "resolve every micro-batch, a negative cosine in any micro-batch of the window. Correction: "
    "length of resolved less plain sum, in percent of the plain sum, median and mean over bins. Zones: iterations a "
    "step."
)
NEEDS = "200 runs, Table 2's, 5 to 8 minutes each on one core; steps and probes are recorded with every run"


def how_often(evidence: Evidence) -> Answer | None:
    findings, words = [], []
    for dataset, arm in trained(evidence, evidence.steps):
        own = frequencies(evidence, dataset, arm)
        findings += own.values()
        said = "; ".join(f"{name} {number(found.effect, found.unit)}" for name, found in own.items())
        words.append(f"{dataset}, {arm.label}: {said}.")
    shown = [found for found in findings if found.about.startswith(f"ct, {STOCHASTIC.label}: steps with")]
    words.append(FREQUENCIES)
    return answer(findings, (shown or findings or [None])[0], words, "steps.csv")


def frequencies(evidence: Evidence, dataset: str, arm: Arm) -> dict[str, Finding]:
    """What steps.csv knows of it: how often, how much, in which zones; FREQUENCIES says of what."""
    rows = evidence.own(evidence.steps, dataset, arm)
    parts = {
        "steps with a conflict": (100 * per_run(rows, "conflicts", "cosine_steps"), "share"),
        "steps that were resolved": (100 * per_run(rows, "resolved"), "share"),
        "median correction": (100 * _median(rows, "correction"), "share"),
        "mean correction": (100 * per_run(rows, "correction"), "share"),
        **{f"times in the {zone} zone": (per_run(rows, f"zone_{zone}"), "number") for zone in ZONES},
    }
    return {
        name: Finding(f"{dataset}, {arm.label}: {name}", single(values), unit)
        for name, (values, unit) in parts.items()
        if values.notna().any()
    }


def how_strong(evidence: Evidence) -> Answer | None:
    findings, words = [], []
    for dataset, arm in trained(evidence, evidence.probes):
        for group in GROUPS:
            own = cosines(evidence, dataset, arm, group)
            if own:
                findings += own.values()
                said = "; ".join(f"{title} {number(found.effect, 'cosine')}" for title, found in own.items())
                words.append(f"{dataset}, {arm.label}, {group}: cosine {said}.")
    for dataset, arm in trained(evidence, evidence.steps):
        left = survival(evidence, dataset, arm)
        if left:
            findings.append(left)
            words.append(f"{left.about} {number(left.effect, 'cosine')}.")
    shown = [found for found in findings if found.about.startswith("ct") and "all: cosine between" in found.about]
    return answer(findings, (shown or findings or [None])[0], words, "probes.csv, steps.csv")


def cosines(evidence: Evidence, dataset: str, arm: Arm, group: str) -> dict[str, Finding]:
    """Of a parameter group: between the tasks, and of each with itself; means over a run's probes."""
    rows = evidence.own(evidence.probes, dataset, arm)
    values = rows.groupby(["name", "seed"]).value.mean() if len(rows) else pd.Series(dtype=float)
    names = set(values.index.get_level_values("name")) if len(values) else set()
    return {
        title: Finding(f"{dataset}, {arm.label}, {group}: cosine {title}", single(values[name]), "cosine")
        for title, name in probed(names, group).items()
    }


def probed(names: set[str], group: str) -> dict[str, str]:
    """Of the probes' `names` those of a group's cosines, by what they are."""
    tasks = sorted(name.split("/")[1] for name in names if name.startswith("self_cosine/") and _of(name, group))
    wanted = {
        "between tasks, shared samples": f"cosine/{group}",
        "between tasks, disjoint samples": f"cosine_disjoint/{group}",
        **{f"{task} with itself on other samples": f"self_cosine/{task}/{group}" for task in tasks},
    }
    return {title: name for title, name in wanted.items() if name in names}


def survival(evidence: Evidence, dataset: str, arm: Arm) -> Finding | None:
    left = per_run(evidence.own(evidence.steps, dataset, arm), "cosine_step_resolved")
    about = f"{dataset}, {arm.label}: cosine of the resolved gradient and the step taken"
    return Finding(about, single(left), "cosine") if left.notna().any() else None


def _of(name: str, group: str) -> bool:
    return name.split("/")[2:] == [group]


def _median(rows: pd.DataFrame, column: str) -> pd.Series:
    if rows.empty or column not in rows:
        return pd.Series(dtype=float)
    return rows.groupby("seed")[column].median()


def trained(evidence: Evidence, table: pd.DataFrame) -> list[tuple[str, Arm]]:
    """Data sets and strategies without overrides that `table` has, in the order of Table 2."""
    if table.empty:
        return []
    plain = table[(table.variant == "") & (table.model == evidence.model)]
    names = set(zip(plain.dataset, plain.strategy, strict=True))
    order = [*STRATEGIES, *sorted({strategy for _, strategy in names} - set(STRATEGIES))]
    return [(d, Arm(s)) for d in sorted(set(plain.dataset), reverse=True) for s in order if (d, s) in names]


CLAIMS = (
    Claim(
        "O6",
        "How often does GCond change anything at all?",
        "share of steps with a conflict, share resolved, size of the correction, zones reached",
        "make reproduce-o6 SCALE=sample SEEDS=10",
        NEEDS,
        how_often,
        question=True,
    ),
    Claim(
        "O10",
        "How strong is the conflict, against the same task on other samples; how much of the resolved direction "
        "survives the optimizer?",
        "cosine between tasks per group of parameters beside each task's split-half cosine; cosine of resolved "
        "gradient and step",
        "make reproduce-o10 SCALE=sample SEEDS=10",
        NEEDS,
        how_strong,
        question=True,
    ),
)

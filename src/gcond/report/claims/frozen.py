"""O9: a method's time-averaged implied weights as static ones: what of its gain do they keep (Gama & Grassi)?

A method writes d = sum_i w_i lambda_i g_i at every step; steps.csv has w_i, not normalised, of methods that resolve
every micro-batch their mean. The static run has lambda_i times the mean of w_i over steps and seeds as its lambdas, and
the method's own update: AdamW (.9, .95) for the peers and GCond pure, EMA inside with beta1 = 0 for GCond.

One setting for all seeds, from all of them: it is what somebody would set, it is a mean of training runs that no score
has chosen, and an arm needs one name. Leaving one seed out would give every seed another arm.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import pandas as pd

from gcond.engine.run_state import PAPER_WEIGHTS as LAMBDAS
from gcond.report.claims.controls import MINUTES, listed
from gcond.report.claims.evidence import BLOCKS, METRICS, Arm, Evidence, overrides, per_run
from gcond.report.claims.judge import Answer, Claim, Finding, answer, compare
from gcond.report.claims.reconstruction import BASELINE, CAGRAD, GRADNORM, PCGRAD, SEQUENTIAL, STOCHASTIC
from gcond.report.statistics import ratio

INTEGRATED = Arm("baseline_integrated")
UPDATES = {  # method -> what trains with its update and resolves nothing
    STOCHASTIC: INTEGRATED,
    SEQUENTIAL: INTEGRATED,
    Arm("gcond_pure"): BASELINE,
    CAGRAD: BASELINE,
    GRADNORM: BASELINE,
    PCGRAD: BASELINE,
}
DIGITS = 3  # significant, of a static lambda: the same average always gives the same run
NEAR = 0.01  # an arm on record whose lambdas are all so close stands for the average, so that seeds may be added
READING = (
    "Kept: (Baseline - frozen) / (Baseline - method), 1 if nothing is lost; with Fieller's interval, and without one "
    "where the method may not differ from Baseline at all. AdamW hardly sees a factor that all weights share (clipping "
    "at 50 and its epsilon aside), so the ratio of the two counts. Where the mean weights give the lambdas again, "
    f"within {NEAR:.0%}, the frozen run is the one that resolves nothing with the same update. Frozen runs show every "
    "micro-batch to both tasks, as Baseline does; stochastic GCond shows it to one."
)
LEFT_OUT = "GradDrop has no such weights, and GCond lion another optimizer: both are left out."


@dataclass(frozen=True)
class Frozen:
    """`weights`: by seed, a column per task; `arm`: the static run, on record or still to be made."""

    dataset: str
    method: Arm
    weights: pd.DataFrame
    arm: Arm

    @property
    def lambdas(self) -> dict[str, float]:
        found = lambdas_of(self.arm)
        assert found is not None
        return found

    @property
    def unchanged(self) -> bool:
        """Nothing to train: the mean weights are 1, within `NEAR`."""
        return not self.arm.variant


def frozen(evidence: Evidence, dataset: str, method: Arm) -> Frozen | None:
    """None where the method has not run, or its weights are not on record."""
    rows = evidence.own(evidence.steps, dataset, method)
    if rows.empty:
        return None
    rows = rows.assign(steps=rows.last_step - rows.first_step + 1)
    weights = pd.DataFrame({task: per_run(rows, f"weight_{task}", "steps") for task in LAMBDAS}).dropna()
    if weights.empty:
        return None
    wanted = {task: LAMBDAS[task] * float(weights[task].mean()) for task in LAMBDAS}
    base = UPDATES[method]
    recorded = evidence.runs[(evidence.runs.dataset == dataset) & (evidence.runs.strategy == base.strategy)]
    arms = {Arm(base.strategy, text) for text in recorded.variant[recorded.model == evidence.model]}
    near = {arm: distance for arm in {base, *arms} if (distance := _distance(lambdas_of(arm), wanted)) <= NEAR}
    arm = min(near, key=lambda each: (near[each], each.variant)) if near else static(base, wanted)
    return Frozen(dataset, method, weights, arm)


def static(base: Arm, lambdas: dict[str, float]) -> Arm:
    """`base` with these lambdas, to `DIGITS` significant digits."""
    return Arm(
        base.strategy, f"loss.tasks={{{','.join(f'{task}:{value:.{DIGITS}g}' for task, value in lambdas.items())}}}"
    )


def lambdas_of(arm: Arm) -> dict[str, float] | None:
    """None for an arm that differs by more than its lambdas, or trains one task."""
    changed = overrides(arm.variant)
    if not changed:
        return LAMBDAS
    if set(changed) != {"loss.tasks"}:
        return None
    found = json.loads(re.sub(r"(\w+):", r'"\1":', changed["loss.tasks"]))
    return {task: float(found[task]) for task in LAMBDAS} if set(found) == set(LAMBDAS) else None


def _distance(lambdas: dict[str, float] | None, wanted: dict[str, float]) -> float:
    """The largest relative difference of a task's."""
    return max(abs(lambdas[task] / wanted[task] - 1) for task in wanted) if lambdas else float("inf")


def averages(evidence: Evidence, datasets: Iterable[str]) -> list[Frozen]:
    found = [frozen(evidence, dataset, method) for dataset in datasets for method in UPDATES]
    return [each for each in found if each is not None]


def sweeps(found: Sequence[Frozen]) -> list[str]:
    """Overrides for `gcond.sweep`, a line for each data set and update, of the static runs that a question needs."""
    settings: dict[tuple[str, str], list[str]] = {}
    for each in found:
        if not each.unchanged:
            values = settings.setdefault((each.dataset, each.arm.strategy), [])
            values.append(overrides(each.arm.variant)["loss.tasks"])
    return [
        f"dataset={dataset} strategy={strategy} loss.tasks={','.join(dict.fromkeys(values))}"
        for (dataset, strategy), values in settings.items()
    ]


def kept(evidence: Evidence, each: Frozen, metric: str, block: str = "best_val") -> Finding:
    """The share of the method's difference to Baseline that the frozen run has too."""
    column = f"{block}_{metric}"
    out = set().union(*(evidence.comparable(each.dataset, arm, BASELINE)[0] for arm in (each.method, each.arm)))
    base, method, static_run = (
        evidence.by_seed(each.dataset, arm)[column].drop(list(out), errors="ignore").astype(float)
        for arm in (BASELINE, each.method, each.arm)
    )
    share = ratio(base - static_run, base - method)
    share = replace(share, mean=share.mean + 0.0)  # not -0.00
    about = f"{each.dataset} {METRICS[metric]}: {each.method.label}, share of its difference to Baseline that is kept"
    return Finding(about, share, "ratio", block=block)


def differs(evidence: Evidence, each: Frozen, metric: str, block: str = "best_val") -> Finding:
    found = compare(evidence, each.dataset, each.arm, each.method, metric, block=block)
    about = f"{each.dataset} {METRICS[metric]}: frozen vs {each.method.label}"
    return Finding(about, found.effect, block=block, remarks=found.remarks)


def left(evidence: Evidence) -> Answer | None:
    found = averages(evidence, evidence.datasets)
    ran = [each for each in found if evidence.ran(each.dataset, each.arm, each.method, BASELINE)]
    shares = [kept(evidence, each, metric, block) for each in ran for metric, block in product(METRICS, BLOCKS)]
    differences = [differs(evidence, each, metric, block) for each in ran for metric, block in product(METRICS, BLOCKS)]
    words = [f"{weighed(each)}." for each in ran]
    words += [*listed(differences), *listed(shares), READING, LEFT_OUT]
    if absent := [f"{each.method.label} on {each.dataset}" for each in found if each not in ran]:
        words.append(f"Not run: {', '.join(absent)} (make reproduce-o9).")
    return answer([*shares, *differences], words=words, where="steps.csv, claims.csv")


def weighed(each: Frozen) -> str:
    """ "ct: CAGrad weighs L1 0.454, 1 - SSIM 1.08; frozen as Baseline (loss.tasks=…)" """
    weights = ", ".join(f"{METRICS[task]} {each.weights[task].mean():.3g}" for task in LAMBDAS)
    return f"{each.dataset}: {each.method.label} weighs {weights}; frozen as {each.arm.label}"


CLAIMS = (
    Claim(
        "O9",
        "Freeze a method's time-averaged implied weights and train with those: how much of its gain is left?",
        "runs with frozen average weights and the method's update, against the method and Baseline",
        "make reproduce-o9 SCALE=sample SEEDS=10",
        f"Table 2's runs, and at most 6 settings more a data set, 10 runs each, {MINUTES}",
        left,
        question=True,
    ),
)

"""C1: three tasks of which two contradict each other. How each method divides the trade-off, and how much conflict."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import pandas as pd

from gcond.report.claims.conflict import frequencies
from gcond.report.claims.controls import MINUTES
from gcond.report.claims.evidence import TASKS, Arm, Evidence, overrides, per_run, variant
from gcond.report.claims.judge import Answer, Claim, Finding, answer, compare, number
from gcond.report.lineup import TRIVIAL
from gcond.report.statistics import Effect, paired, single

Losses = TypeVar("Losses", float, pd.Series)
LAMBDAS = {"l1": 0.35, "ssim": 0.15, "flipped": 0.5}  # of conf/loss/l1_ssim_flipped.yaml
LOSS = "l1_ssim_flipped"
STRENGTH, WINDOW = "loss.reconstruction.flip_strength", "scale.accumulation_steps"
FULL = 1.0  # the loss's own strength
METHODS = ("baseline", "baseline_integrated", "pcgrad", "cagrad", "gradnorm", "graddrop", "mgda", "upgrad",
           "gcond_sequential", "gcond_stochastic", "gcond_pure")  # fmt: skip
SHOWN = ("best_val", "last_val", "best_test")
UNRESOLVED = "baseline_integrated"  # GCond's update, with no task gradient looked at
RESOLVING = ("gcond_sequential", "gcond_stochastic")


@dataclass(frozen=True)
class Regime:
    """`settings`: strength -> `variant` of runs.csv, all of one window; `others`: variants with another window."""

    settings: Mapping[float, str]
    others: tuple[str, ...] = ()

    @property
    def full(self) -> str:
        return self.settings.get(FULL, variant({"loss": LOSS}))


def regime(evidence: Evidence) -> Regime:
    """The runs with a flipped target; of several windows that with most runs, of equals the largest."""
    counts: dict[str, int] = {}
    found: dict[str, dict[float, str]] = {}
    for text, runs in evidence.runs[evidence.runs.model == evidence.model].groupby("variant"):
        chosen = overrides(str(text))
        if chosen.get("loss") == LOSS and set(chosen) <= {"loss", STRENGTH, WINDOW}:
            window = chosen.get(WINDOW, "")
            counts[window] = counts.get(window, 0) + len(runs)
            found.setdefault(window, {})[float(chosen.get(STRENGTH, FULL))] = str(text)
    if not found:
        return Regime({})
    best = max(counts, key=lambda window: (counts[window], float(window or 0)))
    others = tuple(text for window, texts in found.items() if window != best for text in texts.values())
    return Regime(dict(sorted(found[best].items())), others)


def ran(evidence: Evidence, dataset: str, text: str) -> list[Arm]:
    """Baseline first."""
    return [arm for arm in (Arm(name, text) for name in METHODS) if evidence.ran(dataset, arm)]


def relative(
    evidence: Evidence, dataset: str, arm: Arm, weights: Mapping[str, float], block: str, other: str = "baseline"
) -> Finding:
    """The weighted sum of the losses less that of `other`, a strategy, by seed, in percent of the other's mean."""
    base = Arm(other, arm.variant)
    dropped, remarks = evidence.comparable(dataset, arm, base)

    def total(own: Arm) -> pd.Series:
        runs = evidence.by_seed(dataset, own)
        runs = runs[~runs.index.isin(dropped)]
        return weighted({task: runs[f"{block}_{task}"] for task in weights}, weights)

    effect = paired(total(arm), total(base))
    return Finding("", effect.times(100 / float(total(base).mean())), block=block, remarks=tuple(remarks))


def weighted(losses: Mapping[str, Losses], weights: Mapping[str, float] = LAMBDAS) -> Losses:
    """The weighted sum; with the lambdas what every method is to minimise."""
    return sum((weight * losses[task] for task, weight in weights.items()), 0.0)


def mean_image(recorded: pd.DataFrame, dataset: str, block: str) -> dict[str, float]:
    """Losses of the predictor that says the mean of the training set everywhere, which is 0 in z-space: as far from the
    inverted image as from the image. `recorded`: runs.csv; nothing where it lacks the predictor."""
    rows = recorded[(recorded.dataset == dataset) & (recorded.strategy == f"{TRIVIAL}dataset_mean")]
    found = {task: float(rows[f"{block}_{task}"].iloc[0]) for task in ("l1", "ssim") if len(rows)}
    return found | {"flipped": found["l1"]} if found else {}


def delta(evidence: Evidence, dataset: str, arm: Arm, block: str = "best_val", other: str = "baseline") -> Finding:
    """Mean over the three losses of the change against `other`, in percent of the other's mean: above 0 is worse."""
    base = evidence.by_seed(dataset, Arm(other, arm.variant))
    shares = {task: 1 / float(base[f"{block}_{task}"].mean()) for task in LAMBDAS}
    found = relative(evidence, dataset, arm, shares, block, other)
    return replace(found, about=f"{dataset}: {_versus(arm, other)}, mean over three losses")


def changes(
    evidence: Evidence, dataset: str, arm: Arm, block: str = "best_val", other: str = "baseline"
) -> dict[str, Finding]:
    """Of each loss, and of their sum with the lambdas, which is what Baseline minimises; in percent of the other's."""
    base = Arm(other, arm.variant)
    found = {task: compare(evidence, dataset, arm, base, task, block=block) for task in LAMBDAS}
    found["sum"] = relative(evidence, dataset, arm, LAMBDAS, block, other)
    titles = TASKS | {"sum": "weighted sum"}
    about = _versus(arm, other)
    return {key: replace(each, about=f"{dataset} {titles[key]}: {about}") for key, each in found.items()}


def measures(evidence: Evidence, dataset: str, arm: Arm, block: str, other: str) -> dict[str, Finding]:
    """All that is told of a pair: `delta` as "mean", and `changes`."""
    return {
        "mean": delta(evidence, dataset, arm, block, other),
        **changes(evidence, dataset, arm, block, other),
    }


def arm_name(arm: Arm) -> str:
    return Arm(arm.strategy).label


def _versus(arm: Arm, other: str) -> str:
    return f"{arm_name(arm)} vs {Arm(other).label}"


def resolving(evidence: Evidence, dataset: str, text: str) -> list[Arm]:
    """GCond's arms whose update ran without resolution too."""
    if not evidence.ran(dataset, Arm(UNRESOLVED, text)):
        return []
    return [arm for arm in (Arm(name, text) for name in RESOLVING) if evidence.ran(dataset, arm)]


def cosine(evidence: Evidence, dataset: str, arm: Arm) -> dict[str, Effect]:
    """Of the most opposed two tasks: in the method's own steps, and on probed images, the same for all methods."""
    steps, probes = (evidence.own(table, dataset, arm) for table in (evidence.steps, evidence.probes))
    found = {"own": per_run(steps, "cosine_mean", "cosine_steps")}
    for title, name in (("shared", "cosine/all"), ("disjoint", "cosine_disjoint/all")):
        rows = probes[probes.name == name] if len(probes) else probes
        found[title] = per_run(rows, "value")
    return {title: single(values) for title, values in found.items() if values.notna().any()}


def conflicted(evidence: Evidence) -> Answer | None:
    where = regime(evidence)
    deltas, detailed, often, words = [], [], [], []
    for dataset in evidence.datasets:
        arms = ran(evidence, dataset, where.full)
        if Arm("baseline", where.full) not in arms:
            continue
        for arm in arms:
            if arm.strategy != "baseline":
                means, each = _measured(evidence, dataset, arm, "baseline")
                deltas += means.values()
                detailed += [found for own in each.values() for found in own.values()]
                told = (f"{found.about.split(':')[0].removeprefix(f'{dataset} ')} {number(found.effect, '%')}"
                        for found in each["best_val"].values())  # fmt: skip
                mean = means["best_val"]
                words.append(
                    f"{mean.about} {number(mean.effect, '%')} ({'; '.join(told)}); on test {_on_test(means, each)}."
                )
        for arm in resolving(evidence, dataset, where.full):
            means, each = _measured(evidence, dataset, arm, UNRESOLVED)
            detailed += [*means.values(), *(found for own in each.values() for found in own.values())]
            mean, total = means["best_val"], each["best_val"]["sum"]
            words.append(
                f"The same update with nothing resolved: {mean.about} {number(mean.effect, '%')}, weighted sum "
                f"{number(total.effect, '%')}; on test {_on_test(means, each)}."
            )
        for arm in arms:
            found = frequencies(evidence, dataset, arm).get("steps with a conflict")
            if found:
                often.append(replace(found, about=f"{dataset}: {arm_name(arm)}, steps with a conflict"))
    if not deltas:
        return None
    if often:
        words.append("; ".join(f"{found.about} {number(found.effect, 'share')}" for found in often) + ".")
    words.append(
        "Change of each loss and, first, their mean, in percent of Baseline's; above zero is worse than Baseline. A "
        "method that gives one task more has to take it from another: read the three changes and the weighted sum "
        "beside the mean."
    )
    shown = ([found for found in deltas if "GCond stochastic" in found.about] or deltas)[-len(SHOWN) :]
    tested = next(found for found in shown if found.block == "best_test")
    found = answer([*deltas, *detailed, *often], shown[0], words, "claims.csv, tables/conflict.md")
    return found and replace(found, beside=(replace(tested, about=f"{tested.about}, on test"),))


def _measured(
    evidence: Evidence, dataset: str, arm: Arm, other: str
) -> tuple[dict[str, Finding], dict[str, dict[str, Finding]]]:
    """By block of SHOWN: the mean over the losses; each loss and the weighted sum."""
    found = {block: measures(evidence, dataset, arm, block, other) for block in SHOWN}
    return {block: own.pop("mean") for block, own in found.items()}, found


def _on_test(means: Mapping[str, Finding], each: Mapping[str, Mapping[str, Finding]]) -> str:
    mean, total = means["best_test"], each["best_test"]["sum"]
    return f"mean {number(mean.effect, '%')}, weighted sum {number(total.effect, '%')}"


CLAIMS = (
    Claim(
        "C1",
        "Where tasks do conflict, does arbitration help?",
        "three tasks, L1, 1 - SSIM and L1 to the inverted image, against Baseline with the same lambdas",
        "make reproduce-conflict SCALE=sample SEEDS=10",
        f"220 + 150 runs, {MINUTES}, half as long again each, since the window holds 6 micro-batches",
        conflicted,
        question=True,
    ),
)

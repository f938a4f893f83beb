"""B1: with classification as a third task, top-1 accuracy and reconstruction of GCond against the others."""

from dataclasses import replace
from itertools import product

from gcond.report.claims.evidence import BLOCKS, Arm, Evidence, overrides, without
from gcond.report.claims.judge import Answer, Finding, compare, judge, number
from gcond.report.claims.tradeoff import WINDOW, arm_name
from gcond.report.statistics import single

LOSS = "l1_ssim_class"
LABELS, GROUP = "loss.labels", "strategy.conductor.resolver.group"
TURNS = 4
OURS = ("gcond_stochastic", "gcond_sequential")
OTHERS = ("baseline", "pcgrad", "cagrad", "gradnorm")
DIRECTIONS = {"top1": "higher", "l1": "lower", "ssim": "lower"}
STAND_IN = (
    "Rotation stands in for the class: each image is turned by k x 90 degrees, k is its class, and all tasks see the "
    f"turned image. Chance is {100 / TURNS:.0f} % top-1. It says nothing about ImageNet's classes."
)


def leads(evidence: Evidence) -> Answer | None:
    """Of data sets with recorded labels those, else the stand-in, which can contradict the claim but not confirm it."""
    texts = _variants(evidence)
    kinds = {overrides(text).get(LABELS, "rotation") for text in texts}
    kind = "dataset" if "dataset" in kinds else "rotation"
    findings: list[Finding] = []
    missing, levels = [], []
    for dataset in evidence.datasets:
        arms = _arms(evidence, dataset, [text for text in texts if overrides(text).get(LABELS, "rotation") == kind])
        pairs = [(arms[a], arms[b]) for a, b in product(OURS, OTHERS) if a in arms and b in arms]
        if not pairs:
            continue
        missing += [f"{arm_name(Arm(name))} on {dataset}" for name in (*OURS, *OTHERS) if name not in arms]
        findings += [
            replace(found, about=f"{found.about.split(': ')[0]}: {arm_name(ours)} vs {arm_name(theirs)}")
            for ours, theirs in pairs
            for metric, direction in DIRECTIONS.items()
            for block in BLOCKS
            for found in [compare(evidence, dataset, ours, theirs, metric, direction, block=block)]
        ]
        reached = {name: single(100 * evidence.by_seed(dataset, arm).best_val_top1) for name, arm in arms.items()}
        told = (f"{arm_name(Arm(name))} {number(effect, 'share')}" for name, effect in reached.items())
        levels.append(f"{dataset}, top-1 on validation: {'; '.join(told)}.")
    if kind == "rotation":
        missing.append("ImageNet's own classes (loss.labels=dataset)")
    return judge(findings, missing, [*levels, *([STAND_IN] if kind == "rotation" else [])], "claims.csv")


def _variants(evidence: Evidence) -> list[str]:
    """With this loss, of the window that most runs have, whatever the group that GradNorm watches."""
    runs = evidence.runs[evidence.runs.model == evidence.model]
    known = {"loss", LABELS, WINDOW, GROUP}
    own = runs[[overrides(text).get("loss") == LOSS and set(overrides(text)) <= known for text in runs.variant]]
    if own.empty:
        return []
    windows = own.variant.map(lambda text: overrides(text).get(WINDOW, ""))
    return sorted(set(own.variant[windows == windows.mode().max()]))


def _arms(evidence: Evidence, dataset: str, texts: list[str]) -> dict[str, Arm]:
    plain = [text for text in texts if GROUP not in overrides(text)]
    watching = [text for text in texts if without(text, [GROUP]) in plain and text not in plain]
    return {
        name: Arm(name, text)
        for name in (*OURS, *OTHERS)
        for text in (watching if name == "gradnorm" else plain)
        if evidence.ran(dataset, Arm(name, text))
    }

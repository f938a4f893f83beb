"""O2 to O5: the controls that critics of such comparisons ask for."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

from gcond.report import precision
from gcond.report.claims.evidence import BLOCKS, METRICS, RATE, WINDOW, Arm, Evidence, overrides, tune
from gcond.report.claims.judge import Answer, Claim, Finding, answer, compare, number
from gcond.report.claims.reconstruction import BASELINE, CAGRAD, GRADNORM, PCGRAD, SEQUENTIAL, STOCHASTIC
from gcond.report.records import read_csv
from gcond.report.statistics import single

DECAY = "optimizer.build.weight_decay"
BATCH = ("scale.micro_batch", "scale.accumulation_steps")
BUFFERS = ("strategy.conductor.buffer_dtype", "strategy.conductor.reference_dtype")
PEERS = (PCGRAD, CAGRAD, GRADNORM)
METHODS = (*PEERS, Arm("graddrop"), SEQUENTIAL, STOCHASTIC, Arm("gcond_pure"), Arm("gcond_lion"))
CONTROL = Arm("baseline_integrated")
MINUTES = "5 to 8 minutes a run on one core"


def tuned(evidence: Evidence) -> Answer | None:
    """Every method at its best of the rates (and weight decays) tried for it, against Baseline at its best."""
    best = tune(evidence, (RATE, DECAY))
    own = replace(evidence, runs=best.runs)
    findings = [
        _differs(own, dataset, arm, BASELINE, metric, block, "each tuned")
        for dataset in own.datasets
        for arm in (STOCHASTIC, SEQUENTIAL, CONTROL, *(arm for arm in METHODS if arm not in (STOCHASTIC, SEQUENTIAL)))
        if own.ran(dataset, arm, BASELINE)
        for metric, block in product(METRICS, BLOCKS)
    ]
    counts = sorted(set(best.tried.values()))
    words = [*listed(findings), "The setting is chosen on validation: read the test numbers (claims.csv)."]
    if counts:
        equal = "settings tried for each method" if len(counts) == 1 else "settings for a method: budgets differ"
        words.append(f"{' to '.join(map(str, dict.fromkeys([counts[0], counts[-1]])))} {equal}.")
    if best.at_the_edge:
        words.append(f"Best rate at an end of the grid, so not found: {', '.join(best.at_the_edge)}.")
    return answer(findings, words=words, where="claims.csv")


def accumulate_first(evidence: Evidence) -> Answer | None:
    """Peers that resolve once per window, and peers with Lion/LARS, against themselves as published."""
    runs, findings = evidence.runs, []
    for dataset in evidence.datasets:
        for arm in (*PEERS, Arm("graddrop"), BASELINE):
            variants = sorted(set(runs[(runs.strategy == arm.strategy) & (runs.dataset == dataset)].variant))
            for text in variants:
                changed = overrides(text)
                windowed = set(changed) == {WINDOW} and changed[WINDOW] == "window"
                if (windowed or "LionLARS" in text) and evidence.ran(dataset, arm):
                    name = "once per window" if windowed else "with Lion/LARS"
                    findings += [
                        _differs(evidence, dataset, Arm(arm.strategy, text), arm, metric, block, name)
                        for metric, block in product(METRICS, BLOCKS)
                    ]
        if findings and evidence.ran(dataset, STOCHASTIC, Arm("gcond_lion")):
            findings += [
                _differs(evidence, dataset, Arm("gcond_lion"), STOCHASTIC, metric, block, "with Lion/LARS")
                for metric, block in product(METRICS, BLOCKS)
            ]
    return answer(findings, words=listed(findings), where="claims.csv")


def small_batches(evidence: Evidence) -> Answer | None:
    return _same_change(evidence, lambda changed: bool(changed) and set(changed) <= set(BATCH))


def buffers(evidence: Evidence) -> Answer | None:
    """The same method with other buffers than float32."""
    runs, findings = evidence.runs, []
    named = runs[["dataset", "strategy", "variant"]].drop_duplicates().sort_values(["dataset", "strategy", "variant"])
    for dataset, strategy, text in named.itertuples(index=False):
        if set(overrides(text)) and set(overrides(text)) <= set(BUFFERS) and evidence.ran(dataset, Arm(strategy)):
            findings += [
                _differs(evidence, dataset, Arm(strategy, text), Arm(strategy), metric, block, "bfloat16 or float32")
                for metric, block in product(METRICS, BLOCKS)
            ]
    return answer(findings, words=listed(findings), where="claims.csv, ../bench/precision.md")


def buffers_in_one_step(results: Path) -> Answer | None:
    """What bfloat16 buffers change in a step, all else equal; not what they change in the end."""
    path = results / "bench" / "precision.csv"
    if not path.exists():
        return None
    rows = read_csv(path, precision.COLUMNS, precision.KEY)
    findings, words = [], []
    for form in ("bfloat16 buffers", precision.ORDER[0]):
        own = rows[rows.form == form]
        for (dataset, strategy, mode), each in own.groupby(["dataset", "strategy", "mode"]):
            about = f"{dataset}, {Arm(strategy).label}, {mode} mode: distance of what is written from float32's, {form}"
            findings.append(Finding(about, single(100 * each.set_index("seed").written), "share"))
        if len(own):
            low, high = 100 * own.written.min(), 100 * own.written.max()
            words.append(
                f"{form[0].upper()}{form[1:]}: the arbitration is float32's in {own.same.sum()} of {own.steps.sum()} "
                f"steps, what is written is {low:.2g} to {high:.2g} % away (median over steps)."
            )
    worst = max(findings[: len(findings) // 2], key=lambda found: found.effect.mean, default=None)
    found = answer(findings, worst, words, "../bench/precision.md")
    devices = " and ".join(sorted(set(rows.device)))
    return found and replace(found, source=f"single steps: {devices}")


def _same_change(evidence: Evidence, chosen: Callable[[dict[str, str]], bool]) -> Answer | None:
    """Methods against Baseline under the same change of settings."""
    findings = []
    for dataset in evidence.datasets:
        texts = sorted({text for text in evidence.runs.variant if chosen(overrides(text))})
        for text, arm in product(texts, (STOCHASTIC, SEQUENTIAL, CONTROL)):
            ours, theirs = Arm(arm.strategy, text), Arm("baseline", text)
            if evidence.ran(dataset, ours, theirs):
                findings += [
                    _differs(evidence, dataset, ours, theirs, metric, block, "")
                    for metric, block in product(METRICS, BLOCKS)
                ]
    return answer(findings, words=listed(findings), where="claims.csv")


def _differs(evidence: Evidence, dataset: str, ours: Arm, theirs: Arm, metric: str, block: str, how: str) -> Finding:
    found = compare(evidence, dataset, ours, theirs, metric, block=block)
    about = f"{found.about} ({how})" if how else found.about
    return Finding(about, found.effect, block=block, remarks=found.remarks)


def listed(findings: list[Finding], most: int = 12) -> list[str]:
    own = [found for found in findings if found.block == "best_val"]
    texts = [f"{found.about} {number(found.effect, found.unit)}" for found in own if not math.isnan(found.effect.mean)]
    more = f"; and {len(texts) - most} more (claims.csv)" if len(texts) > most else ""
    return [f"{'; '.join(texts[:most])}{more}."] if texts else []


CLAIMS = (
    Claim(
        "O2",
        "Is the gap still there when every method gets the same tuning budget for the learning rate?",
        "each method at its best of the same grid, chosen on validation, against Baseline at its best",
        "make reproduce-o2 SCALE=sample SEEDS=10 MORE=optimizer.lr=1.25e-4,2.5e-4,5e-4,1e-3,2e-3,4e-3,8e-3",
        f"4620 runs, {MINUTES}: days on many cores; a part of it: MORE='optimizer.lr=5e-4,1e-3,2e-3 "
        "optimizer.build.weight_decay=0.05'",
        tuned,
        question=True,
    ),
    Claim(
        "O3",
        "Do the peers gain as much from accumulating first, and from Lion/LARS?",
        "peers resolved once per window and with Lion/LARS, against themselves as published",
        "make reproduce-table2 reproduce-o3 SCALE=sample SEEDS=10",
        f"460 runs, {MINUTES}",
        accumulate_first,
        question=True,
    ),
    Claim(
        "O4",
        "Does GCond work at small effective batches?",
        "GCond against Baseline at the same smaller micro-batch or window",
        "make reproduce-o4 SCALE=sample SEEDS=10",
        f"200 runs, {MINUTES}",
        small_batches,
        question=True,
    ),
    Claim(
        "O5",
        "bf16 or fp32 accumulators: does it matter?",
        "the same method with bfloat16 buffers, paired by seed",
        "make reproduce-o5 SCALE=sample SEEDS=10",
        f"80 runs, {MINUTES}",
        buffers,
        buffers_in_one_step,
        question=True,
    ),
)

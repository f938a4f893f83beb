"""M1 and M2: what training holds in memory. From the plans in results/bench/memory.csv: exact, so without interval."""

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from gcond.report.claims.judge import Answer, Claim, Finding, weakest
from gcond.report.memory import GROWS, MIB
from gcond.report.records import read_table
from gcond.report.statistics import CONTRADICTED, HOLDS, UNDECIDED, Effect

NEEDED = {"budget", "model", "strategy", "form", "graph", "tasks", "accumulation_steps", "micro_batch", "peak", "one"}
GRAPH = "kept"  # through every task's backward pass, as the paper applies the peers
OURS, PEERS = "gcond_stochastic", ("pcgrad", "cagrad", "gradnorm")
BATCH = 70  # that GCond runs at, in the paper
WHERE = "../bench/memory.md"
SOURCE = "planned for CUDA"
COMMAND = "make bench-memory"
NEEDS = "nothing but time: memory is planned, without a GPU"


def fixed_whatever_the_window(results: Path) -> Answer | None:
    plans = _plans(results)
    if plans.empty:
        return None
    plain = plans[(plans.budget == "") & (plans.form == "")]
    ours = plain[(plain.strategy == OURS) & (plain.graph == "freed")]
    first, second, words = [], [], []
    said: dict[str, list[str]] = {}
    for model, rows in ours[ours.tasks == 2].groupby("model"):
        windows = rows.set_index("accumulation_steps").peak.astype(float)
        if len(windows) > 1:
            spread = 100 * (windows.max() / windows.min() - 1)
            steps = ", ".join(map(str, sorted(windows.index)))
            about = f"{OURS}, {model}: peak over K = {steps}, largest against smallest"
            first.append(_exact(about, spread, spread < GROWS))
    plain = plain[plain.model.isin(plain[plain.tasks == 3].model)]  # others are planned for two tasks alone
    grown = _growth(plain[(plain.strategy == OURS) & (plain.graph == "freed")])
    for peer in PEERS:
        rows = plain[plain.strategy == peer]
        own = _growth(rows[rows.graph == GRAPH])
        if own is None or grown is None:
            continue
        about = f"{peer}: growth of the peak from 2 to 3 tasks"
        second.append(_exact(about, own.percent, own.percent >= GROWS and own.bytes > grown.bytes))
        freed = _growth(rows[rows.graph == "freed"])
        said.setdefault(f"{own}" + (f", {freed} if the graph is freed" if freed else ""), []).append(peer)
    if said:
        grew = "; ".join(f"{', '.join(peers)} {growth}" for growth, peers in said.items())
        words = [
            f"A third task, graph kept for all tasks: {grew}; GCond stochastic {grown}. Growth counts from "
            f"{GROWS:.0f} % of the peak, as for K, and if it is more than GCond's."
        ]
    findings = [*first, *second]
    if not findings:
        return None
    lacking = [] if first and len(second) == len(PEERS) else ["a part of the plans"]
    halves = [f"The first half {_half(first)}, the second {_half(second)}."]
    lines = (*halves, *words, *_missing(lacking))
    return Answer(_all(findings, lacking), tuple(findings), weakest(findings), lines, WHERE, SOURCE)


def _half(findings: list[Finding]) -> str:
    if not findings:
        return "is not planned"
    held = sum(found.given == HOLDS for found in findings)
    return "holds" if held == len(findings) else f"holds in {held} of {len(findings)}" if held else "does not hold"


def base_in_16_gb(results: Path) -> Answer | None:
    plans = _plans(results)
    if plans.empty:
        return None
    rows = plans[(plans.model == "convnextv2_base") & (plans.budget == "16GB")]
    ours = rows[rows.strategy == OURS]
    peers = rows[rows.strategy.isin(["pcgrad", "cagrad"]) & (rows.form == "")]
    if ours.empty or peers.empty:
        return None
    largest = ours.micro_batch.max()
    largest = 0.0 if pd.isna(largest) else float(largest)
    fail = bool(peers.micro_batch.isna().any())
    lowest, highest = peers.one.min() / 1e9, peers.one.max() / 1e9
    findings = [
        _exact(f"largest micro-batch of GCond stochastic in 16 GB (paper {BATCH})", largest, largest >= BATCH),
        _exact("largest peak of PCGrad or CAGrad at micro-batch 1, GB", highest, fail),
    ]
    words = (
        f"PCGrad and CAGrad at micro-batch 1 need {lowest:.1f} to {highest:.1f} GB over data, sizes, precisions and "
        f"how long the graph lives; they {'fail in one of these' if fail else 'fit'}. GCond's largest micro-batch is "
        f"{largest:.0f}.",
    )
    shown = [Finding(found.about, found.effect, "number", given=found.given) for found in findings]
    return Answer(_all(findings, []), tuple(shown), shown[0], words, WHERE, SOURCE)


def _plans(results: Path) -> pd.DataFrame:
    path = results / "bench" / "memory.csv"
    if not path.exists():
        return pd.DataFrame()
    text = ["budget", "form", "graph"]
    words = (*text, "model", "dataset", "precision", "strategy", "passes", "versions", "commit")
    plans = read_table(path, words, NEEDED, dtype=dict.fromkeys(text, str))
    plans[text] = plans[text].fillna("")
    return plans


@dataclass(frozen=True)
class Growth:
    percent: float
    bytes: float

    def __str__(self) -> str:
        return f"{self.percent:+.1f} % ({self.bytes / MIB:,.0f} MB)"


def _growth(rows: pd.DataFrame) -> Growth | None:
    """Of the peak from two tasks to three, at the largest window."""
    peaks = rows.sort_values("accumulation_steps").groupby("tasks").peak.last()
    if not {2, 3} <= set(peaks.index):
        return None
    return Growth(100 * (peaks[3] / peaks[2] - 1), float(peaks[3] - peaks[2]))


def _exact(about: str, value: float, holds: bool) -> Finding:
    return Finding(about, Effect(1, value, math.nan, math.nan, math.nan), given=HOLDS if holds else CONTRADICTED)


def _all(findings: list[Finding], lacking: list[str]) -> str:
    if any(found.given == CONTRADICTED for found in findings):
        return CONTRADICTED
    return UNDECIDED if lacking else HOLDS


def _missing(lacking: list[str]) -> list[str]:
    return [f"Not planned: {', '.join(lacking)}."] if lacking else []


CLAIMS = (
    Claim(
        "M1",
        "GCond's peak memory is one backward pass plus fixed buffers, whatever K; the peers' grows with the tasks",
        "planned peak against K and the number of tasks; measured on CUDA where there is one",
        COMMAND,
        NEEDS,
        elsewhere=fixed_whatever_the_window,
    ),
    Claim(
        "M2",
        "ConvNeXtV2-Base in 16 GB: PCGrad and CAGrad fail at batch 1, GCond runs at 70",
        "planned peak and largest micro-batch; capped memory on CUDA where there is one",
        COMMAND,
        NEEDS,
        elsewhere=base_in_16_gb,
    ),
)

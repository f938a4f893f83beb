"""results/bench/table3.csv and table4.csv: what a training step costs, as recorded by scripts/bench_throughput.py.

A row is one comparison: `ratio` is seconds per image of `method` over that of `against`, taken in the same rounds: the
median and its 95 % bootstrap interval. Rows of one setting (`SETTING`) were measured together. MB are 2^20 bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from gcond.report import paper_throughput as paper
from gcond.report.records import read_csv

_TEXT, _WHOLE, _TRUTH, _REAL = str, "Int64", "boolean", "float64"
COLUMNS: dict[str, object] = {
    **dict.fromkeys(["device", "precision", "batches", "cap", "model", "dataset"], _TEXT),
    **dict.fromkeys(["image_size", "patch_size", "accumulation_steps"], _WHOLE),
    **dict.fromkeys(["method", "against"], _TEXT),
    **dict.fromkeys(["micro_batch", "rounds"], _WHOLE),  # no micro_batch: none fits
    **dict.fromkeys(["ratio", "ratio_low", "ratio_high", "step_seconds", "measured_mb"], _REAL),
    "planned_micro_batch": _WHOLE,  # of planned_mb; on the CPU at the paper's shapes, not at the row's
    "planned_mb": _REAL,
    **dict.fromkeys(["versions", "commit"], _TEXT),
    "dirty": _TRUTH,
    "started": _TEXT,
}
SETTING = [
    "device",
    "precision",
    "batches",  # "1" for all alike, or OWN_BATCHES
    "cap",
    "model",
    "dataset",
    "image_size",
    "patch_size",
    "accumulation_steps",
]
KEY = [*SETTING, "method", "against"]
OWN_BATCHES = "each its largest"

METHODS = {
    "plain": "plain PyTorch loop (no conductor; control)",
    "baseline": "Baseline",
    "cagrad": "CAGrad",
    "gradnorm": "GradNorm",
    "pcgrad": "PCGrad",
    "gcond_stochastic": "GCond stochastic",
    "gcond_sequential": "GCond sequential (shared forward)",
    "gcond_sequential_per_task": "GCond sequential (a forward per task, as published)",
}
PEERS = ("cagrad", "gradnorm", "pcgrad")
SEQUENTIAL = ("gcond_sequential", "gcond_sequential_per_task")
MODELS = {"mobilenetv3_small": "MobileNetV3-Small", "convnext_tiny": "ConvNeXt-Tiny"}
DATASETS = {"imagenet256": "ImageNet", "ct": "CT"}  # in the order of the page


@dataclass(frozen=True)
class Section:
    """The rows that were measured together: those against Baseline by method, and all by (method, against)."""

    table: str
    setting: dict[str, object]
    rows: dict[str, pd.Series]
    pairs: dict[tuple[str, str], pd.Series]

    @property
    def on_cpu(self) -> bool:
        return str(self.setting["device"]).startswith("CPU")

    @property
    def rounds(self) -> int:
        return min(int(row.rounds) for row in self.pairs.values())

    @property
    def own_batches(self) -> bool:
        return self.setting["batches"] == OWN_BATCHES

    @property
    def missing(self) -> list[str]:
        return [method for method in METHODS if method not in self.rows]

    @property
    def paper(self) -> dict[str, paper.Cost]:
        return paper.of(self.table, str(self.setting["dataset"]))


def read(table: str, csv: Path) -> pd.DataFrame:
    """Recorded rows of "table3" or "table4". Raises ValueError where there are none."""
    recorded = read_csv(csv, COLUMNS, KEY) if csv.exists() else pd.DataFrame()
    if recorded.empty:
        raise ValueError(f"nothing to report: expected recorded rows in {csv}, found none; run make reproduce-{table}")
    return recorded


def sections(table: str, recorded: pd.DataFrame) -> Iterator[Section]:
    """CPU after CUDA, data sets in the paper's order.

    Raises ValueError for rows without Baseline, or of a method that is not known.
    """
    order = {name: place for place, name in enumerate(DATASETS)}
    ordered = recorded.assign(_cpu=recorded.device.str.startswith("CPU"), _place=recorded.dataset.map(order))
    ordered = ordered.sort_values(["_cpu", "device", "precision", "batches", "_place", "image_size"], kind="stable")
    for values, own in ordered.groupby(SETTING, sort=False):
        setting = dict(zip(SETTING, values, strict=True))
        pairs = {(row.method, row.against): row for _, row in own.iterrows()}
        found = {method for method, _ in pairs}
        if not found <= set(METHODS) or ("baseline", "baseline") not in pairs:
            raise ValueError(
                f"`method` in the rows of {table} for {setting}: expected baseline and others of {', '.join(METHODS)}, "
                f"found {', '.join(sorted(found))}; remove these rows and measure them again"
            )
        rows = {method: pairs[method, "baseline"] for method in METHODS if (method, "baseline") in pairs}
        yield Section(table, setting, rows, pairs)

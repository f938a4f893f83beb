"""What the claims are judged by: the recorded tables of one scale, and those that belong to no scale."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from gcond.report import lineup, records
from gcond.report.paper import COUNTERPART
from gcond.report.records import COLUMNS, KEY, frame, read_csv, read_table

SCALES = ("paper", "sample_gpu", "sample", "mini", "smoke")  # the largest first
BLOCKS = {"best_val": "validation, best epoch", "last_val": "validation, last epoch", "best_test": "test"}
TRAINING = {"train": "training, last tenth"}  # of the steps; in the model's mode, so not between modes
METRICS = {"l1": "L1", "ssim": "1 - SSIM"}
TASKS = METRICS | {"flipped": "flipped"}  # with a target that contradicts the image
CLASSES = METRICS | {"class": "cross-entropy", "top1": "top-1"}  # with classification
MODE = "strategy.model_mode"
RATE = "optimizer.lr"
WINDOW = "strategy.conductor.estimator.resolve_every"
LABELS = lineup.STRATEGIES | {"gcond_sequential_pure": "GCond sequential pure", "gcond_as_pcgrad": "GCond-as-PCGrad"}
LABELS |= {"mgda": "MGDA", "upgrad": "UPGrad", "stochastic_integrated": "Stochastic integrated"}
TEXT = [name for name in KEY if name != "seed"]
TABLES: dict[str, Mapping[str, object]] = {
    "curves": records.CURVE_COLUMNS,
    "steps": records.STEP_COLUMNS,
    "probes": records.PROBE_COLUMNS,
    "activations": records.ACTIVATION_COLUMNS,
    "windows": records.WINDOW_COLUMNS,
    "linear_probe": records.LINEAR_PROBE_COLUMNS,
}


@dataclass(frozen=True)
class Arm:
    """One way to train; `variant` as in runs.csv."""

    strategy: str
    variant: str = ""

    @property
    def label(self) -> str:
        name = LABELS.get(self.strategy, self.strategy).split(" (")[0]
        return f"{name} ({self.variant})" if self.variant else name


@dataclass(frozen=True, eq=False)  # equal to itself alone, so that what is made of it can be kept
class Evidence:
    """Recorded tables of one scale; a table that is not there is empty. `runs` holds finished runs only."""

    scale: str
    model: str  # of Table 2: the paper's, or the only one that was run
    runs: pd.DataFrame
    curves: pd.DataFrame
    steps: pd.DataFrame
    probes: pd.DataFrame
    activations: pd.DataFrame
    windows: pd.DataFrame
    linear_probe: pd.DataFrame

    @property
    def datasets(self) -> list[str]:
        """That have a counterpart in the paper, photographs first."""
        return [name for name in sorted(COUNTERPART, reverse=True) if name in set(self.runs.dataset)]

    def own(self, table: pd.DataFrame, dataset: str, arm: Arm) -> pd.DataFrame:
        """Rows of `table` that belong to one arm."""
        if table.empty:
            return table
        same = (table.dataset == dataset) & (table.strategy == arm.strategy) & (table.variant == arm.variant)
        return table[same & (table.model == self.model)]

    @cached_property
    def _arms(self) -> dict[tuple[str, str, str], pd.DataFrame]:
        own = self.runs[self.runs.model == self.model].set_index("seed").sort_index()
        return dict(iter(own.groupby(["dataset", "strategy", "variant"])))

    @cached_property
    def _none(self) -> pd.DataFrame:
        return self.runs.iloc[:0].set_index("seed")

    @property
    def most_seeds(self) -> int:
        """Of one arm."""
        return max(map(len, self._arms.values()), default=0)

    def by_seed(self, dataset: str, arm: Arm) -> pd.DataFrame:
        """Finished runs of one arm, indexed by seed."""
        return self._arms.get((dataset, arm.strategy, arm.variant), self._none)

    def ran(self, dataset: str, *arms: Arm) -> bool:
        return all((dataset, arm.strategy, arm.variant) in self._arms for arm in arms)

    @cached_property
    def _origins(self) -> dict[tuple[str, str, str], dict[int, tuple[str, int | None, str]]]:
        """Device, steps and commit of every run, by arm and seed."""
        return {
            name: {
                seed: (device, None if pd.isna(steps) else int(steps), commit)
                for seed, device, steps, commit in zip(rows.index, rows.device, rows.steps, rows["commit"], strict=True)
            }
            for name, rows in self._arms.items()
        }

    def comparable(self, dataset: str, ours: Arm, theirs: Arm, same_length: bool = True) -> tuple[set[int], list[str]]:
        """Seeds whose two runs cannot be compared, and remarks: another device or length, or other commits."""
        a, b = (self._origins.get((dataset, arm.strategy, arm.variant), {}) for arm in (ours, theirs))
        found: dict[str, set[int]] = {}
        for seed in set(a) & set(b):
            (device, steps, commit), (other_device, other_steps, other_commit) = a[seed], b[seed]
            if device and other_device and device != other_device:
                found.setdefault("dropped: runs on different devices", set()).add(seed)
            elif same_length and steps is not None and other_steps is not None and steps != other_steps:
                found.setdefault("dropped: runs of different length", set()).add(seed)
            elif commit != other_commit:
                found.setdefault("of runs from different commits, kept", set()).add(seed)
        remarks = [
            f"{len(seeds)} {'pair' if len(seeds) == 1 else 'pairs'} {what} ({ours.label}, {theirs.label})"
            for what, seeds in sorted(found.items(), key=lambda item: (item[0].startswith("of"), item[0]))
        ]
        dropped = set().union(*(seeds for what, seeds in found.items() if what.startswith("dropped")))
        return dropped, remarks


def per_run(table: pd.DataFrame, column: str, weight: str | None = None) -> pd.Series:
    """Mean of a column of steps.csv or probes.csv over a run's rows, by seed; rows without a number do not count."""
    if table.empty or column not in table:
        return pd.Series(dtype=float)
    rows = table[table[column].notna()]
    if weight is None:
        return rows.groupby("seed")[column].mean()
    weights = rows[weight].fillna(0.0).astype(float)
    total = weights.groupby(rows.seed).sum()
    return (rows[column] * weights).groupby(rows.seed).sum() / total.where(total > 0)


def column(block: str, metric: str) -> str:
    """Of runs.csv; `block` of BLOCKS or TRAINING."""
    return f"train_{metric}_tail" if block in TRAINING else f"{block}_{metric}"


def overrides(variant: str) -> dict[str, str]:
    """ "a=1,b=[2,3]" -> {"a": "1", "b": "[2,3]"}; commas in brackets do not separate."""
    parts, depth, start = [], 0, 0
    for place, sign in enumerate(variant):
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and depth == 0:
            parts.append(variant[start:place])
            start = place + 1
    parts = [*parts, variant[start:]] if variant else []
    return dict(part.lstrip("+~").split("=", 1) if "=" in part else (part, "") for part in parts)


def variant(choices: dict[str, str]) -> str:
    return ",".join(sorted(f"{name}={value}" for name, value in choices.items()))


def as_table2(text: str) -> bool:
    """Nothing but the learning rate differs from Table 2's runs."""
    return set(overrides(text)) <= {RATE}


def without(text: str, keys: Iterable[str]) -> str:
    return variant({name: value for name, value in overrides(text).items() if name not in set(keys)})


def score(runs: pd.DataFrame) -> pd.Series:
    """What chooses an epoch, and a learning rate: the paper's weights, on validation."""
    return 0.85 * runs.best_val_l1 + 0.15 * runs.best_val_ssim


@dataclass(frozen=True)
class Tuned:
    """`runs` of every arm at its best setting of those tried, under the arm's name without that setting."""

    runs: pd.DataFrame
    tried: dict[tuple[str, str], int]  # (dataset, strategy) -> settings tried, of the arm without other overrides
    at_the_edge: list[str]  # arms whose best learning rate is the smallest or largest tried, so not found


def tune(evidence: Evidence, keys: Sequence[str] = (RATE,)) -> Tuned:
    """Choose per arm by the mean score over seeds; arms with fewer than two settings are left out."""
    runs = evidence.runs[evidence.runs.model == evidence.model]
    kept, tried, edge = [], {}, []
    rest = runs.variant.map(lambda text: without(text, keys))
    for (dataset, strategy, arm), own in runs.groupby([runs.dataset, runs.strategy, rest]):
        most = own.groupby("variant").seed.nunique().max()
        full = own.groupby("variant").filter(lambda rows, most=most: rows.seed.nunique() == most)
        means = score(full).groupby(full.variant).mean()
        if len(means) < 2:
            continue
        best = str(means.idxmin())
        kept.append(full[full.variant == best].assign(variant=arm))
        if not arm:
            tried[dataset, strategy] = len(means)
        own_rate = lineup.SCALE_RATES.get(evidence.scale, math.nan)
        rates = {name: float(overrides(name).get(RATE, own_rate)) for name in means.index}
        if len(set(rates.values())) > 1 and rates[best] in (min(rates.values()), max(rates.values())):
            edge.append(f"{Arm(strategy, arm).label} on {dataset}")
    return Tuned(pd.concat(kept) if kept else runs.iloc[:0], tried, edge)


def table2_model(models: Iterable[str]) -> str:
    """Of the runs of a scale: the paper's, or the only one that was run."""
    names = set(models)
    return names.pop() if len(names) == 1 else lineup.PAPER_MODEL


def read(results: Path, scale: str) -> Evidence:
    """Raises ValueError for a table that lacks a column of the key."""
    folder = results / scale
    runs = read_csv(folder / "runs.csv") if (folder / "runs.csv").exists() else frame([], COLUMNS)
    done = runs[(runs.status == "done") & ~runs.strategy.str.startswith(lineup.TRIVIAL) & runs.seed.notna()]
    tables = [_table(folder / f"{name}.csv", columns) for name, columns in TABLES.items()]
    return Evidence(scale, table2_model(done.model), done.astype({"seed": int}), *tables)


def _table(path: Path, columns: Mapping[str, object]) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame()
    words = [name for name, kind in columns.items() if kind is str]
    table = read_table(path, words, KEY, dtype=dict.fromkeys([*TEXT, "hash"], str))
    table[TEXT] = table[TEXT].fillna("")
    return table[table.seed.notna()].astype({"seed": int})


def recorded_scales(results: Path) -> list[str]:
    """With finished or failed runs on record, the largest first."""
    return [scale for scale in SCALES if (results / scale / "runs.csv").exists()]

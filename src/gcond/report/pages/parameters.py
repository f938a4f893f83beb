"""GCond's parameters as ablated in conf/experiment/ablation_*.yaml: their values, and where each can act at all."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from gcond.report.claims.ablations import ITERATIONS, RESOLVER, THRESHOLDS
from gcond.report.claims.evidence import Arm, per_run
from gcond.report.claims.judge import Finding

ZONES = ("weak", "main", "critical")
MAIN_TOO = "only below the main threshold: zones main and critical"


def _zones(*zones: str) -> Callable[[pd.DataFrame, str], pd.Series]:
    def often(rows: pd.DataFrame, value: str) -> pd.Series:
        found = [per_run(rows, f"zone_{zone}") for zone in zones]
        return sum(found[1:], found[0])

    return often


def _again(rows: pd.DataFrame, value: str) -> pd.Series:
    """Iterations beyond a step's first."""
    return (_zones(*ZONES)(rows, value) - per_run(rows, "resolved")).clip(lower=0)


def _capped(rows: pd.DataFrame, value: str) -> pd.Series:
    """Share of bins in which a task's mean norm exceeds the cap."""
    if rows.empty or value in ("null", "None"):
        return pd.Series(dtype=float)
    norms = rows[["grad_norm_l1", "grad_norm_ssim"]]
    over = (norms > float(value)).any(axis=1).astype(float).where(norms.notna().any(axis=1))
    return over.groupby(rows.seed).mean()


def always(rows: pd.DataFrame, value: str) -> pd.Series:
    return pd.Series(1.0, index=sorted(set(rows.seed))) if len(rows) else pd.Series(dtype=float)


@dataclass(frozen=True)
class Parameter:
    """`values` as in the experiment, the default among them. `acts`: where, in words. `often`: of a run's rows of
    steps.csv and the value, times a step by seed (of the cap: share of bins). `zoned`: it acts in a zone only, so that
    two runs that are never there must be the same."""

    key: str
    title: str
    default: str
    values: tuple[str, ...]
    acts: str
    often: Callable[[pd.DataFrame, str], pd.Series]
    zoned: bool = False


PARAMETERS = (
    Parameter(
        THRESHOLDS,
        "thresholds (critical, main, weak)",
        "[-0.8,-0.5,0.0]",
        ("[-0.8,-0.5,0.0]", "[-1.0,-0.4,0.1]", "[-1.0,-0.4,0.0]", "[-0.8,-0.5,0.1]"),
        "in every zone; the critical one only below the main one",
        _zones(*ZONES),
    ),
    Parameter(
        f"{RESOLVER}remap_power", "remap power", "2.0", ("1.0", "2.0", "4.0"), "only in zone main", _zones("main"), True
    ),
    Parameter(
        "strategy.conductor.update.beta",
        "momentum (EMA inside)",
        "0.9",
        ("0.0", "0.5", "0.8", "0.9", "0.95", "0.99"),
        "at every step, conflict or not",
        always,
    ),
    Parameter(
        f"{RESOLVER}dominance_window",
        "dominance window (0: off)",
        "0",
        ("0", "1", "3", "5"),
        MAIN_TOO,
        _zones("main", "critical"),
        True,
    ),
    Parameter(
        ITERATIONS,
        "iterations a step at most",
        "3",
        ("1", "2", "3", "4"),
        "where a conflict is left after the first iteration: iterations beyond a step's first",
        _again,
    ),
    Parameter(
        f"{RESOLVER}tie_breaking_weights",
        "arbitration weights (stability, strength)",
        "[0.8,0.2]",
        ("[0.8,0.2]", "[0.5,0.5]", "[0.2,0.8]", "[1.0,0.0]", "[0.0,1.0]"),
        MAIN_TOO,
        _zones("main", "critical"),
        True,
    ),
    Parameter(
        f"{RESOLVER}norm_cap",
        "norm cap of a task gradient",
        "null",
        ("null", "1.0", "0.3", "0.1"),
        "where a task gradient is longer than the cap: share of the bins of steps whose mean is",
        _capped,
    ),
)


def parsed(text: str) -> object:
    """A value as written in a variant; "[-1,-0.4]" is "[-1.0,-0.40]"."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return text
    return tuple(map(float, found)) if isinstance(found, list) else found


def shown(text: str) -> str:
    """The same for readers: "(-1, -0.4, 0.1)", "none"."""
    value = parsed(text)
    if isinstance(value, tuple):
        return f"({', '.join(f'{part:g}' for part in value)})"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def frequency(value: float) -> str:
    return "not recorded" if math.isnan(value) else f"{value:.3g}"


@dataclass(frozen=True)
class Row:
    """One value of one parameter; `differences` by metric, of the best epoch, empty for the default."""

    parameter: Parameter
    value: str
    arm: Arm
    is_default: bool
    n: int
    differences: dict[str, Finding]
    zones: dict[str, float]  # arbitrated pairs a step
    often: float  # how often the parameter can act; nan if not recorded

    @property
    def acts(self) -> str:
        if parsed(self.value) is None:
            return "never"
        if self.parameter.often is always:
            return "at every step"
        return frequency(self.often)


@dataclass(frozen=True)
class Setting:
    """Where parameters were ablated: a data set, a strategy and the overrides that default and ablated runs share."""

    dataset: str
    default: Arm
    rows: tuple[Row, ...]

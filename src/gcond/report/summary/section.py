"""A part of the page: an answer for the top, and its paragraphs."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from gcond.report.claims.evidence import Evidence, read, recorded_scales
from gcond.report.lineup import NOT_EVIDENCE, TRIVIAL
from gcond.report.records import read_csv
from gcond.report.statistics import FEWEST


@dataclass(frozen=True)
class Section:
    """`answers` stand at the top of the page. One without evidence has the command that makes it."""

    title: str
    answers: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)


def evidence_of(results: Path) -> list[Evidence]:
    """Of every recorded scale that is evidence, the largest first; those that have too few seeds for a conclusion
    follow."""
    found = [read(results, scale) for scale in recorded_scales(results) if scale not in NOT_EVIDENCE]
    return sorted(found, key=lambda each: each.most_seeds < FEWEST)


def best_trivial(results: Path, scale: str) -> pd.DataFrame:
    """The smallest losses of the predictors that need no training, by data set; columns of runs.csv."""
    recorded = read_csv(results / scale / "runs.csv")
    return recorded[recorded.strategy.str.startswith(TRIVIAL)].groupby("dataset")[["best_val_l1", "best_test_l1"]].min()


def not_run(title: str, what: str, command: str) -> Section:
    return Section(title, [], [f"Not run: {what}. `{command}` makes it."])


def dataset_title(evidence: Evidence, dataset: str) -> str:
    titles = sorted(set(evidence.runs.dataset_title[evidence.runs.dataset == dataset]) - {""})
    return titles[-1] if titles else dataset

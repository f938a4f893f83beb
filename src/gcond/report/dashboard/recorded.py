"""results/<scale>/runs.csv and curves.csv -> the same entries as local runs give, without anything per step."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd

from gcond.report.dashboard.metrics import VALIDATION, Metrics
from gcond.report.dashboard.read import Entry
from gcond.report.lineup import STRATEGIES, TRIVIAL
from gcond.report.records import CURVE_COLUMNS, CURVE_KEY, KEY, read_csv


def read_recorded(results: Path) -> tuple[list[Entry], list[str]]:
    """All recorded runs, and remarks about files that could not be read."""
    entries: list[Entry] = []
    remarks: list[str] = []
    for path in sorted(results.glob("*/runs.csv")):
        try:
            runs = read_csv(path)
        except (ValueError, KeyError) as error:
            remarks.append(f"{path} was left out: {error}")
            continue
        rows = _rows(runs)
        trivial = [row for row in rows if row["strategy"].startswith(TRIVIAL)]
        own = [_entry(path.parent.name, row, trivial) for row in rows if row not in trivial]
        if (curves := path.with_name("curves.csv")).exists():
            try:
                _add_curves(own, read_csv(curves, CURVE_COLUMNS, CURVE_KEY))
            except (ValueError, KeyError) as error:
                remarks.append(f"{curves} was left out: {error}")
        entries += own
    return entries, remarks


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    records = table.astype(object).to_dict("records")
    return [{name: None if pd.isna(value) else value for name, value in record.items()} for record in records]


def _entry(scale: str, row: dict[str, Any], trivial: list[dict[str, Any]]) -> Entry:
    return Entry(
        folder=f"{scale}/{row['dataset']}-{row['model']}-{row['strategy']}-seed{row['seed']}-{row['hash']}",
        scale=scale,
        status=row["status"],
        reason=row["error"],
        dataset=row["dataset"],
        dataset_title=row["dataset_title"] or row["dataset"],
        model=row["model"],
        strategy=row["strategy"],
        label=STRATEGIES.get(row["strategy"], row["strategy"]),
        seed=row["seed"],
        variant=row["variant"],
        facts=row,
        trivial={
            own["strategy"].removeprefix(TRIVIAL): {key: own[f"best_{key}"] for key in VALIDATION}
            for own in trivial
            if own["dataset"] == row["dataset"]
        },
    )


def _add_curves(entries: list[Entry], curves: pd.DataFrame) -> None:
    epochs: dict[tuple[object, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in _rows(curves):
        epochs[tuple(row[name] for name in KEY)].append(row)
    for entry in entries:
        if own := epochs.get((entry.dataset, entry.model, entry.strategy, entry.seed, entry.variant)):
            entry.metrics = Metrics(validation=own, reached=int(entry.facts["steps"] or 0))

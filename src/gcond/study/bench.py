"""Benchmarks as data: bench.csv, a row a quantity, which bench/*.py write.

`value` is a median over `n` rounds, with `low` and `high` as its 95 % bootstrap interval where there is one; a ratio is
the median of ratios to `against` taken in the same rounds. `case` tells rows apart that no other column does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from gcond.files import read_rows, write_atomically

_TEXT, _WHOLE, _REAL = "str", "Int64", "float64"
COLUMNS = {
    **dict.fromkeys(["bench", "case", "device", "model", "dataset", "precision"], _TEXT),
    **dict.fromkeys(["image_size", "micro_batch", "accumulation_steps", "tasks", "parameters"], _WHOLE),
    **dict.fromkeys(["strategy", "against", "quantity", "unit"], _TEXT),
    **dict.fromkeys(["value", "low", "high"], _REAL),
    "n": _WHOLE,
    **dict.fromkeys(["versions", "commit", "started"], _TEXT),
}
KEY = list(COLUMNS)[: list(COLUMNS).index("value")]


def read(folder: Path) -> pd.DataFrame:
    """bench.csv of a folder of results.

    Raises ValueError, which names the file, where there is none, it is damaged, or it names a quantity twice.
    """
    path = folder / "bench.csv"
    if not path.exists():
        raise ValueError(
            f"nothing to read: expected {path}, found no such file; `make bench` writes it (hours on a CPU)"
        )
    header = list(next(iter(read_rows(path)), COLUMNS))
    if header != list(COLUMNS):
        raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}, found {', '.join(header)}")
    numbers = {name: [""] for name, kind in COLUMNS.items() if kind != _TEXT}
    try:
        rows = pd.read_csv(path, dtype=COLUMNS, keep_default_na=False, na_values=numbers)
    except ValueError as error:
        raise ValueError(f"{path}: expected numbers in {', '.join(numbers)}, found something else: {error}") from error
    if rows.duplicated(KEY).any():
        raise ValueError(f"{path}: a quantity is named twice: {rows[rows.duplicated(KEY)][KEY].iloc[0].to_dict()}")
    return rows


def table(rows: Iterable[Mapping[str, object]]) -> pd.DataFrame:
    """Rows as `read` gives them; what a row does not name is empty. Raises ValueError for an unknown column."""
    found = list(rows)
    if unknown := {name for row in found for name in row} - set(COLUMNS):
        raise ValueError(f"bench.csv has no columns {', '.join(sorted(unknown))}")
    empty = {name: "" if kind == _TEXT else None for name, kind in COLUMNS.items()}
    return pd.DataFrame([empty | dict(row) for row in found], columns=list(COLUMNS)).astype(COLUMNS)


def add(folder: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Put rows into the folder's bench.csv, in the place of those of the same name."""
    path = folder / "bench.csv"
    known = [read(folder)] if path.exists() else []
    together = pd.concat([*known, table(rows)]).drop_duplicates(KEY, keep="last")
    ordered = together.sort_values(KEY, kind="stable", na_position="first")
    write_atomically(path, lambda to: ordered.to_csv(to, index=False, float_format="%.8g", lineterminator="\n"))


def is_recorded(folder: Path, about: Mapping[str, object], strategies: Iterable[str] = ()) -> bool:
    """Whether bench.csv has rows that are alike in `about`, of each of these strategies."""
    if not (folder / "bench.csv").exists():
        return False
    rows = read(folder)
    for name, value in about.items():
        rows = rows[rows[name].isna() if value is None else rows[name] == value]
    return len(rows) > 0 and set(strategies) <= set(rows.strategy)

"""RSNA ICH's labels: stage_2_train.csv, known by its columns, wherever it lies below the root."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from archive.header import pseudonym
from archive.listing import Entry, open_entry
from gcond.data.store import LABELS

HEADER = "ID,Label"
SCHEMA = pa.schema([("sop", pa.string()), *((label, pa.int8()) for label in LABELS)])


def read_labels(root: Path, entries: Iterable[Entry]) -> pa.Table:
    """One row per slice: its pseudonym and its labels, null where the files contradict themselves.

    From every CSV file with the columns ID and Label whose labels are 0 or 1 (those of a sample submission are 0.5).
    The metadata `counts` holds the numbers of rows that repeat another and of labels with two values.
    """
    values: dict[tuple[str, str], set[int]] = {}
    repeated = 0
    for entry in entries:
        if not (entry.member or entry.path).lower().endswith(".csv") or entry.problem:
            continue
        with open_entry(root, entry) as file:
            lines = (line.decode("utf-8", "replace") for line in file)
            if next(lines, "").strip() != HEADER:
                continue
            rows = [row for row in csv.reader(lines) if row]
        if any(row[-1] not in ("0", "1") for row in rows):
            continue
        for name, value in rows:
            slice_id, _, label = name.rpartition("_")
            if label not in LABELS:
                raise ValueError(f"{entry.path}: expected the labels {', '.join(LABELS)}, found {label!r}")
            known = values.setdefault((slice_id, label), set())
            repeated += int(value) in known
            known.add(int(value))
    of: dict[str, list[int | None]] = {}
    for (slice_id, label), found in values.items():
        own = of.setdefault(pseudonym("ich", "sop", slice_id), [None] * len(LABELS))
        own[LABELS.index(label)] = min(found) if len(found) == 1 else None
    columns = {"sop": list(of)} | {label: [own[i] for own in of.values()] for i, label in enumerate(LABELS)}
    counts = {"repeated_rows": repeated, "contradicted": sum(len(found) > 1 for found in values.values())}
    return pa.table(columns, schema=SCHEMA.with_metadata({"counts": json.dumps(counts)}))

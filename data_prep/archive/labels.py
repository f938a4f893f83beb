"""RSNA ICH's labels: stage_2_train.csv, known by its columns, wherever it lies below the root."""

import csv
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
from archive.header import pseudonym
from archive.listing import Entry, open_entry

from gcond.data.store import LABELS

COLUMNS = ("ID", "Label")
SCHEMA = pa.schema([("sop", pa.string()), *((label, pa.int8()) for label in LABELS)])


class PassedOver(ValueError):
    """A table that is none of labels; says why."""


def read_labels(root: Path, entries: Iterable[Entry], say: Callable[[str], object]) -> pa.Table:
    """One row per slice: its pseudonym and its labels, null where the files contradict themselves.

    From every CSV file with the columns ID and Label, whatever else it has, whose labels are 0 or 1; `say` is told of
    every other. The metadata `counts` holds the numbers of rows that repeat another and of labels with two values.
    Raises ValueError, naming file and row, where a table of labels holds one that is neither 0 nor 1.
    """
    tables = [pd.DataFrame({"sop": [], "label": [], "value": []})]
    for entry in entries:
        name = (entry.member or entry.path).rsplit("/", 1)[-1].lower()
        if not name.endswith(".csv") or name.startswith("._") or entry.problem:
            continue
        where = f"{entry.path}!{entry.member}" if entry.member else entry.path
        try:
            with open_entry(root, entry) as file:
                tables.append(_read(where, file.read()))
        except PassedOver as reason:
            say(f"{where} holds no labels: {reason}")
    rows = pd.concat(tables[1:] or tables)
    different = rows.drop_duplicates()
    contradicted = different.duplicated(["sop", "label"], keep=False)
    wide = different[~contradicted].pivot(index="sop", columns="label", values="value")
    values = wide.reindex(index=different.sop.unique(), columns=LABELS).astype("Int8")
    columns = {"sop": [pseudonym("ich", "sop", name) for name in values.index]}
    columns |= {label: pa.array(values[label], from_pandas=True) for label in LABELS}
    counts = {
        "repeated_rows": len(rows) - len(different),
        "contradicted": len(different[contradicted].drop_duplicates(["sop", "label"])),
    }
    return pa.table(columns, schema=SCHEMA.with_metadata({"counts": json.dumps(counts)}))


def check_fit(labels: pa.Table, sops: Iterable[str]) -> None:
    """`sops` are the pseudonyms of the slices of ICH. Raises ValueError where none of them, if there are any, has one
    of the labels."""
    found, known = set(sops), set(labels.column("sop").to_pylist())
    if found and not found & known:
        raise ValueError(
            f"`--ich`: labels of {len(known)} slices were read, and none is of the {len(found)} slices found; expected "
            "an ID such as ID_0123abcde_epidural, which begins with the slice's SOPInstanceUID. Put the right CSV file "
            "there, or none, and start anew"
        )


def _read(where: str, content: bytes) -> pd.DataFrame:
    """The columns sop, label and value, a row each for every row of the file."""
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        head = content[:4096].decode(encoding, "ignore").splitlines()
    except UnicodeError:
        head = []
    if not head:
        raise PassedOver("it is empty")
    delimiter = max(",;\t", key=head[0].count)
    columns = [name.strip() for name in next(csv.reader(head[:1], delimiter=delimiter))]
    if not set(COLUMNS) <= set(columns):
        raise PassedOver(f"its columns are {', '.join(columns[:8])}; expected {' and '.join(COLUMNS)}")
    text = {"dtype": str, "keep_default_na": False, "skipinitialspace": True, "encoding": encoding}
    try:
        table = pd.read_csv(io.BytesIO(content), sep=delimiter, header=0, names=columns, usecols=COLUMNS, **text)
    except ValueError as error:
        raise ValueError(f"{where}: a table of labels that cannot be read ({error}); mend or remove it") from None
    if table.empty:
        raise PassedOver("it has no rows")
    values = pd.to_numeric(table.Label, errors="coerce")
    good = values.isin([0, 1])
    if not good.any():
        raise PassedOver(f"no label is 0 or 1, the first is {table.Label.iloc[0]!r}")
    parts = table.ID.str.strip().str.rpartition("_")
    for rows, column, expected in (
        (parts[2].isin(LABELS), "ID", f"an ID that ends in one of {', '.join(LABELS)}"),
        (good, "Label", "the label 0 or 1"),
    ):
        if not rows.all():
            row = int((~rows).to_numpy().argmax())
            found = f"{where}, row {row + 2}: expected {expected}, found {table[column].iloc[row]!r}"
            raise ValueError(f"{found}; mend or remove the file")
    return pd.DataFrame({"sop": parts[0], "label": parts[2], "value": values})

"""rejected.csv: each file that counts as bad, with the cause and what to do about it."""

import csv
import io
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pandas as pd

from archive.reasons import ARCHIVE, REJECTED
from gcond.files import write_text

NAME = "rejected.csv"
COLUMNS = ("source", "file", "member", "cause", "remedy")
EXAMPLES = 3
LONGEST_NAME = 120
REMEDIES = REJECTED | {ARCHIVE: "unpack it if slices are in it: it was not opened"}


def write(out: Path, files: pd.DataFrame) -> None:
    """Of all `files` those that count as bad, and archives that were not opened; where there are none, no table."""
    named = files[files.reason.isin(REMEDIES)]
    if named.empty:
        (out / NAME).unlink(missing_ok=True)
        return
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in named.sort_values(["reason", "source", "path", "member"]).itertuples():
        table.writerow(map(_cell, (row.source, row.path, row.member, row.reason, REMEDIES[row.reason])))
    write_text(out / NAME, text.getvalue())


def _cell(text: str) -> str:
    """A spreadsheet takes a cell that begins so for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def examples(out: Path) -> Iterator[str]:
    """The first few files of each cause, from the table in `out`; nothing where there is none."""
    if not (out / NAME).exists():
        return
    with (out / NAME).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    yield ""
    for cause, group in groupby(rows, key=lambda row: row["cause"]):
        own = list(group)
        names = [f"{row['source']} {row['file']}{row['member'] and '!' + row['member']}" for row in own[:EXAMPLES]]
        more = f" and {len(own) - EXAMPLES} more" if len(own) > EXAMPLES else ""
        yield f"{cause}: {', '.join(map(_printable, names))}{more}"
        yield f"    remedy: {own[0]['remedy']}"
    yield f"all of them, with cause and remedy: {out / NAME}"


def _printable(name: str) -> str:
    name = name if len(name) <= LONGEST_NAME else f"...{name[-LONGEST_NAME:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)

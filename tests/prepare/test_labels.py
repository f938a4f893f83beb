"""Labels of ICH: read however the table was saved, and never dropped without a word."""

import json

import pytest
from archive.header import pseudonym
from archive.labels import read_labels
from archive.listing import walk

from gcond.data.store import LABELS

ROWS = [(f"ID_{i:09x}_{label}", int(label in ("any", LABELS[i % 5]))) for i in range(4) for label in LABELS]
PLAIN = "ID,Label\n" + "".join(f"{name},{value}\n" for name, value in ROWS)
EXPECTED = {
    pseudonym("ich", "sop", f"ID_{i:09x}"): [int(label in ("any", LABELS[i % 5])) for label in LABELS] for i in range(4)
}


def read(root, content: bytes, name="stage_2_train.csv"):
    """What was read, by slice; and what was said."""
    (root / name).write_bytes(content)
    said: list[str] = []
    table = read_labels(root, walk("ich", root), said.append)
    return {row["sop"]: [row[label] for label in LABELS] for row in table.to_pylist()}, said, table


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace(",", ";").encode(),
        PLAIN.replace(",", ", ").encode(),
        PLAIN.replace(",", "\t").encode(),
        ('"ID","Label"\n' + "".join(f'"{name}","{value}"\n' for name, value in ROWS)).encode(),
        ("ID,Label\n" + "".join(f"{name},{value}.0\n" for name, value in ROWS)).encode(),
        (",ID,Label\n" + "".join(f"{i},{name},{value}\n" for i, (name, value) in enumerate(ROWS))).encode(),
        ("Label,fold,ID\n" + "".join(f"{value},3,{name}\n" for name, value in ROWS)).encode(),
    ],
    ids=["plain", "bom", "utf-16", "crlf", "semicolons", "spaces", "tabs", "quoted", "floats", "index", "other order"],
)
def test_however_it_was_saved(tmp_path, content):
    (tmp_path / "._stage_2_train.csv").write_bytes(b"\x00\x05\x16\x07")  # macOS's shadow of it
    assert read(tmp_path, content)[:2] == (EXPECTED, [])


def test_repeated_and_contradicted_rows_are_counted(tmp_path):
    again = "".join(f"{name},{value}\n" for name, value in ROWS[:6]) + f"{ROWS[7][0]},{1 - ROWS[7][1]}\n"
    found, _, table = read(tmp_path, (PLAIN + again).encode())
    assert json.loads(table.schema.metadata[b"counts"]) == {"repeated_rows": 6, "contradicted": 1}
    contradicted = pseudonym("ich", "sop", "ID_000000001")
    assert found == EXPECTED | {contradicted: [*EXPECTED[contradicted][:1], None, *EXPECTED[contradicted][2:]]}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"ID,Label\n" + b"ID_1_any,0.5\n" * 6, "no label is 0 or 1, the first is '0.5'"),
        (b"ImageId,epidural,any\nID_1,0,1\n", "its columns are ImageId, epidural, any; expected ID and Label"),
        (b"ID,Label\n", "it has no rows"),
        (b"", "it is empty"),
        (b"\xff\xfe\x00", "it is empty"),
    ],
)
def test_a_table_that_is_passed_over_is_named(tmp_path, content, why):
    found, said, _ = read(tmp_path, content, "labels.csv")
    assert (found, said) == ({}, [f"labels.csv holds no labels: {why}"])


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("ID_000000009_any,2", "row 26: expected the label 0 or 1, found '2'"),
        ("ID_000000009_any,", "row 26: expected the label 0 or 1, found ''"),
        ("ID_000000009_fracture,1", "row 26: expected an ID that ends in one of epidural"),
        ('"ID_000000009_any,1', "stage_2_train.csv: a table of labels that cannot be read"),
    ],
)
def test_a_damaged_table_is_an_error_that_names_the_row(tmp_path, line, why):
    with pytest.raises(ValueError, match=why):
        read(tmp_path, f"{PLAIN}{line}\n".encode())

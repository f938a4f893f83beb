"""What wandb's offline mode wrote, read without wandb's own reader: a LevelDB log of protocol buffers."""

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

MAGIC = b":W&B"
HEADER, BLOCK = 7, 32768  # bytes; a record does not begin in the last bytes of a block that hold no header
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Record]:
    data = path.read_bytes()
    assert data[:4] == MAGIC
    at, parts = HEADER, b""
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            yield Record.FromString(parts)
            parts = b""


def only_copy(folder: Path) -> Path:
    """The .wandb file of a run's folder. There must be one."""
    (path,) = (folder / "wandb").glob("*run-*/*.wandb")
    return path


def history(path: Path) -> list[dict[str, Any]]:
    """The rows that were logged, less what wandb adds (keys with an underscore in front)."""
    rows = [_nested(record.history.item) for record in records(path) if record.HasField("history")]
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


def header(path: Path) -> Any:
    """The run's record: id, name, group, tags, config."""
    return next(record.run for record in records(path) if record.HasField("run"))


def config(path: Path) -> dict[str, Any]:
    items = {item.key: json.loads(item.value_json) for item in header(path).config.update}
    return {key: value for key, value in items.items() if not key.startswith("_")}


def summary(path: Path) -> dict[str, Any]:
    """The last value of each key."""
    updates = [_nested(record.summary.update) for record in records(path) if record.HasField("summary")]
    return {key: value for update in updates for key, value in update.items()}


def exit_code(path: Path) -> int:
    return next(record.exit.exit_code for record in records(path) if record.HasField("exit"))


def _nested(items: Iterable[Any]) -> dict[str, Any]:
    """wandb writes {"picture": {"path": …}} as one item of the key path [picture, path]."""
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        place = found
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found

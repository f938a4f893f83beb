"""Whether a file can be read, and every image of it."""

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

BATCH = 250


class Damaged(Exception):
    """A source file that Parquet cannot read."""


def image_fault(encoded: bytes | None, size: int = 256) -> str:
    """What is wrong with an image, or ""."""
    if not encoded:
        return "no bytes"
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.format != "JPEG":
                return "not JPEG"
            if image.size != (size, size):  # before decoding: a bomb is only a wrong size
                return f"not {size} x {size}"
            if image.mode != "RGB":
                return "not RGB"
            image.load()
    except Exception:  # Pillow raises whatever its plugins raise; MemoryError is one of them for a damaged header
        return "unreadable"
    return ""


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Raises Damaged where the file cannot be read, so that a full disk elsewhere is not taken for that."""
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise Damaged from error

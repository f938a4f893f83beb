"""A store of `make data-headneck` in a sixtieth of its size, for a machine that has neither the store nor the clone.

    python data_prep/carry.py pack data/headneck open-kbp carried   # 1.6 GB -> 26 MB, two minutes
    python data_prep/carry.py unpack carried data/headneck          # half a minute; needs no reader of medical files

The store's pictures of 256 x 256 are enlarged slices of 55 to 110 pixels. Packed are these slices (HU, int16, in the
store's order, LZMA) beside the store's own facts and index. Unpacking enlarges the slices again, and refuses shards
that are not byte for byte those that the facts name.
"""

from __future__ import annotations

import argparse
import lzma
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from slices import to_stored
from tqdm import tqdm
from write_store import write_shard

from gcond.data import store
from gcond.data.windows import HU_MAX, HU_MIN

FACTS = ("facts.json", "index.parquet")
SLICES = "slices.xz"
HU = np.dtype("<i2")


def pack(root: Path, folder: Path, out: Path, catalogue_name: str) -> None:
    """Raises ValueError where `folder`, a clone or its converted volumes, does not give the pictures of the store."""
    import catalogue
    from samples import read_volume  # its readers are not wanted where a store is unpacked

    entries = {entry.patient: entry for entry in catalogue.read(catalogue_name).volumes}
    pixels = store.Pixels(root, store.read_facts(root))
    out.mkdir(parents=True)
    with lzma.open(out / SLICES, "wb") as packed:
        patient, volume = None, np.empty(0)
        for position, row in enumerate(_bar(_in_order(root), "packing")):
            if row.patient != patient:
                patient, volume = row.patient, read_volume(entries[row.patient], folder).hu
            hu = np.rint(volume[row.z].clip(HU_MIN, HU_MAX)).astype(HU)
            if not np.array_equal(to_stored(hu), pixels[position]):
                raise ValueError(f"{folder}: slice {row.z} of {patient} is not that of the store {root}")
            packed.write(hu.tobytes())
    for name in FACTS:
        shutil.copyfile(root / name, out / name)


def unpack(carried: Path, out: Path) -> None:
    """Raises ValueError where a shard is not that of the store that was packed, or `out` exists."""
    if out.exists():
        raise ValueError(f"{out} exists: remove that folder or name another")
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        pictures = _pictures(carried)
        for shard in store.read_facts(carried)["shards"]:
            made = write_shard(building / "shards" / shard["name"], islice(pictures, shard["slices"]))
            if made != shard:
                raise ValueError(f"{carried}: expected {shard}, made {made}; it is damaged, or Pillow is another")
        for name in FACTS:
            shutil.copyfile(carried / name, building / name)
        building.chmod(0o755)
        os.rename(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _pictures(carried: Path) -> Iterator[bytes]:
    with lzma.open(carried / SLICES) as packed:
        for row in _bar(_in_order(carried), "unpacking"):
            hu = np.frombuffer(packed.read(row.rows * row.cols * HU.itemsize), HU)
            yield to_stored(hu.reshape(row.rows, row.cols)).tobytes()


def _in_order(root: Path) -> pd.DataFrame:
    """The index in the order of the pictures."""
    columns = ["patient", "z", "rows", "cols", "shard", "row"]
    return store.read_index(root, store.read_facts(root), columns).to_pandas().sort_values(["shard", "row"])


def _bar(index: pd.DataFrame, what: str) -> Iterator[tuple]:
    return tqdm(index.itertuples(), what, len(index), unit="slice", disable=None)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("store", type=Path)
    packing.add_argument("folder", type=Path, help="the clone that the store was made of, or its converted volumes")
    packing.add_argument("carried", type=Path, help="a folder to be made")
    packing.add_argument("--catalogue", default="headneck", help="of the store (default: headneck)")
    unpacking = commands.add_parser("unpack")
    unpacking.add_argument("carried", type=Path)
    unpacking.add_argument("store", type=Path, help="a folder to be made")
    options = parser.parse_args(arguments)
    try:
        if options.command == "pack":
            pack(options.store, options.folder, options.carried, options.catalogue)
        else:
            unpack(options.carried, options.store)
    except (OSError, ValueError, EOFError, lzma.LZMAError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

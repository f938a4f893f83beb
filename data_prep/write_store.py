"""Write the CT store that gcond.data.store reads."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset, disable_progress_bars, load_from_disk

from gcond.data import store, windows
from gcond.data.images import STORED_SIZE


def write(out: Path, rows: Mapping[str, Mapping[str, list]], about: Mapping[str, object]) -> dict[str, object]:
    """Write a store that fits in memory, in a folder beside `out` that is renamed when complete; returns its facts.

    `rows` maps each split to the columns of store.FEATURES; `about` is what the facts hold beyond format, counts and
    statistics: title, patients, missing_packages, ... Raises ValueError where a split is empty, a patient is in two of
    them, or `out` exists.
    """
    store.check_disjoint({split: set(rows[split]["patient"]) for split in store.SPLITS})
    if out.exists():
        raise ValueError(f"`out`: {out} exists")
    out.parent.mkdir(parents=True, exist_ok=True)
    disable_progress_bars()
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for split in store.SPLITS:
            Dataset.from_dict(dict(rows[split]), features=store.FEATURES).save_to_disk(building / split)
        facts = {**_measured(building), **about}
        (building / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
        building.chmod(0o755)
        os.rename(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return facts


def _measured(root: Path) -> dict[str, object]:
    datasets = {split: load_from_disk(root / split) for split in store.SPLITS}
    training = store.histogram(datasets["train"])
    statistics = {name: windows.statistics(training, *window) for name, window in windows.PRESETS.items()}
    return {
        "format_version": store.FORMAT_VERSION,
        "unit": "HU + 1024",
        "clip_hu": [windows.HU_MIN, windows.HU_MAX],
        "size": STORED_SIZE,
        "dtype": store.DTYPE,
        "counts": {split: len(dataset) for split, dataset in datasets.items()},
        "checksum": {split: store.checksum(dataset) for split, dataset in datasets.items()},
        "train_statistics": {name: {"mean": mean, "std": std} for name, (mean, std) in statistics.items()},
    }

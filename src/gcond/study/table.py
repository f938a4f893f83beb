"""What is recorded of the study's runs, below results/study/.

    runs.csv           a row a run: what it is, its settings as columns, what it cost, and its numbers
    logs/NAME.parquet  all that the run logged, a row a record; `kind` is step, validation, probe, activations, final,
                       groups (one patient or class at the best or last epoch) or trivial (a predictor without training)

NAME ends in the fingerprint of the machine's arithmetic, so that a run and its repetition elsewhere stand side by side.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from gcond.files import write_atomically

ABOUT = (
    "name",
    "arithmetic",
    "status",
    "hash",
    "data_checksum",
    "commit",
    "dirty",
    "device",
    "torch",
    "python",
    "started",
)
SETTINGS = {  # column -> where config.yaml has it
    **{name: f"{name}.name" for name in ("scale", "dataset", "model", "strategy")},
    "seed": "seed",
    "lr": "optimizer.lr",
    "lr_scale": "strategy.lr_scale",
    "model_mode": "strategy.model_mode",
    **{name: f"scale.{name}" for name in ("accumulation_steps", "micro_batch", "image_size")},
    **{f"lambda_{task}": f"loss.tasks.{task}" for task in ("l1", "ssim", "flipped", "class")},
    "flip_strength": "loss.reconstruction.flip_strength",
    "labels": "loss.labels",
    "precision": "precision",
}
COST = ("seconds", "cpu_seconds", "load_start", "load_end", "peak_memory_mb", "steps", "skipped_steps", "epochs")
TEXT = (*ABOUT, "variant", "dataset", "model", "strategy", "scale", "model_mode", "labels", "precision")
KEY = ["dataset", "seed", "strategy", "lr", "name"]


def read(results: Path) -> pd.DataFrame:
    """The recorded runs of the folder `results`, none where it has no runs.csv. Raises ValueError for a broken one."""
    path = results / "runs.csv"
    if not path.exists():
        return pd.DataFrame(columns=[*ABOUT, *SETTINGS, "variant", *COST])
    try:
        runs = pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values=[""])
    except (pd.errors.ParserError, UnicodeDecodeError) as broken:
        raise ValueError(f"{path}: expected a table, found {broken}; restore it with git") from None
    if lacking := [name for name in (*ABOUT, *SETTINGS) if name not in runs]:
        raise ValueError(f"{path}: expected the columns {', '.join(lacking)}, found none; restore it with git")
    return runs


def record(folder: Path, results: Path) -> pd.DataFrame:
    """Put the finished run in `folder` into the table and its log beside it; returns the table.

    A run that is recorded already is written again. Raises ValueError, naming the file, where the run is not finished.
    """
    row = row_of(folder)
    name = f"{row['name']}-{row['arithmetic']}"
    log = pd.DataFrame([*_records(folder / "metrics.jsonl"), *_trivial(folder / "report.json")])
    floats = log.select_dtypes("float64").columns
    log = pa.Table.from_pandas(log.astype(dict.fromkeys(floats, "float32")), preserve_index=False)
    small = {"compression": "zstd", "use_dictionary": ["kind"], "write_statistics": False, "store_schema": False}
    write_atomically(
        results / "logs" / f"{name}.parquet", lambda to: pq.write_table(log.replace_schema_metadata(None), to, **small)
    )

    runs = read(results)
    others = runs[(runs.name != row["name"]) | (runs.arithmetic != row["arithmetic"])]
    rows = pd.DataFrame([row])
    table = (pd.concat([others, rows]) if len(others) else rows).sort_values(KEY, kind="stable")
    write_atomically(
        results / "runs.csv", lambda to: table.to_csv(to, index=False, float_format="%.8g", lineterminator="\n")
    )
    return read(results)


def row_of(folder: Path) -> dict[str, Any]:
    """The row of a finished run: columns of ABOUT, SETTINGS, `variant` (its other settings), COST, then numbers.

    Numbers are named as the run logs them, after their epoch: best_val_l1, last_test_body_l1, …, and train_l1_tail, the
    mean over the last tenth of the steps.
    """
    path = folder / "report.json"
    if not (folder / "DONE").exists() or not path.exists():
        raise ValueError(f"{folder}: expected a finished run, with DONE and report.json")
    report = json.loads(path.read_text(encoding="utf-8"))
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    row = {name: report[name] for name in ABOUT}
    row |= {name: _at(config, where) for name, where in SETTINGS.items()} | {"variant": report["variant"]}
    row |= {name: report[name] for name in COST}
    row |= {name: value for name, value in report.items() if name.startswith("train_")}
    for at, numbers in report["final"].items():
        row |= {f"{at}_{name}": value for name, value in numbers.items()}
    return row


def _trivial(path: Path) -> Iterator[dict[str, Any]]:
    report = json.loads(path.read_text(encoding="utf-8"))
    for predictor, numbers in report["trivial"].items():
        yield {"kind": "trivial", "predictor": predictor, **numbers}


def _at(content: Mapping[str, Any], where: str) -> Any:
    for part in where.split("."):
        if not isinstance(content, Mapping) or part not in content:
            return None
        content = content[part]
    return content


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Of metrics.jsonl; a record of groups is one for each group."""
    for line in path.read_text(encoding="utf-8").splitlines():
        content = json.loads(line)
        for group, numbers in content.pop("groups", {"": {}}).items():
            flat = content | numbers | ({"group": group} if group else {})
            yield pd.json_normalize(flat).iloc[0].to_dict() if any(isinstance(v, dict) for v in flat.values()) else flat

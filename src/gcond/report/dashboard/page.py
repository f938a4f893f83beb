"""Entries -> the data of the page -> the page. Everything from files is data, never markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from gcond.report.dashboard.metrics import POINTS, short
from gcond.report.dashboard.pictures import embed
from gcond.report.dashboard.read import STATUSES, Entry
from gcond.report.dashboard.series import groups
from gcond.report.lineup import NOT_EVIDENCE

FULL_DETAIL_RUNS = 400  # beyond, lines get fewer points, so that the file stays small
NUMBERS = ("best_val_l1", "best_val_ssim", "best_test_l1", "best_test_ssim")
LAST = ("last_val_l1", "last_val_ssim", "last_test_l1", "last_test_ssim")
ORIGIN = ("hash", "commit", "dirty", "device", "torch", "python", "started", "missing_packages")


def content(entries: list[Entry], *, made: str, source: str, recorded: bool, remarks: list[str]) -> dict[str, Any]:
    """What the page shows, as JSON takes it. `source`: where the entries come from, in words."""
    points = max(40, min(POINTS, POINTS * FULL_DETAIL_RUNS // max(1, len(entries))))
    grouped, places = groups(entries, points)
    pictures, left_out = embed(_picture_folders(entries, places))
    rows = [_row(entry) | places.get(index, {}) for index, entry in enumerate(entries)]
    for index, picture in pictures.items():
        rows[index]["picture"] = picture
    return {
        "made": made,
        "source": source,
        "recorded": recorded,
        "remarks": remarks,
        "points": points,
        "statuses": STATUSES,
        "scales": [
            {"name": name, "evidence": name not in NOT_EVIDENCE} for name in sorted({entry.scale for entry in entries})
        ],
        "runs": rows,
        "groups": grouped,
        "pictures_left_out": left_out,
    }


def _picture_folders(entries: list[Entry], places: dict[int, dict[str, Any]]) -> dict[int, Path]:
    """Folders of pictures: one run of every series first, then the second of each, ..."""
    ordered, seen = [], {}
    for index in sorted(places, key=lambda index: (entries[index].status != "done", entries[index].seed or 0)):
        key = (places[index]["group"], places[index]["series"])
        seen[key] = seen.get(key, 0) + 1
        ordered.append((seen[key], index))
    folders = {index: entries[index].pictures for _, index in sorted(ordered)}
    return {index: folder for index, folder in folders.items() if folder is not None}


def _row(entry: Entry) -> dict[str, Any]:
    facts, last = entry.facts, (entry.metrics.validation or [{}])[-1]
    row: dict[str, Any] = {
        "folder": entry.folder,
        "scale": entry.scale,
        "status": entry.status,
        "reason": entry.reason,
        "notes": entry.notes,
        "dataset": entry.dataset,
        "model": entry.model,
        "strategy": entry.strategy,
        "label": entry.label,
        "seed": entry.seed,
        "variant": entry.variant,
        "steps": entry.metrics.reached or short(facts.get("steps")),
        "planned": short(facts.get("planned")),
        "seconds": short(facts.get("seconds")),
        "peak_memory_mb": short(facts.get("peak_memory_mb")),
        "skipped_steps": short(facts.get("skipped_steps") or entry.metrics.skipped),
        "best_epoch": short(facts.get("best_epoch")),
    }
    row |= {name: short(facts.get(name)) for name in NUMBERS}
    for name in LAST:
        value = facts.get(name)
        row[name] = short(last.get(name.removeprefix("last_")) if value is None else value)
    row |= {name: None if facts.get(name) is None else str(facts[name]) for name in ORIGIN}
    cosines = _defined(entry, "cosine/all")
    corrections = _defined(entry, "correction")
    row["conflict_steps"] = len(cosines)
    row["conflict_share"] = short(float((cosines < 0).mean())) if len(cosines) else None
    row["mean_correction"] = short(float(corrections.mean())) if len(corrections) else None
    return row


def _defined(entry: Entry, key: str) -> np.ndarray:
    """Values [N] of a quantity over all steps, without the undefined ones."""
    _, values = entry.metrics.steps.get(key, (None, np.empty(0)))
    return values[np.isfinite(values)]


def render(data: dict[str, Any]) -> str:
    """The whole page. Its policy allows its own script and style and pictures in it, nothing from elsewhere."""
    style, script = _part("page.css"), _part("page.js")
    policy = f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    parts = {"policy": policy, "style": style, "script": script, "data": embedded_json(data)}
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _part("page.html"))


def embedded_json(data: dict[str, Any]) -> str:
    """JSON in ASCII that no HTML parser takes for markup, whatever the texts in it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

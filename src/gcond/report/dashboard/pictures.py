"""The last picture of reconstructions of each run, small enough that all of them fit one page."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

BUDGET_BYTES = 5_000_000  # of all pictures together, before base64 adds a third
WIDTH = 640  # pixels; wider ones are made smaller


def embed(folders: dict[int, Path]) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """Index of a run -> its last picture, for as many as fit in the order given; and what was left out, in words."""
    found = {index: pictures for index, folder in folders.items() if (pictures := sorted(folder.glob("*.png")))}
    embedded: dict[int, dict[str, Any]] = {}
    broken, left_out, used = [], 0, 0
    for index, pictures in found.items():
        try:
            data, kind, note = _encode(pictures[-1], BUDGET_BYTES // len(found))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            broken.append(f"{folders[index].parent.name}/{pictures[-1].name} is no readable picture: {error}")
            continue
        if used + len(data) > BUDGET_BYTES:
            left_out += 1
            continue
        used += len(data)
        embedded[index] = {
            "data": f"data:image/{kind};base64,{base64.b64encode(data).decode()}",
            "note": note,
            **_caption(pictures[-1].with_suffix(".json")),
        }
    remarks = broken
    if earlier := sum(len(pictures) - 1 for pictures in found.values()):
        remarks.append(f"Only the last picture of a run is here: {earlier} earlier ones are in the runs' folders.")
    if left_out:
        remarks.append(f"{left_out} runs' pictures are left out, to keep this file small; first seeds come first.")
    return embedded, remarks


def _encode(path: Path, share: int) -> tuple[bytes, str, str]:
    """The file as it is if it takes no more than `share` bytes, else a JPEG at most WIDTH wide; kind; what was done."""
    raw = path.read_bytes()
    with Image.open(io.BytesIO(raw)) as picture:
        image = picture.convert("RGB")
    if len(raw) <= share and image.width <= WIDTH:
        return raw, "png", ""
    full = image.width
    if full > WIDTH:
        image = image.resize((WIDTH, max(1, round(image.height * WIDTH / full))), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    size = f"made smaller from {full} pixels wide, " if full > WIDTH else ""
    return buffer.getvalue(), "jpeg", f"{size}compressed as JPEG: the file in the run's folder is exact"


def _caption(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        columns = [str(name) for name in content["columns"]]
        return {"step": int(content["step"]), "epoch": int(content["epoch"]), "columns": columns}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {"step": None, "epoch": None, "columns": [], "caption_error": f"{path.name}: {type(error).__name__}"}

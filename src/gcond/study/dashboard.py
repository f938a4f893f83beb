"""One HTML page of all runs, to look at in a browser without a server or a network: a table, curves, reconstructions.

Local runs (runs/<scale>/<run>) in whatever state or, where there are none, recorded ones (results/<scale>). Numbers to
quote stand in the tables of results/, not here: steps are means of at most 50 bins, pictures are compressed.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import math
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from plotly.offline import get_plotlyjs
from tqdm import tqdm

from gcond.engine import metrics_log
from gcond.engine.run_folder import read_report
from gcond.engine.run_state import RunState, states_of
from gcond.files import write_text
from gcond.output import output_may_be_lost
from gcond.study import tables
from gcond.study.methods import label, look, ordered

TEMPLATE = Path(__file__).with_name("templates") / "dashboard.html"
DRAWN = re.compile(r"((loss|cosine|weight|zone)/[^+]+|conflicts|resolved|correction|resolved_norm|clipped|val_\w+)")
NUMBERS = re.compile(r"(best|last)_(val|test)_(l1|ssim|flipped|class)|best_epoch|train_l1_tail|conflicts|correction")
FACTS = (
    "hash",
    "commit",
    "dirty",
    "device",
    "torch",
    "python",
    "started",
    "seconds",
    "peak_memory_mb",
    "skipped_steps",
)
PICTURE_BYTES = 5_000_000  # of all pictures, before base64 adds a third
PICTURE_WIDTH = 640  # pixels


@output_may_be_lost()
def main(words: list[str] | None = None) -> int:
    """Exit code 0: the page is written, however few runs there are; 2: bad input."""
    parser = argparse.ArgumentParser(prog="gcond dashboard", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of local runs (default: runs)")
    parser.add_argument("--out", type=Path, help="file to write (default: dashboard.html in the folder of runs)")
    parser.add_argument(
        "--recorded",
        type=Path,
        default=Path("results"),
        help="folder of recorded results, shown where there are no local runs (default: results)",
    )
    options = parser.parse_args(words)
    try:
        print(write_page(options.runs, options.out or options.runs / "dashboard.html", options.recorded))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write_page(runs: Path, out: Path, recorded: Path) -> str:
    """Write the page to `out`; returns what it shows, in words.

    Raises ValueError where `runs` is no folder of scales.
    """
    found = _local(runs) or _recorded(recorded)
    _name_arms(found)
    places = {name: place for place, name in enumerate(ordered(run.get("strategy", "") for run in found))}
    found.sort(key=lambda run: (places[run.get("strategy", "")], run["variant"], run.get("seed", 0)))
    left_out = _add_pictures(found)
    source = f"the runs recorded in {recorded}" if found and found[0]["recorded"] else f"the runs in {runs}"
    made = datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")
    page = TEMPLATE.read_text(encoding="utf-8").replace("{{plotly}}", get_plotlyjs())
    page = page.replace("{{data}}", _embedded({"made": made, "source": source, "left_out": left_out, "runs": found}))
    write_text(out, page)
    states = Counter(run["state"] for run in found)
    listed = ", ".join(f"{number} {state}" for state, number in states.items()) or "no runs"
    return f"written: {out} ({len(page) / 1e6:.1f} MB) of {source}: {listed}"


def _embedded(content: Any) -> str:
    """JSON that no HTML parser takes for markup, whatever the texts in it."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


# Local runs.


def _local(runs: Path) -> list[dict[str, Any]]:
    if runs.exists() and not runs.is_dir():
        raise ValueError(f"`--runs`: expected a folder, found the file {runs}")
    if misplaced := [path for path in sorted(runs.glob("*")) if (path / "config.yaml").exists()]:
        raise ValueError(
            f"`--runs`: expected a folder of scales (runs/<scale>/<run>), found the run {misplaced[0].name} in {runs}; "
            f"name the folder above it: --runs {runs.parent}"
        )
    found = states_of([path for path in sorted(runs.glob("*")) if path.is_dir()], time.time())
    return [_of_folder(state) for state in tqdm(found, desc="reading runs", delay=2, leave=False, disable=None)]


def _of_folder(state: RunState) -> dict[str, Any]:
    """What is known of a run; what cannot be read is said in `says`, never raised."""
    folder, says = state.folder, [state.detail]
    run: dict[str, Any] = {"recorded": False, "scale": folder.parent.name, "name": folder.name, "state": state.state}
    run |= {"steps": state.steps, "total": state.total, "variant": None, "arm": folder.name, "curves": {}}
    try:
        run |= _config(folder / "config.yaml")
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        says.append(f"config.yaml cannot be read: {' '.join(str(error).split())}")
    try:
        if (folder / "report.json").exists():
            report = read_report(folder)
            run["variant"] = report.get("variant")
            row = tables.row_of(folder) if state.state == "done" else report
            run["facts"] = {name: row[name] for name in FACTS if row.get(name) is not None}
            run["numbers"] = _numbers(row)
            run["trivial"] = _best_trivial(list((report.get("trivial") or {}).values()))
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        says.append(f"no scores: {' '.join(str(error).split())}")
    try:
        log = _log(folder / "metrics.jsonl")
        run["curves"] = _curves(tables.steps(log), log[log.kind == "validation"])
        run["numbers"] = run.get("numbers", {}) | _numbers(tables.numbers(log))
    except FileNotFoundError:
        pass  # it has not come to its first step
    except ValueError as error:
        says.append(f"no curves: {error}")
    run["picture"] = next(iter(sorted((folder / "reconstructions").glob("*.png"), reverse=True)), None)
    return run | {"says": "; ".join(filter(None, says))}


def _config(path: Path) -> dict[str, Any]:
    """Runs that differ in their seed alone have one `arm`."""
    content = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    named = {name: str(content[name]["name"]) for name in ("dataset", "model", "strategy")}
    kept = {key: value for key, value in content.items() if key not in ("seed", "name")}
    arm = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return {**named, "seed": int(content["seed"]), "arm": arm}


def _log(metrics: Path) -> pd.DataFrame:
    """Steps and validations; the last line may be half written. Raises ValueError where another one is damaged."""
    records = metrics_log.read(metrics, growing=True)
    kept = [record for record in records if record.get("kind") in ("step", "validation")]
    return pd.DataFrame(kept, columns=None if kept else ["kind"])


# Recorded runs.


def _recorded(results: Path) -> list[dict[str, Any]]:
    found = []
    for folder in sorted(path.parent for path in results.glob("*/runs.csv")):
        table = tables.read(folder)
        rows = pd.concat([tables.runs(folder), table[table.status != tables.DONE]]).to_dict("records")
        found += [_of_row(folder, row) for row in tqdm(rows, desc=f"reading {folder}", leave=False, disable=None)]
    return found


def _of_row(results: Path, row: Mapping[Any, Any]) -> dict[str, Any]:
    run = {name: row[name] for name in ("scale", "name", "dataset", "model", "strategy")}
    known = {name: row[name] for name in row if not _missing(row[name])}
    run |= {"recorded": True, "state": known["status"], "says": known.get("error", ""), "seed": int(row["seed"])}
    run |= {"steps": known.get("steps"), "total": known.get("steps"), "variant": known.get("variant", "")}
    settings = {name: str(row[name]) for name in tables.SETTINGS if name != "seed"} | {"variant": run["variant"]}
    run |= {"arm": json.dumps(settings), "numbers": _numbers(known), "curves": {}, "picture": None}
    run["facts"] = {name: known[name] for name in FACTS if name in known}
    if "log" in known:
        try:
            log = tables.log(results, known["log"], "step", "validation", "trivial")
            run["curves"] = _curves(tables.steps(log), log[log.kind == "validation"])
            run["trivial"] = _best_trivial(log[log.kind == "trivial"].to_dict("records"))
        except ValueError as error:
            run["says"] = str(error)
    return run


# Both.


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _numbers(row: Mapping[Any, Any]) -> dict[str, float | None]:
    return {name: _short(value) for name, value in row.items() if NUMBERS.fullmatch(str(name)) and not _missing(value)}


def _best_trivial(scores: list[dict[Any, Any]]) -> dict[str, float | None]:
    """The lowest validation loss that a predictor without training has, by task."""
    found: dict[str, float | None] = {}
    for name in sorted({name for each in scores for name in each if str(name).startswith("val_")}):
        known = [each[name] for each in scores if not _missing(each.get(name))]
        if known:
            found[name] = _short(min(known))
    return found


def _curves(steps: pd.DataFrame, validation: pd.DataFrame) -> dict[str, dict[str, list[Any]]]:
    """Quantity -> optimizer steps `x` and values `y`, None where it is not defined."""
    curves = {}
    for rows, at in ((steps, "last_step"), (validation, "step")):
        for name in (name for name in rows if DRAWN.fullmatch(name)):
            values = rows[name].to_numpy("float64")
            there = ~np.isnan(values)
            if there.any():
                x = rows[at].to_numpy()[there].astype(int).tolist()
                curves[name] = {"x": x, "y": [_short(value) for value in values[there]]}
    return curves


def _short(value: Any) -> float | None:
    """4 significant digits; None, as in JSON, for what is not finite."""
    return float(f"{float(value):.4g}") if math.isfinite(float(value)) else None


def _name_arms(runs: list[dict[str, Any]]) -> None:
    """Give each run the `label` and the `look` of its arm: method, and overrides, once a seed has reported them."""
    strategies = {run["strategy"] for run in runs if "strategy" in run}
    arms = defaultdict(list)
    for run in runs:
        arms[run["recorded"], run["scale"], run["arm"]].append(run)
    for key, own in arms.items():
        strategy = own[0].get("strategy", "")
        known = {run["variant"] for run in own} - {None}
        shared = sum(other[0].get("strategy") == strategy and other[0]["scale"] == key[1] for other in arms.values())
        unknown = f"settings {key[2][:4]}" if shared > 1 else ""
        variant = ", ".join(sorted(known)) if known else unknown
        name = label(strategy) if strategy else own[0]["name"]
        for run in own:
            run |= {"label": f"{name} [{variant}]" if variant else name, "variant": variant}
            run["look"] = look(strategy, strategies) if strategy else {"colour": "#888888", "dash": []}


def _add_pictures(runs: list[dict[str, Any]]) -> str:
    """Put the last picture of each run into it, one run of every arm first, until they fill PICTURE_BYTES; returns how
    many are left out, in words."""
    seen: Counter[tuple[str, str]] = Counter()
    order = []
    for run in (run for run in runs if run["picture"]):
        seen[run["scale"], run["arm"]] += 1
        order.append((seen[run["scale"], run["arm"]], run))
    used = left_out = 0
    for _, run in sorted(order, key=lambda place: place[0]):
        path, run["picture"] = run["picture"], None
        try:
            content = _jpeg(path)
        except (OSError, ValueError) as error:
            run["says"] += f"; {path.name} is no readable picture: {error}"
            continue
        if used + len(content) > PICTURE_BYTES:
            left_out += 1
            continue
        used += len(content)
        run["picture"] = {"data": f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"}
        run["picture"] |= _caption(path.with_suffix(".json"))
    return f"{left_out} more are in the runs' folders, left out to keep this file small." if left_out else ""


def _jpeg(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as picture:
        image = picture.convert("RGB")
    image.thumbnail((PICTURE_WIDTH, 100 * PICTURE_WIDTH))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    return content.getvalue()


def _caption(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"epoch": int(content["epoch"]), "columns": ", ".join(map(str, content["columns"]))}
    except (OSError, ValueError, KeyError, TypeError):
        return {"epoch": None, "columns": ""}


if __name__ == "__main__":
    sys.exit(main())

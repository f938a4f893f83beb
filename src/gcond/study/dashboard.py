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
FACTS = ("hash", "commit", "dirty", "device", "torch", "python", "started", "seconds", "peak_memory_mb",
         "skipped_steps")  # fmt: skip
PICTURE_BYTES = 5_000_000  # of all pictures, before base64 adds a third
PICTURE_WIDTH = 640  # pixels
Run = dict[str, Any]


@output_may_be_lost()
def main(words: list[str] | None = None) -> int:
    """Exit code 0: the page is written, however few runs there are; 2: bad input."""
    parser = argparse.ArgumentParser(prog="gcond dashboard", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of local runs (default: runs)")
    parser.add_argument("--out", type=Path, help="file to write (default: dashboard.html in the folder of runs)")
    parser.add_argument("--recorded", type=Path, default=Path("results"),
                        help="recorded results, shown where there are no local runs (default: results)")  # fmt: skip
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
    data = {"made": made, "source": source, "left_out": left_out, "runs": found}
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")  # never taken for markup
    page = TEMPLATE.read_text(encoding="utf-8").replace("{{plotly}}", get_plotlyjs()).replace("{{data}}", text)
    write_text(out, page)
    states = Counter(run["state"] for run in found)
    listed = ", ".join(f"{number} {state}" for state, number in states.items()) or "no runs"
    return f"written: {out} ({len(page) / 1e6:.1f} MB) of {source}: {listed}"


# Local runs.


def _local(runs: Path) -> list[Run]:
    if runs.exists() and not runs.is_dir():
        raise ValueError(f"`--runs`: expected a folder, found the file {runs}")
    if misplaced := [path for path in sorted(runs.glob("*")) if (path / "config.yaml").exists()]:
        raise ValueError(
            f"`--runs`: expected a folder of scales (runs/<scale>/<run>), found the run {misplaced[0].name} in {runs}; "
            f"name the folder above it: --runs {runs.parent}"
        )
    found = states_of([path for path in sorted(runs.glob("*")) if path.is_dir()], time.time())
    return [_of_folder(state) for state in tqdm(found, desc="reading runs", delay=2, leave=False, disable=None)]


def _of_folder(state: RunState) -> Run:
    """All that is known of a run; what cannot be read is noted in `says`, never raised."""
    folder, says = state.folder, [state.detail]
    run: Run = {"recorded": False, "scale": folder.parent.name, "name": folder.name, "state": state.state}
    run |= {"steps": state.steps, "total": state.total, "variant": None, "arm": folder.name, "curves": {}}
    for read, lost in ((_config, "config.yaml cannot be read"), (_scores, "no scores"), (_log, "no curves")):
        try:
            found = read(state)
        except FileNotFoundError:
            continue  # it has not come so far
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            says.append(f"{lost}: {' '.join(str(error).split())}")
            continue
        run |= found | {"numbers": run.get("numbers", {}) | found.get("numbers", {})}
    run["picture"] = next(iter(sorted((folder / "reconstructions").glob("*.png"), reverse=True)), None)
    return run | {"says": "; ".join(filter(None, says))}


def _config(state: RunState) -> Run:
    """Runs that differ in their seed alone have one `arm`."""
    text = (state.folder / "config.yaml").read_text(encoding="utf-8")
    content = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    named = {name: str(content[name]["name"]) for name in ("dataset", "model", "strategy")}
    kept = {key: value for key, value in content.items() if key not in ("seed", "name")}
    arm = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return {**named, "seed": int(content["seed"]), "arm": arm}


def _scores(state: RunState) -> Run:
    if not (state.folder / "report.json").exists():
        return {}
    report = read_report(state.folder)
    row = tables.row_of(state.folder) if state.state == "done" else report
    trivial = pd.DataFrame(list((report.get("trivial") or {}).values()))
    return _of_row(row) | {"variant": report.get("variant"), "trivial": _best(trivial)}


def _log(state: RunState) -> Run:
    records = metrics_log.read(state.folder / "metrics.jsonl", growing=True)
    log = pd.DataFrame([record for record in records if record.get("kind") in ("step", "validation")])
    return _of_log(log) | _of_row(tables.numbers(log)) if len(log) else {}


# Recorded runs.


def _recorded(results: Path) -> list[Run]:
    found = []
    for folder in sorted(path.parent for path in results.glob("*/runs.csv")):
        table = tables.read(folder)
        rows = pd.concat([tables.runs(folder), table[table.status != tables.DONE]]).to_dict("records")
        found += [_of_record(folder, row) for row in tqdm(rows, desc=f"reading {folder}", leave=False, disable=None)]
    return found


def _of_record(results: Path, row: Mapping[Any, Any]) -> Run:
    known = {name: value for name, value in row.items() if pd.notna(value)}
    run = {name: row[name] for name in ("scale", "name", "dataset", "model", "strategy")} | _of_row(known)
    run |= {"recorded": True, "state": known["status"], "says": known.get("error", ""), "seed": int(row["seed"])}
    run |= {"steps": known.get("steps"), "total": known.get("steps"), "variant": known.get("variant", "")}
    settings = {name: str(row[name]) for name in tables.SETTINGS if name != "seed"} | {"variant": run["variant"]}
    run |= {"arm": json.dumps(settings), "curves": {}, "picture": None}
    if "log" in known:
        try:
            log = tables.log(results, known["log"], "step", "validation", "trivial")
        except ValueError as error:
            return run | {"says": str(error)}
        run |= _of_log(log) | {"trivial": _best(log[log.kind == "trivial"])}
    return run


# Both.


def _of_row(row: Mapping[Any, Any]) -> Run:
    """The numbers and facts of a row of runs.csv, a report, or the numbers of a log."""
    known = {str(name): value for name, value in row.items() if NUMBERS.fullmatch(str(name)) or name in FACTS}
    known = {name: value for name, value in known.items() if pd.notna(value)}
    numbers = {name: _short(value) for name, value in known.items() if name not in FACTS}
    facts = {name: known[name] for name in FACTS if name in known}
    return {"numbers": numbers} | ({"facts": facts} if facts else {})


def _best(predictors: pd.DataFrame) -> dict[str, float | None]:
    """The lowest validation loss that a predictor without training has, by task."""
    lowest = predictors.filter(regex="^val_").astype("float64").min().dropna()
    return {str(name): _short(value) for name, value in lowest.sort_index().items()}


def _of_log(log: pd.DataFrame) -> Run:
    """`curves`: quantity -> optimizer steps `x` and values `y`, None where a value is not finite."""
    curves = {}
    for rows, at in ((tables.steps(log), "last_step"), (log[log.kind == "validation"], "step")):
        for name in (name for name in rows if DRAWN.fullmatch(name)):
            known = rows[[at, name]].dropna()
            if len(known):
                x = known[at].astype(int).tolist()
                curves[name] = {"x": x, "y": [_short(value) for value in known[name]]}
    return {"curves": curves}


def _short(value: Any) -> float | None:
    """Round to 4 significant digits; None, JSON's null, for what is not finite."""
    return float(f"{float(value):.4g}") if math.isfinite(float(value)) else None


def _name_arms(runs: list[Run]) -> None:
    """Give each run the `label` and the `look` of its arm: method, and overrides, once a seed has reported them."""
    strategies = {run["strategy"] for run in runs if "strategy" in run}
    arms = defaultdict(list)
    for run in runs:
        arms[run["scale"], run.get("strategy", ""), run["arm"]].append(run)
    shared = Counter((scale, strategy) for scale, strategy, _ in arms)
    for (scale, strategy, arm), own in arms.items():
        known = {run["variant"] for run in own} - {None}
        unknown = f"settings {arm[:4]}" if strategy and shared[scale, strategy] > 1 else ""
        variant = ", ".join(sorted(known)) if known else unknown
        name = label(strategy) if strategy else own[0]["name"]
        for run in own:
            run |= {"label": f"{name} [{variant}]" if variant else name, "variant": variant}
            run["look"] = look(strategy, strategies) if strategy else {"colour": "#888888", "dash": []}


def _add_pictures(runs: list[Run]) -> str:
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

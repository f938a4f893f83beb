"""docs/experiments.md: what is recorded of each table, figure and question at which scale, and what is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gcond.study import judge, tables
from gcond.study.artefacts import EXPERIMENTS, Artefact, Catalogue, Choices
from gcond.study.figure_runs import choose
from gcond.study.methods import facts, kind, read_yaml
from gcond.study.queue import AS_RECORDED, Queue, described

SCALES = ("study", "sample", "sample_gpu", "mini", "paper")
MEASURED = {"linear_probe": "linear_probe", "window_noise": "window"}  # Artefact.then -> kind of its records


def content(results: Path) -> dict[str, Any]:
    """`rows`: a row an artefact; `left_out`: experiments that the queue does not make, their runs and hours; `made` of
    `queued` runs are recorded."""
    catalogue, queued = Catalogue(), facts("artefacts")["queued"]
    found = judge.read(results / "findings.csv")
    stand = judge.verdicts(facts("claims"), found).set_index("claim").scale
    runs = queue_runs(results / "study")
    hours = tables.read(results / "study").cpu_seconds.median() / 3600
    rows, left_out = [], []
    for name, artefact in catalogue.artefacts.items():
        answers = [f"[{claim}](../results/{stand[claim]}/claims.md#{claim.lower()})" for claim in artefact.claims
                   if stand[claim] in judge.SCALES]  # fmt: skip
        answers += [f"[{path.name}](../results/{path})" for path in _pages_of(name, results)]
        cells = [""] * len(SCALES)
        if artefact.trains:
            spec = facts("figures")["figures"].get(name, {})
            asked = catalogue.artefacts[spec.get("artefact", name)] if spec.get("kind") == "forest" else artefact
            others = [_recorded(asked, results / scale, found[found.scale == scale]) for scale in SCALES[1:]]
            cells = [_counted(artefact, runs, results / "study"), *others]
        rows.append([f"`{name}`", artefact.asks, *cells, ", ".join(answers)])
        for sweep in catalogue.sweeps([artefact], Choices("study")):
            experiment = sweep[0].removeprefix("experiment=")
            if experiment not in queued and f"`{experiment}`" not in [line[0] for line in left_out]:
                size = sweep_size(sweep)
                left_out.append([f"`{experiment}`", f"`{name}`", str(size), f"{size * hours:.1f}"])
    once = runs.drop_duplicates("hash").made
    return {"rows": rows, "left_out": left_out, "made": once.sum(), "queued": len(once)}


def queue_runs(folder: Path) -> pd.DataFrame:
    """The runs of study/queue.yaml, once a block; `hash` names one, `made`: recorded in `folder`."""
    recorded = tables.finished(folder)
    recorded = recorded.assign(hash=[_name(run) for run in recorded[AS_RECORDED].to_dict("records")], data_checksum="")
    queue = Queue(facts("queue"), lambda runs: [(_name(described(each)), "") for each in runs])
    runs = queue.runs(recorded)
    runs["hash"] = runs.hash.where(~runs.waiting, runs.overrides.map(str))  # whose rate is not known
    return runs.assign(made=runs.hash.isin(recorded.hash))


def _name(run: dict[str, Any]) -> str:
    return "|".join(str(run[key]) for key in AS_RECORDED)


def blocks_of(artefact: Artefact) -> list[str]:
    """Of the queue, that make its runs at the study's scale."""
    queued = facts("artefacts")["queued"]
    return [block for part in (*artefact.trains, artefact.then) for block in queued.get(part, ())]


def _counted(artefact: Artefact, runs: pd.DataFrame, folder: Path) -> str:
    """ "yes", "12 of 33", or "" where none is recorded, or where none has what the artefact shows of it."""
    own = runs[runs.block.isin(blocks_of(artefact))].drop_duplicates("hash")
    own = own[own.strategy.isin(artefact.strategy or own.strategy)]
    kinds = {kind(dataset) for dataset in artefact.dataset} & {"ct", "photographs"}
    own = own[own.dataset.map(kind).isin(kinds or own.dataset.map(kind))]
    made = own.made
    pictures = facts("figures")["figures"].get(artefact.name, {}).get("kind") == "pictures"
    if pictures or artefact.then in MEASURED:
        own = own[own.seed == tables.PICTURED] if pictures else own
        finished = tables.finished(folder)
        has = {log: tables.pictures(folder, log).exists() if pictures
               else len(tables.log(folder, log, MEASURED[str(artefact.then)])) > 0 for log in finished.log}  # fmt: skip
        made = own.hash.isin([_name(run) for run in finished.to_dict("records") if has[run["log"]]])
    if not made.any():
        return ""
    return "yes" if made.all() else f"{made.sum()} of {len(own)}"


def _recorded(artefact: Artefact, folder: Path, found: pd.DataFrame) -> str:
    """yes, part or "": its claims have findings at the scale, or the arms of its figure are recorded there."""
    spec = facts("figures")["figures"].get(artefact.name, {})
    if artefact.claims:
        share = sum(claim in set(found.claim) for claim in artefact.claims) / len(artefact.claims)
        return "yes" if share == 1 else "part" if share else ""
    if not spec:
        return "yes" if (folder / f"{artefact.name}.md").exists() else ""
    try:
        return "part" if choose(artefact.name, spec, folder).missing else "yes"
    except ValueError:  # nothing to draw
        return ""


def sweep_size(overrides: Sequence[str]) -> int:
    """Runs of a sweep: its `overrides` and the lists of its experiment that they leave as they are."""
    chosen = dict(each.split("=", 1) for each in overrides)
    lists = read_yaml(EXPERIMENTS / f"{chosen['experiment']}.yaml")["hydra"]["sweeper"]["params"] | chosen
    return math.prod(len(tables.split(str(value))) for value in lists.values())


def _pages_of(name: str, results: Path) -> list[Path]:
    """The page or figure that an artefact has beside its claims, at the largest scale that has one."""
    if name in ("table3", "table4"):
        return [Path("bench.md")]
    files = (f"{name}.md", f"{name}_lr2e-4.md", f"figures/{name}.png")
    places = [Path(name, f"{name}.md"), *(Path(scale, file) for scale in judge.SCALES for file in files)]
    return [place for place in places if (results / place).exists()][:1]

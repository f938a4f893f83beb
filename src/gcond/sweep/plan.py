"""What sweeps will do, how long it may take, and what room it needs, before anything is started."""

from __future__ import annotations

import copy
import functools
import io
import json
import os
import re
import shutil
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # what --multirun itself splits a sweep with
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from gcond.config import CONFIG, conf
from gcond.data.checksums import checksum_of
from gcond.engine.run_folder import RunFolder, resolved
from gcond.engine.run_state import TO_DO, Standing, recorded_rows, standing
from gcond.output import duration, size
from gcond.schema import check

PATHS = re.compile(r"\+?(paths\.\w+|dataset\.root|runs|recorded)")  # keys
NOT_LITERAL = re.compile(r"['\"$]|choice\(")
PROBE = 10_000  # parameters a group, of the stand-in for a model
ENTRY = 350  # bytes that torch.save adds to each tensor's own
EXTRA = 2_000_000  # bytes of metrics, pictures and report, about
UNKNOWN = "unknown until runs of this kind have been recorded"
Cost = tuple[str, str, str, str]  # scale, dataset, model, strategy: what runs of about the same cost share
Checksum = Callable[[DictConfig], Any]


@dataclass(frozen=True)
class Planned:
    """One run of a sweep: `overrides` are what it is started with, `standing` is how it stood when it was planned."""

    folder: RunFolder
    cfg: DictConfig
    standing: Standing = TO_DO
    overrides: tuple[str, ...] = ()

    @functools.cached_property
    def cost(self) -> Cost:
        return self.cfg.scale.name, self.cfg.dataset.name, self.cfg.model.name, self.cfg.strategy.name

    @functools.cached_property
    def steps(self) -> int | None:
        """Optimizer steps, where the config says how many an epoch has."""
        scale = self.cfg.scale
        return None if scale.steps_per_epoch is None else scale.steps_per_epoch * scale.epochs

    @property
    def refused(self) -> bool:
        """`standing.said` tells why."""
        return self.standing.state == "refused"

    @property
    def done(self) -> bool:
        """Finished here, or recorded by another machine."""
        return self.standing.state in ("done", "recorded")

    @property
    def left(self) -> bool:
        """To be trained."""
        return self.standing.state == "to do"


def with_paths_quoted(overrides: Sequence[str]) -> list[str]:
    """As typed, but a path is one value whatever is in it: Hydra gives `,` `=` `(` and a blank a meaning of their own.

    A path that is quoted already, or that chooses among several (`choice(A,B)`), stays as it is.
    """
    quoted = []
    for override in overrides:
        key, _, value = override.partition("=")
        if PATHS.fullmatch(key) and not re.fullmatch(r"[\w./~-]*", value, re.ASCII) and not NOT_LITERAL.match(value):
            value = value.replace('"', '\\"')
            override = f'{key}="{value}"'
        quoted.append(override)
    return quoted


def plan(overrides: Sequence[str]) -> list[Planned]:
    """The runs that `gcond-train --multirun` would start for these overrides (`recorded=DIR` among them or not).

    Raises ValueError for an unknown key or group (from Hydra), for a setting out of its type or range, and where two
    runs of other settings or data would share a folder.
    """
    with conf():
        parser = OverridesParser.create()
        fixed = [text for text in overrides if not parser.parse_override(text).is_sweep_override()]
        params = compose("train", fixed, return_hydra_config=True).hydra.sweeper.params or {}
        swept = parser.parse_overrides([f"{key}={value}" for key, value in params.items()] + list(overrides))
        runs = planned(BasicSweeper.split_arguments(swept, None)[0])
    _check_folders(runs, _asked_once())
    return runs


def planned(choices: Sequence[Sequence[str]]) -> list[Planned]:
    """The run of each choice of overrides, none of which sweeps."""
    checksum = _asked_once()
    with conf():
        configs = tqdm(_composed(choices), "plan", len(choices), unit="run", delay=2, leave=False, disable=None)
        return [_planned(cfg, choice, checksum) for cfg, choice in zip(configs, choices, strict=True)]


def _planned(cfg: DictConfig, choice: Sequence[str], checksum: Checksum) -> Planned:
    check(cfg)
    folder = RunFolder(cfg)
    return Planned(folder, cfg, standing(folder, cfg, checksum), (*choice, "hydra.mode=RUN"))


def _check_folders(runs: Sequence[Planned], checksum: Checksum) -> None:
    """Raise ValueError where two runs of other settings or other data would share a folder."""
    first: dict[Path, Planned] = {}
    for run in runs:
        other = first.setdefault(run.folder.path, run)
        roots = {str(each.cfg.dataset.get("root")) for each in (run, other)}
        if run.folder.hash != other.folder.hash:
            raise ValueError(
                f"`name`: expected it for one run, found {run.folder.name} for several with other settings; leave it "
                "out, and each is named after its own"
            )
        if len(roots) > 1 and checksum(run.cfg.dataset) != checksum(other.cfg.dataset):
            raise ValueError(
                f"`dataset.root`: two runs of this sweep, on the data in {' and '.join(sorted(roots))}, would share "
                f"the folder {run.folder.path}; sweep each root by itself, with its own `runs`"
            )


def looked_at_again(runs: Sequence[Planned]) -> list[Planned]:
    """As they stand now."""
    checksum = _asked_once()
    return [replace(run, standing=standing(run.folder, run.cfg, checksum)) for run in runs]


def _asked_once() -> Checksum:
    """`checksum_of`, which keeps its answer for each data set."""
    answer = functools.cache(lambda dataset: checksum_of(OmegaConf.create(dataset)))
    return lambda dataset: answer(OmegaConf.to_yaml(dataset, resolve=True))


def _composed(choices: Sequence[Sequence[str]]) -> Iterator[DictConfig]:
    """What `compose("train", choice)` makes of each, faster: choices that differ in plain values only share one
    composition, and their values are set on copies of it.
    """
    parser = OverridesParser.create()
    bases: dict[tuple[str, ...], DictConfig] = {}
    for choice in choices:
        parsed = {text: parser.parse_override(text) for text in choice}
        values = [each for each in parsed.values() if _is_plain_value(each)]
        base = tuple(text for text, each in parsed.items() if not _is_plain_value(each))
        if base not in bases:
            bases[base] = compose("train", [*base])
        cfg = copy.deepcopy(bases[base])
        try:
            for each in values:
                OmegaConf.update(cfg, each.key_or_group, each.value(), merge=True)
        except OmegaConfBaseException:
            compose("train", [*choice])  # raises Hydra's own message
            raise
        yield cfg


def _is_plain_value(override: Override) -> bool:
    key = override.key_or_group
    return override.type is OverrideType.CHANGE and not (CONFIG / key).is_dir() and not key.startswith("hydra.")


def prove(runs: Sequence[Planned], here: bool) -> None:
    """Build what the runs that are left ask for, without data, so that none is refused once others have trained.

    `here`: they will run on this machine, so that their device must be there, and the labels that they need. Raises
    ValueError that names the run.
    """
    if not (left := [run for run in runs if run.left]):
        return
    from gcond.engine import device  # here, since PyTorch takes seconds to import
    from gcond.engine.batches import labelling_of
    from gcond.engine.settings import Settings

    known = set()
    for run in tqdm(left, "check", unit="run", delay=2, leave=False):
        settings = json.dumps(resolved(run.cfg) | {"seed": 0, "device": run.cfg.device})
        if settings in known:
            continue
        known.add(settings)
        try:
            Settings(run.cfg)
            if here:
                device.find(run.cfg.device)
                asked = f"{run.cfg.loss.get('labels')}: {OmegaConf.to_yaml(run.cfg.dataset, resolve=True)}"
                if asked not in known:
                    labelling_of(run.cfg)
                    known.add(asked)
        except ValueError as error:
            raise ValueError(f"{run.folder.name}: {error}") from error


# Time and memory


@dataclass(frozen=True)
class Record:
    """What a run of the same kind took: seconds, and memory in MiB on `device` ("" where a report does not say)."""

    seconds: float
    memory_mb: float = 0.0
    device: str = ""

    @staticmethod
    def of(row: Mapping[str, Any]) -> Record:
        """Of a report or a row of runs.csv. On the CPU the seconds are the processor's where they are known, since a
        run waits for others on a loaded machine; several threads use more of them than time passes."""
        seconds, cpu, memory, device = (row.get(key) for key in ("seconds", "cpu_seconds", "peak_memory_mb", "device"))
        alone = min(float(seconds), float(cpu)) if cpu and (device or "").startswith("CPU") else float(seconds)
        return Record(alone, float(memory or 0), device or "")


def estimate(runs: Sequence[Planned], results: Path) -> tuple[float | None, Record | None]:
    """Of the runs that are left, by finished and recorded runs of the same kind: seconds of work in all, and the record
    of the most memory. A strategy that was never recorded takes as long as the others of its scale."""
    known = recorded(results)
    for run in runs:
        if not run.refused and (report := run.folder.finished()) is not None:
            known.setdefault(run.cost, []).append(Record.of(report))
    left = [run for run in runs if run.left]
    total: float | None = 0.0
    for run in left:
        alike = known.get(run.cost) or [record for cost in known if cost[0] == run.cost[0] for record in known[cost]]
        seconds = statistics.median(record.seconds for record in alike) if alike else None
        total = None if total is None or seconds is None else total + seconds
    records = [record for run in left for record in known.get(run.cost, []) if record.memory_mb]
    return total, max(records, key=lambda record: record.memory_mb, default=None)


def recorded(results: Path) -> dict[Cost, list[Record]]:
    """Finished runs in results/<scale>/runs.csv, those with other settings left out; a damaged file is said, and left
    out too."""
    known: dict[Cost, list[Record]] = {}
    for path in sorted(results.glob("*/runs.csv")):
        try:
            rows = [row for row in recorded_rows(path) if row["variant"] == "" and row["seconds"]]
            found = [
                ((path.parent.name, row["dataset"], row["model"], row["strategy"]), Record.of(row)) for row in rows
            ]
        except (ValueError, KeyError) as error:
            print(f"{path} is left out of the estimate: {error}", file=sys.stderr)
            continue
        for cost, record in found:
            known.setdefault(cost, []).append(record)
    return known


# Disk


def disk_needed(runs: Sequence[Planned], jobs: int) -> tuple[float, float]:
    """Bytes that the runs which are left will leave behind, and how much more they hold while `jobs` of them run: until
    it is finished, a run holds its checkpoints whole."""
    lasting, passing = 0.0, []
    for run in (run for run in runs if run.left):
        parts = [run.cfg.model, run.cfg.optimizer, run.cfg.strategy, run.cfg.loss]
        content = [OmegaConf.to_container(part, resolve=True) for part in parts]
        weights, whole = _checkpoints(
            json.dumps(dict(zip(("model", "optimizer", "strategy", "loss"), content, strict=True)))
        )
        kept = weights if run.cfg.finished_keeps == "weights" else whole
        lasting += max(0.0, kept + EXTRA - size_of(run.folder.path))
        passing.append(whole - kept)
    return lasting, sum(sorted(passing, reverse=True)[:jobs])


def size_of(folder: Path) -> int:
    """Bytes of all files in `folder`; 0 where it does not exist."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a run at work has just replaced it
            total += path.stat().st_size if path.is_file() else 0
    return total


@functools.cache
def _checkpoints(parts: str) -> tuple[float, float]:
    """Bytes of the weights alone, and of the whole checkpoints that a run holds: by the model's parameters and by what
    its optimizer and its strategy keep for each parameter of a stand-in."""
    import torch  # here, since it takes seconds and is needed only where runs are left

    from gcond.config import build
    from gcond.engine.checkpoint import KEPT
    from gcond.engine.settings import GROUPS, step_on_stand_in

    cfg = OmegaConf.create(json.loads(parts))
    with torch.device("meta"):  # shapes without numbers
        model = build(cfg.model, channels=3)  # of photographs; CT's single channel makes it a little smaller
    stand_in, optimizer, conductor = step_on_stand_in(cfg, PROBE)
    file = io.BytesIO()
    torch.save([stand_in, optimizer.state_dict(), conductor.state_dict()], file)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    weights = sum(tensor.nbytes + ENTRY for tensor in model.state_dict().values())
    return weights, KEPT * (parameters * file.tell() / (PROBE * len(GROUPS)) + weights)  # those of the best epoch, too


# What a person reads


def print_plan(sweeps: Mapping[str, Sequence[Planned]], jobs: int, results: Path) -> None:
    """All runs, each counted once, with what they take; below, each sweep where there are several."""
    runs = [*{run.folder.path: run for each in sweeps.values() for run in each}.values()]
    left = [run for run in runs if run.left]
    here, elsewhere, refused = (
        sum(run.standing.state == state for run in runs) for state in ("done", "recorded", "refused")
    )
    counted = f"{here} finished" + f", {elsewhere} recorded" * bool(elsewhere) + f", {refused} refused" * bool(refused)
    begun, failed = sum(run.folder.begun for run in left), sum(run.folder.error is not None for run in left)
    print(f"Plan: {len(runs)} runs, {counted}, {len(left)} to do ({begun} begun, {failed} failed before)")
    for run in (run for run in runs if run.refused):
        print(f"      refused: {run.standing.said}")
    for why, count in Counter(run.standing.said for run in left if run.standing.said).items():
        print(f"      {count} of those to do: {why}")
    for why, count in Counter(run.standing.unchecked for run in runs if run.standing.unchecked).items():
        print(f"      {count} finished or recorded runs were not compared with their data, which are not there: {why}")
    if left:
        seconds, largest = estimate(runs, results)
        time = UNKNOWN if seconds is None else duration(seconds / jobs)
        print(f"      {jobs} side by side, estimated time {time} (from recorded runs; other machines differ)")
        print(f"      memory {UNKNOWN if largest is None else _memory(largest, jobs)}", flush=True)
        print_disk(Path(runs[0].cfg.runs), *disk_needed(runs, jobs))
    if len(sweeps) > 1:
        print_sweeps(sweeps, jobs, results)


def _memory(largest: Record, jobs: int) -> str:
    one, there = largest.memory_mb * 2**20, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = f"{size(one)} a run, {size(jobs * one)} side by side, as recorded on {largest.device}"
    return f"{needed}; this machine has {size(there)}"


def print_disk(folder: Path, lasting: float, passing: float) -> None:
    """What runs will add below `folder`, and for a while, against what is free there."""
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    while_running = f" and {size(passing)} while they run" if passing else ""
    print(f"      disk {size(lasting)} more in {folder}{while_running}, {size(free)} free", flush=True)
    if lasting + passing > free:
        needed = size(lasting + passing)
        print(f"      NOT ENOUGH: expected {needed} free; set runs= to a folder on a larger disk", flush=True)


def print_sweeps(sweeps: Mapping[str, Sequence[Planned]], jobs: int, results: Path) -> None:
    """A line a sweep: its runs, those that no sweep above it has, and the time that these take."""
    width = max(map(len, [*sweeps, "experiment"]))
    print(f"      {'experiment':{width}}  runs   new  to do  time of the new ones")
    seen: set[Path] = set()
    for name, runs in sweeps.items():
        new = [run for run in runs if run.folder.path not in seen]
        seen |= {run.folder.path for run in new}
        seconds, _ = estimate(new, results)
        time = "-" if seconds == 0 else "unknown" if seconds is None else duration(seconds / jobs)
        to_do = sum(run.left for run in new)
        print(f"      {name:{width}} {len(runs):5} {len(new):5} {to_do:6}  {time}", flush=True)

"""What a sweep will do, how long it may take, and what room it needs, before anything is started."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # what --multirun itself splits a sweep with
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from gcond.config import CONFIG
from gcond.data.checksums import checksum_of
from gcond.engine.run_folder import RunFolder, resolved
from gcond.engine.run_state import TO_DO, Standing, recorded_rows, standing
from gcond.output import duration, size
from gcond.schema import check

PATHS = re.compile(r"\+?(paths\.\w+|dataset\.root|runs|recorded)")  # keys
NOT_LITERAL = re.compile(r"['\"$]|choice\(")
Cost = tuple[str, str, str, str]  # scale, dataset, model, strategy: what runs of about the same cost share


@dataclass(frozen=True)
class Planned:
    """One run of a sweep; `standing` is how it stood when the plan was made, the properties are how it stands now."""

    folder: RunFolder
    cost: Cost
    steps: int | None
    cfg: DictConfig
    standing: Standing = TO_DO

    @property
    def recorded(self) -> bool:
        """By another machine, so that it need not be repeated."""
        return self.standing.state == "recorded"

    @property
    def refused(self) -> bool:
        """`standing.said` tells why."""
        return self.standing.state == "refused"

    @property
    def done(self) -> bool:
        return self.recorded or (not self.refused and self.folder.finished() is not None)

    @property
    def left(self) -> bool:
        """To be trained."""
        return not self.refused and not self.done


@dataclass(frozen=True)
class Record:
    """What a run of the same kind took: seconds, and memory in MiB on `device` ("" where a report does not say)."""

    seconds: float
    memory_mb: float | None
    device: str

    @staticmethod
    def of(row: Mapping[str, Any]) -> Record:
        """Of a report or a row of runs.csv. On the CPU the seconds are the processor's where they are known, since a
        run waits for others on a loaded machine; several threads use more of them than time passes."""
        seconds, cpu, memory, device = (row.get(key) for key in ("seconds", "cpu_seconds", "peak_memory_mb", "device"))
        alone = min(float(seconds), float(cpu)) if cpu and (device or "").startswith("CPU") else float(seconds)
        return Record(alone, float(memory) if memory else None, device or "")


@dataclass(frozen=True)
class Estimate:
    """Of the runs that are left: seconds of work in all, and the memory of the largest, in MiB on `device`; None:
    unknown."""

    seconds: float | None
    memory_mb: float | None
    device: str


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
    with _conf():
        parser = OverridesParser.create()
        fixed = [text for text in overrides if not parser.parse_override(text).is_sweep_override()]
        params = compose("train", fixed, return_hydra_config=True).hydra.sweeper.params or {}
        swept = parser.parse_overrides([f"{key}={value}" for key, value in params.items()] + list(overrides))
        choices = BasicSweeper.split_arguments(swept, None)[0]
        runs = planned(choices)
    _check_folders(runs, _asked_once(checksum_of))
    return runs


def planned(choices: Sequence[Sequence[str]]) -> list[Planned]:
    """The run of each choice of overrides, none of which sweeps."""
    checksum = _asked_once(checksum_of)
    with nullcontext() if GlobalHydra.instance().is_initialized() else _conf():
        configs = tqdm(_composed(choices), "plan", len(choices), unit="run", delay=2, leave=False, disable=None)
        return [_planned(cfg, checksum) for cfg in configs]


def _check_folders(runs: Sequence[Planned], checksum: Callable[[DictConfig], Any]) -> None:
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
    checksum = _asked_once(checksum_of)
    return [replace(run, standing=standing(run.folder, run.cfg, checksum)) for run in runs]


def _conf() -> AbstractContextManager[None]:
    return initialize_config_dir(version_base="1.3", config_dir=str(CONFIG))


def _asked_once(checksum: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """`checksum`, which keeps its answer, or its ValueError, for each data set."""
    known: dict[str, Any] = {}

    def ask(dataset: DictConfig) -> Any:
        key = OmegaConf.to_yaml(dataset, resolve=True)
        if key not in known:
            try:
                known[key] = checksum(dataset)
            except (OSError, ValueError) as error:
                known[key] = error
        if isinstance(known[key], Exception):
            raise known[key]
        return known[key]

    return ask


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
    return override.type is OverrideType.CHANGE and not (CONFIG / override.key_or_group).is_dir()


def _planned(cfg: DictConfig, checksum: Callable[[DictConfig], Any]) -> Planned:
    check(cfg)
    per_epoch = cfg.scale.steps_per_epoch
    folder = RunFolder(cfg)
    return Planned(
        folder,
        (cfg.scale.name, cfg.dataset.name, cfg.model.name, cfg.strategy.name),
        None if per_epoch is None else per_epoch * cfg.scale.epochs,
        cfg,
        standing(folder, cfg, checksum),
    )


def prove(runs: Sequence[Planned], here: bool) -> None:
    """Build what the runs that are left ask for, without data, so that none is refused once others have trained.

    `here`: they will run on this machine, so that their device must be there. Raises ValueError that names the run.
    """
    if not (left := [run for run in runs if run.left]):
        return
    from gcond.engine import device  # here, since PyTorch takes seconds to import
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
        except ValueError as error:
            raise ValueError(f"{run.folder.name}: {error}") from error


def estimate(runs: Sequence[Planned], results: Path) -> Estimate:
    """From runs of the same kind, finished here or recorded below `results`."""
    known = recorded(results)
    for run in runs:
        if not run.refused and (report := run.folder.finished()) is not None:
            known.setdefault(run.cost, []).append(Record.of(report))
    left = [run for run in runs if run.left]
    records = [record for run in left for record in known.get(run.cost, [])]
    largest = max(records, key=lambda record: record.memory_mb or 0.0, default=Record(0.0, None, ""))
    return Estimate(_seconds(left, known), largest.memory_mb, largest.device)


def _seconds(left: Sequence[Planned], known: dict[Cost, list[Record]]) -> float | None:
    """Medians of runs of the same kind; where there are none, of all of the scale; where it has none, the time per
    pixel that those of other scales took."""
    medians = {cost: statistics.median(record.seconds for record in records) for cost, records in known.items()}
    by_scale: dict[str, list[float]] = {}
    for (scale, *_), records in known.items():
        by_scale.setdefault(scale, []).extend(record.seconds for record in records)
    pixels_of = {scale: _pixels(_scale(scale)) for scale in by_scale}
    paces = [seconds / pixels for scale, times in by_scale.items() if (pixels := pixels_of[scale]) for seconds in times]
    pace = statistics.median(paces) if paces else None
    total = 0.0
    for run in left:
        scale = run.cost[0]
        pixels = _pixels(run.cfg.scale)
        if run.cost in medians:
            total += medians[run.cost]
        elif scale in by_scale:
            total += statistics.median(by_scale[scale])
        elif pace and pixels:
            total += pace * pixels
        else:
            return None
    return total


def _scale(name: str) -> DictConfig | None:
    path = CONFIG / "scale" / f"{name}.yaml"
    return cast(DictConfig, OmegaConf.load(path)) if path.exists() else None


def _pixels(scale: DictConfig | None) -> int | None:
    """Of all images that a run trains on; None where that depends on the data."""
    if scale is None or scale.steps_per_epoch is None:
        return None
    images = scale.epochs * scale.steps_per_epoch * scale.accumulation_steps * scale.micro_batch
    return int(images * scale.image_size**2)


def recorded(results: Path) -> dict[Cost, list[Record]]:
    """Finished runs in results/<scale>/runs.csv, those with other settings left out; a damaged file is said, and left
    out too."""
    known: dict[Cost, list[Record]] = {}
    for path in sorted(results.glob("*/runs.csv")):
        try:
            found = [
                ((path.parent.name, row["dataset"], row["model"], row["strategy"]), Record.of(row))
                for row in recorded_rows(path)
                if row["variant"] == "" and row["seconds"]
            ]
        except (ValueError, KeyError) as error:
            print(f"{path} is left out of the estimate: {error}", file=sys.stderr)
            continue
        for cost, record in found:
            known.setdefault(cost, []).append(record)
    return known


def print_plan(runs: Sequence[Planned], jobs: int, expected: Estimate) -> None:
    left, refused = [run for run in runs if run.left], [run for run in runs if run.refused]
    elsewhere = sum(run.recorded for run in runs)
    here = len(runs) - len(left) - len(refused) - elsewhere
    begun = sum(run.folder.begun for run in left)
    failed = sum(run.folder.error is not None for run in left)
    finished = f"{here} finished" + (f", {elsewhere} recorded" if elsewhere else "")
    finished += f", {len(refused)} refused" if refused else ""
    print(f"Plan: {len(runs)} runs, {finished}, {len(left)} to do ({begun} begun, {failed} failed before)")
    print_remarks(runs)
    if not left:
        return
    unknown = "unknown until runs of this kind have been recorded"
    hours = unknown if expected.seconds is None else duration(expected.seconds / jobs)
    print(f"      {jobs} side by side, estimated time {hours} (from recorded runs; other machines differ)")
    memory = unknown
    if expected.memory_mb is not None:
        one = expected.memory_mb * 2**20
        memory = f"{size(one)} a run, {size(jobs * one)} side by side, as recorded on {expected.device}"
        memory += f"; this machine has {size(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))}"
    print(f"      memory {memory}", flush=True)


def print_remarks(runs: Sequence[Planned]) -> None:
    """Runs that are refused, what is recorded and does not count, and what was counted without a look at its data."""
    for run in runs:
        if run.refused:
            print(f"      refused: {run.standing.said}")
    for why, count in Counter(run.standing.said for run in runs if run.left and run.standing.said).items():
        print(f"      {count} of those to do: {why}")
    for why, count in Counter(run.standing.unchecked for run in runs if run.standing.unchecked).items():
        print(f"      {count} finished or recorded runs were not compared with their data, which are not there: {why}")


def print_disk(folder: Path, lasting: float, passing: float) -> None:
    """What runs will add below `folder`, and for a while, against what is free there."""
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    while_running = f" and {size(passing)} while they run" if passing else ""
    print(f"      disk {size(lasting)} more in {folder}{while_running}, {size(free)} free", flush=True)
    if lasting + passing > free:
        needed = size(lasting + passing)
        print(f"      NOT ENOUGH: expected {needed} free; set runs= to a folder on a larger disk", flush=True)

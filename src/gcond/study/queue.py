"""The queue of the study's runs: which there are, in what order, and which are left.

Comparisons are paired within a machine, since machines differ as seeds do. So a group of runs counts as recorded where
all of it was made on one kind of machine (one fingerprint of gcond.engine.device).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from gcond.engine.run_state import PAPER_WEIGHTS

SHORT = {"lr": "optimizer.lr"}  # keys of queue.yaml that are shorter than Hydra's
ABOUT = ("name", "question", "group", "arms")  # keys of a block that are no settings
BEST = "best"


@dataclass(frozen=True)
class Item:
    """One run of the queue by its settings (key of queue.yaml, value), and the group that shares a machine with it."""

    group: tuple[str, ...]
    settings: tuple[tuple[str, Any], ...]

    @property
    def overrides(self) -> tuple[str, ...]:
        """As Hydra takes them."""
        return tuple(f"{SHORT.get(key, key)}={value}" for key, value in self.settings)


@dataclass(frozen=True)
class Block:
    """The runs that answer one question, in order; `waiting` have no `lr` yet, since their arm's own is not known."""

    name: str
    question: str
    items: tuple[Item, ...]
    waiting: tuple[Item, ...]


def read(path: Path) -> dict[str, Any]:
    """The content of queue.yaml. Raises ValueError, naming file and block, where it is malformed."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as broken:
        raise ValueError(f"{path}: expected YAML, found {broken}") from None
    names = [block.get("name") for block in content["blocks"]]
    if twice := sorted({str(name) for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: expected blocks of different names, found {', '.join(twice)} more than once")
    for block in content["blocks"]:
        if lacking := [key for key in ("question", "group", "dataset", "strategy", "seed") if key not in block]:
            raise ValueError(f"{path}: expected {', '.join(lacking)} in block {block['name']}, found none")
    if unknown := sorted(set(content["rates"]) - set(names)):
        raise ValueError(f"{path}: `rates`: expected names of blocks, found {', '.join(unknown)}")
    return content


class Queue:
    """The blocks of queue.yaml against what is recorded.

    Args:
        content: of queue.yaml.
        identify: overrides of many runs -> the (config hash, data checksum) of each, which together name a run.
    """

    def __init__(
        self, content: Mapping[str, Any], identify: Callable[[list[tuple[str, ...]]], list[tuple[str, str]]]
    ) -> None:
        self._content, self._identify = content, identify
        self._identities: dict[Item, tuple[str, str]] = {}

    def blocks(self, recorded: pd.DataFrame) -> list[Block]:
        """In order, with `lr: best` filled in where the grid of an arm is recorded (`recorded`: a row a run)."""
        rates = self.best_rates(recorded)
        return [self._block(block, rates) for block in self._content["blocks"]]

    def left(self, block: Block, recorded: pd.DataFrame, machine: str) -> list[Item]:
        """The runs of `block` to be made on `machine`, group by group, in order."""
        self._name(block.items)
        made = _made(recorded)
        left: dict[tuple[str, str], Item] = {}
        for _, group in itertools.groupby(block.items, key=lambda item: item.group):
            runs = {self._identities[item]: item for item in group}
            if not any(runs.keys() <= on_one for on_one in made.values()):
                left |= {run: item for run, item in runs.items() if run not in made.get(machine, ())}
        return list(left.values())

    def best_rates(self, recorded: pd.DataFrame) -> dict[tuple[str, str], float]:
        """(data set, strategy) -> the rate with the lowest validation loss, where its whole grid is on one machine."""
        found: dict[tuple[str, str], float] = {}
        for content in self._content["blocks"]:
            if content["name"] not in self._content["rates"]:
                continue
            items = self._block(content, {}).items
            self._name(items)
            for arm, of_arm in _by(items, "dataset", "strategy").items():
                identities = {self._identities[item]: float(dict(item.settings)["lr"]) for item in of_arm}
                for _, runs in recorded.groupby("arithmetic"):
                    names = list(zip(runs.hash, runs.data_checksum, strict=True))
                    if set(identities) <= set(names):
                        loss = sum(weight * runs[f"best_val_{task}"] for task, weight in PAPER_WEIGHTS.items())
                        rate = pd.Series([identities.get(name) for name in names], index=runs.index)
                        found[arm] = float(loss.groupby(rate).mean().idxmin())
                        break
        for strategy, other in self._content["borrowed_rates"].items():
            found |= {(dataset, strategy): rate for (dataset, arm), rate in found.items() if arm == other}
        return found

    def _block(self, content: Mapping[str, Any], rates: Mapping[tuple[str, str], float]) -> Block:
        crossed = {key: values for key, values in content.items() if key not in ABOUT}
        groups: dict[tuple[str, ...], dict[Item, None]] = {}
        waiting: list[Item] = []
        for values in itertools.product(*crossed.values()):
            for arm in content.get("arms", [{}]):
                settings = {"scale": self._content["scale"], **dict(zip(crossed, values, strict=True)), **arm}
                group = tuple(str(settings[key]) for key in content["group"])
                if settings.get("lr") == BEST:
                    place = (settings["dataset"], settings["strategy"])
                    if place not in rates:
                        waiting.append(Item(group, tuple(settings.items())))
                        continue
                    settings["lr"] = rates[place]
                groups.setdefault(group, {})[Item(group, tuple(settings.items()))] = None
        items = tuple(item for group in groups.values() for item in group)
        return Block(content["name"], content["question"], items, tuple(waiting))

    def _name(self, items: Sequence[Item]) -> None:
        new = [item for item in items if item not in self._identities]
        self._identities |= dict(zip(new, self._identify([item.overrides for item in new]), strict=True))


def _made(recorded: pd.DataFrame) -> dict[str, set[tuple[str, str]]]:
    """Machine -> the (config hash, data checksum) of its recorded runs."""
    made: dict[str, set[tuple[str, str]]] = {}
    for machine, *name in zip(recorded.arithmetic, recorded.hash, recorded.data_checksum, strict=True):
        made.setdefault(machine, set()).add((name[0], name[1]))
    return made


def _by(items: Sequence[Item], *keys: str) -> dict[tuple[Any, ...], list[Item]]:
    parts: dict[tuple[Any, ...], list[Item]] = {}
    for item in items:
        settings = dict(item.settings)
        parts.setdefault(tuple(settings[key] for key in keys), []).append(item)
    return parts

"""The queue of the study's runs: which there are, in what order, and which are left.

Comparisons are paired within a machine, since machines differ as seeds do. So a group of runs counts as recorded where
all of it was made on one kind of machine (one fingerprint of gcond.engine.device).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from gcond.engine.run_state import PAPER_WEIGHTS
from gcond.files import ROOT
from gcond.study import tables
from gcond.study.methods import PAPER_MODEL, read_yaml

SHORT = {"lr": "optimizer.lr"}  # keys of queue.yaml that are shorter than Hydra's
ABOUT = ("name", "question", "group", "arms")  # keys of a block that are no settings
AS_RECORDED = ["dataset", "model", "strategy", "seed", "lr", "model_mode", "setting"]  # of tables.runs
NAME, ARM = ["hash", "data_checksum"], ["dataset", "strategy"]  # what names a run, and an arm


def read(path: Path) -> dict[str, Any]:
    """The content of queue.yaml. Raises ValueError, naming file and block, where it is malformed."""
    content = read_yaml(path)
    if lacking := {"scale", "rates", "borrowed_rates", "blocks"} - content.keys():
        raise ValueError(f"{path}: expected the keys of study/queue.yaml, found no {', '.join(sorted(lacking))}")
    names = [str(block.get("name")) for block in content["blocks"]]
    wrong = [f"two blocks {name}" for name in names if names.count(name) > 1]
    wrong += [f"block {name} without {key}" for name, block in zip(names, content["blocks"], strict=True)
              for key in ("question", "group", "dataset", "strategy", "seed", "lr") if key not in block]  # fmt: skip
    wrong += [f"`rates`: no block {name}" for name in content["rates"] if name not in names]
    if wrong:
        raise ValueError(f"{path}: expected the blocks that its head describes, found {', '.join(wrong)}")
    return content


def described(overrides: Sequence[str]) -> dict[str, Any]:
    """AS_RECORDED of the run that they make, without composing it: defaults stand in no setting."""
    given = {"model": PAPER_MODEL, "strategy.model_mode": "train", "loss": "l1_ssim"}
    given |= dict(text.split("=", 1) for text in overrides)
    weights = ",".join(f"{task}:{weight:g}" for task, weight in _choice("loss", given["loss"])["tasks"].items())
    usual = {"loss": "l1_ssim", "loss.tasks": f"{{{weights}}}"}
    usual["scale.accumulation_steps"] = str(_choice("scale", given.pop("scale"))["accumulation_steps"])
    about = {name: given.pop(name) for name in ("dataset", "model", "strategy", "seed")}
    about |= {
        "seed": int(about["seed"]),
        "lr": float(given["optimizer.lr"]),
        "model_mode": given["strategy.model_mode"],
    }
    rest = {key.lstrip("+"): value for key, value in given.items() if usual.get(key) != value}
    return about | {"setting": tables.setting(rest)}


@cache
def _choice(group: str, name: str) -> dict[str, Any]:
    return read_yaml(ROOT / "conf" / group / f"{name}.yaml")


class Queue:
    """The blocks of queue.yaml against what is recorded.

    Args:
        content: of queue.yaml.
        identify: overrides of many runs -> the (config hash, data checksum) of each, which together name a run.
    """

    def __init__(
        self, content: Mapping[str, Any], identify: Callable[[list[tuple[str, ...]]], list[tuple[str, str]]]
    ) -> None:
        self.blocks, self._content, self._identify = content["blocks"], content, identify
        self._names: dict[tuple[str, ...], tuple[str, str]] = {}  # by overrides

    def runs(self, recorded: pd.DataFrame) -> pd.DataFrame:
        """A row a run, block by block and group by group: `block`, `group`, dataset, strategy, seed, lr, `overrides` as
        Hydra takes them, hash and data_checksum. Runs whose arm has no known rate yet are `waiting`, without a name."""
        return self._table(self.blocks, self.best_rates(recorded))

    def left(self, recorded: pd.DataFrame, machine: str) -> pd.DataFrame:
        """The `runs` to be made on `machine`; a run stands once in each block that asks for it."""
        runs = self.runs(recorded)
        runs = runs[~runs.waiting]
        known = recorded.groupby(NAME).arithmetic.agg(frozenset)
        runs = runs.assign(
            made=[known.get(name, frozenset()) for name in runs[NAME].itertuples(index=False, name=None)]
        )
        whole = {group for group, made in runs.groupby(["block", "group"]).made if frozenset.intersection(*made)}
        left = [(run.block, run.group) not in whole and machine not in run.made for run in runs.itertuples()]
        return runs[left].drop_duplicates(["block", *NAME])

    def best_rates(self, recorded: pd.DataFrame) -> dict[tuple[str, str], float]:
        """(data set, strategy) -> the rate with the lowest validation loss, where its whole grid is on one machine."""
        grid = self._table([block for block in self.blocks if block["name"] in self._content["rates"]], {})
        grid = grid.assign(lr=grid.lr.astype(float)).drop_duplicates(NAME)
        scores = [f"best_val_{task}" for task in PAPER_WEIGHTS]  # none has one at first
        made = grid.merge(recorded.reindex(columns=[*NAME, "arithmetic", *scores]), on=NAME)
        made = made.assign(loss=tables.selection_loss(made, "best_val"))
        size, found = grid.groupby(ARM).size(), {}
        for (*arm, _), own in made.groupby([*ARM, "arithmetic"]):
            if len(own) == size[tuple(arm)]:
                found.setdefault(tuple(arm), float(own.groupby("lr").loss.mean().idxmin()))
        for strategy, other in self._content["borrowed_rates"].items():
            found |= {(dataset, strategy): rate for (dataset, arm), rate in found.items() if arm == other}
        return found

    def _table(self, blocks: Sequence[Mapping[str, Any]], rates: Mapping[tuple[str, str], float]) -> pd.DataFrame:
        columns = ["block", "group", *ARM, "seed", "lr", "overrides", "waiting"]
        table = pd.DataFrame([run for block in blocks for run in self._block(block, rates)], columns=columns)
        table = table.drop_duplicates(["block", "overrides"])
        table = table.loc[table.groupby(["block", "group"], sort=False).ngroup().sort_values(kind="stable").index]
        new = [each for each in table.overrides[~table.waiting] if each not in self._names]
        self._names |= dict(zip(new, self._identify(new), strict=True))
        names = [self._names.get(each, ("", "")) for each in table.overrides]
        return table.join(pd.DataFrame(names, table.index, NAME))

    def _block(self, block: Mapping[str, Any], rates: Mapping[tuple[str, str], float]) -> Iterator[dict[str, Any]]:
        crossed = {key: values for key, values in block.items() if key not in ABOUT}
        for values in itertools.product(*crossed.values()):
            for arm in block.get("arms", [{}]):
                settings = {"scale": self._content["scale"], **dict(zip(crossed, values, strict=True)), **arm}
                group = tuple(str(settings[key]) for key in block["group"])
                if settings["lr"] == "best":
                    settings["lr"] = rates.get((settings["dataset"], settings["strategy"]), "best")
                overrides = tuple(f"{SHORT.get(key, key)}={value}" for key, value in settings.items())
                about = {"block": block["name"], "group": group, "overrides": overrides}
                yield settings | about | {"waiting": settings["lr"] == "best"}

"""Which strategies go down the two-dimensional problem, with which settings: conf/strategy/*.yaml, less a few."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gcond.config import build
from gcond.strategy.conflict import Resolver
from gcond.toy.trajectories import Descent

CONFIG = Path(__file__).resolve().parents[3] / "conf" / "strategy"
STEPS = 35_000  # Nash-MTL's authors

LEFT_OUT = {
    "baseline_integrated": "resolves nothing, as baseline; its update is not what this problem shows",
    "gcond_lion": "the resolver of gcond_pure",
    "gcond_sequential": "the resolver of gcond_pure: these gradients have no noise",
    "gcond_sequential_pure": "the resolver of gcond_pure: these gradients have no noise",
    "gcond_stochastic": "the resolver of gcond_pure: these gradients have no noise",
    "gradnorm": "divides by the first losses, which are not above 0 here",
}
ORDER = (
    "baseline",
    "pcgrad",
    "gradops",
    "cagrad",
    "gcond_pure",
    "gcond_accumulated",
    "gcond_as_pcgrad",
)  # first in figure and table
SLOW = ("mgda", "nash_mtl")  # an hour of one core for both: TorchJD's solvers take 7 and 13 ms a step
CHANGES: dict[str, dict[str, Any]] = {
    "famo": {"steps": 50_000, "clip_norm": 1.0, "resolver": {"weight_decay": 0.0}},  # as in its authors' toy problem
    "sam_gs": {"label": "SAM-GS (the code's psi)", "resolver": {"psi": "code"}},  # the paper's equalises no two tasks
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> the strategy it changes, and how
    "gcond_accumulated": (
        "gcond_pure",
        {"label": "GCond (stability of the text)", "resolver": {"stability_reference": "accumulated"}},
    ),
}


@dataclass(frozen=True)
class Method:
    """A strategy's resolver with what else decides where it goes."""

    name: str  # of its file in conf/strategy
    label: str
    resolver: dict[str, Any]  # what Hydra instantiates
    steps: int = STEPS
    clip_norm: float | None = None  # conf/strategy clips at 50, which the references do not
    seed: int = 0

    @property
    def settings(self) -> str:
        """A short hash of everything above but the label: results with another one are not this method's."""
        content = {key: value for key, value in asdict(self).items() if key != "label"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    def build(self) -> Resolver:
        return build(self.resolver)

    def descent(self) -> Descent:
        return Descent(self.build(), self.clip_norm, self.seed)


def lineup(folder: Path = CONFIG) -> dict[str, Method]:
    """Every strategy in `folder` that is not left out, and VARIANTS: those of ORDER first, the rest by the alphabet."""
    sources = {path.stem: (path.stem, CHANGES.get(path.stem, {})) for path in folder.glob("*.yaml")}
    sources = {name: source for name, source in {**sources, **VARIANTS}.items() if name not in LEFT_OUT}
    ordered = [name for name in ORDER if name in sources] + sorted(set(sources) - set(ORDER))
    return {name: _read(name, folder / f"{sources[name][0]}.yaml", sources[name][1]) for name in ordered}


def _read(name: str, path: Path, changes: dict[str, Any]) -> Method:
    strategy = OmegaConf.load(path).strategy
    resolver = OmegaConf.to_container(strategy.conductor.resolver, resolve=True)
    method = {"name": name, "label": strategy.label, **changes}
    return Method(**{**method, "resolver": {**resolver, **changes.get("resolver", {})}})

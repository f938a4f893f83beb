"""Strategies on the two-dimensional problem: which ones with which settings, how they descend, and what is recorded.

A descent is the library's own resolver and Adam on (x_1, x_2), all float64.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from joblib import Memory, Parallel, delayed
from omegaconf import OmegaConf
from tqdm import tqdm

from gcond.config import build
from gcond.files import ROOT, write_text
from gcond.strategy.conflict import Conflict, LossWeighting, Resolver
from gcond.toy.problem import F1_SCALE, STARTS, Row, distance_to_front, evaluate

Point = tuple[int, float, float]  # step, x_1, x_2
TASKS = ("f1", "f2")
LOWEST = torch.tensor([-2.1, -21.0], dtype=torch.float64)
"""Below both losses (FAMO's authors): loss weighting needs losses above 0."""
ONES = torch.ones(2, dtype=torch.float64)
LR, BETAS, EPS = 1e-3, (0.9, 0.999), 1e-8  # of Adam
SPACING = 0.1  # of the points that are kept of a descent


class Descent:
    """The update of a resolver from one step to the next, as `GradientConductor` makes it of exact gradients.

    A resolver that weights losses is given f - LOWEST, so that what it divides by or takes the logarithm of is
    positive.
    """

    def __init__(self, resolver: Resolver, clip_norm: float | None = None, seed: int = 0) -> None:
        resolver.check(dict.fromkeys(TASKS, 1.0), ("all",))
        self._resolver, self._clip_norm = resolver, clip_norm
        self._generator = torch.Generator().manual_seed(seed)
        self._previous = torch.zeros(2, 2, dtype=torch.float64)
        self._step = 0

    def direction(self, x1: float, x2: float) -> Row:
        """The update, which takes the gradient's place. Raises FloatingPointError where it is not finite."""
        (f1, f2), (row1, row2) = evaluate(x1, x2)
        losses = torch.tensor([F1_SCALE * f1, f2], dtype=torch.float64)
        rows = torch.tensor([[F1_SCALE * row1[0], F1_SCALE * row1[1]], row2], dtype=torch.float64)
        if isinstance(self._resolver, LossWeighting):
            update = self._resolver.weigh(losses - LOWEST) @ rows
            self._resolver.after_window(losses - LOWEST)
        else:
            update = self._resolve(rows, losses)
        self._step += 1
        first, second = update.tolist()
        norm = math.hypot(first, second)
        if not math.isfinite(norm):
            raise FloatingPointError(f"step {self._step}: the update is ({first}, {second})")
        factor = 1.0 if self._clip_norm is None else self._clip_norm / max(norm, self._clip_norm)
        return first * factor, second * factor

    def _resolve(self, rows: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        gram, cross = rows @ rows.T, rows @ self._previous.T
        conflict = Conflict(TASKS, gram, cross, {"all": gram}, losses, ONES, self._step, self._generator)
        resolution = self._resolver.resolve(conflict)
        self._previous = rows
        return resolution.blockwise(rows.clone(), 0) if resolution.blockwise is not None else resolution.weights @ rows


def follow(descent: Descent, start: Row, steps: int) -> Iterator[Point]:
    """(step, x_1, x_2) wherever a coordinate is SPACING away from where it was last given, and at both ends.

    Adam (Kingma and Ba 2015) on plain floats: torch's takes longer than the problem itself. Where the resolver gives up
    (RuntimeError), the place where it did is given before the error is raised.
    """
    x, first, second = list(start), [0.0, 0.0], [0.0, 0.0]
    one, two = BETAS
    last = (0, *start)
    yield last
    for step in range(1, steps + 1):
        try:
            update = descent.direction(*x)
        except RuntimeError:
            yield (step - 1, *x)
            raise
        for i, slope in enumerate(update):
            first[i] = one * first[i] + (1 - one) * slope
            second[i] = two * second[i] + (1 - two) * slope**2
            root = math.sqrt(second[i] / (1 - two**step))
            x[i] -= LR / (1 - one**step) * first[i] / (root + EPS)
        if step == steps or max(abs(x[0] - last[1]), abs(x[1] - last[2])) >= SPACING:
            last = (step, *x)
            yield last


# Methods.

CONFIG = ROOT / "conf" / "strategy"
STEPS = 35_000  # Nash-MTL's authors

LEFT_OUT = {
    "baseline_integrated": "resolves nothing, as baseline; its update is not what this problem shows",
    "gcond_lion": "the resolver of gcond_pure",
    "gcond_sequential": "the resolver of gcond_pure: these gradients have no noise",
    "gcond_sequential_pure": "the resolver of gcond_pure: these gradients have no noise",
    "gcond_stochastic": "the resolver of gcond_pure: these gradients have no noise",
    "stochastic_integrated": "resolves nothing, as baseline; these gradients have no noise",
    "gradnorm": "divides by the first losses, which are not above 0 here",
}
FIRST = ("baseline", "pcgrad", "gradops", "cagrad", "gcond_pure", "gcond_accumulated", "gcond_as_pcgrad")
"""They come first in figure and table."""
SLOW = ("mgda", "nash_mtl")  # an hour of one core for both: TorchJD's solvers take 7 and 13 ms a step
CHANGES: dict[str, dict[str, Any]] = {  # strategy -> what differs from conf/strategy
    "famo": {"steps": 50_000, "clip_norm": 1.0, "resolver": {"weight_decay": 0.0}},  # as in its authors' toy problem
    "sam_gs": {"label": "SAM-GS (the code's psi)", "resolver": {"psi": "code"}},  # the paper's equalises no two tasks
    "gcond_accumulated": {  # a variant of gcond_pure
        "label": "GCond (stability of the text)",
        "resolver": {"stability_reference": "accumulated"},
    },
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

    def descent(self) -> Descent:
        return Descent(build(self.resolver), self.clip_norm, self.seed)


def lineup() -> dict[str, Method]:
    """Every strategy of conf/strategy that is not left out, and the variant: FIRST first, the rest by the alphabet."""
    names = {path.stem for path in CONFIG.glob("*.yaml")} | {"gcond_accumulated"}
    found = {}
    for name in [*FIRST, *sorted(names - set(FIRST) - set(LEFT_OUT))]:
        file = "gcond_pure" if name == "gcond_accumulated" else name
        strategy = OmegaConf.load(CONFIG / f"{file}.yaml").strategy
        resolver = OmegaConf.to_container(strategy.conductor.resolver, resolve=True)
        changes = CHANGES.get(name, {})
        resolver |= changes.get("resolver", {})
        found[name] = Method(**{"name": name, "label": strategy.label, **changes, "resolver": resolver})
    return found


# Descents and records.

Descents = dict[str, dict[int, pd.DataFrame]]  # settings of a method -> start -> `points`


def points(method: Method, start: int) -> pd.DataFrame:
    """A descent as step, x1, x2 and `stopped`: why the resolver gave up before the last step, "" where it did not."""
    found, stopped = [], ""
    try:
        for point in follow(method.descent(), STARTS[start], method.steps):
            found.append(point)
    except RuntimeError as error:  # a solver that found no weights: the descent ends there, and the tables say so
        stopped = str(error).split("; Gram")[0]
        print(f"{method.name} from {STARTS[start]} stopped: {error}", file=sys.stderr)
    return pd.DataFrame(found, columns=["step", "x1", "x2"]).assign(stopped=stopped)


def descend(methods: Sequence[Method], cache: Path, jobs: int) -> tuple[Descents, list[str]]:
    """The descents from every start, and what failed, one line each; failures do not stop the rest.

    What `cache` holds of the same settings is not computed again.
    """
    known = Memory(cache, verbose=0).cache(points)
    todo = [(method, start) for method in methods for start in range(len(STARTS))]
    done = Parallel(jobs, return_as="generator")(delayed(_attempt)(known, *each) for each in todo)
    bar = tqdm(done, total=len(todo), desc="descents", unit="descent", disable=None)
    found: Descents = {method.settings: {} for method in methods}
    failures = []
    for (method, start), result in zip(todo, bar, strict=True):
        if isinstance(result, Exception):
            failures.append(f"{method.name} from {STARTS[start]}: {type(result).__name__}: {result}")
        else:
            found[method.settings][start] = result
    return found, failures


def _attempt(compute: Callable[..., pd.DataFrame], *arguments: object) -> pd.DataFrame | Exception:
    try:
        return compute(*arguments)
    except Exception as error:
        return error


def record(methods: Sequence[Method], descents: Descents, out: Path) -> None:
    """Write endpoints.csv and, thinned, trajectories/METHOD.csv. A recorded method that was not descended stays as it
    is if its settings are still the same."""
    path = out / "endpoints.csv"
    recorded = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records") if path.exists() else []
    rows: list[dict[Any, Any]] = []
    for method in methods:
        if found := descents.get(method.settings):
            table = pd.concat(found, names=["start"]).reset_index("start")[["start", "step", "x1", "x2"]]
            text = table.to_csv(index=False, float_format="%.2f", lineterminator="\n")
            write_text(out / "trajectories" / f"{method.name}.csv", text)
            rows += [_row(method, start, part.iloc[-1]) for start, part in found.items()]
        else:
            rows += [row for row in recorded if (row["method"], row["settings"]) == (method.name, method.settings)]
    if rows:
        write_csv(path, rows)


def _row(method: Method, start: int, last: Any) -> dict[str, object]:
    (f1, f2), _ = evaluate(last.x1, last.x2)
    numbers = {"x1": last.x1, "x2": last.x2, "f1": f1, "f2": f2, "to_front": distance_to_front(last.x1, last.x2)}
    return {
        "method": method.name, "label": method.label, "start": start, "start_x1": STARTS[start][0],
        "start_x2": STARTS[start][1], "steps": method.steps, **{key: f"{value:.5f}" for key, value in numbers.items()},
        "stopped": f"step {last.step}: {last.stopped}" if last.stopped else "", "settings": method.settings,
    }  # fmt: skip


def write_csv(path: Path, rows: Iterable[Mapping[Any, object]]) -> None:
    write_text(path, pd.DataFrame(list(rows)).to_csv(index=False, lineterminator="\n"))

"""Checks of settings: each error names the setting, what was expected, what was found and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any

import torch

EXAMPLES = {"estimator": "Sequential(4)", "resolver": "PCGrad()", "update": "Raw()", "processes": "Replicated()"}


def expect(holds: bool, setting: str, expected: str, found: Any) -> None:
    """Raise ValueError, which names the setting, unless it `holds` what is expected of it."""
    if not holds:
        raise ValueError(f"`{setting}`: expected {expected}, found {found}")


def expect_one_of(setting: str, found: str, *choices: str) -> None:
    expect(found in choices, setting, " or ".join(f'"{choice}"' for choice in choices), repr(found))


class Lambdas(Mapping[str, float]):
    """Task name -> lambda, which stays as it is."""

    def __init__(self, lambdas: Mapping[str, float]) -> None:
        self._lambdas = dict(lambdas)

    def __getitem__(self, task: str) -> float:
        return self._lambdas[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lambdas)

    def __len__(self) -> int:
        return len(self._lambdas)

    def __repr__(self) -> str:
        return repr(self._lambdas)

    def __setitem__(self, task: str, value: float) -> None:
        raise TypeError(f"`tasks`: the lambda of {task!r} cannot be changed; build another conductor")


def lambdas(tasks: Any) -> Lambdas:
    if not isinstance(tasks, Mapping):
        raise ValueError(
            f"`tasks`: expected a mapping such as {{'a': 1.0, 'b': 1.0}} (name -> lambda), found {tasks!r}"
        )
    wrong = {name: lam for name, lam in tasks.items() if not isinstance(name, str) or not isinstance(lam, Real)}
    if wrong:
        raise ValueError(f"`tasks`: expected names and numbers (name -> lambda), found {wrong}")
    checked = {name: float(value) for name, value in tasks.items()}
    if not checked:
        raise ValueError("`tasks`: expected at least one task name with its lambda, found none")
    wrong = {name: value for name, value in checked.items() if not math.isfinite(value) or value < 0}
    if wrong or sum(checked.values()) == 0:
        raise ValueError(f"`tasks`: expected finite lambdas >= 0, not all 0, found {wrong or checked}")
    return Lambdas(checked)


def object_or_default(setting: str, given: Any, method: str, default: Callable[[], Any]) -> Any:
    """`given`, which has a `method`, or the default for None; ValueError for a class or a name in its place."""
    if given is None:
        return default()
    if isinstance(given, type) or not hasattr(given, method):
        found = f"the class {given.__name__}; write {given.__name__}()" if isinstance(given, type) else repr(given)
        raise ValueError(f"`{setting}`: expected an object such as {EXAMPLES[setting]}, found {found}")
    return given


def floating_dtype(setting: str, name: torch.dtype | str | None) -> torch.dtype | None:
    if name is None:
        return None
    found = getattr(torch, name, None) if isinstance(name, str) else name
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"`{setting}`: expected None or a floating-point dtype (bfloat16, float32), found {name!r}")
    return found

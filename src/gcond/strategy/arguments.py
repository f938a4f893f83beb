"""Checks of settings: each error names the setting, what was expected, what was found and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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


def checked_lambdas(tasks: Any) -> dict[str, float]:
    """Task name -> lambda; ValueError unless it is one."""
    valid = (
        isinstance(tasks, Mapping)
        and all(isinstance(name, str) for name in tasks)
        and all(isinstance(value, Real) and 0 <= float(value) < math.inf for value in tasks.values())
        and any(tasks.values())
    )
    expected = "a mapping {'a': 1.0, 'b': 1.0} of names to lambdas, which are finite, >= 0 and not all 0"
    expect(valid, "tasks", expected, repr(tasks))
    return {name: float(value) for name, value in tasks.items()}


def object_or_default(
    setting: str,
    given: Any,
    method: str,
    default: Callable[[], Any],
    named: Mapping[str, Callable[[], Any]] | None = None,
) -> Any:
    """`given`, which has a `method` or is one of the `named`, or the default for None; ValueError for anything else."""
    if given is None:
        return default()
    if named and isinstance(given, str):
        expect(given in named, setting, f"an object such as {EXAMPLES[setting]} or one of {list(named)}", repr(given))
        return named[given]()
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

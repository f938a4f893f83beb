"""What `import gcond` gives, from the sources and from the wheel."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import gcond.strategy
from gcond.strategy import Resolver, SingleProcess, Update

KINDS = {BaseException, Resolver, SingleProcess, Update}
INTERNAL = {"ImplicitSingleProcess"}  # what a conductor takes that was told of no processes


def test_every_method_estimator_update_kind_of_process_and_error_is_exported_by_both_packages() -> None:
    modules = [
        importlib.import_module(each.name) for each in pkgutil.walk_packages(gcond.strategy.__path__, "gcond.strategy.")
    ]
    classes = {kind for module in modules for _, kind in inspect.getmembers(module, inspect.isclass)}
    own = {
        kind for kind in classes if kind.__module__.startswith("gcond.strategy") and not kind.__name__.startswith("_")
    }
    parts = {kind.__name__ for kind in own if KINDS & {*kind.__mro__} or hasattr(kind, "gather")} - INTERNAL
    assert len(parts) > 25
    assert parts <= set(gcond.strategy.__all__)
    assert set(gcond.__all__) == {"__version__", *gcond.strategy.__all__}
    assert all(getattr(gcond, name) is getattr(gcond.strategy, name) for name in gcond.strategy.__all__)

"""Imports point downward only: train -> {data, model, loss, strategy, engine}; report stands apart."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((SRC / "gcond").rglob("*.py"))
}

# Part -> what else of the project its modules may import; the longest matching part counts, `train` may import all but
# `report`. Everything outside the project is allowed but for FORBIDDEN.
ALLOWED = {
    "gcond": set(),
    "gcond.schema": set(),
    "gcond.build": {"gcond.schema"},
    "gcond.run_files": {"gcond.files", "gcond.schema"},
    "gcond.data": {"gcond.files", "gcond.build"},
    "gcond.model": set(),
    "gcond.loss": {"gcond.model", "gcond.data"},
    "gcond.scores": {"gcond.loss", "gcond.model"},
    "gcond.trivial": {"gcond.scores", "gcond.loss", "gcond.model", "gcond.data"},
    "gcond.files": set(),
    "gcond.output": set(),
    "gcond.strategy": set(),
    "gcond.engine": {
        "gcond.build",
        "gcond.schema",
        "gcond.run_files",
        "gcond.scores",
        "gcond.data",
        "gcond.model",
        "gcond.loss",
        "gcond.strategy",
        "gcond.trivial",
        "gcond.files",
    },
    "gcond.sweep": {
        "gcond.build",
        "gcond.schema",
        "gcond.data",
        "gcond.engine",
        "gcond.train",
        "gcond.files",
        "gcond.output",
    },
    "gcond.study": {"gcond.output", "gcond.sweep", "gcond.engine", "gcond.data", "gcond.files"},
    "gcond.command": {"gcond.schema", "gcond.engine", "gcond.train", "gcond.output"},
    "gcond.train": {
        "gcond.build",
        "gcond.schema",
        "gcond.command",  # which imports it in turn, but only when a run begins
        "gcond.data",
        "gcond.model",
        "gcond.loss",
        "gcond.scores",
        "gcond.strategy",
        "gcond.engine",
        "gcond.trivial",
        "gcond.files",
    },
    "gcond.timing": {"gcond.engine"},
    "gcond.rehearsal": {"gcond.build", "gcond.data", "gcond.model", "gcond.engine", "gcond.train"},
    "gcond.toy": {"gcond.build", "gcond.output", "gcond.strategy", "gcond.files"},
    "gcond.finished": {"gcond.build", "gcond.run_files", "gcond.data", "gcond.model", "gcond.engine", "gcond.train"},
    "gcond.linear_probe": {
        "gcond.output",
        "gcond.data",
        "gcond.model",
        "gcond.engine",
        "gcond.finished",
        "gcond.report",
        "gcond.files",
    },
    "gcond.report": {
        "gcond.output",
        "gcond.run_files",
        "gcond.files",
        "gcond.toy.problem",
        "gcond.engine.selection",
        "gcond.engine.logbook",
    },  # the surface to draw; no torch in it
}
STRATEGY = {
    "gcond.strategy.arguments": set(),
    "gcond.strategy.layout": set(),
    "gcond.strategy.flat": {"gcond.strategy.layout"},
    "gcond.strategy.finite": set(),
    "gcond.strategy.products": set(),
    "gcond.strategy.gradients": {"gcond.strategy.flat", "gcond.strategy.products"},
    "gcond.strategy.conflict": set(),
    "gcond.strategy.compiled": set(),
    "gcond.strategy.scaling": set(),
    "gcond.strategy.estimate": {"gcond.strategy.gradients", "gcond.strategy.compiled"},
    "gcond.strategy.watch": {f"gcond.strategy.{name}" for name in ("compiled", "estimate", "gradients")},
    "gcond.strategy.update": {"gcond.strategy.gradients", "gcond.strategy.layout"},
    "gcond.strategy.diagnose": {"gcond.strategy.conflict"},
    "gcond.strategy.resolve": {"gcond.strategy.conflict", "gcond.strategy.layout"},
    "gcond.strategy.batchnorm": {"gcond.strategy.processes"},
    "gcond.strategy.processes": {f"gcond.strategy.{name}" for name in ("estimate", "conflict", "gradients")},
    "gcond.strategy.conductor": {
        f"gcond.strategy.{name}"
        for name in (
            "processes",
            "estimate",
            "resolve",
            "update",
            "diagnose",
            "conflict",
            "gradients",
            "flat",
            "products",
            "finite",
            "scaling",
            "layout",
            "watch",
            "arguments",
        )
    },
}
FORBIDDEN = {
    "gcond.strategy": {"hydra", "omegaconf", "timm", "datasets"},
    "gcond.model": {"hydra", "omegaconf"},
    "gcond.loss": {"hydra", "omegaconf"},
    "gcond.report": {"torch", "hydra", "omegaconf"},
    "gcond.files": {"torch", "hydra", "omegaconf"},
}


def imports(source: str, module: str, is_package: bool = False) -> set[str]:
    """Every module that `source` imports, anywhere in it; `from a import b` counts as a.b where that is a module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package and node.level == 1 else is_package - node.level]
                base = ".".join([*parents, *filter(None, [base])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add(full if full in MODULES else base)
    return found


def within(module: str, part: str) -> bool:
    return module == part or module.startswith(f"{part}.")


def part_of(module: str, rules: dict[str, set[str]]) -> str | None:
    return max((part for part in rules if within(module, part)), key=len, default=None)


def wrong_imports(module: str, found: set[str], rules: dict[str, set[str]]) -> set[str]:
    part = part_of(module, rules)
    if part is None:
        return set()
    root = part_of(module, FORBIDDEN)
    own = {name for name in found if within(name, "gcond") and name != "gcond"}
    upward = {name for name in own if not any(within(name, target) for target in {part, *rules[part]})}
    return upward | {name for name in found if root and name.split(".")[0] in FORBIDDEN[root]}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module):
    path = MODULES[module]
    found = imports(path.read_text(), module, path.name == "__init__.py")
    assert not wrong_imports(module, found, ALLOWED)
    assert not wrong_imports(module, found, STRATEGY)


def test_every_part_of_the_rule_exists():
    assert len(MODULES) > 30
    assert set(ALLOWED) | set(STRATEGY) <= set(MODULES)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("gcond.strategy.update", "from gcond.loss import TASKS"),
        ("gcond.strategy.update", "from gcond import loss"),
        ("gcond.strategy.update", "import gcond.loss"),
        ("gcond.strategy.update", "from ..engine import loop"),
        ("gcond.strategy.update", "def f():\n    from .. import engine"),
        ("gcond.strategy.update", "from .resolve import PCGrad"),
        ("gcond.strategy.gradients", "from gcond.strategy.conflict import Conflict"),
        ("gcond.strategy.resolve.pcgrad", "from gcond.strategy.gradients import TaskGradients"),
        ("gcond.strategy.resolve.pcgrad", "from hydra.utils import instantiate"),
        ("gcond.report.table2", "import torch.nn"),
        ("gcond.report.table2", "from gcond.engine.loop import fit"),
        ("gcond.engine.loop", "from gcond.report import table2"),
        ("gcond.engine.loop", "import gcond.train"),
        ("gcond.train", "from gcond.report.collect import collect"),
        ("gcond.data.ct", "from gcond.model import patches"),
    ],
)
def test_rule_sees_what_it_forbids(module, line):
    found = imports(line, module)
    assert wrong_imports(module, found, ALLOWED) | wrong_imports(module, found, STRATEGY)


def test_rule_allows_what_it_should():
    found = imports("from gcond.strategy.gradients import TaskGradients\nimport torch", "gcond.strategy.update")
    assert not wrong_imports("gcond.strategy.update", found, ALLOWED) | wrong_imports(
        "gcond.strategy.update", found, STRATEGY
    )
    assert imports("from . import cagrad", "gcond.strategy.resolve", is_package=True) == {
        "gcond.strategy.resolve.cagrad"
    }

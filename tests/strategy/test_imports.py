"""Imports point downward only: train -> {data, model, loss, strategy, engine}; study stands apart."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((SRC / "gcond").rglob("*.py"))
}

# Part of gcond -> what else of gcond its modules may import; the longest part that a module lies in counts.
ALLOWED = {
    "": "",
    "schema": "",
    "config": "schema files",
    "data": "files config",
    "model": "",
    "loss": "model data",
    "classification": "loss",
    "files": "",
    "output": "",
    "engine": "config schema data model loss classification strategy files output",
    "sweep": "config schema data engine files output",
    "study": "config output sweep engine data files strategy model load_run synthetic_run toy",
    "study.window_noise": "data engine load_run output study.tables",
    "study.bench_page": "study",
    "cli": "command engine files output study sweep profile_run weights",
    "command": "config schema engine train output",
    "train": "schema command data engine load_run files output",  # command where train itself is run
    "timing": "engine",
    "synthetic_run": "config data model engine",
    "toy": "config output strategy files",
    "load_run": "config data loss model engine files",
    "weights": "data engine load_run model output files",
    "profile_run": "config engine load_run output schema strategy",
    "linear_probe": "output data model engine load_run study.tables study.methods",
    "strategy": "",
    "strategy.arguments": "",
    "strategy.flat": "strategy.arguments",
    "strategy.safety": "",
    "strategy.products": "",
    "strategy.conflict": "strategy.flat strategy.arguments",
    "strategy.gradients": "strategy.flat strategy.products strategy.arguments",
    "strategy.estimate": "strategy.gradients strategy.safety strategy.arguments",
    "strategy.watch": "strategy.arguments strategy.safety strategy.estimate strategy.gradients",
    "strategy.update": "strategy.gradients strategy.flat strategy.arguments",
    "strategy.diagnose": "strategy.conflict",
    "strategy.named": "strategy.estimate strategy.resolve strategy.update",
    "strategy.resolve": "strategy.conflict strategy.flat strategy.arguments strategy.safety",
    "strategy.batchnorm": "strategy.processes strategy.arguments",
    "strategy.processes": "strategy.arguments strategy.estimate strategy.conflict strategy.gradients strategy.safety",
    "strategy.conductor": "strategy",
    "strategy.aggregator": "strategy",
}
FORBIDDEN = {  # outside of gcond
    "strategy": "hydra omegaconf timm datasets",
    "model": "hydra omegaconf",
    "loss": "hydra omegaconf",
    "files": "torch hydra omegaconf",
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it; `from a import b` counts as a.b where that is a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found


def within(module: str, part: str) -> bool:
    return not part or module == part or module.startswith(f"{part}.")


def rule(module: str, rules: dict[str, str]) -> tuple[str, list[str]]:
    part = max((part for part in rules if within(module, part)), key=len, default="")
    return part, rules.get(part, "").split()


def wrong(name: str, found: set[str]) -> set[str]:
    """What the module `name` may not import of what it imports."""
    module = name.removeprefix("gcond").removeprefix(".")
    part, allowed = rule(module, ALLOWED)
    own = {other.removeprefix("gcond.") for other in found if other.startswith("gcond.")}
    upward = {other for other in own if not any(within(other, each) for each in [*allowed, part or module])}
    return upward | {other for other in found if other.split(".")[0] in rule(module, FORBIDDEN)[1]}


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downward(name):
    assert not wrong(name, imports(MODULES[name]))


def test_every_rule_is_of_a_module_and_sees_what_it_forbids():
    assert {f"gcond.{part}".removesuffix(".") for part in ALLOWED} <= set(MODULES)
    assert wrong("gcond.strategy.update", {"gcond.loss", "timm", "gcond.strategy.gradients"}) == {"loss", "timm"}

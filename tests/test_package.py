"""What `import gcond` gives, from the sources and from the wheel in environments of its own."""

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

import pytest
from engine.runs import config
from packaging.requirements import Requirement

import gcond.strategy
from gcond.engine.run_folder import RunFolder
from gcond.strategy import Resolver, SingleProcess, Update

ROOT = Path(__file__).resolve().parents[1]
KINDS = {BaseException, Resolver, SingleProcess, Update}
INTERNAL = {"ImplicitSingleProcess"}  # what a conductor takes that was told of no processes

STEP = """
import sys
import gcond
assert not {"torch", "numpy"} & sys.modules.keys()
from gcond import *
import torch
assert not {"torch._dynamo", "torch.distributed.tensor", "scipy"} & sys.modules.keys()
w = torch.nn.Parameter(torch.zeros(2))
c = GradientConductor([w], {"a": 1.0, "b": 1.0}, Sequential(1), CAGrad(), Raw(), clip_norm=None)
c.step([torch.tensor([1.0, 0.5])], lambda x, tasks: {"a": (w @ x), "b": (w @ -x.flip(0))})
print(gcond.__file__, gcond.__version__, w.grad.tolist())
"""
USER = """
from typing import assert_type

import torch
from gcond import *

class Mine(Resolver):
    def resolve(self, conflict: Conflict) -> Resolution:
        return Resolution(torch.eye(len(conflict.tasks), dtype=torch.float64))

model = torch.nn.Linear(2, 1)
conductor = GradientConductor(model, {"a": 1.0}, Joint(2), Mine(), Raw(), processes=SingleProcess())
assert_type(conductor, GradientConductor)
try:
    assert_type(conductor.step([0], lambda batch, tasks: {"a": model(batch)}), dict[str, float])
except NotFinite as error:
    assert_type(error.losses, dict[str, float])
with merged_batchnorm(model, SingleProcess()):
    assert_type(__version__, str)
GradientConductor(model, {"a": 1.0}, clip_norm="large")  # type: ignore[arg-type]
from gcond import GradientConduct  # type: ignore[attr-defined]
"""


def test_every_method_estimator_update_kind_of_process_and_error_is_exported_by_both_packages():
    found = pkgutil.walk_packages(gcond.strategy.__path__, "gcond.strategy.")
    modules = [importlib.import_module(each.name) for each in found]
    classes = {kind for module in modules for _, kind in inspect.getmembers(module, inspect.isclass)}
    own = {kind for kind in classes if kind.__module__.startswith("gcond.strategy") and kind.__name__[0] != "_"}
    parts = {kind.__name__ for kind in own if KINDS & {*kind.__mro__} or hasattr(kind, "gather")} - INTERNAL
    assert len(parts) >= 25
    assert parts <= set(gcond.strategy.__all__)
    assert set(gcond.__all__) == {"__version__", *gcond.strategy.__all__}
    assert all(getattr(gcond, name) is getattr(gcond.strategy, name) for name in gcond.strategy.__all__)


class Environment:
    """A virtual environment with the wheel, and packages that are not copied but found elsewhere."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder, symlinks=True)
        self.bin, self.site = folder / "bin", next(folder.glob("lib/python*/site-packages"))
        pip = [sys.executable, "-m", "pip", "--python", self.bin / "python", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True)

    def run(self, folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """A command of the environment, in `folder`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [self.bin / words[0], *words[1:]]
        return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, timeout=600)


def needed(requirements: list[str]) -> Iterator[Distribution]:
    """What pip would install for these: with their own requirements, without extras."""
    found: dict[str, Distribution] = {}
    left = [(Requirement(each), {""}) for each in requirements]
    while left:
        each, extras = left.pop()
        if each.marker and not any(each.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        if each.name not in found or each.extras:
            found[each.name] = distribution(each.name)
            left += [(Requirement(more), {"", *each.extras}) for more in found[each.name].requires or []]
    yield from found.values()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    return next(folder.glob("gcond-*.whl"))


@pytest.fixture(scope="module")
def alone(wheel, tmp_path_factory):
    """As `pip install gcond` leaves it: what the wheel requires, linked, and nothing else."""
    environment = Environment(tmp_path_factory.mktemp("alone"), wheel)
    (own,) = (each for each in distributions(path=[str(environment.site)]) if each.name == "gcond")
    for each in needed(own.requires or []):
        for name in {file.parts[0] for file in each.files or [] if file.parts[0] != ".."}:
            if not (environment.site / name).exists():
                (environment.site / name).symlink_to(Path(str(each.locate_file(name))))
    return environment


@pytest.fixture(scope="module")
def complete(wheel, tmp_path_factory):
    """As `pip install gcond[study]` leaves it."""
    environment = Environment(tmp_path_factory.mktemp("complete"), wheel)
    (environment.site / "others.pth").write_text(sysconfig.get_path("purelib"))
    return environment


def test_the_wheel_alone_takes_a_step_and_names_the_extra_that_the_commands_need(alone, tmp_path):
    step = alone.run(tmp_path, "python", "-c", STEP)
    assert step.returncode == 0, step.stderr
    assert step.stdout.startswith(str(alone.site))
    assert gcond.__version__ in step.stdout
    shown = alone.run(tmp_path, "gcond", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "gcond train" in shown.stdout
    for words in (["gcond-train"], ["gcond", "study", "plan", "table2"], ["gcond", "dashboard"]):
        refused = alone.run(tmp_path, *words)
        assert refused.returncode == 2
        assert "gcond[study]" in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_the_wheel_has_the_choices_and_the_study_of_the_clone_unchanged(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist() if "_repository/" in name}
    sources = [path for folder in ("conf", "study") for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert len(sources) > 90
    assert packed == {f"gcond/_repository/{path.relative_to(ROOT)}": path.read_bytes() for path in sources}


def test_a_type_checker_outside_sees_the_types_of_what_is_installed(complete, tmp_path):
    """An ignored error that mypy does not find is an error too (--strict)."""
    (tmp_path / "user.py").write_text(USER)
    cache = ROOT / ".mypy_cache" / "outside"  # PyTorch's types take ten seconds
    words = ["--strict", "--python-executable", str(complete.bin / "python"), "--cache-dir", str(cache), "user.py"]
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words], cwd=tmp_path, env=kept, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_wheel_with_its_extra_plans_and_trains_from_an_empty_folder(complete, tmp_path):
    smoke = ["dataset=photos", "scale=smoke", "device=cpu", "progress=quiet"]
    plan = complete.run(tmp_path, "gcond", "study", "plan", "table2", "--datasets", "photos", "--seeds", "1")
    assert plan.returncode == 0, plan.stderr
    assert not [*tmp_path.iterdir()]
    trained = complete.run(tmp_path, "gcond", "train", *smoke)
    assert trained.returncode == 0, trained.stderr
    assert [path.parent.name for path in tmp_path.glob("runs/smoke/*/report.json")] == [RunFolder(config(*smoke)).name]
    swept = complete.run(tmp_path, "gcond", "sweep", "--jobs", "1", *smoke, "seed=42,43")
    assert swept.returncode == 0, swept.stderr
    assert len([*tmp_path.glob("runs/smoke/*/report.json")]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
    for words in (["data", "samples"], ["study", "run", "all", "--datasets", "photos"]):
        refused = complete.run(tmp_path, "gcond", *words)
        assert refused.returncode == 2
        assert "clone of the repository" in refused.stderr

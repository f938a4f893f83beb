"""`make mutants`: every declared mistake can still be made, and one that no test notices is told."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from script_files import ROOT, load

script = load("tools/mutants")
MUTANTS = script.declared(script.DECLARATIONS)
PACKAGE = ROOT / "src" / script.PACKAGE


def test_every_mutant_applies_and_its_tests_exist():
    assert len(MUTANTS) >= 90
    for mutant in MUTANTS:
        assert mutant.mutated(PACKAGE)
        assert mutant.new != mutant.old
        assert mutant.imitates
        assert mutant.tests, mutant.name
        for test in mutant.tests:
            path, _, function = test.partition("::")
            source = (ROOT / path).read_text()
            assert not function or re.search(rf"^def {function}\(", source, re.MULTILINE), (mutant.name, test)


UNNOTICED = {"file": "update.py", "old": '"""The resolved gradient as it', "new": '"""The gradient as it'}
NOTICED = {"file": "update.py", "old": "lerp_(own, 1 - self.beta)", "new": "lerp_(own, 1.0)"}
UNUSABLE = {"file": "update.py", "old": "class Raw(Update):", "new": "class Crude(Update):"}
REST = {"imitates": "see above", "tests": ["tests/strategy/test_update.py::test_ema_is_the_twin"]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"old": "not in the file"}, "mutant 'm': expected `old` exactly once in update.py, found it 0 times"),
        ({"old": "return"}, r"mutant 'm': expected `old` exactly once in update.py, found it \d+ times"),
        ({"old": "class Raw(Update):", "new": "class Raw("}, r"mutant 'm': .*update.py"),
        ({"file": "gone.py"}, r"mutant 'm': .*No such file"),
    ],
)
def test_mutant_that_no_longer_applies_is_named(changes, reason):
    with pytest.raises(ValueError, match=reason):
        script.Mutant(**{"name": "m", "tests": (), **UNNOTICED, **changes}).mutated(PACKAGE)


@pytest.mark.slow
def test_survivors_and_mutants_that_do_not_run_fail_the_check(tmp_path):
    def check(**mutants):
        tables = [
            f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in {**REST, **mutant}.items())
            for name, mutant in mutants.items()
        ]
        (tmp_path / "declared.toml").write_text("\n".join(tables))
        command = [sys.executable, ROOT / "tools" / "mutants.py", "--declarations", tmp_path]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, dict(
            re.findall(r"^(\w+)\t(\S*test_ema_is_the_twin|NOT \w+)", done.stdout, re.MULTILINE)
        )

    before = (PACKAGE / "update.py").read_text()
    assert check(noticed=NOTICED) == (0, {"noticed": "strategy/test_update.py::test_ema_is_the_twin"})
    assert check(unnoticed=UNNOTICED, unusable=UNUSABLE) == (1, {"unnoticed": "NOT CAUGHT", "unusable": "NOT RUN"})
    assert (PACKAGE / "update.py").read_text() == before

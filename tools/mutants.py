"""Shows that the tests catch realistic mistakes: each is made in a copy of src/, and its tests must fail.

    python tools/mutants.py [--jobs 2] [--only NAME ...]

The mistakes are declared in tests/mutants/*.toml, one table each (its heading is the name):
    imitates    the mistake in words, and whose it is where someone is known to have made it
    file        in src/gcond/strategy
    old, new    text of that file, which must occur exactly once, and what stands there after the mistake
    tests       what must notice it, the likeliest first; the run stops at the first failure

The declared tests must pass on an unchanged copy first. The exit status is 1 if they do not, if `old` is not found
exactly once, if the tests did not run (the mistake does not compile, say), or if they pass in spite of the mistake.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DECLARATIONS = ROOT / "tests" / "mutants"
PACKAGE = Path("gcond", "strategy")
SECONDS = 300  # for one mutant's tests; a mistake that makes them hang is not caught
WARM = ("pytest", "torch", "hypothesis", "scipy.optimize", "torchjd.aggregation")  # slow to import, so once for all


@dataclass(frozen=True)
class Mutant:
    """Without a file it is no mistake: tests that must pass on the unchanged package."""

    name: str
    tests: tuple[str, ...]
    imitates: str = ""
    file: str = ""
    old: str = ""
    new: str = ""

    def mutated(self, package: Path) -> str:
        """The file with the mistake; ValueError unless its text is there exactly once, and compiles afterwards."""
        try:
            source = (package / self.file).read_text(encoding="utf-8")
            if (count := source.count(self.old)) != 1:
                raise ValueError(f"expected `old` exactly once in {self.file}, found it {count} times")
            changed = source.replace(self.old, self.new)
            compile(changed, self.file, "exec")
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"mutant {self.name!r}: {error}") from error
        return changed


@dataclass(frozen=True)
class Verdict:
    mutant: Mutant
    outcome: str  # "passed", "failed", or why the tests did not run
    failed: str  # the first test that failed
    seconds: float


def declared(folder: Path) -> list[Mutant]:
    """All mutants, in the order of files and tables."""
    found: dict[str, Mutant] = {}
    for path in sorted(folder.glob("*.toml")):
        for name, table in tomllib.loads(path.read_text(encoding="utf-8")).items():
            if name in found:
                raise ValueError(f"mutant {name!r} is declared twice, the second time in {path.name}")
            found[name] = Mutant(name, **{**table, "tests": tuple(table["tests"])})
    return list(found.values())


def unchanged(mutants: list[Mutant]) -> list[Mutant]:
    """The tests of `mutants`, each once, by file."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    files = dict.fromkeys(test.split("::")[0] for test in tests)
    return [
        Mutant(file.replace("/", "-"), tuple(test for test in tests if test.split("::")[0] == file)) for file in files
    ]


class Watch:
    """A pytest plugin that notes the first test to fail."""

    def __init__(self) -> None:
        self.failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


def run_tests(mutant: Mutant, place: Path) -> None:
    """In a forked process, which has not imported gcond yet: run the tests against the copy and write the outcome."""
    import pytest

    sources = place / "src"
    with open(place / "log", "w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    signal.alarm(SECONDS)
    os.environ["PYTHONPATH"] = str(sources)
    sys.path.insert(0, str(sources))
    watch = Watch()
    status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *mutant.tests], plugins=[watch])
    sys.stdout.flush()
    used = Path(importlib.import_module("gcond").__file__ or "")
    outcome = {0: "passed", 1: "failed"}.get(int(status), f"pytest ended with status {int(status)}")
    if not used.is_relative_to(sources):
        outcome = f"the tests used {used}, not the copy"
    (place / "answer").write_text(json.dumps([outcome, watch.failed]), encoding="utf-8")


def fork(mutant: Mutant, place: Path) -> int:
    """Start the tests on a copy of src/, without byte code that could outlive a change of the same second and size."""
    shutil.copytree(ROOT / "src", place / "src", ignore=shutil.ignore_patterns("__pycache__"))
    if mutant.file:
        package = place / "src" / PACKAGE
        (package / mutant.file).write_text(mutant.mutated(package), encoding="utf-8")
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        try:
            run_tests(mutant, place)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    return child


def judge(work: list[Mutant], jobs: int) -> Iterator[Verdict]:
    """Run each in a process of its own, `jobs` at once."""
    for module in WARM:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        running: dict[int, tuple[Mutant, Path, float]] = {}
        waiting = list(reversed(work))
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant = waiting.pop()
                place = Path(folder, mutant.name)
                running[fork(mutant, place)] = mutant, place, time.monotonic()
            child, status = os.wait()
            mutant, place, start = running.pop(child)
            outcome, failed = f"ended by signal {os.WTERMSIG(status)} (14: after {SECONDS} s)", ""
            if (place / "answer").exists():
                outcome, failed = json.loads((place / "answer").read_text(encoding="utf-8"))
            if outcome not in ("passed", "failed" if mutant.file else "passed"):
                print((place / "log").read_text(encoding="utf-8", errors="replace"), file=sys.stderr)
            yield Verdict(mutant, outcome, failed, time.monotonic() - start)
            shutil.rmtree(place)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutants instead of all")
    parser.add_argument("--declarations", type=Path, default=DECLARATIONS, help="their folder (default tests/mutants)")
    options = parser.parse_args(arguments)
    mutants = declared(options.declarations)
    if unknown := set(options.only or []) - {mutant.name for mutant in mutants}:
        parser.error(f"--only: expected names in {options.declarations}, found {sorted(unknown)}")
    mutants = [mutant for mutant in mutants if not options.only or mutant.name in options.only]
    try:
        for mutant in mutants:
            mutant.mutated(ROOT / "src" / PACKAGE)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1

    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no thread of its own: this process forks
    start, work = time.monotonic(), unchanged(mutants)
    broken = [v for v in tqdm(judge(work, options.jobs), "unchanged", len(work), unit="file") if v.outcome != "passed"]
    for each in broken:
        print(f"{each.mutant.name}: expected to pass without a mistake; {each.outcome} {each.failed}", file=sys.stderr)
    if broken:
        return 1
    verdicts = list(tqdm(judge(mutants, options.jobs), "mutants", len(mutants), unit="mutant"))
    for verdict in sorted(verdicts, key=lambda verdict: verdict.mutant.name):
        by = {"failed": verdict.failed.removeprefix("tests/"), "passed": "NOT CAUGHT"}
        caught = by.get(verdict.outcome, f"NOT RUN: {verdict.outcome}")
        print(f"{verdict.mutant.name}\t{caught}\t{verdict.seconds:.1f} s\t{verdict.mutant.imitates}")
    missed = [verdict for verdict in verdicts if verdict.outcome != "failed"]
    print(f"{len(mutants) - len(missed)} of {len(mutants)} caught in {time.monotonic() - start:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Whether the tests notice realistic mistakes: each is made in a copy of src/, and its tests must fail.

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
    name: str
    imitates: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def mutated(self, source: str) -> str:
        """`source` with the mistake; ValueError unless its text is there exactly once."""
        count = source.count(self.old)
        if count != 1:
            raise ValueError(f"expected `old` exactly once in {self.file}, found it {count} times")
        return source.replace(self.old, self.new)


@dataclass(frozen=True)
class Verdict:
    name: str
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


def does_not_apply(mutant: Mutant) -> str:
    """Why `mutant` cannot be made in src/; empty if it can."""
    try:
        source = mutant.mutated((ROOT / "src" / PACKAGE / mutant.file).read_text(encoding="utf-8"))
        compile(source, mutant.file, "exec")
    except (OSError, SyntaxError, ValueError) as error:
        return f"mutant {mutant.name!r}: {error}"
    return ""


def copy_sources(target: Path, mutant: Mutant | None) -> None:
    """src/ without byte code, which could outlive a change of the same second and size; with the mistake, if any."""
    shutil.copytree(ROOT / "src", target, ignore=shutil.ignore_patterns("__pycache__"))
    if mutant is not None:
        path = target / PACKAGE / mutant.file
        path.write_text(mutant.mutated(path.read_text(encoding="utf-8")), encoding="utf-8")


Work = tuple[str, Mutant | None, tuple[str, ...]]


class Watch:
    """A pytest plugin that notes the first test to fail."""

    def __init__(self) -> None:
        self.failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


def run_tests(sources: Path, tests: tuple[str, ...], answer: Path) -> None:
    """In a forked process, which has not imported gcond yet: run the tests against `sources` and write the outcome."""
    import pytest

    with open(answer.with_suffix(".log"), "w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    signal.alarm(SECONDS)
    os.environ["PYTHONPATH"] = str(sources)
    sys.path.insert(0, str(sources))
    watch = Watch()
    status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests], plugins=[watch])
    sys.stdout.flush()
    used = Path(importlib.import_module("gcond").__file__ or "")
    outcome = {0: "passed", 1: "failed"}.get(int(status), f"pytest ended with status {int(status)}")
    if not used.is_relative_to(sources):
        outcome = f"the tests used {used}, not the copy"
    answer.write_text(json.dumps([outcome, watch.failed]), encoding="utf-8")


def judge(work: list[Work], jobs: int) -> Iterator[Verdict]:
    """Run each (name, mutant or None, tests) in a process of its own, `jobs` at once."""
    for module in WARM:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        running: dict[int, tuple[str, Mutant | None, Path, float]] = {}
        waiting = list(reversed(work))
        while waiting or running:
            while waiting and len(running) < jobs:
                name, mutant, tests = waiting.pop()
                place = Path(folder, name)
                copy_sources(place / "src", mutant)
                sys.stdout.flush()
                if (child := os.fork()) == 0:
                    try:
                        run_tests(place / "src", tests, place / "answer")
                    except BaseException:
                        traceback.print_exc()
                    finally:
                        os._exit(0)
                running[child] = (name, mutant, place, time.monotonic())
            child, status = os.wait()
            name, mutant, place, start = running.pop(child)
            seconds = time.monotonic() - start
            if (place / "answer").exists():
                outcome, failed = json.loads((place / "answer").read_text(encoding="utf-8"))
            else:
                outcome, failed = f"ended by signal {os.WTERMSIG(status)} (14: after {SECONDS} s)", ""
            if outcome not in ("passed", "failed" if mutant else "passed"):
                print((place / "answer.log").read_text(encoding="utf-8", errors="replace"), file=sys.stderr)
            yield Verdict(name, outcome, failed, seconds)
            shutil.rmtree(place)


def unchanged(mutants: list[Mutant]) -> list[Work]:
    """The tests of `mutants`, each once, by file."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    files = sorted({test.split("::")[0] for test in tests})
    return [
        (file.replace("/", "-"), None, tuple(test for test in tests if test.split("::")[0] == file)) for file in files
    ]


def table(mutants: list[Mutant], verdicts: dict[str, Verdict]) -> str:
    rows = [("mutant", "imitates", "caught by", "seconds")]
    for mutant in mutants:
        verdict = verdicts[mutant.name]
        by = {"failed": verdict.failed, "passed": "NOT CAUGHT"}.get(verdict.outcome, f"NOT RUN: {verdict.outcome}")
        rows.append((mutant.name, mutant.imitates, by.removeprefix("tests/"), f"{verdict.seconds:.1f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


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
    if rotten := [error for mutant in mutants if (error := does_not_apply(mutant))]:
        print("\n".join(rotten), file=sys.stderr)
        return 1

    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no thread of its own: this process forks
    start = time.monotonic()
    work = unchanged(mutants)
    broken = [v for v in tqdm(judge(work, options.jobs), "unchanged", len(work), unit="file") if v.outcome != "passed"]
    for verdict in broken:
        print(
            f"{verdict.name}: expected to pass without a mistake; {verdict.outcome} {verdict.failed}", file=sys.stderr
        )
    if broken:
        return 1
    work = [(mutant.name, mutant, mutant.tests) for mutant in mutants]
    verdicts = {v.name: v for v in tqdm(judge(work, options.jobs), "mutants", len(work), unit="mutant")}
    print(table(mutants, verdicts))
    missed = [name for name, verdict in verdicts.items() if verdict.outcome != "failed"]
    print(f"{len(mutants) - len(missed)} of {len(mutants)} caught in {time.monotonic() - start:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""What a process has imported when it has answered, or taken its first optimizer step: nothing that it does not need.

Each in a process of its own, since this one has imported everything.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from engine.runs import config

from gcond.data.checksums import of_photographs
from gcond.engine.run_folder import RunFolder

PROGRAM = r"""
import os, sys
from gcond.command import main
from gcond.engine.metrics_log import MetricsLog

def leave(*_):
    print("\nIMPORTED", *sys.modules, flush=True)
    os._exit(0)

MetricsLog.write = leave  # what is written first is the record of the first optimizer step
try:
    main()
finally:
    leave()
"""
SMOKE = ("scale=smoke", "dataset=photos", "device=cpu", "progress=quiet", "hydra.job_logging.root.level=ERROR")
NEVER = {"torchjd", "matplotlib", "scipy.optimize", "wandb", "submitit", "joblib"}


def imported(*words: str) -> tuple[set[str], str]:
    """The modules of a `gcond-train WORDS` at its first step or its end, and what it said."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=300)
    said, _, modules = done.stdout.rpartition("\nIMPORTED ")
    return set(modules.split()), said + done.stderr


def test_what_needs_no_pytorch_is_answered_without(tmp_path: Path) -> None:
    """Help, a misspelt key, and a run that is finished."""
    words = [*SMOKE, f"runs={tmp_path}"]
    folder = RunFolder(config(*words))
    folder.path.mkdir(parents=True)
    report = {"schema": 1, "status": "done", "data_checksum": of_photographs()}
    folder.report.write_text(json.dumps(report))
    folder.finish()
    answers = ((["--help"], "strategy: "), (["strategi=baseline"], "strategi"), (words, "finished earlier"))
    for typed, answer in answers:
        modules, said = imported(*typed)
        assert answer in said
        assert "gcond.command" in modules
        assert not modules & {*NEVER, "torch", "timm", "datasets", "pandas"}


@pytest.mark.parametrize("strategy", ["gcond_stochastic", pytest.param("baseline", marks=pytest.mark.slow)])
def test_the_first_step_is_taken_without_what_it_does_not_need(tmp_path: Path, strategy: str) -> None:
    modules, said = imported(*SMOKE, f"runs={tmp_path}", f"strategy={strategy}")
    assert {"torch", "timm", "gcond.engine.trainer"} <= modules, said
    assert not modules & {*NEVER, "datasets", "pandas"}

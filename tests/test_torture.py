"""tools/torture.py: what it counts as equal, what as different; and, slowly, three trials of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from engine.runs import TINY, run, tiny_config
from script_files import load

from gcond.engine.checkpoint import checkpoints
from gcond.files import sha256


@pytest.fixture(scope="module")
def script():
    return load("tools/torture")


def test_a_run_equals_its_repetition_but_for_one_digit_one_bit_and_one_field(script, tmp_path: Path) -> None:
    one, two = (run(tiny_config(tmp_path / name, "seed=3")) for name in ("one", "two"))
    assert json.loads(one.report.read_text())["started"]  # a field that does differ
    assert script.differences(one, two) == []
    two.metrics.write_text(two.metrics.read_text().replace('"lr": 0.001', '"lr": 0.002', 1))
    newest = checkpoints(two.checkpoints)[0]
    content = torch.load(newest, weights_only=True)
    bits = content["parts"]["model"]["mask_token"].view(torch.int32)
    bits[7] ^= 1
    content["parts"]["conductor"]["steps"] += 1
    torch.save(content, newest)
    newest.rename(newest.with_name(f"{newest.name[:9]}{sha256(newest)}.pt"))
    report = json.loads(two.report.read_text())
    two.report.write_text(json.dumps(report | {"seconds": 1e9, "epochs": 1}))
    assert script.differences(one, two) == [
        "metrics.jsonl",
        "checkpoint: /parts/model/mask_token",
        "checkpoint: /parts/conductor/steps",
        "report.json: epochs",
    ]


def test_trials_are_drawn_anew_for_another_seed_only(script) -> None:
    drawn = [script.draw(number, 0, ["photos", "ct"], list(script.STRATEGIES)) for number in range(6)]
    assert drawn == [script.draw(number, 0, ["photos", "ct"], list(script.STRATEGIES)) for number in range(6)]
    assert drawn[0] != script.draw(0, 1, ["photos", "ct"], list(script.STRATEGIES))
    assert {trial.dataset for trial in drawn} == {"photos", "ct"}


@pytest.mark.slow
def test_killed_runs_end_as_if_nothing_had_happened(script, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tiny = [option for override in TINY if "tiny" in override for option in ("--override", override)]
    chosen = ["-n", "3", "--jobs", "1", "--datasets", "photos", "--strategies", "gcond_stochastic,famo", *tiny]
    assert script.main([*chosen, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "3 of 3 continuations equal" in printed
    kills, terminations = map(int, re.search(r"(\d+) ends by SIGKILL, (\d+) by SIGTERM", printed).groups())
    assert kills + terminations > 0
    again = script.main([*chosen, "--out", str(tmp_path)])
    assert again == 0
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 3  # nothing was repeated

"""`gcond profile` of a finished run and of a config: the run's own weights, data, lambdas and losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from engine.runs import TINY, run, tiny_config

from gcond import cli, profile_run
from gcond.engine.probes import ProbeGradients
from gcond.load_run import LoadedRun
from gcond.strategy import Profile


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Profile]:
    found: list[Profile] = []
    plain = profile_run.profile
    monkeypatch.setattr(profile_run, "profile", lambda *a, **k: found.append(plain(*a, **k)) or found[-1])
    return found


def test_a_run_and_a_config(tmp_path: Path, reports: list[Profile], capsys: pytest.CaptureFixture[str]) -> None:
    """The run's initial weights are the config's; its last ones have the gradients of plain backward passes."""
    choices = [*TINY, "strategy=baseline", "loss.tasks.ssim=0.5"]
    folder = run(tiny_config(tmp_path, *choices[len(TINY) :]))
    before = {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()}
    words = ["--micro-batches", "32", "--out", str(tmp_path / "page.html"), "--device", "cpu"]
    trust = ["--trust", "engine"]
    assert cli.main(["profile", *choices, *words]) == 0
    assert cli.main(["profile", str(folder.path), "--state", "initial", *trust, *words]) == 0
    assert cli.main(["profile", str(folder.path), *trust, *words]) == 0
    config, initial, last = reports
    assert config == initial
    assert {row["group"] for row in last.pairs} == {"all", "encoder", "body", "head"}
    printed = capsys.readouterr().out
    assert all(str(report) in printed for report in reports)
    assert "step 0, micro-batches of 2" in printed
    assert "step 4, micro-batches of 2" in printed
    assert "<svg" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert before == {file: file.read_bytes() for file in folder.path.rglob("*") if file.is_file()}

    back = LoadedRun(folder.path, {}, ["engine"])
    data, cpu = back.data(), torch.device("cpu")
    model, _ = back.model("last", 3)
    losses, rows = back.objective(model.train(), data), []
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    source = ProbeGradients(model, losses, back.tasks, back.images(data, cpu), 32, True, scaler)
    for batch in source.independent():
        rows.append([])
        for task, weight in {"l1": 0.85, "ssim": 0.5}.items():
            model.zero_grad()
            (weight * losses(batch, [task])[task]).backward()
            rows[-1].append(np.concatenate([p.grad.flatten().numpy() for p in model.parameters()]))
    vectors = np.asarray(rows, dtype=np.float64)
    sums = vectors.sum(0)
    products = (sums @ sums.T - np.einsum("nip,njp->ij", vectors, vectors)) / (32 * 31)
    expected = products[0, 1] / np.sqrt(products[0, 0] * products[1, 1])
    assert last.pairs[0]["cosine"] == pytest.approx(expected, abs=1e-3)
    assert [row["norm"] for row in last.tasks] == pytest.approx(np.sqrt(np.diag(products)), rel=1e-3)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dataset=photos", "loss.tasks.ssim=0"], "`tasks`"),
        (["--micro-batches", "40"], "`micro_batches`"),
        (["--state", "last"], "`state`"),
        (["datset=photos"], "datset"),
    ],
)
def test_refusals(words: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["profile", *TINY, *words, "--out", str(tmp_path / "page.html")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()

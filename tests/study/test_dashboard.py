"""The dashboard: the data in the page against folders of runs made by hand."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from gcond.engine.run_folder import locked
from gcond.study import dashboard, tables

STARTED = "2025-03-04T05:06:07+00:00"
BROWSER = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)


def make_run(runs: Path, strategy="pcgrad", seed=11, *, lr=1e-3, steps=8, ends="done", scale="mini", picture=0) -> Path:
    """A folder as a run leaves it; `ends`: done, an error, or None where it is at work or was stopped."""
    folder = runs / scale / f"photos-m-{strategy}-seed{seed}-{lr}"
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, len(strategy), round(1e6 * lr)])
    records = [
        {"kind": "step", "step": step, "loss/l1": rng.random(), "loss/l1+ssim": 1.0, "cosine/all": rng.normal(),
         "lr": lr, "correction": rng.random() if step % 2 else None}
        for step in range(steps)
    ]  # fmt: skip
    validation = [{"epoch": at // 4, "step": at, "val_l1": rng.random(), "val_ssim": 0.5, "test_l1": 0.9,
                   "test_ssim": 0.9} for at in range(4, steps + 1, 4)]  # fmt: skip
    records += [{"kind": "validation", **each} for each in validation]
    records.sort(key=lambda record: record["step"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = {"seed": seed, **{name: {"name": value} for name, value in (
        ("dataset", "photos"), ("model", "m"), ("strategy", strategy))}, "optimizer": {"lr": lr},
        "scale": {"name": scale, "epochs": steps // 4, "steps_per_epoch": 4}}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / ".lock").touch()
    if ends is not None:
        done = ends == "done"
        report = {"schema": 1, "name": folder.name, "hash": "0123456789", "scale": scale, "dataset": "photos",
                  "model": "m", "strategy": strategy, "seed": seed, "data_checksum": "c",
                  "variant": "" if lr == 1e-3 else f"optimizer.lr={lr}",
                  "status": "done" if done else "failed", "error": "" if done else ends, "commit": "a" * 40,
                  "dirty": False, "device": "CPU", "torch": "2", "python": "3.11.9", "started": STARTED,
                  "seconds": 30.0, "steps": steps, "epochs": steps // 4, "validation": validation,
                  "final": {"best": min(validation, key=lambda each: each["val_l1"]), "last": validation[-1]},
                  "trivial": {"a": {"val_l1": 0.7}, "b": {"val_l1": 0.6}}}  # fmt: skip
        (folder / "report.json").write_text(json.dumps(report))
        (folder / ("DONE" if done else "FAILED")).write_text("" if done else ends)
    for step in range(4, picture and steps + 1, 4):
        path = folder / "reconstructions" / f"{step:08}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (picture, picture, 3)).astype(np.uint8) // step).save(path)
        path.with_suffix(".json").write_text(json.dumps({"step": step, "epoch": step // 4, "columns": ["a", "b"]}))
    return folder


@pytest.fixture
def page(tmp_path, capsys):
    """page() -> the data in the page made of tmp_path/runs, or of what is recorded in tmp_path/results."""

    def make() -> dict:
        words = ["--runs", f"{tmp_path}/runs", "--out", f"{tmp_path}/page.html", "--recorded", f"{tmp_path}/results"]
        assert dashboard.main(words) == 0
        assert capsys.readouterr().out.startswith("written: ")
        return content(tmp_path / "page.html")

    return make


def content(path: Path) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)[1])


def one(data: dict, folder: Path) -> dict:
    (found,) = [run for run in data["runs"] if run["name"] == folder.name]
    return found


def jpeg(data: dict, folder: Path) -> bytes:
    return base64.b64decode(one(data, folder)["picture"]["data"].partition(",")[2])


def logged(folder: Path, key: str, kind: str = "step") -> list:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record[key] for record in records if record["kind"] == kind]


def test_curves_are_what_the_run_logged_and_numbers_their_means(tmp_path, page):
    folder = make_run(tmp_path / "runs")
    long = make_run(tmp_path / "runs", seed=12, steps=1000)
    data = page()
    run, curve = one(data, folder), one(data, long)["curves"]["loss/l1"]
    assert curve["x"] == list(range(19, 1000, 20))
    assert curve["y"] == pytest.approx(np.reshape(logged(long, "loss/l1"), (50, 20)).mean(1), rel=1e-3)
    assert run["curves"]["val_l1"]["x"] == [4, 8]
    assert run["curves"]["val_l1"]["y"] == pytest.approx(logged(folder, "val_l1", "validation"), rel=1e-3)
    assert run["curves"]["loss/l1"]["y"] == pytest.approx(logged(folder, "loss/l1"), rel=1e-3)
    assert run["curves"]["correction"]["x"] == [1, 3, 5, 7]
    assert "loss/l1+ssim" not in run["curves"]
    losses, conflicts = logged(folder, "val_l1", "validation"), np.less(logged(folder, "cosine/all"), 0)
    expected = {"conflicts": 100 * conflicts.mean(), "best_val_l1": min(losses), "last_val_l1": losses[-1]}
    assert {name: run["numbers"][name] for name in expected} == pytest.approx(expected, rel=1e-3)
    assert run["trivial"] == {"val_l1": 0.6}
    assert (run["state"], run["label"], run["steps"]) == ("done", "PCGrad", 8)


def test_runs_that_differ_in_their_seed_alone_are_one_arm(tmp_path, page):
    runs = tmp_path / "runs"
    assert page()["runs"] == []
    seeds = [make_run(runs, seed=seed) for seed in (11, 42)] + [make_run(runs, seed=7, ends=None)]
    other, unknown = make_run(runs, lr=1e-2), make_run(runs, lr=1e-4, ends=None)
    data = page()
    assert len({one(data, folder)["arm"] for folder in seeds}) == 1
    assert {one(data, folder)["label"] for folder in seeds} == {"PCGrad"}
    assert one(data, other)["label"] == "PCGrad [optimizer.lr=0.01]"
    assert one(data, unknown)["label"].startswith("PCGrad [settings ")


def test_every_state_is_shown_with_what_is_known_and_texts_of_runs_are_no_markup(tmp_path, page):
    runs = tmp_path / "runs"
    failed = make_run(runs, "cagrad", ends="ValueError: </script><img src=x>")
    torn, damaged, strange = make_run(runs, "mgda", ends=None), make_run(runs, "upgrad"), make_run(runs, "mine")
    running = make_run(runs, "famo", ends=None)
    fresh = runs / "mini" / "fresh"
    fresh.mkdir()
    (fresh / ".lock").touch()
    with (torn / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')
    (damaged / "metrics.jsonl").write_text('{"kind": "step"}\n')
    (strange / "config.yaml").write_text("[")
    with locked(running):
        data = page()
    found = {folder: one(data, folder) for folder in (failed, torn, damaged, strange, running, fresh)}
    states = ["failed", "interrupted", "done", "done", "running", "interrupted"]
    assert [run["state"] for run in found.values()] == states
    assert found[failed]["says"] == "ValueError: </script><img src=x>"
    text = (tmp_path / "page.html").read_text()
    assert "<img src=x>" not in text
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", text.split('id="data"')[0])
    assert "default-src 'none'" in text
    assert len(found[torn]["curves"]["loss/l1"]["y"]) == 8
    assert "metrics.jsonl, line 1" in found[damaged]["says"]
    assert found[damaged]["curves"] == {}
    assert "config.yaml" in found[strange]["says"]
    assert found[fresh]["label"] == "fresh"


def test_recorded_runs_are_shown_as_the_local_ones_were(tmp_path, page):
    folder = make_run(tmp_path / "runs")
    local = one(page(), folder)
    tables.record(folder, tmp_path / "results" / "mini")
    shutil.rmtree(tmp_path / "runs")
    run = one(page(), folder)
    assert run["recorded"]
    for name in ("state", "scale", "dataset", "model", "strategy", "seed", "label", "steps", "curves", "trivial"):
        assert run[name] == local[name], name
    assert run["numbers"] == pytest.approx(local["numbers"], rel=1e-3)


def test_the_last_picture_of_each_run_is_in_the_page_while_they_fit(tmp_path, page, monkeypatch):
    folders = [make_run(tmp_path / "runs", seed=seed, picture=700) for seed in (1, 2)]
    other = make_run(tmp_path / "runs", "cagrad", picture=64)
    data = page()
    picture = one(data, folders[0])["picture"]
    shown = Image.open(io.BytesIO(jpeg(data, folders[0])))
    assert shown.size == (640, 640)
    assert np.max(shown) < 255 // 4  # the picture of step 8, not the brighter one of step 4
    assert (picture["epoch"], picture["columns"]) == (2, "a, b")
    assert data["left_out"] == ""
    monkeypatch.setattr(dashboard, "PICTURE_BYTES", sum(len(jpeg(data, each)) for each in (folders[0], other)))
    data = page()
    assert [one(data, each)["picture"] is None for each in (folders[0], other, folders[1])] == [False, False, True]
    assert data["left_out"].startswith("1 ")


def test_a_folder_that_holds_no_scales_is_refused(tmp_path, capsys):
    folder = make_run(tmp_path / "runs")
    assert dashboard.main(["--runs", str(folder.parent), "--out", str(tmp_path / "page.html")]) == 2
    assert "--runs" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
def test_a_browser_draws_it(tmp_path, page):
    for seed in (1, 2):
        make_run(tmp_path / "runs", seed=seed)
        make_run(tmp_path / "runs", "baseline", seed, scale="sample", steps=16)
    page()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    command = [BROWSER, *options, f"file://{tmp_path}/page.html"]
    drawn = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert drawn.count('<tr class="done">') == 2  # the two of the longer scale
    assert len(re.findall(r'<path class="js-line"', drawn)) >= 4 * 3  # of four panels: two seeds and their mean

"""The command on two tiny finished runs, which it only reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from engine import tiny
from engine.attempts import contents
from engine.runs import run, tiny_config

from gcond.config import build
from gcond.engine.batches import seeded
from gcond.linear_probe.__main__ import main, spaced
from gcond.linear_probe.probe import classes, probe
from gcond.study import tables


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder of runs: two strategies, one seed."""
    runs = tmp_path_factory.mktemp("probed")
    for strategy in ("baseline", "pcgrad"):
        run(tiny_config(runs, f"strategy={strategy}"))
    return runs


@pytest.fixture
def runs(finished, tmp_path) -> Path:
    """To be spoilt."""
    return Path(shutil.copytree(finished, tmp_path / "runs"))


def probed(runs: Path, *arguments: str) -> int:
    words = ["--scale", "smoke", "--runs", str(runs), "--results", str(runs / "results"), "--trust", "engine"]
    tables.collect(runs / "smoke", runs / "results" / "smoke")
    return main([*words, *arguments])


def table(runs: Path) -> pd.DataFrame:
    results = runs / "results" / "smoke"
    known = tables.runs(results)
    logs = [tables.log(results, run.log, "linear_probe").assign(strategy=run.strategy) for run in known.itertuples()]
    return pd.concat(logs)


def folder(runs: Path, strategy: str) -> Path:
    (found,) = (runs / "smoke").glob(f"*-{strategy}-*")
    return found


def by_hand(model, data) -> float:
    """Rotation on test: the encoder alone on turned images, in one go."""
    model.eval()

    def seen(images):
        turned = [torch.rot90(data.intensity.normalise(images.images), turn, (2, 3)) for turn in range(4)]
        with torch.no_grad():
            return model.encoder(torch.cat(turned)).mean((2, 3)).double().numpy().reshape(4, len(images), -1)

    features = {"train": seen(data.train), "val": seen(data.val), "test": seen(data.test)}
    turns = {split: np.repeat(range(4), own.shape[1]) for split, own in features.items()}
    return probe(features, classes("rotation", turns, turned=True)).test


def test_every_finished_run_gets_its_row_with_the_controls_beside_it_once(runs, capsys):
    before = contents(runs / "smoke")
    assert probed(runs) == 0
    assert contents(runs / "smoke") == before
    rows = table(runs).set_index("strategy")
    assert sorted(rows.index) == ["baseline", "pcgrad"]
    assert set(rows.task) == {"rotation"}
    assert set(rows.chance) == {0.25}
    assert rows.untrained_test.nunique() == rows.pixels_test.nunique() == 1
    assert (rows.train.iloc[0], rows.val.iloc[0], rows.test.iloc[0], rows.step.iloc[0]) == (12, 6, 6, 4)
    assert "pcgrad" in capsys.readouterr().out

    data = tiny.load(64)
    for strategy in ("baseline", "pcgrad"):
        cfg = tiny_config(runs, f"strategy={strategy}")
        with seeded(cfg.seed, "weights"):
            model = build(cfg.model, channels=3)
        assert rows.untrained_test[strategy] == pytest.approx(by_hand(model, data))
        (last,) = (folder(runs, strategy) / "checkpoints").glob("00000004-*.pt")
        model.load_state_dict(torch.load(last, weights_only=True)["parts"]["model"])
        assert rows.test_score[strategy] == pytest.approx(by_hand(model, data))

    results = runs / "results" / "smoke"
    for known in tables.runs(results).itertuples():
        rows = tables.log(results, known.log, "linear_probe").assign(train=13)
        rows["hash"] = "another" if known.strategy == "pcgrad" else rows["hash"]
        tables.add(results, known.log, "linear_probe", rows)
    assert probed(runs) == 0
    assert "2 finished runs, 1 recorded" in capsys.readouterr().out
    assert dict(zip(table(runs).strategy, table(runs).train, strict=True)) == {"baseline": 13, "pcgrad": 12}


@pytest.mark.parametrize("other", ["loss", "model"])
def test_runs_of_another_loss_or_model_than_table_2s_are_probed_on_demand(runs, capsys, other):
    """Another learning rate counts as Table 2's."""
    variants = {"baseline": "optimizer.lr=0.0002"} | ({"pcgrad": "loss=l1_ssim_flipped"} if other == "loss" else {})
    for strategy, variant in variants.items():
        report = folder(runs, strategy) / "report.json"
        report.write_text(json.dumps(json.loads(report.read_text()) | {"variant": variant}))
    if other == "model":
        for strategy, name in (("pcgrad", "convnextv2_base"), ("baseline", "mobilenetv3_small")):  # the paper's
            path = folder(runs, strategy) / "config.yaml"
            config = yaml.safe_load(path.read_text())
            config["model"]["name"] = name
            path.write_text(yaml.safe_dump(config))
    assert probed(runs) == 0
    assert set(table(runs).strategy) == {"baseline"}
    assert "1 finished runs of another model or with other settings" in capsys.readouterr().out
    assert probed(runs, "--all") == 0
    assert set(table(runs).strategy) == {"baseline", "pcgrad"}


def test_runs_that_cannot_be_probed_are_named_and_the_others_are_probed(runs, capsys):
    for where, words, of in ((runs / "nowhere", [], "run in"), (runs, ["--datasets", "phtos"], "run of phtos in")):
        assert probed(where, *words) == 2
        assert f"no finished {of}" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        probed(runs, "--images", "0")
    (last,) = (folder(runs, "pcgrad") / "checkpoints").glob("00000004-*.pt")
    last.unlink()
    assert probed(runs) == 1
    assert "expected a checkpoint of step 4, found one of step 2" in capsys.readouterr().err
    path = folder(runs, "pcgrad") / "config.yaml"
    text = path.read_text().replace("  name: photos", "  name: mine")
    path.write_text(text.replace("engine.tiny.load", "gcond.data.imagenet256.load"))
    assert probed(runs) == 1
    assert "expected the folder of its mine (--data or --imagenet DIR), found none" in capsys.readouterr().err
    for name in ("DONE", "report.json"):
        (folder(runs, "pcgrad") / name).unlink()
    assert probed(runs) == 0  # an unfinished one is left out
    assert set(table(runs).strategy) == {"baseline"}


def test_thinned_images_are_evenly_spaced():
    assert spaced(3, 10) == [0, 1, 2]
    assert spaced(10, 3) == [0, 3, 6]
    assert np.ptp(np.diff(spaced(1000, 37))) <= 1

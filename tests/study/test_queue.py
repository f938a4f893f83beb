"""The queue of the study: its order, what counts as recorded, and how `lr: best` is decided."""

from __future__ import annotations

import itertools
from pathlib import Path

import pandas as pd
import pytest
import yaml

from gcond import cli
from gcond.config import compose
from gcond.engine.settings import Settings
from gcond.study import tables
from gcond.study.__main__ import QUEUE, main
from gcond.study.queue import NAME, Queue, read

RATES = {"name": "rates", "question": "Which rate?", "group": ["dataset", "strategy"], "dataset": ["ct"],
         "strategy": ["a", "b"], "seed": [101], "lr": ["1e-4", "1e-3"]}  # fmt: skip
TABLE = {"name": "table", "question": "Which method?", "group": ["dataset", "seed"], "dataset": ["ct"],
         "strategy": ["a", "b", "c"], "seed": [11, 42], "lr": ["best", "1e-4"]}  # fmt: skip
AT_ONE_RATE = TABLE | {"lr": ["1e-4"]}


def identify(overrides):
    """A run is its overrides with numbers as numbers, so that 1e-3 and 0.001 are one run."""
    names = []
    for run in overrides:
        settings = dict(text.split("=") for text in run)
        settings["optimizer.lr"] = str(float(settings["optimizer.lr"]))
        names.append((str(sorted(settings.items())), "data"))
    return names


def queue(*blocks, borrowed=None):
    content = {"scale": "study", "rates": ["rates"], "borrowed_rates": borrowed or {}, "blocks": [*blocks]}
    return Queue(content, identify)


def recorded(runs, machine="m", loss=lambda run: 1.0):
    losses = [loss(run) for run in runs.itertuples()]
    return runs[NAME].assign(arithmetic=machine, best_val_l1=losses, best_val_ssim=losses)


NOTHING = tables.read(Path("nowhere"))


def test_all_runs_of_a_group_stand_together():
    runs = queue(AT_ONE_RATE).runs(NOTHING)
    assert list(zip(runs.seed, runs.strategy, strict=True)) == [(s, a) for s in (11, 42) for a in "abc"]
    assert runs.overrides[0] == ("scale=study", "dataset=ct", "strategy=a", "seed=11", "optimizer.lr=1e-4")


def test_an_arm_takes_the_rate_of_its_lowest_validation_loss_and_others_wait():
    of = queue(RATES, TABLE)
    best = {("a", 1e-4): 0.5, ("a", 1e-3): 0.4, ("b", 1e-4): 0.3, ("b", 1e-3): 0.6}
    table = recorded(of.runs(NOTHING)[:4], loss=lambda run: best[run.strategy, float(run.lr)])
    assert of.best_rates(table) == {("ct", "a"): 1e-3, ("ct", "b"): 1e-4}
    runs = of.runs(table)[4:]
    assert list(runs[runs.waiting].strategy) == ["c", "c"]
    tuned = runs[~runs.waiting & (runs.lr != "1e-4")]
    assert set(zip(tuned.strategy, tuned.lr, strict=True)) == {("a", 1e-3), ("b", 1e-4)}
    borrowed = queue(RATES, TABLE, borrowed={"c": "b"})
    assert borrowed.best_rates(table)["ct", "c"] == 1e-4
    assert not borrowed.runs(table).waiting.any()


def test_a_rate_is_not_known_while_a_run_of_its_grid_is_missing_or_made_elsewhere():
    of = queue(RATES, TABLE)
    grid = of.runs(NOTHING)[:4]
    assert of.best_rates(recorded(grid[:1])) == {}
    assert of.best_rates(pd.concat([recorded(grid[:1], "m"), recorded(grid[1:2], "n")])) == {}
    assert set(of.best_rates(recorded(grid[:2]))) == {("ct", "a")}


def test_a_group_is_left_until_one_machine_has_made_all_of_it():
    of = queue(AT_ONE_RATE)
    runs = of.runs(NOTHING)
    both = recorded(runs[:5])

    def left(table, machine):
        return list(of.left(table, machine).overrides)

    assert left(both, "m") == [runs.overrides[5]]
    assert left(both, "other") == [*runs.overrides[3:]]
    assert left(pd.concat([both, recorded(runs[5:], "other")]), "other") == [*runs.overrides[3:5]]
    assert left(pd.concat([both, recorded(runs[3:], "other")]), "m") == []
    assert left(recorded(runs).assign(data_checksum="other"), "m") == [*runs.overrides]


def test_a_run_that_two_settings_describe_is_made_once():
    assert list(queue(RATES | {"lr": ["1e-3", "0.001"]}).left(NOTHING, "m").strategy) == ["a", "b"]


@pytest.mark.parametrize(("block", "rates", "named"), [
    ({key: value for key, value in TABLE.items() if key != "question"}, "rates", "question"),
    (RATES, "rates", "two blocks rates"), (TABLE, "nowhere", "nowhere")])  # fmt: skip
def test_a_malformed_queue_is_refused_by_name(tmp_path, block, rates, named):
    path = tmp_path / "queue.yaml"
    content = {"scale": "study", "rates": [rates], "borrowed_rates": {}, "blocks": [RATES, block]}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=named):
        read(path)


@pytest.mark.parametrize("content", [None, "blocks: [", "- 1", "blocks: []"])
def test_a_file_that_is_no_queue_is_named(tmp_path, capsys, content):
    path = tmp_path / "queue.yaml"
    if content is not None:
        path.write_text(content)
    assert main(["--plan", "--queue", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: expected ")


def test_what_the_queue_would_not_heed_is_refused(capsys):
    assert cli.main(["study", "run", "queue", "--datasets", "ct", "--seeds", "10"]) == 2
    assert "found --datasets, --seeds" in capsys.readouterr().err


def test_the_plan_counts_what_is_left_and_what_waits(tmp_path, capsys):
    photos = {"dataset": ["photos"], "strategy": ["baseline"]}
    content = {"scale": "smoke", "rates": ["rates"], "borrowed_rates": {}, "blocks": [RATES | photos, TABLE | photos]}
    (tmp_path / "queue.yaml").write_text(yaml.safe_dump(content))
    assert main(["--plan", "--queue", str(tmp_path / "queue.yaml"), "--results", str(tmp_path / "results")]) == 0
    lines = [line.split()[:4] for line in capsys.readouterr().out.splitlines()]
    assert lines[1:3] == [["rates", "2", "2", "0"], ["table", "4", "2", "2"]]


def test_the_studys_own_queue_asks_for_runs_whose_rates_can_be_known():
    content = read(QUEUE)
    tuned = {arm for block in content["blocks"] if block["name"] in content["rates"] for arm in block["strategy"]}
    asked = set(itertools.chain.from_iterable(b["strategy"] for b in content["blocks"] if "best" in b["lr"]))
    assert asked <= tuned | set(content["borrowed_rates"])
    assert set(content["borrowed_rates"].values()) <= tuned


def test_the_queue_for_a_gpu_asks_for_valid_runs():
    runs = Queue(read(QUEUE.with_name("gpu.yaml")), lambda overrides: [("", "")] * len(overrides)).runs(NOTHING)
    assert len(runs) == runs.overrides.nunique() == 2 * (15 + 18 + 15 + 15)
    for overrides in runs.overrides[(runs.seed == 11) & (runs.dataset == "headneck")]:
        cfg = compose(list(overrides))
        Settings(cfg)
        assert (cfg.scale.name, cfg.scale.image_size, cfg.scale.epochs) == ("study_gpu", 128, 10)

"""The queue of the study: its order, what counts as recorded, and how `lr: best` is decided."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
import yaml

from gcond.study.queue import Queue, read

RATES = {
    "name": "rates",
    "question": "Which rate?",
    "group": ["dataset", "strategy"],
    "dataset": ["ct"],
    "strategy": ["a", "b"],
    "seed": [101],
    "lr": ["1e-4", "1e-3"],
}
TABLE = {
    "name": "table",
    "question": "Which method?",
    "group": ["dataset", "seed"],
    "dataset": ["ct"],
    "strategy": ["a", "b", "c"],
    "seed": [11, 42],
    "lr": ["best", "1e-4"],
}


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


def recorded(items, machine="m", loss=lambda settings: 1.0):
    rows = []
    for item in items:
        ((hashed, checksum),) = identify([item.overrides])
        value = loss(dict(item.settings))
        rows.append((hashed, checksum, machine, value, value))
    return pd.DataFrame(rows, columns=["hash", "data_checksum", "arithmetic", "best_val_l1", "best_val_ssim"])


NOTHING = recorded([])


def names(items, *keys):
    return [tuple(dict(item.settings)[key] for key in keys) for item in items]


def test_all_runs_of_a_group_stand_together():
    block = queue(TABLE | {"lr": ["1e-4"]}).blocks(NOTHING)[0]
    assert names(block.items, "seed", "strategy") == [(s, a) for s in (11, 42) for a in "abc"]


def test_an_arm_takes_the_rate_of_its_lowest_validation_loss_and_others_wait():
    of = queue(RATES, TABLE)
    grid = of.blocks(NOTHING)[0].items
    best = {("a", 1e-4): 0.5, ("a", 1e-3): 0.4, ("b", 1e-4): 0.3, ("b", 1e-3): 0.6}
    table = recorded(grid, loss=lambda run: best[run["strategy"], float(run["lr"])])
    assert of.best_rates(table) == {("ct", "a"): 1e-3, ("ct", "b"): 1e-4}
    block = of.blocks(table)[1]
    assert names(block.waiting, "seed", "strategy") == [(11, "c"), (42, "c")]
    assert {run for run in names(block.items, "strategy", "lr") if run[1] != "1e-4"} == {("a", 1e-3), ("b", 1e-4)}


def test_a_rate_is_not_known_while_a_run_of_its_grid_is_missing_or_made_elsewhere():
    of = queue(RATES, TABLE)
    grid = of.blocks(NOTHING)[0].items
    assert of.best_rates(recorded(grid[:1])) == {}
    assert of.best_rates(pd.concat([recorded(grid[:1], "m"), recorded(grid[1:2], "n")])) == {}
    assert set(of.best_rates(recorded(grid[:2]))) == {("ct", "a")}


def test_an_arm_without_a_grid_borrows_a_rate():
    of = queue(RATES, TABLE, borrowed={"c": "b"})
    grid = of.blocks(NOTHING)[0].items
    rates = of.best_rates(recorded(grid, loss=lambda run: float(run["lr"])))
    assert rates["ct", "c"] == rates["ct", "b"] == 1e-4
    assert of.blocks(recorded(grid))[1].waiting == ()


def test_a_group_is_left_until_one_machine_has_made_all_of_it():
    of = queue(TABLE | {"lr": ["1e-4"]})
    block = of.blocks(NOTHING)[0]
    first, second = block.items[:3], block.items[3:]
    both = pd.concat([recorded(first, "m"), recorded(second[:2], "m")])
    assert of.left(block, both, "m") == [second[2]]
    assert of.left(block, both, "other") == [*second]
    assert of.left(block, pd.concat([both, recorded(second[2:], "other")]), "other") == [*second[:2]]
    assert of.left(block, pd.concat([both, recorded(second, "other")]), "m") == []


def test_a_run_that_two_settings_describe_is_made_once():
    of = queue(RATES | {"lr": ["1e-3", "0.001"]})
    block = of.blocks(NOTHING)[0]
    assert len(of.left(block, NOTHING, "m")) == 2  # arms a and b


def test_runs_with_other_data_do_not_count():
    of = queue(TABLE | {"lr": ["1e-4"]})
    block = of.blocks(NOTHING)[0]
    assert len(of.left(block, recorded(block.items).assign(data_checksum="other"), "m")) == 6


@pytest.mark.parametrize(
    ("change", "named"),
    [({"question": None}, "question"), ({"name": "rates"}, "rates"), ({"rates": ["nowhere"]}, "nowhere")],
)
def test_a_malformed_queue_is_refused_by_name(tmp_path, change, named):
    table = {key: value for key, value in {**TABLE, **change}.items() if value is not None and key != "rates"}
    content = {
        "scale": "study",
        "rates": change.get("rates", ["rates"]),
        "borrowed_rates": {},
        "blocks": [RATES, table],
    }
    path = tmp_path / "queue.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=named):
        read(path)


def test_the_studys_own_queue_asks_for_different_runs_whose_rates_can_be_known():
    from gcond.study.__main__ import QUEUE

    content = read(QUEUE)
    tuned = {arm for block in content["blocks"] if block["name"] in content["rates"] for arm in block["strategy"]}
    asked = set(itertools.chain.from_iterable(b["strategy"] for b in content["blocks"] if "best" in b["lr"]))
    assert asked <= tuned | set(content["borrowed_rates"])
    assert set(content["borrowed_rates"].values()) <= tuned


def test_the_queue_for_a_gpu_asks_for_valid_runs(tmp_path):
    from gcond.config import compose
    from gcond.engine.settings import Settings
    from gcond.study import tables
    from gcond.study.__main__ import QUEUE

    queue = Queue(read(QUEUE.with_name("gpu.yaml")), lambda overrides: [("", "")] * len(overrides))
    asked = [item.overrides for block in queue.blocks(tables.read(tmp_path)) for item in block.items]
    assert len(asked) == len(set(asked)) == 2 * (15 + 18 + 15 + 15)
    for overrides in asked:
        if "seed=11" in overrides and "dataset=headneck" in overrides:
            cfg = compose(list(overrides))
            Settings(cfg)
            assert (cfg.scale.name, cfg.scale.image_size, cfg.scale.epochs) == ("study_gpu", 128, 10)

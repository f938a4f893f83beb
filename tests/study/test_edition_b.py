"""Edition B's Tables 5 and 6: their settings by hand from its appendix, and their numbers by pandas and scipy alone."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
from scipy import stats

from gcond.study import edition_b, pages, tables
from gcond.study.__main__ import QUEUE
from gcond.study.artefacts import Catalogue, Choices
from gcond.study.queue import read
from gcond.sweep.plan import plan, planned
from tests.study.test_table2 import a_run

SEEDS = (11, 42, 2025)
TOP1 = {"baseline": (0.30, 0.32, 0.34), "gcond_stochastic": (0.36, 0.35, 0.40)}


def sweep(name: str, scale: str, *overrides: str, **choices: object) -> list[str]:
    catalogue = Catalogue()
    chosen = Choices(scale, seeds=(11,), overrides=overrides, **choices)  # type: ignore[arg-type]
    return catalogue.sweeps(catalogue.find([name]), chosen)[0]


@pytest.mark.parametrize(("name", "image_size", "batch", "epochs", "lr", "lambdas"), [
    ("b-table5", 416, 1980, 95, 1.5e-4, {"class": 0.1, "l1": 0.7, "ssim": 0.2}),
    ("b-table6", 256, 2952, 35, 2e-4, {"class": 0.15, "l1": 0.65, "ssim": 0.2}),
])  # fmt: skip
def test_the_papers_schedules_and_lambdas(name, image_size, batch, epochs, lr, lambdas):
    for run in plan(sweep(name, "paper", strategies=("gcond_stochastic", "gradnorm"))):
        scale = run.cfg.scale
        assert scale.image_size == image_size
        assert scale.micro_batch * scale.accumulation_steps == batch
        assert scale.accumulation_steps % 3 == 0  # three tasks take turns
        assert (scale.epochs, scale.warmup_epochs, run.cfg.optimizer.lr) == (epochs, 3, lr)
        assert run.cfg.loss.tasks == lambdas
        assert (run.cfg.model.name, run.cfg.precision, run.cfg.loss.labels) == ("convnextv2_base", "bf16", "dataset")
    assert run.cfg.strategy.conductor.resolver.group == "encoder"


def test_table6_at_study_is_the_queues_block_of_classes():
    block = next(block for block in read(QUEUE)["blocks"] if block["name"] == "classes")
    keys = [key for key in block if key not in ("name", "question", "group", "lr", "seed")]
    crossed = itertools.product(*(block[key] for key in keys))
    fixed = ["scale=study", "seed=11", "optimizer.lr=1e-3"]
    queued = planned([[*fixed, *map("{}={}".format, keys, values)] for values in crossed])
    own = plan(sweep("b-table6", "study", "optimizer.lr=1e-3"))
    assert {run.folder.hash for run in own} == {run.folder.hash for run in queued}
    assert len(own) == 9


@pytest.fixture
def folder(tmp_path):
    """Three seeds of two methods at a rate each, Baseline's tuned before, and one of another K."""
    about = {"scale": "study", "dataset": "imagenet84", "dataset_title": "100 classes", "labels": "dataset",
             "accumulation_steps": 6, "micro_batch": 16, "lambda_l1": 0.65, "lambda_ssim": 0.2, "lambda_class": 0.15
    }  # fmt: skip
    rows = []
    for (strategy, values), lr in zip(TOP1.items(), (0.001, 0.002), strict=True):
        for seed, top1 in zip(SEEDS, values, strict=True):
            scores = dict.fromkeys(("l1", "ssim", "class"), 2 - top1) | dict.fromkeys(("top1", "top5"), top1)
            scores = {f"{epoch}_{name}": value for epoch in edition_b.EPOCHS for name, value in scores.items()}
            variant = f"loss.labels=dataset,loss=l1_ssim_class,optimizer.lr={lr}"
            rows.append(a_run(strategy, seed, lr=lr, variant=variant, **about, **scores))
    rows.append(rows[0] | {"name": "other", "seed": 7, "variant": rows[0]["variant"] + ",scale.accumulation_steps=3"})
    for lr, loss in ((0.001, 0.5), (0.002, 0.6)):
        grid = {"name": f"grid-{lr}", "seed": tables.TUNING_SEED, "lr": lr, "labels": "", "accumulation_steps": 4}
        grid |= {"variant": f"optimizer.lr={lr}", "best_val_l1": loss, "best_val_ssim": loss}
        rows.append(rows[0] | grid)
    out = tmp_path / "study"
    (out / "logs").mkdir(parents=True)
    pd.DataFrame(rows).to_csv(out / "runs.csv", index=False)
    guess = {"kind": "trivial", "predictor": "pixel_median", "val_l1": 0.7, "val_top1": 0.01, "val_top5": 0.05}
    for row in rows:
        pd.DataFrame([guess]).to_parquet(out / "logs" / f"{row['name']}-a.parquet")
    return out


def test_numbers_and_changes_by_hand(folder):
    table = edition_b.build("b-table6", folder)
    cells = table.cells.set_index(["method", "epoch", "measure"])
    ours, base = (100 * pd.Series(TOP1[name]) for name in ("gcond_stochastic", "baseline"))
    low, high = stats.ttest_rel(ours, base).confidence_interval()
    found = cells.loc["gcond_stochastic", "best_val", "top1"]
    assert (found["mean"], found.sd, found.n, found.lr) == (pytest.approx(37), pytest.approx(ours.std()), 3, "2e-3")
    assert (found.effect, found.low, found.high) == pytest.approx((5, low, high))
    assert (found.paper, found.paper_effect) == pytest.approx((59.324, 59.324 - 55.080))
    loss = cells.loc["gcond_stochastic", "best_test", "l1"]
    assert loss.effect == pytest.approx(100 * -0.05 / 1.68)
    assert cells.loc["gcond_stochastic", "best_val", "l1"].paper_effect == pytest.approx(100 * (0.2677 / 0.3151 - 1))
    assert cells.loc[edition_b.GUESS, "best_val", "top5"]["mean"] == pytest.approx(5)
    assert table.left_out == 1
    assert not table.complete  # PCGrad and others of the paper did not run


def test_the_page_leaves_empty_what_did_not_run(folder):
    (page,) = pages.make("b-table6", folder.parent, scale="study")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.read_text().splitlines()]
    values = {line[0]: line[2:] for line in reversed(lines) if len(line) == 12}
    assert values["PCGrad"] == ["", "0.3166", "", "0.2400", "", "55.30", "", "78.08", "", "2.0340"]
    assert values["GCond stochastic"][4:6] == ["37.00 ± 2.65", "59.32"]


def test_without_a_run_it_says_so(folder):
    with pytest.raises(ValueError, match="b-table5"):
        edition_b.build("b-table5", folder)

"""O7: made-up probes whose correlation with the loss is known."""

import pandas as pd
import pytest
from report import fake_controls

from gcond.report import records
from gcond.report.__main__ import main
from gcond.report.claims.evidence import read
from gcond.report.claims.representation import measured, probed
from gcond.report.pages import page as page_module

ARMS = ("baseline", "cagrad", "gcond_stochastic", "gradnorm", "pcgrad")
SEEDS = (11, 42, 2025)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    monkeypatch.setattr(page_module, "save", lambda figure, base: [])


def scores(place: int, seed: int) -> float:
    """Seeds 11 and 42: the lower the loss, the higher; 2025: the other way."""
    return 0.3 + 0.01 * place * (-1 if seed == 2025 else 1) + 0.1 * (seed == 42)


def record(results, arms=ARMS, probes=ARMS, **more):
    """Losses fall from arm to arm, by the same steps for every seed."""
    runs = [
        fake_controls.run(("ct", strategy, seed, ""), 0.5 - 0.01 * place, hash=f"{strategy}{seed}")
        for place, strategy in enumerate(arms)
        for seed in SEEDS
    ]
    fake_controls.write(results, "sample", runs)
    rows = [
        {"dataset": "ct", "model": "mobilenetv3_small", "strategy": strategy, "seed": seed, "variant": "",
         "task": "rotation", "measure": "accuracy", "hash": f"{strategy}{seed}", "device": "CPU", "step": 500,
         "train": 4, "val": 2, "test": 2, "val_score": 0.9, "test_score": scores(place, seed), "strength": 1.0,
         "untrained_val": 0.2, "untrained_test": 0.28, "pixels_val": 0.2, "pixels_test": 0.35, "chance": 0.25, **more}
        for place, strategy in enumerate(probes)
        for seed in SEEDS
    ]  # fmt: skip
    path = results / "sample" / "linear_probe.csv"
    records.add_rows(path, records.frame(rows, records.LINEAR_PROBE_COLUMNS), records.LINEAR_PROBE_COLUMNS,
                     records.LINEAR_PROBE_KEY)  # fmt: skip
    return read(results, "sample")


def test_the_correlation_is_of_the_runs_of_a_seed_and_the_seed_is_the_unit(tmp_path):
    found = measured(record(tmp_path), "ct", "rotation")
    assert found["correlation"].effect.values == pytest.approx((-1.0, -1.0, 1.0))  # seeds 11, 42, 2025
    assert found["correlation"].effect.n == 3
    means = [0.3 + 0.02, 0.4 + 0.02, 0.3 - 0.02]
    assert found["untrained"].effect.mean == pytest.approx(sum(means) / 3 - 0.28)
    assert found["pixels"].effect.values == pytest.approx([mean - 0.35 for mean in means])


def test_four_runs_of_a_seed_are_too_few(tmp_path):
    assert "correlation" not in measured(record(tmp_path, ARMS[:4], ARMS[:4]), "ct", "rotation")


def test_runs_that_all_score_the_same_have_no_correlation(tmp_path):
    found = measured(record(tmp_path, test_score=0.25), "ct", "rotation")
    assert set(found) == {"untrained", "pixels"}


def test_a_probe_of_a_run_that_was_made_again_does_not_count(tmp_path):
    assert len(probed(record(tmp_path), "ct", "rotation")) == 15
    assert probed(record(tmp_path, hash="before"), "ct", "rotation").empty


def test_the_page_has_every_run_beside_its_controls(tmp_path, capsys):
    record(tmp_path)
    assert main(["o7", "--scale", "sample", "--results", str(tmp_path), "--datasets", "ct"]) == 0
    words = capsys.readouterr().out
    rows = [line for line in words.splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in rows[2].split("|")[1:3]] == ["PCGrad", "3"]  # the lowest loss first
    assert [cell.strip() for cell in rows[2].split("|")[5:8]] == ["0.28", "0.35", "0.25"]
    assert "rank correlation of loss and score: -0.33 [" in words
    tidy = pd.read_csv(tmp_path / "sample" / "tables" / "o7.csv")
    loss = tidy[(tidy.strategy == "pcgrad") & (tidy.number == "loss")]["mean"].item()
    # the last epoch's on test: level + .3, and half of it for 1 - SSIM
    assert loss == pytest.approx(0.85 * (0.46 + 0.3) + 0.15 * (0.5 * 0.46 + 0.3))


def test_what_is_not_probed_is_said(tmp_path, capsys):
    record(tmp_path, probes=ARMS[:3])
    assert main(["o7", "--scale", "sample", "--results", str(tmp_path)]) == 1
    words = capsys.readouterr()
    assert "9 of 15 recorded runs on ct with Table 2's settings are probed" in words.err
    assert "0 of 0 recorded runs on photos with Table 2's settings are probed" in words.err


@pytest.mark.parametrize(("variant", "missed"), [("loss=l1_ssim_flipped", False), ("optimizer.lr=0.0002", True)])
def test_a_run_of_another_kind_is_not_missed_but_one_at_another_rate_is(tmp_path, capsys, variant, missed):
    record(tmp_path)
    path = tmp_path / "sample" / "runs.csv"
    runs = records.read_csv(path)
    other = runs[runs.strategy == "baseline"].assign(variant=variant)
    records.write_csv(path, pd.concat([runs, other]), records.KEY, 8)
    assert main(["o7", "--scale", "sample", "--results", str(tmp_path), "--datasets", "ct"]) == missed
    assert ("15 of 18 recorded runs on ct" in capsys.readouterr().err) == missed


def test_nothing_probed_names_the_command(tmp_path, capsys):
    fake_controls.write(tmp_path, "sample", [fake_controls.run(("ct", "baseline", 11, ""), 0.5)])
    assert main(["o7", "--scale", "sample", "--results", str(tmp_path)]) == 2
    assert "`make reproduce-o7 SCALE=sample` makes the runs" in capsys.readouterr().err


def test_the_question_is_answered_in_the_claims(tmp_path):
    record(tmp_path)
    assert main(["claims", "--scale", "sample", "--results", str(tmp_path)]) == 0
    words = (tmp_path / "sample" / "CLAIMS.md").read_text()
    assert "| ct, rotation: rank correlation of loss and score -0.33 [" in words
    assert "make reproduce-o7" not in words

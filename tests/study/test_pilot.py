"""The pilot's table: its numbers by hand, and that docs/study.md shows the recorded ones."""

from __future__ import annotations

import pandas as pd

from gcond.files import RECORDED
from gcond.study.pilot import BLOCK, NUMBERS, OF_THE_PILOT, PAGE, markdown
from gcond.study.tables import ABOUT, DONE, SETTINGS


def test_a_rate_of_several_seeds_has_mean_and_deviation_and_the_lowest_predictor_stands_below(tmp_path):
    row: dict[str, object] = dict.fromkeys([*ABOUT, *SETTINGS], "x")
    row |= OF_THE_PILOT | {
        "dataset": "ct",
        "name": "run",
        "started": "",
        "lr": 1e-3,
        "cpu_seconds": 90.0,
        "variant": "",
        "status": DONE,
        "steps": 960,
    }
    rows = [row | {"seed": seed} | {f"best_{n}": value for n in NUMBERS} for seed, value in ((11, 0.25), (42, 0.75))]
    rows += [row | {"seed": 101} | {f"best_{n}": 0.125 for n in NUMBERS}]
    rows += [row | {"seed": 11, "strategy": "pcgrad"} | {f"best_{n}": 9.0 for n in NUMBERS}]
    rows += [row | {"seed": 11, "model": "convnextv2_atto"} | {f"best_{n}": 9.0 for n in NUMBERS}]
    rows += [row | {"seed": 11, "scale": "study_gpu"} | {f"best_{n}": 9.0 for n in NUMBERS}]
    pd.DataFrame(rows).to_csv(tmp_path / "runs.csv", index=False)
    (tmp_path / "logs").mkdir()
    log = pd.DataFrame([{"kind": "trivial", "val_l1": 0.5}, {"kind": "trivial", "val_l1": 0.375}])
    log.to_parquet(tmp_path / "logs" / "run-x.parquet")
    lines = markdown(tmp_path).splitlines()[2:]
    assert lines[0].split(" | ")[1:4] == ["0.001", "101", "0.1250"]
    assert lines[1].split(" | ")[1:4] == ["0.001", "2", "0.5000 ± 0.3536"]
    assert lines[2].split(" | ")[3:5] == ["0.3750", ""]
    assert len(lines) == 3


def test_the_page_shows_the_recorded_runs():
    page = PAGE.read_text(encoding="utf-8")
    assert BLOCK.search(page)
    assert BLOCK.sub(lambda found: found[1] + markdown(RECORDED / "study") + found[2], page) == page

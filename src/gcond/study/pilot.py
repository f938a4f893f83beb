"""The pilot's table in docs/study.md: Baseline at each learning rate, against predictors that need no training.

python -m gcond.study.pilot     writes it anew from results/study
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

from gcond.files import write_text
from gcond.study import tables
from gcond.study.__main__ import RESULTS, ROOT
from gcond.study.tables import TUNING_SEED

PAGE = ROOT / "docs" / "study.md"
BLOCK = re.compile(r"(<!-- from results/study -->\n).*?(<!-- end -->)", re.DOTALL)
NUMBERS = {
    "val_l1": "validation L1",
    "val_ssim": "validation 1 - SSIM",
    "test_l1": "test L1",
    "test_ssim": "test 1 - SSIM",
    "val_body_l1": "validation body L1",
    "test_body_l1": "test body L1",
}


def markdown(results: Path) -> str:
    """The table, best epoch; means and standard deviations where a rate has runs of several seeds."""
    runs = tables.read(results)
    plain = {"scale": "study", "strategy": "baseline", "model_mode": "train", "accumulation_steps": 4}
    plain |= {"lambda_l1": 0.85, "lambda_ssim": 0.15}
    runs = runs[(runs[[*plain]] == pd.Series(plain)).all(axis="columns")]
    head = ["data", "learning rate", "seeds", *NUMBERS.values(), "CPU minutes"]
    rows = []
    for dataset, own in runs.groupby("dataset"):
        for lr, tuned in own[own.seed == TUNING_SEED].groupby("lr"):
            rows.append([dataset, f"{lr:g}", str(TUNING_SEED), *_cells(tuned), _minutes(tuned)])
        for lr, others in own[own.seed != TUNING_SEED].groupby("lr"):
            rows.append([dataset, f"{lr:g}", str(len(others)), *_cells(others), _minutes(others)])
        rows.append([dataset, "best predictor without training", "", *_trivial(results, own.iloc[0]), ""])
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def _cells(runs: pd.DataFrame) -> list[str]:
    cells = []
    for name in NUMBERS:
        values = runs[f"best_{name}"].dropna()
        spread = f" ± {values.std():.4f}" if len(values) > 1 else ""
        cells.append(f"{values.mean():.4f}{spread}" if len(values) else "")
    return cells


def _minutes(runs: pd.DataFrame) -> str:
    return f"{runs.cpu_seconds.mean() / 60:.1f}"


def _trivial(results: Path, run: pd.Series) -> list[str]:
    """The lowest number of any predictor, which need not be the same one in each column."""
    log = pd.read_parquet(results / "logs" / f"{run['name']}-{run.arithmetic}.parquet")
    trivial = log[log.kind == "trivial"].dropna(axis="columns", how="all")
    return [f"{trivial[name].min():.4f}" if name in trivial else "" for name in NUMBERS]


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    write_text(PAGE, BLOCK.sub(lambda found: found[1] + markdown(RESULTS) + found[2], page))
    return 0


if __name__ == "__main__":
    sys.exit(main())

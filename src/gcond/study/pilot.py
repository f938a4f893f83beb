"""The pilot's table in docs/study.md: Baseline at each learning rate, against predictors that need no training.

python -m gcond.study.pilot     writes it anew from results/study
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

from gcond.files import RECORDED, ROOT, write_text
from gcond.study import tables
from gcond.study.artefacts import PAPER_SEEDS
from gcond.study.methods import PAPER_MODEL

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
OF_THE_PILOT = {"scale": "study", "model": PAPER_MODEL, "strategy": "baseline", "model_mode": "train",
                "accumulation_steps": 4, "lambda_l1": 0.85, "lambda_ssim": 0.15}  # fmt: skip


def markdown(results: Path) -> str:
    """The table, best epoch: each rate with the tuning seed, then each with the others, as means and standard
    deviations, then the lowest number of any predictor, which need not be the same one in each column."""
    runs = tables.finished(results)
    runs = runs[(runs.setting == "") & runs.seed.isin([*PAPER_SEEDS, tables.TUNING_SEED])]
    runs = runs[(runs[[*OF_THE_PILOT]] == pd.Series(OF_THE_PILOT)).all(axis="columns")]
    rows = [["data", "learning rate", "seeds", *NUMBERS.values(), "CPU minutes"], ["---"] * (len(NUMBERS) + 4)]
    for dataset, own in runs.groupby("dataset"):
        for (others, lr), same in own.groupby([own.seed != tables.TUNING_SEED, "lr"]):
            seeds = str(len(same) if others else tables.TUNING_SEED)
            cells = [_cell(same[f"best_{name}"].dropna()) for name in NUMBERS]
            rows.append([dataset, f"{lr:g}", seeds, *cells, f"{same.cpu_seconds.mean() / 60:.1f}"])
        first = own.iloc[0]
        trivial = tables.log(results, tables.log_name(first["name"], first.arithmetic), "trivial")
        cells = [f"{trivial[name].min():.4f}" if name in trivial else "" for name in NUMBERS]
        rows.append([dataset, "best predictor without training", "", *cells, ""])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _cell(values: pd.Series) -> str:
    spread = f" ± {values.std():.4f}" if len(values) > 1 else ""
    return f"{values.mean():.4f}{spread}" if len(values) else ""


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    write_text(PAGE, BLOCK.sub(lambda found: found[1] + markdown(RECORDED / "study") + found[2], page))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""gcond-train: one run of dataset x model x strategy, or many with --multirun.

PyTorch and what comes with it take seconds to import. `--help`, a misspelt key, a run that is finished, and the process
that hands out a sweep do without.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from gcond.engine.folder import RunFolder
from gcond.engine.rank import rank

CONFIG = Path(__file__).resolve().parents[2] / "conf"


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="train")
def main(cfg: DictConfig) -> None:
    folder = RunFolder(cfg)
    folder.check(cfg)
    if folder.done and rank() == 0:
        print(f"{folder.name}: finished earlier, see {folder.path}")
    if not folder.done:
        from gcond.train import train

        train(cfg, folder)


if __name__ == "__main__":
    main()

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
from gcond.engine.standing import standing

CONFIG = Path(__file__).resolve().parents[2] / "conf"


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="train")
def main(cfg: DictConfig) -> None:
    """Raises ValueError where the run's folder holds a run of another config, or one that other data were used for."""
    folder = RunFolder(cfg)
    folder.check(cfg)
    found = standing(folder, cfg)
    if found.state == "refused":
        raise ValueError(found.said)
    if found.said and rank() == 0:
        unchecked = f" (not compared with its data: {found.unchecked})" if found.unchecked else ""
        print(f"{folder.name}: {found.said}{unchecked}")
    if found.state == "to do":
        from gcond.train import train

        train(cfg, folder)


if __name__ == "__main__":
    main()

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
from gcond.engine.recorded import recorded_hashes

CONFIG = Path(__file__).resolve().parents[2] / "conf"


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="train")
def main(cfg: DictConfig) -> None:
    folder = RunFolder(cfg)
    folder.check(cfg)
    if (told := _finished(folder, cfg)) is None:
        from gcond.train import train

        train(cfg, folder)
    elif rank() == 0:
        print(f"{folder.name}: {told}")


def _finished(folder: RunFolder, cfg: DictConfig) -> str | None:
    """Where the run was finished; None where it is to be trained."""
    if folder.done:
        return f"finished earlier, see {folder.path}"
    if cfg.recorded is not None and folder.hash in recorded_hashes(Path(cfg.recorded), cfg.scale.name):
        return f"recorded in {Path(cfg.recorded) / cfg.scale.name / 'runs.csv'}, not repeated"
    return None


if __name__ == "__main__":
    main()

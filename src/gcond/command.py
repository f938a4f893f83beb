"""gcond-train: one run of dataset x model x strategy, or many with --multirun.

PyTorch and what comes with it take seconds to import. `--help`, a misspelt key and a run that is finished do without.
"""

from __future__ import annotations

import hydra
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from gcond.config import CONFIG
from gcond.engine.process import processes, rank
from gcond.engine.run_folder import FinishedMeanwhile, RunFolder
from gcond.engine.run_state import Standing, objective, recorded_objective, standing
from gcond.output import output_may_be_lost
from gcond.schema import check


class Refused(CompactHydraException, ValueError):
    """A ValueError that Hydra shows as its message, without a traceback (HYDRA_FULL_ERROR=1 shows all)."""


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """One run; returns its weighted validation loss at the best epoch, for a sweeper that looks for the smallest.

    Of several processes all but the first return None. Raises ValueError for settings out of their types or ranges,
    for data that are not there, and where the run's folder holds a run of another config or of other data.
    """
    with output_may_be_lost():
        try:
            return _run(cfg)
        except ValueError as error:
            raise Refused(str(error)).with_traceback(error.__traceback__) from None


def _run(cfg: DictConfig) -> float | None:
    check(cfg)
    folder = RunFolder(cfg)
    folder.check(cfg)
    found = standing(folder, cfg)
    _tell(folder, found)
    if found.state == "to do":
        from gcond.train import train

        try:
            train(cfg, folder)
        except FinishedMeanwhile:
            if processes() > 1:
                raise  # the others wait for this one, until torchrun sees it fail
            _tell(folder, standing(folder, cfg))
    if rank() > 0:
        return None
    if found.state == "recorded":
        return recorded_objective(found.row, cfg.loss.tasks)
    report = folder.finished()
    return None if report is None else objective(report)


def _tell(folder: RunFolder, found: Standing) -> None:
    if found.state == "refused":
        raise ValueError(found.said)
    if found.said and rank() == 0:
        unchecked = f" (not compared with its data: {found.unchecked})" if found.unchecked else ""
        print(f"{folder.name}: {found.said}{unchecked}")


if __name__ == "__main__":
    main()

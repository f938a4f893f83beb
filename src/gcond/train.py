"""gcond-train: one run of dataset x model x strategy, or many with --multirun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from gcond.engine import device as devices
from gcond.engine.batches import MicroBatches
from gcond.engine.checkpoint import Checkpoint, State
from gcond.engine.evaluate import EvaluationSet, evaluate
from gcond.engine.folder import RunFolder
from gcond.engine.logbook import Logbook
from gcond.engine.loop import Objective, Trainer, fit
from gcond.engine.progress import Progress
from gcond.engine.record import Record
from gcond.engine.seeding import seeded, subseed
from gcond.engine.settings import Settings
from gcond.engine.trivial import trivial_scores
from gcond.loss import TASKS

CONFIG = Path(__file__).resolve().parents[2] / "conf"


@hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="train")
def main(cfg: DictConfig) -> None:
    folder = RunFolder(cfg)
    if folder.done:
        print(f"{folder.name}: finished earlier, see {folder.path}")
    else:
        train(cfg, folder)


def train(cfg: DictConfig, folder: RunFolder) -> None:
    """Train from the run's checkpoint, or from the start, to its end.

    Raises:
        ValueError: a setting that is unknown, out of range or at odds with another, before any data is read.
        FloatingPointError: a loss or a gradient that is not finite.
    """
    with folder.open(cfg), Record(cfg, folder) as record:
        settings = Settings(cfg)
        device = devices.pick(cfg.device, cfg.threads)
        record.device = device

        # Read the data, and score what predicts without looking.
        data = build(cfg.dataset)
        val = EvaluationSet.of(data.val, cfg.scale.eval_images, settings.patches, cfg.scale.mask_ratio)
        test = EvaluationSet.of(data.test, cfg.scale.eval_images, settings.patches, cfg.scale.mask_ratio)
        loss = instantiate(cfg.loss.reconstruction)(patch_size=cfg.scale.patch_size, intensity=data.intensity)
        record.describe(data, trivial_scores(cfg, data, val, test, loss))

        # Build the model, and the strategy that trains it.
        with seeded(cfg.seed, "weights"):
            model: nn.Module = build(cfg.model, channels=data.intensity.channels).to(device)
        conductor = settings.conductor(model.parameter_groups(), seed=subseed(cfg.seed, "resolver"))
        steps_per_epoch = settings.steps_per_epoch(len(data.train))
        schedule = settings.schedule(steps_per_epoch)
        optimizer = instantiate(cfg.optimizer.build)(model.parameters(), lr=schedule.peak)

        # Continue where the last attempt stopped.
        parts = {"model": model, "optimizer": optimizer, "conductor": conductor}
        checkpoint = Checkpoint(folder.checkpoints, folder.hash, data.facts["checksum"], parts)
        state = checkpoint.load()
        record.seconds = state.seconds
        logbook = Logbook(folder.metrics, state.logbook_size)
        batches = MicroBatches(
            data.train,
            data.intensity,
            cfg.scale.micro_batch,
            settings.patches,
            cfg.scale.mask_ratio,
            cfg.seed,
            device,
            cfg.scale.workers,
            state.position,
        )

        # Train.
        objective = Objective(model, loss, data.intensity)
        trainer = Trainer(
            model,
            objective,
            conductor,
            optimizer,
            schedule,
            batches,
            training=cfg.strategy.model_mode == "train",
            diagnose_every=cfg.scale.diagnose_every,
        )

        def score() -> dict[str, float]:
            return {
                f"{name}_{task}": value
                for name, split in (("val", val), ("test", test))
                for task, value in evaluate(
                    model, loss, data.intensity, split, TASKS, device, cfg.scale.workers
                ).items()
            }

        def save(step: int) -> None:
            checkpoint.save(State(step, batches.position, logbook.size, record.elapsed()))

        with logbook, Progress(folder.name, cfg.progress, state.step, schedule.total_steps) as progress:
            fit(trainer, state.step, schedule, steps_per_epoch, logbook, progress, score, save)
    folder.finish()


def build(group: DictConfig, **late: Any) -> Any:
    """What a group's `_target_` makes of its config, less `name`, which is for people."""
    settings = OmegaConf.to_container(group, resolve=True)
    assert isinstance(settings, dict)
    settings.pop("name")
    return instantiate(settings, _convert_="all", **late)


if __name__ == "__main__":
    main()

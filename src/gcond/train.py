"""One run, from its config to its report: the pipeline in order. `gcond.command` is what a person types."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import torch
from omegaconf import DictConfig

from gcond.data.images import bars
from gcond.engine.batches import MicroBatches, subseed
from gcond.engine.checkpoint import Checkpoint, State, keep_only
from gcond.engine.device import out_of_memory_hint
from gcond.engine.distributed import World, gathered
from gcond.engine.evaluate import Best, EvaluationSet, Scores, baseline_scores, evaluate, final_records, means
from gcond.engine.loggers import SafeLogger, logger_of
from gcond.engine.metrics_log import PICTURE, MetricsLog, Record
from gcond.engine.probes import GradientProbe, activations
from gcond.engine.process import Interrupt, Interrupted, rank
from gcond.engine.reconstructions import Reconstructions
from gcond.engine.run_folder import RunFolder, resolved
from gcond.engine.run_report import RunReport
from gcond.engine.run_state import selection_weights
from gcond.engine.settings import Settings
from gcond.engine.trainer import Objective, Trainer, optimizer_of
from gcond.files import disk_full_hint
from gcond.load_run import Configured
from gcond.output import Progress
from gcond.schema import check


def train(cfg: DictConfig, folder: RunFolder) -> None:
    """Train from the run's checkpoint, or from the start, to its end; with torchrun, one of several processes.

    Raises:
        ValueError: a setting that is unknown, out of range or at odds with another, before any data is read.
        NotFinite: a loss or a gradient that is not finite, with `nonfinite=raise`.
        FinishedMeanwhile: another process has finished the run; nothing is changed.
        DiskFull, OutOfMemory: what to do stands in the message.
        Interrupted: after SIGTERM or Ctrl-C and a last checkpoint.
    """
    check(cfg)
    main = rank() == 0
    with folder.open(cfg, main):
        with (
            logger_of(cfg.logger, folder.path, main) as logger,
            RunReport(cfg, folder) as report,
            disk_full_hint(folder.path),
            gathered(cfg.arbitration, cfg.device, cfg.threads) as team,
        ):
            _train(cfg, folder, logger, report, team)
        if main and cfg.finished_keeps == "weights":
            keep_only("model", folder.checkpoints)


def _train(cfg: DictConfig, folder: RunFolder, logger: SafeLogger, report: RunReport, team: World) -> None:
    report.team = team
    team.compare(config=resolved(cfg), torch=torch.__version__)
    settings, device, scale = Settings(cfg, team.processes), team.device, cfg.scale

    # Read the data, and score what predicts without looking.
    bars.set(cfg.progress in ("auto", "bar") and rank() == 0)
    run = Configured(cfg)
    data = run.data()
    team.compare(data=data.checksum)
    sets = {split: run.evaluation_set(data, split) for split in ("val", "test")}
    curve = {split: images.thinned(scale.get("curve_images")) for split, images in sets.items()}
    loss = run.loss(data)
    report.describe(data, team.main_first(lambda: baseline_scores(cfg, data, sets, loss, run.labelling)))

    # Build the model, and the strategy that trains it.
    model = run.model("initial", data.intensity.channels)[0].to(device)
    conductor = settings.conductor(model.parameter_groups(), seed=subseed(cfg.seed, "resolver"))
    steps_per_epoch = settings.steps_per_epoch(len(data.train))
    schedule = settings.schedule(steps_per_epoch)
    optimizer = optimizer_of(cfg.optimizer.build, model.parameters(), schedule.peak)
    scaler = run.scaler(device)

    # Continue where the last attempt stopped.
    best = Best(model, selection_weights(cfg.loss.tasks))
    parts = {"model": model, "optimizer": optimizer, "scaler": scaler, "best": best}
    parts |= {"conductor": team.state_of(conductor)}
    checkpoint = Checkpoint(folder.checkpoints, folder.hash, data.checksum, parts, team.main)
    state = checkpoint.load(schedule.total_steps)
    team.compare(checkpoint={"step": state.step, "position": state.position})
    report.resumed(state)
    logbook = MetricsLog(folder.metrics if team.main else None, state.logbook_size)
    if team.main:  # the others might read metrics.jsonl before it is cut to what the checkpoint remembers
        logger.open()

    # Bring together what takes a step and what looks at the model after an epoch.
    source = run.images(data, device, scale.workers)
    batches = MicroBatches(
        source, state.position, conductor.estimator.accumulation_steps, conductor.micro_batch_indices
    )
    training = cfg.strategy.model_mode == "train"
    objective = Objective(torch.compile(model) if cfg.compile else model, loss, cfg.precision)
    trainer = Trainer(model, objective, conductor, optimizer, schedule, batches, training, scale.diagnose_every, scaler)
    eager = Objective(model, loss, cfg.precision)
    probe = GradientProbe(
        model, eager, conductor.tasks, source, scale.probe_micro_batches, training=training, scaler=scaler
    )
    pictures = Reconstructions(folder.reconstructions, data, curve["val"], **cfg.reconstructions)

    def measure(images: EvaluationSet) -> Scores:
        return evaluate(model, loss, images, loss.tasks, device, scale.workers, team)

    def score(epoch: int, step: int) -> Iterator[Record]:
        found = {split: means(measure(images)) for split, images in curve.items()}
        record = {"kind": "validation", "epoch": epoch, "step": step}
        for split, scores in found.items():
            record |= {f"{split}_{name}": value for name, value in scores.items() if not name.startswith("body")}
        best.consider(epoch, step, record)
        yield record

    def examine(epoch: int, step: int) -> Iterator[Record]:
        if team.main and scale.probe_micro_batches > 0:  # the others go on, and wait in the next step
            yield {"kind": "probe", "epoch": epoch, "step": step, **probe.measure(epoch)}
            found = activations(model, curve["val"], data.intensity, device)
            yield {"kind": "activations", "epoch": epoch, "step": step, **found}

    def draw(epoch: int, step: int) -> Iterator[Record]:
        if team.main and (path := pictures.draw(model, device, step)) is not None:
            yield {"kind": PICTURE, "step": step, "path": path}

    def judge(epoch: int, step: int) -> Iterator[Record]:
        """Before the last checkpoint, so that a run that stands there has these records."""
        if step == schedule.total_steps:
            yield from final_records(best, epoch, step, sets, measure)

    # Train.
    with (
        Interrupt() as interrupt,
        closing(batches),
        logbook,
        Progress(folder.name, cfg.progress if team.main else "silent", state.step, schedule.total_steps) as progress,
        out_of_memory_hint(scale.micro_batch, scale.accumulation_steps),
    ):

        def log(record: Record) -> None:
            for each in (logbook.write, logger.log, progress.log):
                each(record)

        saved = time.monotonic()
        for step in range(state.step, schedule.total_steps):
            log({"kind": "step", **trainer.step(step)})
            epoch, rest = divmod(step + 1, steps_per_epoch)
            if rest == 0:
                for callback in (score, examine, draw, judge):
                    for record in callback(epoch, step + 1):
                        log(record)
            late = time.monotonic() - saved >= 60 * cfg.checkpoint_minutes
            due, signal = team.most([int(late), interrupt.number])  # the same in every process
            if rest == 0 or due or signal:
                logbook.to_disk()
                checkpoint.save(State(step + 1, batches.position, logbook.size, *report.spent()))
                saved = time.monotonic()
            if signal:
                raise Interrupted(signal)
        if team.main:
            pictures.keep(model, device, folder.final_reconstructions, scale.patch_size)
    report.windows = schedule.total_steps - state.step


if __name__ == "__main__":
    from gcond.command import main

    main()

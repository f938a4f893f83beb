"""Copies of a run's metrics.jsonl for other programs: wandb, TensorBoard, CSV. The original stays the truth.

A logger's constructor checks its settings and touches nothing; its methods may raise anything (see `SafeLogger`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from gcond.config import build
from gcond.engine.metrics_log import PICTURE, Record, as_logged, read
from gcond.engine.reconstructions import COLUMNS
from gcond.engine.run_folder import read_report
from gcond.files import write_text

NO_EXPERIMENT = "none"
FINISH_SECONDS = 300.0  # to wait for the network at a run's end; what is missing then can be sent later


class Logger:
    """Receives the records of a run, and ignores them: the base class of the loggers."""

    def __init__(self, folder: str | Path, experiment: str) -> None:
        self._folder, self._experiment = Path(folder), experiment

    def open(self) -> None:
        """Begin a new copy in place of an older attempt's; what metrics.jsonl holds already is logged next."""

    def log(self, record: Record) -> None:
        """A record as in metrics.jsonl, or one that names a picture."""

    def summary(self, report: dict[str, Any]) -> None:
        """The run has ended; `report` is report.json, or {"status": "interrupted"}."""

    def close(self, done: bool) -> None:
        """Nothing follows; `done` where the run was finished."""


class CSVLogger(Logger):
    """`folder`/csv/KIND.csv: a row a record, written anew after every epoch and at the end."""

    def open(self) -> None:
        self._rows: dict[str, list[dict[str, Any]]] = {}

    def log(self, record: Record) -> None:
        if record["kind"] in ("groups", PICTURE):
            return
        own = {"at": record["at"]} if "at" in record else {}
        values = {name.removeprefix(f"{record.get('at', record['kind'])}/"): v for name, v in row(record).items()}
        self._rows.setdefault(record["kind"], []).append(own | values)
        if record["kind"] == "validation":
            self._write()

    def close(self, done: bool) -> None:
        self._write()

    def _write(self) -> None:
        for kind, rows in self._rows.items():
            text = io.StringIO()
            table = csv.DictWriter(text, list(dict.fromkeys(name for each in rows for name in each)), restval="")
            table.writeheader()
            table.writerows(rows)
            write_text(self._folder / "csv" / f"{kind}.csv", text.getvalue())


class TensorBoardLogger(Logger):
    """`folder`/tensorboard, which `tensorboard --logdir runs` finds: every number over `step`, and the pictures."""

    def open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(self._folder / "tensorboard", ignore_errors=True)
        self._writer = SummaryWriter(str(self._folder / "tensorboard"))

    def log(self, record: dict[str, Any]) -> None:
        if record["kind"] == PICTURE:
            import numpy as np
            from PIL import Image

            with Image.open(record["path"]) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image(PICTURE, pixels, record["step"], dataformats="HWC")
        elif record["kind"] != "groups":
            values = {name: value for name, value in row(record).items() if value is not None}
            step = values.pop("step")
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self, done: bool) -> None:
        self._writer.close()


class WandbLogger(Logger):
    """The run in `folder` as a wandb run of the same name, whose id follows from name and config (docs/wandb.md).

    An undefined number (null) is left out of its row. The x-axis of everything is `step`; wandb's summary keeps the
    smallest value of each validation score.
    """

    def __init__(
        self,
        folder: str | Path,
        experiment: str,
        mode: Literal["offline", "online"] = "offline",
        project: str = "gcond",
        entity: str | None = None,
    ) -> None:
        super().__init__(folder, experiment)
        self._mode, self._project, self._entity = mode, project, entity

    def open(self) -> None:
        for copy in (self._folder / "wandb").glob("*run-*"):
            if copy.is_dir() and not copy.is_symlink():
                shutil.rmtree(copy)
        self._run = self._begun()
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._scores: set[str] = set()
        if self._mode == "online":
            print(f"{self._folder.name}: copied to {self._run.url}", file=sys.stderr, flush=True)

    def log(self, record: dict[str, Any]) -> None:
        """All but the scores of single patients and classes, which are too many for a chart."""
        if record["kind"] == PICTURE:
            import wandb

            image = wandb.Image(str(record["path"]), caption=f"step {record['step']}: " + " | ".join(COLUMNS))
            self._run.log({"step": record["step"], PICTURE: image})
        elif record["kind"] != "groups":
            if record["kind"] == "validation":
                for name in record.keys() - {"kind", "epoch", "step"} - self._scores:
                    self._run.define_metric(name, step_metric="step", summary="min")
                    self._scores.add(name)
            self._run.log({key: value for key, value in row(record).items() if value is not None})

    def summary(self, report: dict[str, Any]) -> None:
        """The report as summary; with the constant predictors, which learn nothing, as a table."""
        import wandb

        ends = {f"this run, {at} epoch": scores for at, scores in report.get("final", {}).items()}
        if ends and (trivial := report["trivial"]):
            metrics = list(next(iter(trivial.values())))
            compared = [[name, *map(scores.get, metrics)] for name, scores in (ends | trivial).items()]
            step = report["final"]["last"]["step"]
            self._run.log({"step": step, "tables/summary": wandb.Table(["predictor", *metrics], compared)})
        scalars = {key: value for key, value in report.items() if isinstance(value, str | int | float)}
        self._run.summary.update({f"report/{key}": value for key, value in scalars.items()})

    def close(self, done: bool) -> None:
        import wandb

        self._run.finish(exit_code=0 if done else 1)
        try:
            wandb.teardown()  # wait for wandb's own process: only now is all of it on the disk
        except SystemExit as error:
            raise RuntimeError(f"wandb's own process ended with status {error.code}") from None

    def _begun(self) -> Any:
        """A wandb run that writes to `folder`/wandb, and leaves the process's console, exit and signals alone."""
        import wandb

        text = (self._folder / "config.yaml").read_text(encoding="utf-8")
        config = OmegaConf.to_container(OmegaConf.create(text))
        assert isinstance(config, dict)
        settings = wandb.Settings(
            silent=True,
            console="off",
            reinit="create_new",  # never the run that is under way in this process
            save_code=False,
            disable_code=True,
            disable_git=True,  # a remote's address may hold a password; the commit stands in the report
            x_disable_stats=True,
            host="",
            x_disable_meta=True,  # names of machine and user, command line
            x_disable_machine_info=True,
            x_save_requirements=False,
            allow_offline_artifacts=False,  # tables stay in the run's folder, which can then be copied as it is
            login_timeout=60,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
        )
        parts = [f"{group}:{config[group]['name']}" for group in ("scale", "dataset", "model", "strategy")]
        hooks = sys.exit, sys.excepthook
        try:
            return wandb.init(
                dir=self._folder,
                mode=self._mode,
                project=self._project,
                entity=self._entity,
                id=hashlib.sha256(f"{self._folder.name}\n{text}".encode()).hexdigest()[:16],
                name=self._folder.name,
                group=None if self._experiment == NO_EXPERIMENT else self._experiment,
                job_type="train",
                tags=[*parts, f"seed:{config['seed']}"],
                config=config,
                settings=settings,
            )
        finally:
            sys.exit, sys.excepthook = hooks


class SafeLogger:
    """`logger`, made harmless: its first exception is printed to stderr, and it is left alone from then on.

    A context manager that ends an opened logger with the block; report.json must have been written by then.
    """

    def __init__(self, logger: Logger, folder: Path) -> None:
        self._logger, self._folder = logger, folder
        self._opened = self._failed = False

    def open(self) -> None:
        """Also log what metrics.jsonl holds already: nothing, or what came before the run was interrupted."""
        self._opened = True
        self._try(self._logger.open)
        for record in recorded(self._folder):
            self.log(record)

    def log(self, record: dict[str, Any]) -> None:
        """A record as metrics.jsonl has it, also where it has not been read from there."""
        self._try(self._logger.log, as_logged(record))

    def __enter__(self) -> SafeLogger:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._opened:
            interrupted = error is not None and not isinstance(error, Exception)
            report = {"status": "interrupted"} if interrupted else report_in(self._folder)
            self._try(self._logger.summary, report)
            self._try(self._logger.close, report["status"] == "done")

    def _try(self, call: Callable[..., None], *arguments: Any) -> None:
        if self._failed:
            return
        try:
            call(*arguments)
        except Exception as error:
            self._failed = True
            said = (
                f"{self._folder.name}: the logger failed in `{call.__name__}` ({type(error).__name__}: {error}); the "
                f"run goes on without it.\n    {self._folder / 'metrics.jsonl'} has everything"
            )
            if isinstance(self._logger, WandbLogger):
                said += f"; send it when the run has ended: python -m gcond.engine.wandb_upload {self._folder}"
            print(said, file=sys.stderr, flush=True)


def recorded(folder: Path) -> Iterator[dict[str, Any]]:
    """The records of metrics.jsonl, and after each validation the one that names its picture."""
    metrics = folder / "metrics.jsonl"
    for record in read(metrics) if metrics.exists() else ():
        yield record
        picture = folder / "reconstructions" / f"{record['step']:08}.png"
        if record["kind"] == "validation" and picture.exists():
            yield {"kind": PICTURE, "step": record["step"], "path": picture}


def row(record: dict[str, Any]) -> dict[str, Any]:
    """A record without nested names. Final scores stand under "best" and "last", all but steps and validations under
    their kind's name."""
    values = {key: value for key, value in record.items() if key != "kind"}
    if record["kind"] in ("step", "validation"):
        return values
    placed = {key: values.pop(key) for key in ("epoch", "step")}
    kind = values.pop("at", record["kind"])
    for key, value in values.items():
        if isinstance(value, dict):
            placed |= {f"{kind}/{key}/{name}": member for name, member in value.items()}
        else:
            placed[f"{kind}/{key}"] = value
    return placed


def logger_of(logger: DictConfig, folder: Path, main: bool) -> SafeLogger:
    """What the config group `logger` asks for; of several processes only rank 0 logs."""
    settings = {"folder": folder, "experiment": experiment()}
    return SafeLogger(build(logger, **settings) if main else Logger(**settings), folder)


def experiment() -> str:
    """The experiment that Hydra was asked for (`experiment=table2`), "none" without one."""
    if not HydraConfig.initialized():
        return NO_EXPERIMENT
    chosen = HydraConfig.get().runtime.choices.get("experiment")
    return NO_EXPERIMENT if chosen in (None, "null") else str(chosen)


def report_in(folder: Path) -> dict[str, Any]:
    """What a run that has ended reports; all that is known of one that failed before it could."""
    return read_report(folder) if (folder / "report.json").exists() else {"status": "failed"}

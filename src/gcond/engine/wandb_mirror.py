"""A run's logbook as a wandb run: `logger=wandb`, or python -m gcond.engine.wandb_upload later (docs/wandb.md)."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from gcond.engine.metrics_log import read
from gcond.engine.reconstructions import COLUMNS

MODES = ("offline", "online")
FINISH_SECONDS = 300.0  # to wait for the network at a run's end; what is missing then can be sent later


class WandbMirror:
    """The run in `folder` as a wandb run of the same name, whose id follows from name and config.

    `start` always begins a new copy: it sends what metrics.jsonl holds already, pictures included, and removes what
    earlier attempts left in `folder`/wandb. So no record is ever there twice, whatever an interrupted or failed mirror
    had managed to send. An undefined number (null) is left out of its row. The x-axis of everything is `step`.
    """

    def __init__(
        self,
        folder: str | Path,
        experiment: str,
        mode: Literal["offline", "online"] = "offline",
        project: str = "gcond",
        entity: str | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"`logger.mode`: expected offline or online, found {mode!r}")
        self._folder, self._experiment = Path(folder), experiment
        self._mode, self._project, self._entity = mode, project, entity

    def start(self) -> None:
        self._run = self._open()
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        if self._mode == "online":
            print(f"{self._folder.name}: mirrored to {self._run.url}", file=sys.stderr, flush=True)
        for record in read(self._folder / "metrics.jsonl"):
            self.write(record)
            picture = self._folder / "reconstructions" / f"{record['step']:08}.png"
            if record["kind"] == "validation" and picture.exists():
                self.picture(record["step"], picture)
        for copy in (self._folder / "wandb").glob("*run-*"):
            if copy.is_dir() and not copy.is_symlink() and copy.name != Path(self._run.settings.sync_dir).name:
                shutil.rmtree(copy)

    def write(self, record: dict[str, Any]) -> None:
        """All but the scores of single patients and classes, which are too many for a chart."""
        if record["kind"] == "groups":
            return
        self._run.log({key: value for key, value in row(record).items() if value is not None})

    def picture(self, step: int, path: Path) -> None:
        import wandb

        image = wandb.Image(str(path), caption=f"step {step}: " + " | ".join(COLUMNS))
        self._run.log({"step": step, "reconstructions": image})

    def finish(self, report: dict[str, Any]) -> None:
        """Add the validation curve and a comparison with the trivial predictors as tables, the report as summary."""
        import wandb

        records = read(self._folder / "metrics.jsonl")
        curve = [row(record) for record in records if record["kind"] == "validation"]
        if curve:
            columns = list(curve[0])
            metrics = [name for name in columns if name not in ("epoch", "step")]
            ends = report.get("final") or {"last": curve[-1]}
            rows = {**{f"this run, {at} epoch": scores for at, scores in ends.items()}, **report.get("trivial", {})}
            tables = {
                "tables/validation": wandb.Table(columns, [[epoch[name] for name in columns] for epoch in curve]),
                "tables/summary": wandb.Table(
                    ["predictor", *metrics], [[name, *(row[key] for key in metrics)] for name, row in rows.items()]
                ),
            }
            self._run.log({"step": curve[-1]["step"], **tables})
        scalars = {key: value for key, value in report.items() if isinstance(value, str | int | float)}
        self._run.summary.update({f"report/{key}": value for key, value in scalars.items()})
        self._run.finish(exit_code=0 if report["status"] == "done" else 1)
        try:
            wandb.teardown()  # wait for wandb's own process: only now is all of it on the disk
        except SystemExit as error:
            raise RuntimeError(f"wandb's own process ended with status {error.code}") from None

    def _open(self) -> Any:
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
        hooks = sys.exit, sys.excepthook
        try:
            return wandb.init(
                dir=self._folder,
                mode=self._mode,
                project=self._project,
                entity=self._entity,
                id=hashlib.sha256(f"{self._folder.name}\n{text}".encode()).hexdigest()[:16],
                name=self._folder.name,
                group=self._experiment,
                tags=[
                    *(f"{group}:{config[group]['name']}" for group in ("scale", "dataset", "model", "strategy")),
                    f"seed:{config['seed']}",
                ],
                config=config,
                settings=settings,
            )
        finally:
            sys.exit, sys.excepthook = hooks


def row(record: dict[str, Any]) -> dict[str, Any]:
    """A record as wandb gets it: flat. Final scores stand under "best" and "last", all but steps and validations under
    their kind's name."""
    values = {key: value for key, value in record.items() if key != "kind"}
    if record["kind"] in ("step", "validation"):
        return values
    placed = {key: values.pop(key) for key in ("epoch", "step")}
    kind = values.pop("at", record["kind"])
    for key, value in values.items():
        members = (
            {f"{key}/{name}": member for name, member in value.items()} if isinstance(value, dict) else {key: value}
        )
        placed |= {f"{kind}/{name}": member for name, member in members.items()}
    return placed

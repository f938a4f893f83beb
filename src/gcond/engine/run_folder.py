"""A run's folder: its name, its lock, and its config and report as everybody reads them.

runs/<scale>/<dataset>-<model>-<strategy>-seed<seed>-<hash>/     or runs/<scale>/<name>/
    config.yaml  metrics.jsonl  checkpoints/  reconstructions/  final_reconstructions.npz  wandb/  report.json
    DONE | FAILED
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gcond.files import ROOT, disk_full_hint, read_object, write_text
from gcond.schema import REPORT, check, validate

SCHEMA = 1  # of report.json
# What cannot change the numbers, or (device) stands in the report.
NOT_IN_HASH = ("name", "runs", "recorded", "paths", "progress", "device", "checkpoint_minutes", "logger")
NOT_IN_HASH += ("reconstructions", "finished_keeps")


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The config with every interpolation filled in, less what cannot change the numbers."""
    content = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(content, dict)
    kept = {str(key): value for key, value in content.items() if key not in NOT_IN_HASH}
    kept["dataset"] = {key: value for key, value in kept["dataset"].items() if key != "root"}
    return kept


def config_hash(cfg: DictConfig) -> str:
    text = json.dumps(resolved(cfg), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


class FinishedMeanwhile(Exception):
    """Between a look at the run and its lock, another process has finished it."""


class RunFolder:
    """The folder of the run that `cfg` describes: the same config always means the same folder, unless it has a name.

    Raises ValueError for a model that is called after another encoder.
    """

    def __init__(self, cfg: DictConfig) -> None:
        _check_model_name(cfg.model)
        _check_files(cfg)
        self.hash = config_hash(cfg)
        own = f"{cfg.dataset.name}-{cfg.model.name}-{cfg.strategy.name}-seed{cfg.seed}-{self.hash}"
        self.name = own if cfg.name is None else str(cfg.name)
        self.path = Path(cfg.runs) / cfg.scale.name / self.name
        self.checkpoints = self.path / "checkpoints"
        self.reconstructions = self.path / "reconstructions"
        self.final_reconstructions = self.path / "final_reconstructions.npz"
        self.metrics = self.path / "metrics.jsonl"
        self.report = self.path / "report.json"
        self.output = self.path.parent / "output" / f"{self.name}.log"  # of the process, where a pool has started it

    @property
    def done(self) -> bool:
        return (self.path / "DONE").exists()

    def finished(self) -> dict[str, Any] | None:
        return finished_report(self.path)

    @property
    def begun(self) -> bool:
        return any(self.checkpoints.glob("*.pt"))

    @property
    def error(self) -> str | None:
        return error_of(self.path)

    def check(self, cfg: DictConfig) -> None:
        """Raise ValueError where the folder holds a run of another config than `cfg`."""
        path = self.path / "config.yaml"
        if not path.exists():
            return
        try:
            there, here = (_settings(content) for content in (read_yaml(path), OmegaConf.create(_yaml(cfg))))
        except ValueError as error:
            raise ValueError(f"{error}; move the run's folder away to start again") from None
        keys = sorted(key for key in there.keys() | here.keys() if there.get(key, "-") != here.get(key, "-"))
        if keys:
            shown = ", ".join(f"{key} {there.get(key, '-')} there, {here.get(key, '-')} here" for key in keys)
            raise ValueError(
                f"{self.path}: expected the config that the run began with, found another: {shown}. "
                f"Choose another `name`, or move the folder out of {self.path.parent}"
            )

    @contextmanager
    def open(self, cfg: DictConfig, main: bool = True) -> Iterator[None]:
        """Hold the run for this process; an exception is written to FAILED and raised again.

        DONE is written when the block ends without one. Of several processes the `main` one does that for all. Raises
        RuntimeError where another process holds it, ValueError where it is a run of another config, and
        FinishedMeanwhile, all of them before anything is changed.
        """
        if not main:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            self.check(cfg)
            if self.finished() is not None:
                raise FinishedMeanwhile(f"{self.path}: another process has finished the run")
            for outcome in ("DONE", "FAILED", "report.json"):  # of an attempt before
                (self.path / outcome).unlink(missing_ok=True)
            try:
                with disk_full_hint(self.path):
                    write_text(self.path / "config.yaml", _yaml(cfg))
                    yield
                    self.finish()
            except Exception as error:
                with warn_if_unwritable():
                    write_text(self.path / "FAILED", f"{type(error).__name__}: {error}\n")
                raise

    def finish(self) -> None:
        write_text(self.path / "DONE", "")


def _check_model_name(model: DictConfig) -> None:
    """conf/model/<name>.yaml says which encoder bears the name of a model; any other name is free."""
    encoder = _stated("model", "encoder").get(model.name)
    if encoder is not None and model.get("encoder", encoder) != encoder:
        raise ValueError(
            f"`model.name`: {model.name} is the name of the encoder {encoder}, found {model.encoder}; name this model "
            f"too, model.name={model.encoder}"
        )


def _check_files(cfg: DictConfig) -> None:
    """A run is named, recorded and compared by the names of its parts, so a copied file needs a name of its own."""
    for group in ("dataset", "model", "scale", "strategy"):
        name = cfg[group].name
        if odd := [stem for stem, own in _stated(group, "name").items() if own == name and stem != name]:
            raise ValueError(
                f"`{group}.name`: conf/{group}/{odd[0]}.yaml also calls itself {name}, so their runs could not be told "
                f"apart; write `name: {odd[0]}` there, and a label of its own if it has one"
            )


@functools.cache
def _stated(group: str, key: str) -> dict[str, str]:
    """What each file of conf/`group` says of its `key`."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "conf" / group).glob("*.yaml")}
    found = {stem: re.search(rf"^ *{key}: *(\S+)", text, re.MULTILINE) for stem, text in texts.items()}
    return {stem: match[1] for stem, match in found.items() if match}


def error_of(path: Path) -> str | None:
    """Why the last attempt at the run in the folder `path` failed, if it did."""
    try:
        return (path / "FAILED").read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None


def finished_report(path: Path) -> dict[str, Any] | None:
    """report.json of the run in the folder `path`; None where the run is not finished.

    DONE does not make it so beside no report, one that is cut, or one of a run that failed. Raises ValueError for a
    report that another version of this program wrote.
    """
    if not (path / "DONE").exists():
        return None
    try:
        report = read_object(path / "report.json")
    except (OSError, ValueError):
        return None
    if report.get("status") != "done":
        return None
    if report.get("schema") != SCHEMA:
        raise ValueError(
            f"{path / 'report.json'}: expected schema {SCHEMA}, found {report.get('schema')!r}; choose another `runs` "
            f"or `name`, or move the folder out of {path.parent}"
        )
    return report if "data_checksum" in report else None


@contextmanager
def warn_if_unwritable() -> Iterator[None]:
    """For what is written about an error: a full disk must not hide the error itself."""
    try:
        yield
    except OSError as error:
        print(f"could not be written: {error}", file=sys.stderr)


def _yaml(cfg: DictConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(resolved(cfg)))


def flat(content: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """{"optimizer": {"lr": 0.001}} as {"optimizer.lr": 0.001}."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _settings(cfg: DictConfig) -> dict[str, str]:
    """{"optimizer.lr": "0.001", ...}"""
    content: Any = OmegaConf.to_container(cfg)
    return {key: json.dumps(value) for key, value in flat(content).items()}


LOCK = ".lock"
TRIES, PAUSE = 10, 0.05  # `make status` holds a run's lock for a moment to see whether it is free
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_held: list[TextIO] = []  # by this process, and by no child: a DataLoader's worker outlives it by seconds
os.register_at_fork(after_in_child=lambda: [lock.close() for lock in _held])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the run in `folder`.

    Raises RuntimeError where another process holds it, ValueError where the file system has no locks.
    """
    with (folder / LOCK).open("w") as lock:
        tries = 1
        while not _take(lock, folder, fcntl.LOCK_EX):
            if tries == TRIES:
                raise RuntimeError(f"another process is at work on {folder}; wait for it or end it")
            tries += 1
            time.sleep(PAUSE)
        _held.append(lock)
        try:
            yield
        finally:
            _held.remove(lock)


def running(folder: Path) -> bool:
    """Whether a process holds the run's lock, here or, where the file system shares locks, on another machine."""
    if not (folder / LOCK).exists():
        return False
    with (folder / LOCK).open() as lock:
        return not _take(lock, folder, fcntl.LOCK_SH)


def _take(lock: TextIO, folder: Path, kind: int) -> bool:
    """False where another process holds it."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise ValueError(
            f"{folder}: its file system has no locks ({error.strerror}), so two processes could work on one run; "
            "set `runs` to a folder on a local disk, or have the file system mounted with locks"
        ) from error
    return True


def read_report(folder: Path, *needed: str) -> dict[str, Any]:
    """report.json of the run in `folder`, which has the fields `needed`."""
    path = folder / "report.json"
    try:
        report = read_object(path)
    except (OSError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    try:
        validate(REPORT, report)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if missing := [name for name in needed if report.get(name) in (None, {})]:
        raise ValueError(f"{path}: expected the fields {', '.join(needed)}, found no {', '.join(missing)}")
    return report


def read_config(folder: Path) -> DictConfig:
    """config.yaml of the run in `folder`, whose settings are those of the schema and are all filled in."""
    cfg = read_yaml(folder / "config.yaml")
    try:
        check(cfg)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.yaml'}: {error}") from None
    return cfg


def read_yaml(path: Path) -> DictConfig:
    """A recorded config: a mapping without interpolations, which could ask for the reader's environment."""
    try:
        text = path.read_text(encoding="utf-8")
        cfg = OmegaConf.create(text)  # by a safe loader
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, ValueError) as error:  # of UTF-8, too
        raise ValueError(f"{path}: expected YAML, found something else: {' '.join(str(error).split())}") from None
    if not isinstance(cfg, DictConfig) or "${" in text:
        raise ValueError(f"{path}: expected settings by name, all filled in, found a list or an interpolation")
    return cfg

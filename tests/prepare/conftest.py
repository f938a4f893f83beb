"""An archive of hand-made files: one slice at a time, in any transfer syntax."""

import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from archive.header import read_header
from archive.listing import Entry
from archive.pixels import Picture, read_picture
from prepare.compressed import compress
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

PYDICOM_SYNTAXES = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "rle": uid.RLELossless,
}
GDCM_SYNTAXES = {
    "jpeg lossless 57": "JPEGLosslessProcess14",
    "jpeg lossless 70": "JPEGLosslessProcess14_1",
    "jpeg-ls": "JPEGLSLossless",
    "jpeg 2000": "JPEG2000Lossless",
}
PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")
PATIENTS = {"ich": "ID_0123abcd", "cspine": "10001", "radcure": "RADCURE-0005"}


class InThisProcess:
    """Stands for a pool: no processes to wait for."""

    def __init__(self, stage, work, attempt, workers):
        self.work = work

    def over(self, jobs, done):
        for job in jobs:
            done(self.work(job))


class Archive:
    def __init__(self, root: Path):
        self.root = root

    def write(self, stored=None, name="a", source="ich", syntax="explicit", **tags) -> Entry:
        """A file with the tags of RSNA ICH. `tags` replace or, where None, remove."""
        stored = np.full((32, 32), 1024, np.uint16) if stored is None else np.asarray(stored)
        dataset = _dataset(stored, source)
        compressed = syntax == "rle" or syntax in GDCM_SYNTAXES
        dataset.file_meta.TransferSyntaxUID = PYDICOM_SYNTAXES["explicit" if compressed else syntax]
        if syntax == "big endian":
            dataset.PixelData = stored.astype(stored.dtype.newbyteorder(">")).tobytes()
        pixel_tags = {tag: tags.pop(tag) for tag in ("BitsStored", "HighBit") if tag in tags}
        for tag, value in pixel_tags.items():
            setattr(dataset, tag, value)
        path = self.root / name
        if syntax == "rle":
            dataset.compress(uid.RLELossless, encoding_plugin="pydicom")
        dataset.save_as(path, enforce_file_format=True)
        if syntax in GDCM_SYNTAXES:
            compress(path, path, GDCM_SYNTAXES[syntax])
        if tags:
            self.change(name, **tags)
        return self.entry(name, source)

    def change(self, name: str, **tags) -> None:
        dataset = pydicom.dcmread(self.root / name)
        for tag, value in tags.items():
            if value is None:
                delattr(dataset, tag)
            elif tag in PADDING:  # of the sign that the number has
                dataset.add_new(tag, "SS" if value < 0 else "US", value)
            else:
                setattr(dataset, tag, value)
        dataset.save_as(self.root / name, enforce_file_format=True)

    def bytes_of(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def put(self, content: bytes, name="a", source="ich") -> Entry:
        (self.root / name).write_bytes(content)
        return self.entry(name, source)

    def zip(self, content: bytes, name="a.zip", member="x/1.dcm", source="ich") -> Entry:
        with zipfile.ZipFile(self.root / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, content)
        return Entry(source, name, member, len(content))

    def entry(self, name: str, source="ich") -> Entry:
        return Entry(source, name, "", (self.root / name).stat().st_size)

    def header(self, entry: Entry) -> dict:
        return read_header(self.root, entry)

    def fate(self, entry: Entry) -> tuple[str, str]:
        row = self.header(entry)
        return row["status"], row["reason"]

    def picture(self, entry: Entry) -> Picture:
        row = self.header(entry)
        assert row["status"] == "image", row["reason"]
        return read_picture(self.root, entry, row)


def _dataset(stored: np.ndarray, source: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = uid.CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Modality = "CT"
    dataset.PatientID = PATIENTS[source]
    dataset.StudyInstanceUID = "1.2.3.4"
    dataset.SeriesInstanceUID = "1.2.3.4.5"
    dataset.ImagePositionPatient = [-125, -131.5, 60.25]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 0.985, -0.17]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.PixelSpacing = [0.488, 0.488]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path)

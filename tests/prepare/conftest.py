"""An archive of hand-made files: one slice at a time, in any transfer syntax."""

import io
import zipfile
from pathlib import Path

import ct
import numpy as np
import pydicom
import pytest
from archive import header, pixels
from archive.header import read_header
from archive.listing import Entry
from archive.pixels import Picture, read_picture
from archive.reasons import OTHER, REJECTED
from prepare.synthetic import slice_bytes

PATIENTS = {"ich": "ID_0123abcd", "cspine": "10001", "radcure": "RADCURE-0005"}


@pytest.fixture
def in_this_process(monkeypatch):
    """No processes to wait for."""
    monkeypatch.setattr(ct, "run_stage", lambda stage, jobs, workers, done: [done(stage.work(job)) for job in jobs])


class Failing(io.BytesIO):
    """Raises `error` once the reader is past its first bytes."""

    def __init__(self, content: bytes, error: BaseException):
        super().__init__(content)
        self.error = error

    def read(self, size=-1):
        if self.tell() > 300:
            raise self.error
        return super().read(size)


class Archive:
    def __init__(self, root: Path):
        self.root = root

    def write(self, stored=None, name="a", source="ich", syntax="explicit", **tags) -> Entry:
        """A slice; `tags` replace its own or, where None, remove them."""
        stored = np.full((32, 32), 1024, np.uint16) if stored is None else np.asarray(stored)
        usual = {"PatientID": PATIENTS[source], "ImagePositionPatient": [-125, -131.5, 60.25], "HighBit": 15}
        return self.put(slice_bytes(stored, syntax, **usual | tags), name, source)

    def change(self, name: str, **tags) -> None:
        dataset = pydicom.dcmread(self.root / name)
        for tag, value in tags.items():
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
        row = read_header(self.root, entry)
        assert set((row["flags"] or "").split(",")) <= {"", *header.FLAGS}
        assert row["reason"] in {"", *REJECTED, *OTHER}
        return row

    def fate(self, entry: Entry) -> str:
        """By the header pass: "image", "other: ..." or "rejected: ..."."""
        row = self.header(entry)
        return f"{row['status']}: {row['reason']}" if row["reason"] else row["status"]

    def picture(self, entry: Entry) -> Picture:
        row = self.header(entry)
        assert row["status"] == "image", row["reason"]
        picture = read_picture(self.root, entry, row)
        assert set(picture.flags) <= set(pixels.FLAGS)
        assert list(picture.flags) == sorted(picture.flags)
        return picture


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path)

"""One file for each way in which an archive's file can be unlike the rest, and what is to become of it."""

import io
import itertools
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.encaps import encapsulate
from pydicom.uid import RTStructureSetStorage

from fake.coding import SIGNED_12, UNSIGNED_12, WRAPPED_0, Coding
from fake.dicom_file import SYNTAXES, dataset_bytes, encode, slice_bytes
from fake.names import generator, uid
from fake.phantom import Head

PATIENTS = {
    "ich": ("ID_0badf11e", "ID_0badf11f"),
    "cspine": ("99999", "99998"),
    "radcure": ("RADCURE-9999", "RADCURE-9998"),
}
JPEG = "jpeg lossless 70"
SHORT_BYTES, SHORT_SIDE = 153_710, 512  # what ID_6431af929.dcm holds of 524,288 bytes
PLACES = 64  # slices of the head that the files take in turn


def write_defects(root: Path, source: str, seed=0, size=256) -> dict[str, str]:
    """Write the files flat into `root`, which must not exist. Returns {path: "stored", "other: …" or "rejected: …"}.

    Paths are relative to `root`; "a.zip!b" is the entry b of a.zip. A link to a folder and a damaged zip count as one
    file. No permission stops the superuser: for root, the unreadable file is a picture like any other.
    """
    if source not in PATIENTS:
        raise ValueError(f"`source` must be one of {', '.join(PATIENTS)}; found {source!r}")
    if size < 64:
        raise ValueError(f"`size` must be at least 64, so that a file cut short still has its header; found {size}")
    root.mkdir(parents=True)
    make = _maker(source, seed, size)
    expected = {}
    for name, content, fate in (*_sound(make, source, seed, size), *_unsound(make, source, seed, size)):
        (root / name).write_bytes(content)
        expected[name] = fate
    (root / "no_permission.dcm").chmod(0)
    if not os.access(root / "no_permission.dcm", os.R_OK):
        expected["no_permission.dcm"] = "rejected: unreadable"
    (root / "loop").symlink_to(".", target_is_directory=True)
    expected["loop"] = "rejected: symlink loop"
    return expected | _write_zips(root, make)


def _maker(source: str, seed: int, size: int) -> Callable[..., bytes]:
    """make(coding=…, shape=…, syntax=…, change=…, **tags): a sound file, each time of another place in the head.

    `change` is done to the stored pixels.
    """
    places = itertools.count()

    def make(
        kind: Coding = UNSIGNED_12,
        shape: tuple[int, int] = (size, size),
        syntax: str = "explicit",
        change: Callable[[np.ndarray], np.ndarray] = lambda stored: stored,
        **tags,
    ) -> bytes:
        place = next(places)
        head = Head(generator(seed, "defects", source), shape, PLACES)
        sound = {
            "PatientID": PATIENTS[source][0],
            "StudyInstanceUID": uid(seed, "defects", source, "study"),
            "SeriesInstanceUID": uid(seed, "defects", source, "series"),
            "SOPInstanceUID": uid(seed, "defects", source, place),
            "ImagePositionPatient": [0, 0, place],
            **kind.tags(),
        }
        return slice_bytes(change(kind.stored(head.hu(place % PLACES))), syntax, **sound | tags)

    return make


File = tuple[str, bytes, str]


def _sound(make: Callable[..., bytes], source: str, seed: int, size: int) -> list[File]:
    """Files to be stored, however odd."""
    copy, pixels = make(), _pixel_data(make())
    twin = {
        "PatientID": PATIENTS[source][1],
        "StudyInstanceUID": uid(seed, "defects", source, "twin study"),
        "SeriesInstanceUID": uid(seed, "defects", source, "twin series"),
    }
    files = {
        "missing_slope.dcm": make(RescaleSlope=None),
        "missing_intercept.dcm": make(SIGNED_12, RescaleIntercept=None),
        "padded.dcm": make(Coding(16, False, -1024, padding=63536), PixelPaddingValue=63536),  # -2000 without its sign
        "tilted.dcm": make(
            ImageOrientationPatient=[1, 0, 0, 0, 0.766, -0.643],
            SeriesInstanceUID=uid(seed, "defects", source, "tilted"),
        ),
        "derived.dcm": make(ImageType=["DERIVED", "SECONDARY", "AXIAL"]),
        "non_square.dcm": make(shape=(size * 638 // 512, size * 490 // 512)),
        "monochrome1.dcm": make(PhotometricInterpretation="MONOCHROME1"),
        "no_extension": make(),
        "no_preamble.dcm": _without_preamble(make()),
        "no_permission.dcm": make(),
        "duplicate_a.dcm": copy,
        "duplicate_b.dcm": copy,
        "twin_a.dcm": make(PixelData=pixels),
        "twin_b.dcm": make(PixelData=pixels, **twin),
    }
    wrapped = "stored" if source == "ich" else "rejected: values beyond any tissue"  # mended in ICH alone
    return [*((name, content, "stored") for name, content in files.items()), ("wrapped.dcm", make(WRAPPED_0), wrapped)]


def _unsound(make: Callable[..., bytes], source: str, seed: int, size: int) -> list[File]:
    whole = make()
    short = make(shape=(SHORT_SIDE, SHORT_SIDE), PixelData=bytes(SHORT_BYTES))
    stored = UNSIGNED_12.stored(Head(generator(seed, "damaged", source), (size, size), PLACES).hu(10))
    stream = encode(stored, 12, SYNTAXES[JPEG])
    middle = len(stream) // 2 & ~1
    noise = generator(seed, "damage", source).bytes(2048)

    def jpeg(damage: bytes) -> bytes:
        return make(syntax=JPEG, PixelData=encapsulate([stream[:middle] + damage + stream[middle + len(damage) :]]))

    colour = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB", "BitsAllocated": 8}
    plan = {
        "SOPClassUID": RTStructureSetStorage,
        "SOPInstanceUID": uid(seed, "defects", source, "plan"),
        "Modality": "RTSTRUCT",
        "PatientID": PATIENTS[source][0],
        "StudyInstanceUID": uid(seed, "defects", source, "study"),
        "SeriesInstanceUID": uid(seed, "defects", source, "plan series"),
    }
    files = [
        ("short_pixel_data.dcm", short, "rejected: short pixel data"),
        ("truncated_file.dcm", whole[: len(whole) * 6 // 10], "rejected: truncated file"),
        ("truncated_jpeg.dcm", make(syntax=JPEG, PixelData=encapsulate([stream[:middle]])), "rejected: damaged stream"),
        ("damaged_jpeg.dcm", jpeg(noise), "rejected: damaged stream"),
        # GDCM raises nothing for these two, and invents what follows
        ("quietly_damaged_jpeg.dcm", jpeg(bytes(64)), "rejected: damaged stream"),
        ("early_end_jpeg.dcm", jpeg(b"\xff\xd9"), "rejected: damaged stream"),
        ("multi_frame.dcm", _two_frames(make), "rejected: multi-frame"),
        ("rgb.dcm", make(BitsStored=8, PixelData=bytes(3 * size * size), **colour), "rejected: colour"),
        ("no_pixel_data.dcm", make(PixelData=None), "rejected: no pixel data"),
        (
            "bits_outside.dcm",
            make(change=lambda stored: stored | 0x4000),
            "rejected: values outside the bits stored",
        ),
        ("no_rescale.dcm", make(RescaleSlope=None, RescaleIntercept=None), "rejected: not in HU"),
        ("optical_density.dcm", make(RescaleType="OD"), "rejected: not in HU"),
        (
            "padding_without_a_name.dcm",
            make(Coding(16, False, -1024, padding=63536)),
            "rejected: values beyond any tissue",
        ),
        ("empty.dcm", b"", "rejected: empty file"),
        ("text.dcm", b"This is no picture.\n" * 20, "rejected: not DICOM"),
        ("localizer.dcm", make(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "other: localizer"),
        ("rtstruct.dcm", dataset_bytes(plan, sop_class=RTStructureSetStorage), "other: RTSTRUCT"),
        ("coronal.dcm", make(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), "other: not axial"),
        ("mip.dcm", make(ImageType=["DERIVED", "SECONDARY", "AXIAL", "MIP"]), "other: derived picture"),
        ("notes.txt", b"This is no picture either.\n", "other: side file: text"),
        ("._1.dcm", b"\x00\x05\x16\x07" + bytes(4092), "other: side file: system"),
        ("page.png", b"\x89PNG\r\n\x1a\n" + bytes(200), "other: side file: picture"),
        ("more.tar", bytes(10240), "other: side file: archive"),
    ]
    if source == "cspine":  # a study stands in for the patient there, and an id may have any form
        nobody = make(PatientID=None, StudyInstanceUID=None)
    else:
        nobody = make(PatientID=None)
        stranger = make(PatientID="Somebody-001")
        files.append(("stranger.dcm", stranger, "rejected: patient of another collection"))
    return [*files, ("nobody.dcm", nobody, "rejected: no patient")]


def _without_preamble(content: bytes) -> bytes:
    """The bare data set, as some old exports have it: no preamble, no file meta, implicit VR."""
    bare = pydicom.Dataset(pydicom.dcmread(io.BytesIO(content)))
    file = io.BytesIO()
    pydicom.dcmwrite(file, bare, implicit_vr=True, little_endian=True)
    return file.getvalue()


def _two_frames(make: Callable[..., bytes]) -> bytes:
    return make(NumberOfFrames=2, PixelData=2 * _pixel_data(make()))


def _pixel_data(content: bytes) -> bytes:
    return pydicom.dcmread(io.BytesIO(content)).PixelData


def _write_zips(root: Path, make: Callable[..., bytes]) -> dict[str, str]:
    with zipfile.ZipFile(root / "escape.zip", "w") as archive:
        archive.writestr("inside.dcm", make())
        archive.writestr("../evil.dcm", make())
    with zipfile.ZipFile(root / "nested.zip", "w") as archive:
        archive.write(root / "escape.zip", "inner.zip")
        archive.writestr("__MACOSX/._inner.zip", b"\x00\x05\x16\x07" + bytes(200))
    with zipfile.ZipFile(root / "damaged_entry.zip", "w") as archive:
        archive.writestr("sound.dcm", make())
        archive.writestr("damaged.dcm", make())
        end = archive.start_dir  # of the last entry, whose pixels come last: only the sum can tell
    content = bytearray((root / "damaged_entry.zip").read_bytes())
    content[end - 100] ^= 0xFF
    (root / "damaged_entry.zip").write_bytes(content)
    (root / "damaged.zip").write_bytes(content[: len(content) // 2])
    return {
        "escape.zip!inside.dcm": "stored",
        "escape.zip!../evil.dcm": "rejected: zip entry leaves its folder",
        "nested.zip!inner.zip": "rejected: zip inside a zip",
        "nested.zip!__MACOSX/._inner.zip": "other: side file: system",
        "damaged_entry.zip!sound.dcm": "stored",
        "damaged_entry.zip!damaged.dcm": "rejected: damaged zip",
        "damaged.zip": "rejected: damaged zip",
    }

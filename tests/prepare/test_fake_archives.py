"""Made archives: they are what DATA says of the real ones, and what they claim to hold is on the disk."""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from fake import SYNTAXES, Head, slice_bytes, write_cspine, write_defects, write_ich, write_radcure, write_slice
from fake.coding import SIGNED_12, SIGNED_16, SIGNED_16_PADDED, UNSIGNED_12, WRAPPED_0, WRAPPED_1
from PIL import Image
from pydicom.errors import InvalidDicomError
from pydicom.pixels import pixel_array

PATIENTS, SIZE, SLICES, SHARED = 9, 64, (4, 6), 2
SCRIPT = Path(__file__).parents[2] / "scripts" / "make_fake_archives.py"
JPEG_LOSSLESS_70 = "1.2.840.10008.1.2.4.70"

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # ICH's UIDs are none


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """{source: (root, counts)}"""
    out = tmp_path_factory.mktemp("archives")
    return {
        "ich": (out / "ich", write_ich(out / "ich", PATIENTS, 3, SIZE, SLICES, duplicates=SHARED)),
        "cspine": (out / "cspine", write_cspine(out / "cspine", PATIENTS, 3, SIZE, SLICES)),
        "radcure": (out / "radcure", write_radcure(out / "radcure", PATIENTS, 3, SIZE, SLICES)),
    }


@pytest.fixture(scope="module")
def ich(archives):
    """{path: dataset} of all slices."""
    return {path: pydicom.dcmread(path) for path in archives["ich"][0].rglob("*.dcm")}


def contents(root):
    """{path or zip/entry: bytes}: an own walk."""
    found = {}
    for folder, _, names in os.walk(root):
        for path in (Path(folder) / name for name in names):
            name = path.relative_to(root).as_posix()
            if path.suffix == ".zip":
                with zipfile.ZipFile(path) as archive:
                    found |= {f"{name}/{e.filename}": archive.read(e) for e in archive.infolist() if not e.is_dir()}
            else:
                found[name] = path.read_bytes()
    return found


def decode(dataset):
    compressed = dataset.file_meta.TransferSyntaxUID.is_compressed
    return pixel_array(dataset, decoding_plugin="gdcm" if compressed else "")


# Heads


def test_head_has_the_values_of_a_head():
    hu = Head(np.random.default_rng(0), (256, 256), 20).hu(5)
    assert hu.dtype == np.int16
    assert np.median(hu[:20]) == -1000
    assert 3 < hu[:20].std() < 12
    assert 20 <= np.median(hu[100:156, 100:156]) <= 40
    assert 800 < hu.max() <= 1500
    share_of_bone = (hu > 500).mean()
    assert 0.03 < share_of_bone < 0.25


def test_heads_differ_between_patients_and_slices():
    pictures = [Head(np.random.default_rng(seed), (64, 64), 5).hu(z) for seed in range(3) for z in range(5)]
    assert len({picture.tobytes() for picture in pictures}) == 15
    assert len({picture[0].tobytes() for picture in pictures}) == 15  # nor is the noise in air the same


def test_head_narrows_to_the_vertex():
    head = Head(np.random.default_rng(0), (128, 128), 10)
    areas = [(head.hu(z) > -500).sum() for z in range(10)]
    assert areas == sorted(areas, reverse=True)
    assert areas[-1] < areas[0] / 5


# Stored values


def test_wrapped_values_by_hand():
    hu = np.array([[-1024, -1001, -1000, -1, 0, 2047]], np.int16)
    for kind in (WRAPPED_0, WRAPPED_1):  # the intercept is wrong, not the values
        stored = kind.stored(hu)
        assert stored.dtype == np.uint16
        np.testing.assert_array_equal(stored, [[3072, 3095, 3096, 4095, 0, 2047]])


def test_stored_values_by_hand():
    hu = np.array([[-1030, -1000, 0, 1500]] * 4, np.int16)
    np.testing.assert_array_equal(UNSIGNED_12.stored(hu)[1], [0, 24, 1024, 2524])
    np.testing.assert_array_equal(SIGNED_12.stored(hu)[1], [-1030, -1000, 0, 1500])
    np.testing.assert_array_equal(SIGNED_16.stored(hu)[1], [-6, 24, 1024, 2524])
    assert SIGNED_16_PADDED.stored(hu).tolist()[0] == [-2000, 24, 1024, -2000]  # the corners lie outside the circle


# Files


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(("dtype", "bits"), [(np.uint16, 12), (np.int16, 16), (np.int16, 12)])
def test_every_syntax_gives_back_what_went_in(tmp_path, syntax, dtype, bits):
    low, high = (0, 1 << bits) if dtype is np.uint16 else (-1 << bits - 1, 1 << bits - 1)
    stored = np.random.default_rng(0).integers(low, high, (32, 40)).astype(dtype)
    stored[0, :2] = low, high - 1
    dataset = pydicom.dcmread(write_slice(tmp_path / "a", stored, syntax, BitsStored=bits))
    assert dataset.file_meta.TransferSyntaxUID == SYNTAXES[syntax]
    assert dataset.HighBit == bits - 1
    plugin = "gdcm" if "jpeg" in syntax else "pydicom" if syntax == "rle" else ""
    np.testing.assert_array_equal(pixel_array(dataset, decoding_plugin=plugin), stored)


def test_transfer_syntaxes_by_their_numbers():
    numbers = {name: str(uid).removeprefix("1.2.840.10008.1.2") for name, uid in SYNTAXES.items()}
    assert numbers == {
        "implicit": "",
        "explicit": ".1",
        "big endian": ".2",
        "deflated": ".1.99",
        "jpeg lossless 57": ".4.57",
        "jpeg lossless 70": ".4.70",
        "jpeg-ls": ".4.80",
        "jpeg 2000": ".4.90",
        "rle": ".5",
    }


def test_jpeg_2000_stream_is_read_alike_by_another_decoder():
    stored = np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16)
    dataset = pydicom.dcmread(io.BytesIO(slice_bytes(stored, "jpeg 2000", BitsStored=12)))
    frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    decoded = np.asarray(Image.open(io.BytesIO(frame))).astype(np.int64)
    np.testing.assert_array_equal(decoded >> (4 if decoded.max() > 4095 else 0), stored)  # Pillow fills 16 bits


def test_bad_slices_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`syntax` must be one of implicit, .*; found 'jpeg'"):
        write_slice(tmp_path / "a", np.zeros((4, 4), np.uint16), "jpeg")
    with pytest.raises(ValueError, match=r"uint16 or int16; found int32 \[4, 4\]"):
        write_slice(tmp_path / "a", np.zeros((4, 4), np.int32))
    assert not (tmp_path / "a").exists()


# ICH


def test_ich_has_these_tags_and_no_others(ich):
    tags = """SOPInstanceUID Modality PatientID StudyInstanceUID SeriesInstanceUID StudyID ImagePositionPatient
        ImageOrientationPatient SamplesPerPixel PhotometricInterpretation Rows Columns PixelSpacing BitsAllocated
        BitsStored HighBit PixelRepresentation WindowCenter WindowWidth RescaleIntercept RescaleSlope PixelData"""
    for path, dataset in ich.items():
        assert {element.keyword for element in dataset} == set(tags.split())
        assert path.stem == dataset.SOPInstanceUID
        assert re.fullmatch(r"ID_[0-9a-f]{9}", path.stem)
        assert re.fullmatch(r"ID_[0-9a-f]{8}", dataset.PatientID)
        assert re.fullmatch(r"ID_[0-9a-f]{10}", dataset.StudyInstanceUID)
        assert re.fullmatch(r"ID_[0-9a-f]{10}", dataset.SeriesInstanceUID)
        assert (dataset.StudyID, dataset.BitsAllocated, dataset.RescaleSlope) == ("", 16, 1)
        windows = dataset.data_element("WindowCenter").VM
        assert windows == (2 if dataset.BitsStored == 12 else 1)


def test_ich_lies_flat_in_a_folder_nested_once_more(archives, ich):
    nested = "rsna-intracranial-hemorrhage-detection/" * 2
    places = {path.parent.relative_to(archives["ich"][0]).as_posix() for path in ich}
    assert places == {f"{nested}stage_2_train", f"{nested}stage_2_test"}


def test_ich_mixes_the_ways_to_store_hu(ich):
    kinds = {(d.BitsStored, d.PixelRepresentation, int(d.RescaleIntercept)) for d in ich.values()}
    assert kinds == {(12, 0, -1024), (12, 0, -1000), (12, 0, 0), (12, 0, 1), (12, 1, 0), (16, 1, -1024)}
    assert {(d.Rows, d.Columns) for d in ich.values()} == {(64, 64), (79, 61), (54, 54)}
    assert all((decode(d)[0, 0] == -2000) == (d.BitsStored == 16) for d in ich.values())


def test_signed_12_bits_come_with_and_without_the_bits_above(ich):
    raw = [np.frombuffer(d.PixelData, "<u2") for d in ich.values() if (d.BitsStored, d.PixelRepresentation) == (12, 1)]
    high = [np.unique(values[values & 0x0800 > 0] >> 12).tolist() for values in raw]  # of negative values
    assert sorted(high) == sorted([[15], [0]] * (len(raw) // 2) + [[15]] * (len(raw) % 2))


def test_wrapped_group_of_ich_wraps(archives, ich):
    wrapped = [
        d for d in ich.values() if d.BitsStored == 12 and not d.PixelRepresentation and d.RescaleIntercept > -100
    ]
    assert len(wrapped) == archives["ich"][1].flags["wrapped 12 bit"] > 0
    for dataset in wrapped:
        stored = decode(dataset).astype(int)
        assert stored.min() >= 0
        assert 3080 <= np.median(stored[0]) <= 3110  # air, where -1000 HU is 3096
        mended = np.where(stored >= 2048, stored - 4096, stored)
        assert -1060 < mended.min() < -1001
        assert 400 < mended.max() <= 1500


def test_all_of_ich_is_a_head_in_hu(ich):
    for dataset in ich.values():
        stored, intercept = decode(dataset).astype(int), int(dataset.RescaleIntercept)
        if (dataset.BitsStored, dataset.PixelRepresentation) == (12, 1):
            stored = (stored & 0x0FFF ^ 0x0800) - 0x0800
        elif dataset.BitsStored == 12 and intercept > -100:
            stored, intercept = np.where(stored >= 2048, stored - 4096, stored), 0
        hu = stored + intercept
        middle = hu[len(hu) // 2]
        assert -1030 < np.median(hu[0, len(hu[0]) // 2 - 3 : len(hu[0]) // 2 + 3]) < -970
        assert 400 < hu.max() <= 1500
        assert -60 < np.median(middle[len(middle) // 2 - 4 : len(middle) // 2 + 4]) < 90


def test_patients_of_ich_have_one_or_two_scans_each_in_one_part(ich):
    scans, parts, tilted = defaultdict(set), defaultdict(set), 0
    for path, dataset in ich.items():
        scans[dataset.PatientID].add(dataset.StudyInstanceUID)
        parts[dataset.PatientID].add(path.parent.name)
        tilted += dataset.ImageOrientationPatient[5] < -0.1
    assert Counter(map(len, scans.values())) == {1: 8, 2: 1}
    assert sorted(map(sorted, parts.values())) == [["stage_2_test"]] * 2 + [["stage_2_train"]] * 7
    assert 0 < tilted < len(ich)


def test_ich_labels_repeat_four_slices(archives, ich):
    folder = next(archives["ich"][0].rglob("stage_2_train.csv")).parent
    with (folder / "stage_2_train.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["ID", "Label"]
    images = {path.stem for path in ich if path.parent.name == "stage_2_train"}
    assert len(rows) == 1 + 6 * len(images) + 24
    assert {label for _, label in rows[1:]} == {"0", "1"}
    labels = defaultdict(dict)
    for name, label in rows[1:]:
        prefix, image, kind = name.split("_")
        labels[f"{prefix}_{image}"][kind] = int(label)
    assert set(labels) == images
    for found in labels.values():
        assert len(found) == 6
        assert found.pop("any") == max(found.values())


def test_twins_are_the_only_equal_slices_of_ich(archives, ich):
    assert archives["ich"][1].twins == SHARED
    patients = defaultdict(list)
    for dataset in ich.values():
        patients[dataset.PixelData].append(dataset.PatientID)
    shared = [owners for owners in patients.values() if len(owners) > 1]
    assert len(shared) == SHARED
    assert {len(set(owners)) for owners in shared} == {2}


def test_twins_need_two_patients(tmp_path):
    with pytest.raises(ValueError, match="`duplicates` needs two patients and at most 4 slices"):
        write_ich(tmp_path, 1, 0, SIZE, SLICES, duplicates=1)
    with pytest.raises(ValueError, match="`duplicates` needs two patients and at most 4 slices"):
        write_ich(tmp_path, 2, 0, SIZE, SLICES, duplicates=5)


# Cervical spine


def test_cspine_is_a_folder_of_numbers_per_study(archives):
    root, counts = archives["cspine"]
    studies = [*(root / "train_images").iterdir(), *(root / "test_images").iterdir()]
    assert len(studies) == counts.patients == PATIENTS
    syntaxes, nameless = Counter(), 0
    for study in studies:
        slices = {path.name: pydicom.dcmread(path, stop_before_pixels=True) for path in study.iterdir()}
        assert set(slices) == {f"{n}.dcm" for n in range(1, len(slices) + 1)}
        heights = [slices[f"{n}.dcm"].ImagePositionPatient[2] for n in range(1, len(slices) + 1)]
        assert heights == sorted(heights, reverse=True)
        for name, dataset in slices.items():
            number = int(name.removesuffix(".dcm"))
            assert re.fullmatch(r"1\.2\.826\.0\.1\.3680043\.\d+", dataset.StudyInstanceUID)
            assert study.name == dataset.StudyInstanceUID
            assert f"{dataset.SeriesInstanceUID}.{number}" == dataset.SOPInstanceUID
            assert dataset.InstanceNumber == number
            assert dataset.get("PatientID", study.name.split(".")[-1]) == study.name.split(".")[-1]
        syntaxes[str(dataset.file_meta.TransferSyntaxUID)] += 1
        nameless += "PatientID" not in dataset
    assert syntaxes == {"1.2.840.10008.1.2.1": 5, JPEG_LOSSLESS_70: 4}
    assert nameless == 2


def test_jpeg_slices_of_cspine_are_heads(archives):
    decoded = 0
    for path in archives["cspine"][0].rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        if dataset.file_meta.TransferSyntaxUID == JPEG_LOSSLESS_70:
            hu = decode(dataset).astype(int) + int(dataset.RescaleIntercept)
            assert -1030 < np.median(hu[0]) < -970
            assert 400 < hu.max() <= 1500
            decoded += 1
    assert decoded > 10


def test_cspine_lists_and_segmentations(archives):
    root, _ = archives["cspine"]
    assert {path.name for path in root.glob("*.csv")} == {
        "train.csv",
        "train_bounding_boxes.csv",
        "test.csv",
        "sample_submission.csv",
    }
    with (root / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["StudyInstanceUID", "patient_overall", "C1", "C2", "C3", "C4", "C5", "C6", "C7"]
    segmentations = list((root / "segmentations").iterdir())
    assert {path.name.removesuffix(".nii") for path in segmentations} <= {row["StudyInstanceUID"] for row in rows}
    assert nibabel.load(segmentations[0]).ndim == 3


# RADCURE


def test_radcure_lies_in_three_layouts(archives):
    number, uid = r"[\d.]+", r"1\.3\.6\.1\.4\.1\.14519\.5\.2\.1\.\d+"
    patient = r"RADCURE-\d{4}"
    dated = rf"{patient}/01-01-2010-NA-RT SIMULATION-\d{{5}}/{number}-[A-Za-z ]+-\d{{5}}"
    layouts = {
        "nbia": rf"manifest-\d+/RADCURE/{dated}/(1-\d{{3}}\.dcm|1-1\.dcm|LICENSE)",
        "nbia list": r"manifest-\d+/metadata\.csv",
        "tcia": rf"{patient}/{uid}/{uid}/(\d{{8}}\.dcm|md5hashes\.csv)",
        "tcia by series": rf"{uid}/(\d{{8}}\.dcm|md5hashes\.csv)",
        "tcia list": r"metadata\.csv",
        "zip": rf"{patient}\.zip/{dated}/1-\d{{3}}\.dcm",
    }
    patients = defaultdict(set)
    for name, content in contents(archives["radcure"][0]).items():
        (layout,) = (layout for layout, pattern in layouts.items() if re.fullmatch(pattern, name))
        if name.endswith(".dcm"):
            patients[layout].add(pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True).PatientID)
    assert {layout: len(found) for layout, found in patients.items()} == {
        "nbia": 3,
        "tcia": 1,
        "tcia by series": 2,
        "zip": 3,
    }
    assert len(set.union(*patients.values())) == PATIENTS  # nobody is in two


def test_radcure_is_ct_plans_and_localizers(archives):
    root, counts = archives["radcure"]
    kinds, patients = Counter(), set()
    for name, content in contents(root).items():
        if not name.endswith(".dcm"):
            continue
        dataset = pydicom.dcmread(io.BytesIO(content))
        patients.add(dataset.PatientID)
        if dataset.Modality == "RTSTRUCT":
            kinds["RTSTRUCT"] += 1
            assert "Rows" not in dataset
            assert "PixelData" not in dataset
            assert dataset.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.481.3"
            continue
        assert (dataset.Modality, dataset.SOPClassUID) == ("CT", "1.2.840.10008.5.1.4.1.1.2")
        kinds[dataset.ImageType[2]] += 1
        padded = dataset.PixelRepresentation == 1
        assert dataset.get("PixelPaddingValue") == (-2000 if padded and dataset.ImageType[2] == "AXIAL" else None)
    assert kinds == {"AXIAL": counts.images, "RTSTRUCT": 9, "LOCALIZER": 2}
    assert patients == {f"RADCURE-{number:04d}" for number in range(1, 10)}


def test_radcure_sums_are_true(archives):
    checked = 0
    for path in archives["radcure"][0].rglob("md5hashes.csv"):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                assert hashlib.md5((path.parent / row["Filename"]).read_bytes()).hexdigest() == row["MD5"]
                checked += 1
    assert checked > 10


def test_zip_has_entries_for_its_folders(archives):
    with zipfile.ZipFile(archives["radcure"][0] / "RADCURE-0003.zip") as archive:
        assert [entry.filename.count("/") for entry in archive.infolist() if entry.is_dir()] == [3, 3]
        assert archive.testzip() is None
        assert len({entry.date_time for entry in archive.infolist()} | {(2024, 12, 19, 0, 0, 0)}) == 1  # no clock


# Counts and seeds


@pytest.mark.parametrize("source", ["ich", "cspine", "radcure"])
def test_counts_are_what_is_on_the_disk(archives, source):
    root, counts = archives[source]
    images, patients, others, flags = 0, set(), Counter(), Counter()
    found = contents(root)
    for name, content in found.items():
        try:
            dataset = pydicom.dcmread(io.BytesIO(content))
        except InvalidDicomError:
            others[
                f"side file: {'volume' if name.endswith('.nii') else 'table' if name.endswith('.csv') else 'text'}"
            ] += 1
            continue
        if "LOCALIZER" in dataset.get("ImageType", []):
            others["localizer"] += 1
        elif dataset.Modality != "CT":
            others[dataset.Modality] += 1
        else:
            assert decode(dataset).shape == (dataset.Rows, dataset.Columns), name
            images += 1
            patients.add(dataset.get("PatientID", dataset.StudyInstanceUID))
            flags["cropped"] += dataset.Rows != dataset.Columns
            flags["upsampled"] += min(dataset.Rows, dataset.Columns) < 256
    assert (counts.files, counts.images, counts.patients) == (len(found), images, len(patients))
    assert +counts.others == others
    assert {name: counts.flags[name] for name in flags} == flags
    assert counts.zips == len(list(root.glob("*.zip")))


@pytest.mark.parametrize("write", [write_ich, write_cspine, write_radcure])
def test_bytes_follow_from_the_seed(tmp_path, write):
    for name, patients, seed in (("a", 3, 0), ("b", 3, 0), ("other", 3, 1), ("more", 4, 0)):
        write(tmp_path / name, patients, seed, SIZE, (3, 4))
    a, b, other, more = (contents(tmp_path / name) for name in ("a", "b", "other", "more"))
    assert a == b
    pixels = {content for name, content in a.items() if name.endswith(".dcm")}
    assert not pixels & set(other.values())
    assert pixels < set(more.values())  # more patients leave the others as they are
    if write is write_radcure:
        archive = "RADCURE-0003.zip"
        assert (tmp_path / "a" / archive).read_bytes() == (tmp_path / "b" / archive).read_bytes()


def test_done_is_called_for_each_patient(tmp_path):
    calls = []
    for write in (write_ich, write_cspine, write_radcure):
        write(tmp_path / write.__name__, 5, 0, 16, (2, 2), done=lambda: calls.append(1))
    assert len(calls) == 15


# Defects


@pytest.fixture(scope="module")
def defects(tmp_path_factory):
    """The defects of ICH: (root, expected fates)."""
    root = tmp_path_factory.mktemp("defects") / "ich"
    return root, write_defects(root, "ich", size=SIZE)


@pytest.mark.parametrize("source", ["ich", "cspine", "radcure"])
def test_every_defect_on_the_disk_has_a_fate(tmp_path, source):
    expected = write_defects(tmp_path / "d", source, size=SIZE)
    assert set(expected) == {
        *(
            path.name
            for path in (tmp_path / "d").iterdir()
            if path.name not in ("escape.zip", "nested.zip", "damaged_entry.zip")
        ),
        *(f"nested.zip!{name}" for name in ("inner.zip", "__MACOSX/._inner.zip")),
        *(f"escape.zip!{name}" for name in ("inside.dcm", "../evil.dcm")),
        *(f"damaged_entry.zip!{name}" for name in ("sound.dcm", "damaged.dcm")),
    }
    assert all(re.fullmatch(r"stored|(other|rejected): [\w -]+(: \w+)?", fate) for fate in expected.values())
    assert ("stranger.dcm" in expected) == (source != "cspine")
    assert ("PatientID" in pydicom.dcmread(tmp_path / "d" / "nobody.dcm")) is False
    readable = expected["no_permission.dcm"]
    assert readable == ("stored" if os.geteuid() == 0 else "rejected: unreadable")


def test_defects_want_a_known_source_and_some_size(tmp_path):
    with pytest.raises(ValueError, match="`source` must be one of ich, cspine, radcure; found 'RADCURE'"):
        write_defects(tmp_path / "d", "RADCURE")
    with pytest.raises(ValueError, match="`size` must be at least 64"):
        write_defects(tmp_path / "d", "radcure", size=32)


def test_files_to_be_stored_can_be_decoded(defects):
    root, expected = defects
    for name in (name for name, fate in expected.items() if fate == "stored" and "!" not in name):
        dataset = pydicom.dcmread(root / name, force=name == "no_preamble.dcm")
        if name == "no_preamble.dcm":
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        assert decode(dataset).std() > 100, name


def test_damaged_pixels_are_errors(defects):
    root, _ = defects
    errors = {
        "short_pixel_data.dcm": (ValueError, "153710"),
        "truncated_file.dcm": (ValueError, "bytes"),
        "truncated_jpeg.dcm": (RuntimeError, "gdcm"),
        "damaged_jpeg.dcm": (RuntimeError, "gdcm"),
        "no_pixel_data.dcm": (AttributeError, "pixel data"),
    }
    for name, (error, words) in errors.items():
        with pytest.raises(error, match=words):
            decode(pydicom.dcmread(root / name))


@pytest.mark.parametrize("name", ["quietly_damaged_jpeg.dcm", "early_end_jpeg.dcm"])
def test_quiet_damage_passes_gdcm_by(defects, name):
    """Should GDCM come to raise here, the two are one with damaged_jpeg.dcm, and may go."""
    from_air = np.abs(decode(pydicom.dcmread(defects[0] / name)).astype(int) - 24)  # 24 - 1024 = -1000 HU
    assert from_air[0].max() < 60  # the stream's first half is sound
    assert not (from_air[-1].max() < 60 and from_air[-1].std() > 2)  # the rest is made up, or flat


def test_short_file_is_short_as_kaggles(defects):
    dataset = pydicom.dcmread(defects[0] / "short_pixel_data.dcm")
    assert (dataset.Rows, dataset.Columns, len(dataset.PixelData)) == (512, 512, 153_710)


def test_truncated_file_promises_more_than_it_holds(defects):
    header = pydicom.dcmread(defects[0] / "truncated_file.dcm", stop_before_pixels=True)
    promised = 2 * header.Rows * header.Columns
    assert 0.3 * promised < (defects[0] / "truncated_file.dcm").stat().st_size < promised


def test_odd_headers(defects):
    root, _ = defects
    read = {path.name: pydicom.dcmread(path, stop_before_pixels=True) for path in root.glob("*.dcm") if is_dicom(path)}
    assert "RescaleSlope" not in read["missing_slope.dcm"]
    assert "RescaleIntercept" not in read["missing_intercept.dcm"]
    assert read["non_square.dcm"].Rows != read["non_square.dcm"].Columns
    assert read["monochrome1.dcm"].PhotometricInterpretation == "MONOCHROME1"
    assert (read["wrapped.dcm"].BitsStored, read["wrapped.dcm"].RescaleIntercept) == (12, 0)
    assert read["multi_frame.dcm"].NumberOfFrames == 2
    assert read["rgb.dcm"].SamplesPerPixel == 3
    assert "LOCALIZER" in read["localizer.dcm"].ImageType
    assert read["rtstruct.dcm"].Modality == "RTSTRUCT"
    assert not re.fullmatch(r"ID_[0-9a-f]+", read["stranger.dcm"].PatientID)
    images = [d.SOPInstanceUID for name, d in read.items() if name != "duplicate_b.dcm"]
    assert len(images) == len(set(images))


def is_dicom(path):
    return path.read_bytes()[128:132] == b"DICM"


def test_files_that_are_no_dicom(defects):
    root, _ = defects
    assert (root / "empty.dcm").stat().st_size == 0
    for name in ("text.dcm", "notes.txt", "no_preamble.dcm"):
        assert not is_dicom(root / name)
    assert pydicom.dcmread(root / "no_preamble.dcm", force=True).Modality == "CT"
    assert is_dicom(root / "no_extension")


def test_copies_and_twins(defects):
    root, _ = defects
    assert (root / "duplicate_a.dcm").read_bytes() == (root / "duplicate_b.dcm").read_bytes()
    a, b = (pydicom.dcmread(root / f"twin_{name}.dcm") for name in "ab")
    assert a.PixelData == b.PixelData
    assert a.PatientID != b.PatientID
    assert a.SOPInstanceUID != b.SOPInstanceUID


def test_values_outside_the_bits_stored(defects):
    dataset = pydicom.dcmread(defects[0] / "bits_outside.dcm")
    assert dataset.BitsStored == 12
    assert np.frombuffer(dataset.PixelData, "<u2").min() > 4095


def test_links_and_permissions(defects):
    root, _ = defects
    assert (root / "loop").is_symlink()
    assert (root / "loop").resolve() == root.resolve()
    assert stat.S_IMODE((root / "no_permission.dcm").stat().st_mode) == 0


def test_faulty_zips(defects):
    root, _ = defects
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(root / "damaged.zip")
    with zipfile.ZipFile(root / "damaged_entry.zip") as archive:
        assert decode(pydicom.dcmread(io.BytesIO(archive.read("sound.dcm")))).std() > 100
        with pytest.raises(zipfile.BadZipFile, match="CRC"):
            archive.read("damaged.dcm")
    with zipfile.ZipFile(root / "escape.zip") as archive:
        assert archive.namelist() == ["inside.dcm", "../evil.dcm"]


# The command


def test_command_writes_and_tells_what_it_wrote(tmp_path):
    out = tmp_path / "fake"
    arguments = ["--patients", "2", "--size", "64", "--slices", "3", "3", "--defects", "--duplicates", "1"]
    command = [sys.executable, SCRIPT, *arguments, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"ct.py --ich {out}/ich --cspine {out}/cspine --radcure {out}/radcure --out " in done.stdout
    expected = json.loads((out / "expected.json").read_text())
    assert {source: made["images"] for source, made in expected.items()} == {"ich": 6, "cspine": 6, "radcure": 6}
    assert expected["ich"]["twins"] == 1
    for source, made in expected.items():
        assert made["defects"]["defects/empty.dcm"] == "rejected: empty file"
        assert (out / source / "defects" / "empty.dcm").exists()
        shutil.rmtree(out / source / "defects")
        assert len(contents(out / source)) == made["files"]
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 2
    assert "--out must be a folder that does not exist or is empty" in again.stderr

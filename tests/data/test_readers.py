"""CT readers: HU by hand, damage refused, one orientation for all formats; and the stored picture."""

import nibabel
import numpy as np
import pytest
from prepare.synthetic import slice_bytes
from readers import read_dicom_folder, read_dicom_slice, read_nifti, read_openkbp
from write_store import has_body

from gcond.data.store import to_stored

SIDE = 128
TISSUE, BONE, METAL = 1040, 1700, 4100


def write_slice(path, stored, syntax="explicit", **tags):
    path.write_bytes(slice_bytes(np.asarray(stored), syntax, **tags))
    return path


# DICOM


def test_a_slice_is_decoded_as_those_of_the_archives(tmp_path):
    """By hand; every coding and fault is in prepare/test_pixels.py."""
    signed = np.array([[-2000, -3], [0, 500]], np.int16)
    path = write_slice(tmp_path / "b", signed, "rle", RescaleSlope=2, RescaleIntercept=10)
    np.testing.assert_array_equal(read_dicom_slice(path)[0], [[-3990, 4], [10, 1010]])
    stored = np.full((64, 64), 24, np.uint16)
    stored[16:48, 16:48] = 1064
    stored[:8] = 63536  # -2000 without its sign: densest bone if it were taken for a value
    hu, flags = read_dicom_slice(write_slice(tmp_path / "a", stored, PixelPaddingValue=63536))
    assert (hu[0, 0], hu[32, 32], flags) == (-1024, 40, {"padding"})
    with pytest.raises(ValueError, match=r"b: values beyond any tissue"):
        read_dicom_slice(write_slice(tmp_path / "b", stored))
    write_slice(tmp_path / "a", stored, PixelPaddingValue=63536)
    (tmp_path / "b").unlink()
    write_slice(tmp_path / "c", stored, PixelPaddingValue=63536, ImagePositionPatient=[0, 0, 1])
    assert read_dicom_folder(tmp_path).flags == {"padding": 2}


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"RescaleSlope": None}, "no RescaleSlope"),
        ({"NumberOfFrames": 2}, "one grey frame"),
        ({"PixelData": bytes(20)}, "short pixel data"),
    ],
)
def test_faulty_slices_are_refused(tmp_path, tags, message):
    with pytest.raises(ValueError, match=message):
        read_dicom_slice(write_slice(tmp_path / "a", np.ones((64, 64), np.uint16), **tags))


def test_a_folder_goes_by_header_and_position(tmp_path):
    for name, height_mm in {"c": 0.0, "a": 2.5, "b": 5.0}.items():
        write_slice(tmp_path / name, np.full((4, 4), height_mm * 10, np.uint16), ImagePositionPatient=[0, 0, height_mm])
    write_slice(tmp_path / "plan.dcm", np.zeros((4, 4), np.uint16), Modality="RTSTRUCT", PixelData=None)
    (tmp_path / "notes.xml").write_text("<notes/>")
    volume = read_dicom_folder(tmp_path)
    np.testing.assert_array_equal(volume.hu[:, 0, 0], [-1024, -999, -974])
    assert (volume.spacing_z_mm, volume.spacing_xy_mm) == (2.5, 0.5)
    assert volume.passed_over == {"RTSTRUCT": 1, "not DICOM": 1}


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"SeriesInstanceUID": "1.2.3.5"}, "more than one series"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "not axial"),
        ({"ImagePositionPatient": [0, 0, 0]}, "two slices in one place"),
        (None, "no CT image among 1 files"),
    ],
)
def test_a_folder_that_is_not_one_axial_series_is_refused(tmp_path, tags, message):
    if tags is None:
        (tmp_path / "a.txt").write_text("no image")
    else:
        write_slice(tmp_path / "a", np.zeros((4, 4), np.uint16))
        write_slice(tmp_path / "b", np.zeros((4, 4), np.uint16), **{"ImagePositionPatient": [0, 0, 1], **tags})
    with pytest.raises(ValueError, match=message):
        read_dicom_folder(tmp_path)


# NIfTI


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SRA"])
def test_nifti_axes_become_feet_to_head_front_to_back_right_to_left(tmp_path, axes):
    right, front, head = 0, 4, 3  # a marked voxel: at the patient's right, front and head end of 3 x 5 x 4
    ras = np.zeros((3, 5, 4), np.float32)
    ras[2, front, head] = 700  # RAS+ counts towards the patient's right
    target = nibabel.orientations.axcodes2ornt(axes)
    turned = nibabel.Nifti1Image(ras, np.diag([2, 2, 3, 1])).as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), target)
    )
    nibabel.save(turned, tmp_path / "a.nii.gz")
    volume = read_nifti(tmp_path / "a.nii.gz")
    assert volume.hu.shape == (4, 5, 3)
    assert volume.hu[head, 0, right] == 700
    assert (volume.spacing_z_mm, volume.spacing_xy_mm) == (3, 2)


# Tables of open-kbp


def phantom():
    """Stored values [row front to back, column right to left, slice head to feet].

    A box of 41 x 41 pixels in slices 30 to 70, but for slice 46; bone in the front, on the patient's right, at the
    head; metal. 3 % of a slice are 491.5 pixels: slice 28 shows 484, too few, slice 72 shows 506.
    """
    stored = np.zeros((SIDE, SIDE, SIDE), int)
    stored[50:91, 30:71, 30:71] = TISSUE
    stored[:, :, 46] = 0
    stored[60:82, 40:62, 28] = TISSUE
    stored[59:82, 40:62, 72] = TISSUE
    stored[50, 30, 30] = BONE
    stored[60, 40, 32] = METAL
    return stored


def write_patient(folder, stored, sizes=(5.0, 5.0, 2.5)):
    folder.mkdir(parents=True)
    index = np.flatnonzero(stored)
    rows = "".join(f"{i},{v}.0\n" for i, v in zip(index, stored.ravel()[index], strict=True))
    (folder / "ct.csv").write_text(f",data\n{rows}")
    (folder / "voxel_dimensions.csv").write_text("".join(f"{size:.18e}\n" for size in sizes))
    return folder


def test_hu_order_and_crop_of_open_kbp_by_hand(tmp_path):
    volume = read_openkbp(write_patient(tmp_path / "pt_1", phantom()))
    assert (volume.spacing_z_mm, volume.spacing_xy_mm) == (5.0, 5.0)
    # Slices 30, 32 .. 72, the feet first. 300 mm are 60 pixels: rows 70 - 30 .. 99, columns 50 - 30 .. 79.
    assert volume.hu.shape == (22, 60, 60)
    assert volume.hu[-1, 50 - 40, 30 - 20] == BONE - 1000
    assert volume.hu[-2, 60 - 40, 40 - 20] == METAL - 1000
    assert (volume.hu == TISSUE - 1000).sum() == 20 * 41 * 41 + 506 - 2
    assert (volume.hu[13] == -1000).all()


def test_crop_stays_inside_and_follows_what_is_body_in_most_slices(tmp_path):
    stored = np.zeros((SIDE, SIDE, SIDE), int)
    stored[0:31, 0:31, 40:80] = TISSUE  # body in every slice, in a corner
    stored[0:31, 100:128, 40:60] = TISSUE  # in half of them: counts a 2^4th
    hu = read_openkbp(write_patient(tmp_path / "pt_1", stored)).hu
    # Middle of the columns: (31 x 15 x 16 + 28 x 113.5) / (31 x 16 + 28) = 20.26, so the square of 60 begins at 0.
    assert (hu[0, 0] > -500).tolist() == [True] * 31 + [False] * 29
    wide = read_openkbp(write_patient(tmp_path / "pt_2", stored, sizes=(2.0, 2.0, 3.0)))  # 300 mm are 150 pixels
    assert wide.hu.shape[1:] == (SIDE, SIDE)


def test_damaged_tables_are_named(tmp_path):
    folder = write_patient(tmp_path / "pt_1", phantom())
    (folder / "voxel_dimensions.csv").write_text("5.0\n5.0\n")
    with pytest.raises(ValueError, match=r"voxel_dimensions\.csv"):
        read_openkbp(folder)
    for rows in ("x,1.0\n", "5,\n", "5,1.5\n", "5,1.0\n5,2.0\n", f"{SIDE**3},1.0\n", "-1,7.0\n", "5,1.0,1.0\n", "5\n"):
        (folder / "ct.csv").write_text(f",data\n{rows}")
        with pytest.raises(ValueError, match=r"pt_1/ct\.csv: expected"):
            read_openkbp(folder)


# The stored picture


def test_stored_picture_by_hand():
    hu = np.full((256, 300), -2000.0, np.float32)  # padding below -1024
    hu[:, 22:150] = 40.4  # the crop takes columns 22 to 277
    hu[0, 22] = 9000
    stored = to_stored(hu)
    assert (stored.shape, stored.dtype) == ((256, 256), np.dtype("<u2"))
    assert stored[0, 0] == 4095
    assert stored[5, 0] == stored[5, 127] == 1064
    assert stored[5, 128] == stored[5, 255] == 0
    with pytest.raises(ValueError, match="finite"):
        to_stored(np.full((4, 4), np.nan, np.float32))
    # Clipped first, then resized without aliasing.
    hu = np.tile(np.array([-3024.0, 0.0], np.float32), (512, 256))
    assert to_stored(hu)[100, 100] == pytest.approx(512, abs=60)  # the mean of -1024 and 0 HU; unclipped: 0
    chequers = np.indices((1024, 1024)).sum(0) % 2 * 1000.0
    assert np.ptp(to_stored(chequers.astype(np.float32))[8:-8, 8:-8]) < 60


def test_body_rule():
    stored = np.zeros((256, 256), np.uint16)
    stored.flat[: int(0.06 * 256 * 256)] = 1024 - 499
    assert has_body(stored)
    stored.flat[int(0.04 * 256 * 256) :] = 1024 - 501
    assert not has_body(stored)

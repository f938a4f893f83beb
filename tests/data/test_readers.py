"""CT readers: HU by hand, decoders against the uncompressed pixels, one orientation for all formats."""

import io
import plistlib
import tarfile

import dicom_hu
import nibabel
import numpy as np
import pydicom
import pytest
from prepare.compressed import compress as compressed_by_gdcm
from pydicom.data import get_testdata_file
from readers import read_dicom_folder, read_dicom_slice, read_inv3, read_nifti
from slices import has_body, to_stored

JPEG_LOSSLESS, JPEG_2000_LOSSLESS = "JPEGLosslessProcess14_1", "JPEG2000Lossless"


def test_unsigned_with_negative_intercept(tmp_path, write_slice):
    path = write_slice(tmp_path / "a", np.array([[0, 1000], [1024, 4095]], np.uint16))
    np.testing.assert_array_equal(read_dicom_slice(path), [[-1024, -24], [0, 3071]])  # uint16 would wrap


def test_signed_with_slope(tmp_path, write_slice):
    path = write_slice(tmp_path / "a", np.array([[-2000, -3], [0, 500]], np.int16), slope=2, intercept=10)
    np.testing.assert_array_equal(read_dicom_slice(path), [[-3990, 4], [10, 1010]])


def test_header_faults_are_refused(tmp_path, write_slice):
    stored = np.zeros((4, 4), np.uint16)
    with pytest.raises(ValueError, match="no RescaleSlope"):
        read_dicom_slice(write_slice(tmp_path / "a", stored, RescaleSlope=None))
    with pytest.raises(ValueError, match="one grey frame"):
        read_dicom_slice(write_slice(tmp_path / "b", stored, NumberOfFrames=2))


def test_short_pixel_data_is_an_error_and_no_black_rows(tmp_path, write_slice):
    path = write_slice(tmp_path / "a", np.ones((8, 8), np.uint16), PixelData=bytes(20))
    with pytest.raises(ValueError, match=r"pixel data|bytes"):
        read_dicom_slice(path)


def compress(path, syntax):
    compressed = path.with_suffix(f".{syntax}")
    compressed_by_gdcm(path, compressed, syntax)
    assert pydicom.dcmread(compressed).file_meta.TransferSyntaxUID.is_compressed
    return compressed


@pytest.mark.parametrize("syntax", [JPEG_LOSSLESS, JPEG_2000_LOSSLESS])
def test_lossless_compression_gives_the_same_hu(tmp_path, syntax, write_slice):
    stored = np.random.default_rng(0).integers(0, 4096, (32, 32)).astype(np.uint16)
    path = write_slice(tmp_path / "a.dcm", stored)
    np.testing.assert_array_equal(read_dicom_slice(compress(path, syntax)), stored.astype(np.float32) - 1024)


def test_compressed_pixels_go_to_gdcm_whatever_else_is_installed(tmp_path, write_slice, monkeypatch):
    path = write_slice(tmp_path / "a.dcm", np.zeros((32, 32), np.uint16))
    plugins = []
    monkeypatch.setattr(
        dicom_hu,
        "pixel_array",
        lambda _, decoding_plugin, **__: plugins.append(decoding_plugin) or np.zeros((32, 32), np.uint16),
    )
    read_dicom_slice(path)
    read_dicom_slice(compress(path, JPEG_LOSSLESS))
    assert plugins == ["", "gdcm"]


def test_truncated_jpeg_stream_is_an_error(tmp_path, write_slice):
    stored = np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16)
    path = compress(write_slice(tmp_path / "a.dcm", stored), JPEG_LOSSLESS)
    dataset = pydicom.dcmread(path)
    frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = pydicom.encaps.encapsulate([frame[: len(frame) // 2 & ~1]])
    dataset.save_as(path)
    with pytest.raises(RuntimeError):
        read_dicom_slice(path)


def test_jpeg_2000_file_of_pydicom():
    """JPEG 2000 whose sign bit disagrees with the header; a scanner pads with -2000 outside its circle."""
    hu = read_dicom_slice(get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False))
    assert hu.shape == (512, 512)
    assert (hu.min(), hu[0, 0]) == (-2000, -2000)
    assert 1000 < hu.max() < 3071


def test_folder_goes_by_header_and_position(tmp_path, write_slice):
    for name, height_mm in {"c": 0.0, "a": 2.5, "b": 5.0}.items():
        write_slice(tmp_path / name, np.full((4, 4), int(height_mm * 10), np.uint16), height_mm=height_mm)
    write_slice(tmp_path / "plan.dcm", np.zeros((4, 4), np.uint16), Modality="RTSTRUCT", PixelData=None)
    (tmp_path / "notes.xml").write_text("<notes/>")
    volume = read_dicom_folder(tmp_path)
    np.testing.assert_array_equal(volume.hu[:, 0, 0], [-1024, -999, -974])
    assert (volume.spacing_z_mm, volume.spacing_xy_mm) == (2.5, 0.5)
    assert volume.passed_over == {"RTSTRUCT": 1, "not DICOM": 1}


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"SeriesInstanceUID": "1.2.3.5", "height_mm": 1.0}, "more than one series"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "height_mm": 1.0}, "not axial"),
        ({"height_mm": 0.0}, "two slices in one place"),
    ],
)
def test_folder_that_is_not_one_axial_series_is_refused(tmp_path, tags, message, write_slice):
    write_slice(tmp_path / "a", np.zeros((4, 4), np.uint16))
    write_slice(tmp_path / "b", np.zeros((4, 4), np.uint16), **tags)
    with pytest.raises(ValueError, match=message):
        read_dicom_folder(tmp_path)


def test_folder_without_ct_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("no image")
    with pytest.raises(ValueError, match="no CT image among 1 files"):
        read_dicom_folder(tmp_path)


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


def test_inv3_rows_are_turned_front_to_back(tmp_path):
    matrix = np.arange(2 * 3 * 4, dtype="<i2").reshape(2, 3, 4)
    plist = {
        "matrix": {"filename": "matrix.dat", "shape": [2, 3, 4], "dtype": "int16"},
        "spacing": [0.5, 0.5, 1.5],
    }
    with tarfile.open(tmp_path / "a.inv3", "w") as project:
        for name, content in {"main.plist": plistlib.dumps(plist), "matrix.dat": matrix.tobytes()}.items():
            entry = tarfile.TarInfo(f"folder/{name}")
            entry.size = len(content)
            project.addfile(entry, io.BytesIO(content))
    volume = read_inv3(tmp_path / "a.inv3")
    np.testing.assert_array_equal(volume.hu, matrix[:, ::-1])
    assert (volume.spacing_z_mm, volume.spacing_xy_mm) == (1.5, 0.5)


def test_stored_picture_by_hand():
    hu = np.full((256, 300), -2000.0, np.float32)  # padding below -1024
    hu[:, 22:150] = 40.4  # the crop takes columns 22 to 277
    hu[0, 22] = 9000
    stored = to_stored(hu)
    assert (stored.shape, stored.dtype) == ((256, 256), np.dtype("<u2"))
    assert stored[0, 0] == 4095
    assert stored[5, 0] == stored[5, 127] == 1064
    assert stored[5, 128] == stored[5, 255] == 0


def test_clipping_comes_before_resizing():
    hu = np.tile(np.array([-3024.0, 0.0], np.float32), (512, 256))
    assert to_stored(hu)[100, 100] == pytest.approx(512, abs=60)  # the mean of -1024 and 0 HU; unclipped: 0


def test_resize_is_antialiased():
    chequers = np.indices((1024, 1024)).sum(0) % 2 * 1000.0
    assert np.ptp(to_stored(chequers.astype(np.float32))[8:-8, 8:-8]) < 60


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        to_stored(np.full((4, 4), np.nan, np.float32))


def test_body_rule():
    stored = np.zeros((256, 256), np.uint16)
    stored.flat[: int(0.06 * 256 * 256)] = 1024 - 499
    assert has_body(stored)
    stored.flat[int(0.04 * 256 * 256) :] = 1024 - 501
    assert not has_body(stored)

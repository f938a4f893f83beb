"""A DICOM file -> stored values -> HU: the one way in which samples and archives are decoded.

What GDCM and pydicom let pass without an error is refused here: pixel data longer than the picture, a stream of
another size than the header says, values outside the bits stored, and a lossless JPEG stream that does not end with
the last pixel.
"""

import logging
import warnings
from typing import BinaryIO, NamedTuple

import gdcm
import numpy as np
from codestream import lossless_jpeg_fits, picture_of
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import generate_frames
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.pixels import pixel_array

PIXEL_DATA = 0x7FE00010
FIRST_PIXEL_TAG = 0x7FE00008  # float pixel data
UNDEFINED_LENGTH = 0xFFFFFFFF
LONGEST_VALUE = 1 << 26  # bytes; a length beyond it is damage, and asking for it would fill the memory

# Both say on stderr or in a log what they also raise, and pydicom quotes the text of tags.
gdcm.Trace.WarningOff()
gdcm.Trace.ErrorOff()
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)


class Syntax(NamedTuple):
    plugin: str  # of pydicom, named so that no other that happens to be installed takes over
    compressed: bool
    lossy: bool = False


SYNTAXES: dict[str, Syntax] = {
    uid.ImplicitVRLittleEndian: Syntax("", False),
    uid.ExplicitVRLittleEndian: Syntax("", False),
    uid.ExplicitVRBigEndian: Syntax("", False),
    uid.DeflatedExplicitVRLittleEndian: Syntax("", False),
    uid.JPEGLossless: Syntax("gdcm", True),
    uid.JPEGLosslessSV1: Syntax("gdcm", True),
    uid.JPEGLSLossless: Syntax("gdcm", True),
    uid.JPEGLSNearLossless: Syntax("gdcm", True, lossy=True),
    uid.JPEG2000Lossless: Syntax("gdcm", True),
    uid.JPEG2000: Syntax("gdcm", True, lossy=True),
    uid.RLELossless: Syntax("pydicom", True),
}
"""JPEG baseline and extended are not among them: 8 bits hold no HU, and GDCM refuses the extended kind with 12."""

REASONS = (
    "truncated file",
    "short pixel data",
    "surplus pixel data",
    "damaged stream",
    "unsupported bits",
    "unsupported transfer syntax",
    "values outside the bits stored",
)


class Unusable(ValueError):
    """`reason` is of REASONS and holds no text of the file."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def read_dataset(file: BinaryIO, with_pixels: bool) -> tuple[FileDataset, tuple[int, int] | None]:
    """The dataset up to its pixel data, or with it; and tag and length in bytes of the pixel data, None without any.

    A file without the DICOM preamble is tried where it begins as a dataset does; then `preamble` is None. A transfer
    syntax that is not named is the one that its bytes were read with. Raises what pydicom raises, and InvalidDicomError
    for what is no DICOM.
    """
    met: list[tuple[int, int]] = []

    def stop(tag: int, vr: str | None, length: int) -> bool:
        if tag > PIXEL_DATA:
            return True
        if length > LONGEST_VALUE and length != UNDEFINED_LENGTH:
            raise Unusable("truncated file", f"an element of {length} bytes")
        if tag < FIRST_PIXEL_TAG:
            return False
        met.append((int(tag), length))
        return not with_pixels

    try:
        dataset = read_partial(file, stop)
    except InvalidDicomError:
        file.seek(0)
        if file.read(2) not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):  # group 0002 or 0008, either byte order
            raise
        file.seek(0)
        met.clear()
        dataset = read_partial(file, stop, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        guess = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else guess
    return dataset, met[-1] if met else None


def stored_values(dataset: Dataset) -> np.ndarray:
    """[R, C] integers, uint16 or int16 of either byte order, of one grey frame; not to be written to.

    Raises Unusable, or, for a compressed stream, whatever the decoder raises: RuntimeError where it gives up.
    """
    syntax = SYNTAXES.get(dataset.file_meta.TransferSyntaxUID)
    if syntax is None:
        raise Unusable("unsupported transfer syntax", str(dataset.file_meta.TransferSyntaxUID.name))
    if "PixelData" not in dataset:  # pydicom drops an element whose end it does not find
        raise Unusable("truncated file", "the pixel data have no end")
    values = _decode_compressed(dataset, syntax) if syntax.compressed else _decode_plain(dataset)
    if values.shape != (dataset.Rows, dataset.Columns):
        raise Unusable("surplus pixel data", f"{values.shape} for a picture of {dataset.Rows} x {dataset.Columns}")
    return _extend_sign(values, dataset.BitsStored, dataset.PixelRepresentation == 1)


def hounsfield(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """float32, unclipped: stored * slope (0028,1053) + intercept (0028,1052). uint16 + -1024 would not fit uint16."""
    hu = stored.astype(np.float32)
    hu *= np.float32(slope)
    hu += np.float32(intercept)
    return hu


def _decode_plain(dataset: Dataset) -> np.ndarray:
    element = dataset.get_item(PIXEL_DATA)
    found, expected = len(element.value or b""), dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
    if getattr(element, "length", found) not in (found, UNDEFINED_LENGTH):
        raise Unusable("truncated file", f"{found} of {element.length} bytes of pixel data")
    if found < expected:
        raise Unusable("short pixel data", f"{found} bytes of pixel data, expected {expected}")
    if found > expected + expected % 2:
        raise Unusable("surplus pixel data", f"{found} bytes of pixel data, expected {expected}")
    return pixel_array(dataset, decoding_plugin="", correct_unused_bits=False, view_only=True)


def _decode_compressed(dataset: Dataset, syntax: Syntax) -> np.ndarray:
    frames = list(generate_frames(dataset.PixelData, number_of_frames=1))
    if len(frames) != 1:
        raise Unusable("surplus pixel data", f"{len(frames)} frames")
    run_length = dataset.file_meta.TransferSyntaxUID == uid.RLELossless
    if not run_length:
        _check_stream(dataset, frames[0])
    with warnings.catch_warnings():
        if run_length:  # a run that is too long is cut with a warning
            warnings.filterwarnings("error", message="The decoded RLE segment")
        values = pixel_array(dataset, decoding_plugin=syntax.plugin, correct_unused_bits=False)
    lossless_jpeg = dataset.file_meta.TransferSyntaxUID in (uid.JPEGLossless, uid.JPEGLosslessSV1)
    if lossless_jpeg and not lossless_jpeg_fits(frames[0], values):
        raise Unusable("damaged stream", "the lossless JPEG stream does not end with the last pixel")
    return values


def _check_stream(dataset: Dataset, frame: bytes) -> None:
    """GDCM ends the process where a JPEG-LS stream is smaller than the header says, and crops where it is larger."""
    picture = picture_of(frame)
    if picture is None:
        raise Unusable("damaged stream", "no header of a JPEG stream")
    if (picture.rows, picture.cols, picture.samples) != (dataset.Rows, dataset.Columns, 1):
        raise Unusable("damaged stream", "the JPEG stream has another size than the header")
    if not 9 <= picture.precision <= 16 or (
        dataset.PixelRepresentation == 1 and picture.precision < dataset.BitsStored
    ):
        raise Unusable("unsupported bits", f"a JPEG stream of {picture.precision} bits, {dataset.BitsStored} stored")


def _extend_sign(values: np.ndarray, bits_stored: int, signed: bool) -> np.ndarray:
    """Signed values may come with their upper bits filled with the sign or with zeros."""
    low, high = int(values.min()), int(values.max())
    if not signed:
        fits = high < 1 << bits_stored
    elif low < 0:
        fits = -(1 << bits_stored - 1) <= low and high < 1 << bits_stored - 1
    else:
        fits = high < 1 << bits_stored
        shift = 8 * values.dtype.itemsize - bits_stored
        values = values << shift >> shift
    if not fits:
        raise Unusable("values outside the bits stored", f"{low} to {high} in {bits_stored} bits")
    return values

"""A DICOM file -> stored values -> HU: the one way in which samples and archives are decoded.

What GDCM and pydicom let pass without an error is refused here: pixel data longer than the picture, a stream of
another size than the header says, values outside the bits stored, a lossless JPEG stream that does not end with the
last pixel, a file that would fill the memory, and values that no tissue has.
"""

import logging
import os
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

from gcond.data.windows import HU_MAX, HU_MIN

PIXEL_DATA = 0x7FE00010
FIRST_PIXEL_TAG = 0x7FE00008  # float pixel data
UNDEFINED_LENGTH = 0xFFFFFFFF
LONGEST_VALUE = 1 << 26  # bytes, twice the largest picture; a longer value is passed over, not read
LONGEST_HEADER = 1 << 26  # bytes

# What a slice in HU looks like. Its pixels are looked at on a grid of about 128 x 128.
GRID = 128
BEYOND_TISSUE_SHARE = 0.03  # at the top of the scale or above: no metal fills so much of a slice
DENSE_SHARE = 0.005
DENSE_HU, DENSE_BONE_SHARE = 2000, 0.05
BONE_HU = 300  # the edge of a slice is air or soft tissue
AIR_HU, LEAST_SHARE = (-1200, -300), 0.001
BELOW_AIR_SHARE = 0.05

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
    uid.JPEGLossless: Syntax("gdcm", True),
    uid.JPEGLosslessSV1: Syntax("gdcm", True),
    uid.JPEGLSLossless: Syntax("gdcm", True),
    uid.JPEGLSNearLossless: Syntax("gdcm", True, lossy=True),
    uid.JPEG2000Lossless: Syntax("gdcm", True),
    uid.JPEG2000: Syntax("gdcm", True, lossy=True),
    uid.RLELossless: Syntax("pydicom", True),
}
"""JPEG baseline and extended are not among them: 8 bits hold no HU, and GDCM refuses the extended kind with 12."""
DEFLATED = b"\x02\x00\x10\x00UI\x16\x00" + uid.DeflatedExplicitVRLittleEndian.encode()  # the element (0002,0010)

SCALE_FLAGS = ("below air", "dense", "no air", "no tissue")
PADDING_FLAGS = ("padding", "scattered padding")
REASONS = (
    "truncated file",
    "short pixel data",
    "surplus pixel data",
    "damaged stream",
    "unsupported bits",
    "unsupported transfer syntax",
    "values outside the bits stored",
    "values beyond any tissue",
    "header too long",
)


class Unusable(ValueError):
    """`reason` is of REASONS and holds no text of the file."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def read_dataset(
    file: BinaryIO, with_pixels: bool, size: int | None = None
) -> tuple[FileDataset, tuple[int, int] | None]:
    """The dataset up to its pixel data, or with it; and tag and length in bytes of the pixel data, None without any.

    `size` is the file's, in bytes, where it is known. A file without the DICOM preamble is tried where it begins as a
    dataset does; then `preamble` is None. A transfer syntax that is not named is the one that its bytes were read with.
    A value of more than LONGEST_VALUE bytes is left out. Raises what pydicom raises, InvalidDicomError for what is no
    DICOM, and Unusable for a value that is longer than the file, for a header that would fill the memory and for a
    deflated data set, which pydicom inflates as a whole.
    """
    met: list[tuple[int, int]] = []
    if DEFLATED in file.read(1024):
        raise Unusable("unsupported transfer syntax", "deflated")
    file.seek(0)
    size = size or _size(file)
    if not with_pixels and size > LONGEST_HEADER:
        file = _Header(file)

    def stop(tag: int, vr: str | None, length: int) -> bool:
        if tag > PIXEL_DATA:
            return True
        before_pixels = tag < FIRST_PIXEL_TAG
        if length > size and length != UNDEFINED_LENGTH and (before_pixels or with_pixels):
            raise Unusable("truncated file", f"an element of {length} bytes in {size}")
        if before_pixels:
            return False
        met.append((int(tag), length))
        return not with_pixels

    try:
        dataset = read_partial(file, stop, defer_size=LONGEST_VALUE)
    except InvalidDicomError:
        file.seek(0)
        if file.read(2) not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):  # group 0002 or 0008, either byte order
            raise
        file.seek(0)
        met.clear()
        dataset = read_partial(file, stop, defer_size=LONGEST_VALUE, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        guess = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else guess
    return dataset, met[-1] if met else None


def _size(file: BinaryIO) -> int:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


class _Header:
    """A long file of which only the header is to be read: sequences have no length that could be looked at before."""

    def __init__(self, file: BinaryIO):
        self.file, self.left = file, LONGEST_HEADER
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int = -1) -> bytes:
        content = self.file.read(self.left + 1 if size < 0 else size)
        self.left -= len(content)
        if self.left < 0:
            raise Unusable("header too long", f"more than {LONGEST_HEADER} bytes")
        return content


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
    return _extend_sign(values, dataset.BitsStored, dataset.PixelRepresentation == 1, padding(dataset))


def padding(dataset: Dataset) -> tuple[int, int] | None:
    """The lowest and the highest stored value that stand for no tissue: PixelPaddingValue (0028,0120) to
    PixelPaddingRangeLimit (0028,0121). Either may have been written with or without its sign."""
    limits = [dataset.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if limits[0] in (None, ""):
        return None
    bits, signed = dataset.BitsStored, dataset.PixelRepresentation == 1
    values = []
    for limit in (limit for limit in limits if limit not in (None, "")):
        value = (int.from_bytes(limit[:2], "little") if isinstance(limit, bytes) else int(limit)) & 0xFFFF
        sign = 1 << (bits if value >> bits == 0 else 16) - 1
        values.append((value ^ sign) - sign if signed else value)
    return min(values), max(values)


def to_hu(
    stored: np.ndarray,
    slope: float,
    intercept: float,
    limits: tuple[int, int] | None,
    mended: np.ndarray | None = None,
) -> tuple[np.ndarray, set[str]]:
    """HU [R, C] float32, unclipped: stored * slope (0028,1053) + intercept (0028,1052), with padding made air; and what
    is unusual about them, of SCALE_FLAGS and PADDING_FLAGS.

    `limits` are those of `padding`; `mended` values take the place of the stored ones. Raises Unusable where too much
    of the slice lies beyond any tissue.
    """
    hu = (stored if mended is None else mended).astype(np.float32)  # uint16 + -1024 would not fit uint16
    hu *= np.float32(slope)
    hu += np.float32(intercept)
    padded = fill_padding(hu, stored, limits)
    return hu, check_scale(hu) | ({padded} - {""})


def fill_padding(hu: np.ndarray, stored: np.ndarray, limits: tuple[int, int] | None) -> str:
    """Make the pixels of `hu` air whose `stored` value is within `limits`; returns a flag where any lay above air.

    Padding lies together. Where such values are scattered, they are tissue's, and are left.
    """
    if limits is None:
        return ""
    outside = (stored >= limits[0]) & (stored <= limits[1]) & (hu > HU_MIN)
    count = np.count_nonzero(outside)
    if not count:
        return ""
    together = max(np.count_nonzero(outside[:, 1:] & outside[:, :-1]), np.count_nonzero(outside[1:] & outside[:-1]))
    if together < count / 2:
        return "scattered padding"
    hu[outside] = HU_MIN
    return "padding"


def check_scale(hu: np.ndarray) -> set[str]:
    """What of a slice [R, C] in unclipped HU no patient would show; of SCALE_FLAGS.

    Raises Unusable where too much of it lies at the top of the scale or above, as it does where signs were lost, values
    wrapped, or padding is not named.
    """
    step = max(1, min(hu.shape) // GRID)
    seen = np.ascontiguousarray(hu[::step, ::step])

    def share(these: np.ndarray) -> float:
        return np.count_nonzero(these) / seen.size

    beyond = share(seen >= HU_MAX)
    if beyond > BEYOND_TISSUE_SHARE:
        raise Unusable("values beyond any tissue", f"{beyond:.0%} of the slice at {HU_MAX} HU or above")
    edge = np.concatenate([seen[0], seen[-1], seen[:, 0], seen[:, -1]])
    bright_edge = 2 * np.count_nonzero(edge > BONE_HU) > edge.size
    found = {
        "dense": beyond > DENSE_SHARE or share(seen > DENSE_HU) > DENSE_BONE_SHARE or bright_edge,
        "no air": share((seen > AIR_HU[0]) & (seen < AIR_HU[1])) < LEAST_SHARE,
        "no tissue": share(seen >= AIR_HU[1]) < LEAST_SHARE,
        # a corner outside the circle of the scan holds padding
        "below air": share((seen <= AIR_HU[0]) & (seen != hu[0, 0])) > BELOW_AIR_SHARE,
    }
    return {flag for flag, is_set in found.items() if is_set}


def _decode_plain(dataset: Dataset) -> np.ndarray:
    element = dataset.get_item(PIXEL_DATA, keep_deferred=True)
    found, expected = len(element.value or b""), dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
    stated = getattr(element, "length", UNDEFINED_LENGTH)
    stated = found if stated == UNDEFINED_LENGTH else stated
    if LONGEST_VALUE >= stated > found:
        raise Unusable("truncated file", f"{found} of {stated} bytes of pixel data")
    if stated < expected:
        raise Unusable("short pixel data", f"{stated} bytes of pixel data, expected {expected}")
    if stated > expected + expected % 2:
        raise Unusable("surplus pixel data", f"{stated} bytes of pixel data, expected {expected}")
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


def _extend_sign(values: np.ndarray, bits_stored: int, signed: bool, limits: tuple[int, int] | None) -> np.ndarray:
    """Signed values may come with their upper bits filled with the sign or with zeros; padding may exceed the bits."""
    low, high = int(values.min()), int(values.max())
    lowest, past = (-(1 << bits_stored - 1), 1 << bits_stored - 1) if signed and low < 0 else (0, 1 << bits_stored)
    if not (lowest <= low and high < past):
        inside = values if limits is None else values[(values < limits[0]) | (values > limits[1])]
        if ((inside < lowest) | (inside >= past)).any():
            raise Unusable("values outside the bits stored", f"{low} to {high} in {bits_stored} bits")
    elif signed and low >= 0:
        shift = 8 * values.dtype.itemsize - bits_stored
        values = values << shift >> shift
    return values

"""The pixel pass: one file that the header pass calls an image -> the stored picture, or Rejected."""

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from archive import header as header_pass
from archive.listing import Entry, is_of_the_file, open_entry
from dicom_hu import PADDING_FLAGS, SCALE_FLAGS, SYNTAXES, Unusable, padding, read_dataset, stored_values, to_hu

from gcond.data.store import STORED_SIZE, to_stored
from gcond.data.windows import HU_MAX, HU_MIN

FLAGS = (
    *header_pass.FLAGS,
    *("cropped", "lossy", "monochrome1", "nearly constant", "no intercept", "no slope", "upsampled", "wrapped 12 bit"),
    *PADDING_FLAGS,
    *SCALE_FLAGS,
)

# Having once freed so much, glibc keeps what a picture takes for the next one. Handing pages back and asking for them
# anew takes up to a third of the time.
np.empty(1 << 24, np.uint8)

NEARLY_CONSTANT_HU = 10  # standard deviation; pictures of air alone are alike without being copies

# ICH holds pictures with 12 unsigned bits whose intercept, 0 or 1, is that of signed values (DICOM (0028,1052)).
WRAPPED_INTERCEPT_ABOVE = -100
WRAPPED_BITS = 12
# The usual mend adds 1000 and wraps what then passes 4095: it takes stored values from here on as negative ...
OTHER_MEND_FROM = 3096
# ... two's complement those from here on. Metal above 2047 HU and noise below -1000 HU share the values between.
WRAPPED_FROM = 2048


class Rejected(Exception):
    """`reason` is of reasons.REJECTED."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Picture(NamedTuple):
    stored: np.ndarray  # uint16 [S, S], HU + 1024
    flags: tuple[str, ...]  # of FLAGS, sorted
    ambiguous_pixels: int  # of a wrapped picture: those that the usual mend places elsewhere
    fingerprint: str  # of the clipped HU as decoded


def read_picture(root: Path, entry: Entry, header: Mapping, size: int = STORED_SIZE) -> Picture:
    """`header` is the file's row of the manifest, of status "image"; `size` is that of the stored picture. Raises
    Rejected, or errors of others."""
    stored, limits = _decode(root, entry, header)
    slope, intercept = header["slope"], header["intercept"]
    wrapped = (
        header["source"] == "ich"
        and header["bits_stored"] == WRAPPED_BITS
        and header["pixel_representation"] == 0
        and intercept is not None
        and intercept > WRAPPED_INTERCEPT_ABOVE
    )
    ambiguous_pixels, mended = 0, None
    if wrapped:
        ambiguous_pixels = int(((stored >= WRAPPED_FROM) & (stored < OTHER_MEND_FROM)).sum())
        mended = stored.astype(np.int16)
        mended[mended >= WRAPPED_FROM] -= 1 << WRAPPED_BITS
        intercept = 0.0
    try:
        hu, found = to_hu(stored, 1.0 if slope is None else slope, intercept or 0.0, limits, mended)
        picture = to_stored(hu, size)
    except Unusable as error:
        raise Rejected(error.reason) from None
    except ValueError:
        raise Rejected("values not finite") from None
    found |= set(header["flags"].split(",")) - {""}
    unsure = slope is None or intercept is None or header_pass.UNSPECIFIED in found
    if unsure and found & {"no air", *PADDING_FLAGS}:  # 0 may stand for air then, not for water
        raise Rejected("not in HU")
    fingerprint, spread = _print(hu)
    flags = {
        "no slope": slope is None,
        "no intercept": intercept is None,
        "wrapped 12 bit": wrapped,
        "monochrome1": header["photometric"] == "MONOCHROME1",  # HU are HU: not to be inverted
        "cropped": hu.shape[0] != hu.shape[1],
        "upsampled": min(hu.shape) < size,
        "lossy": SYNTAXES[header["transfer_syntax"]].lossy,
        "nearly constant": spread < NEARLY_CONSTANT_HU,
    }
    found |= {flag for flag, is_set in flags.items() if is_set}
    return Picture(picture, tuple(sorted(found)), ambiguous_pixels, fingerprint)


def _decode(root: Path, entry: Entry, header: Mapping) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Stored values [R, C], and which of them are padding."""
    try:
        file = open_entry(root, entry)
    except Exception as error:  # zipfile raises six kinds
        if not is_of_the_file(error):
            raise
        raise Rejected("damaged zip" if entry.member else "unreadable") from None
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote the text of tags
        try:
            dataset, _ = read_dataset(file, with_pixels=True, size=entry.size)
            limits = padding(dataset)
        except Exception as error:  # a damaged header makes pydicom raise nearly anything
            if not is_of_the_file(error):
                raise
            raise Rejected(header_pass.reason_of(error)) from None
        try:
            return stored_values(dataset), limits
        except MemoryError:
            raise
        except Unusable as error:
            raise Rejected(error.reason) from None
        except Exception:  # decoders raise what they like; their messages stay here
            raise Rejected("damaged stream") from None


def _print(hu: np.ndarray) -> tuple[str, float]:
    """The digest of the clipped HU and their standard deviation. Overwrites `hu`."""
    np.rint(np.clip(hu, HU_MIN, HU_MAX, out=hu), out=hu)
    digest = hashlib.blake2b(f"{hu.shape[0]} x {hu.shape[1]}:".encode(), digest_size=16)
    digest.update(hu.astype("<i2"))
    return digest.hexdigest(), float(hu.std())

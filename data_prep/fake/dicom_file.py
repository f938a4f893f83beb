"""One DICOM slice as bytes, in any transfer syntax that pydicom or GDCM can write without loss."""

import io
from pathlib import Path

import gdcm
import numpy as np
import pydicom
from pydicom import config, uid
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

SYNTAXES = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "jpeg lossless 57": uid.JPEGLossless,
    "jpeg lossless 70": uid.JPEGLosslessSV1,
    "jpeg-ls": uid.JPEGLSLossless,
    "jpeg 2000": uid.JPEG2000Lossless,
    "rle": uid.RLELossless,
}

DEFAULTS = {
    "Modality": "CT",
    "PatientID": "ID_00000001",
    "StudyInstanceUID": "1.2.3",
    "SeriesInstanceUID": "1.2.3.4",
    "SOPInstanceUID": "1.2.3.4.5",
    "ImagePositionPatient": [0, 0, 0],
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "PixelSpacing": [0.5, 0.5],
    "RescaleSlope": 1,
    "RescaleIntercept": -1024,
}


def write_slice(path: Path, stored: np.ndarray, syntax: str = "explicit", **tags) -> Path:
    """`slice_bytes` into a file."""
    path.write_bytes(slice_bytes(stored, syntax, **tags))
    return path


def slice_bytes(stored: np.ndarray, syntax: str = "explicit", **tags) -> bytes:
    """A DICOM file that holds `stored` [R, C] uint16 or int16; `syntax` is one of SYNTAXES.

    `tags` by keyword replace or, where None, remove what DEFAULTS and the pixels say. No value is validated, since
    real archives hold UIDs that are none.
    """
    if syntax not in SYNTAXES:
        raise ValueError(f"`syntax` must be one of {', '.join(SYNTAXES)}; found {syntax!r}")
    if stored.ndim != 2 or stored.dtype not in (np.uint16, np.int16):
        raise ValueError(f"`stored` must be [R, C] of uint16 or int16; found {stored.dtype} {list(stored.shape)}")
    bits = tags.get("BitsStored", 16)
    header = {
        **DEFAULTS,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "BitsAllocated": 16,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        **tags,
    }
    if "PixelData" not in tags:
        header["PixelData"] = _pixel_data(stored, bits, SYNTAXES[syntax])
    return dataset_bytes(header, syntax)


def dataset_bytes(header: dict, syntax: str = "explicit", sop_class: str = uid.CTImageStorage) -> bytes:
    """A DICOM file of the tags in `header` that are not None."""
    file = io.BytesIO()
    with config.disable_value_validation():
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = SYNTAXES[syntax]
        meta.MediaStorageSOPClassUID = sop_class
        meta.MediaStorageSOPInstanceUID = header.get("SOPInstanceUID") or "1.2.3.4.5"
        dataset = FileDataset("", {}, preamble=bytes(128), file_meta=meta)
        for keyword, value in header.items():
            if keyword == "PixelData" and value is not None:
                dataset.add_new(keyword, "OW", value)
                dataset["PixelData"].is_undefined_length = SYNTAXES[syntax].is_encapsulated
            elif value is not None:
                setattr(dataset, keyword, value)
        pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def _pixel_data(stored: np.ndarray, bits: int, syntax: uid.UID) -> bytes:
    if syntax.is_encapsulated:
        return encapsulate([encode(stored, bits, syntax)])
    return stored.astype(stored.dtype.newbyteorder("<" if syntax.is_little_endian else ">")).tobytes()


def encode(stored: np.ndarray, bits: int, syntax: uid.UID) -> bytes:
    """The compressed stream of one frame, by GDCM."""
    writer = gdcm.ImageWriter()  # it owns the image: keep it in scope
    image = writer.GetImage()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((stored.shape[1], stored.shape[0], 1))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ImplicitVRLittleEndian))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, bits, bits - 1, int(stored.dtype.kind == "i")))
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetByteStringValue(stored.astype(stored.dtype.newbyteorder("<")).tobytes())
    image.SetDataElement(element)
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(image)
    if not change.Change():
        raise RuntimeError(f"GDCM cannot write {syntax.name}")
    fragments = change.GetOutput().GetDataElement().GetSequenceOfFragments()
    if fragments.GetNumberOfFragments() != 1:
        raise RuntimeError(f"expected one fragment, found {fragments.GetNumberOfFragments()}")
    # GDCM hands bytes out as str
    return fragments.GetFragment(0).GetByteValue().GetBuffer().encode("utf-8", "surrogateescape")

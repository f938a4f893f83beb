"""Why a file is not in the store: every reason there is, and what to do about those that count as bad."""

from typing import NamedTuple

_FETCH = "fetch the file again"
_UNPACK = "unpack the zip and name the folder"
_EXPORT = "export the series again as one uncompressed or losslessly compressed file per slice"
_HEADER = "correct the header, or take the file out of the archive"
_OUT = "take the file out of the archive"

REJECTED = {
    # The file.
    "empty file": _FETCH,
    "unreadable": "give yourself the right to read it, or mend the disk",
    "broken link": "fetch what it points to (git annex get, for instance), or remove it",
    "path too long": "move it to a shorter path",
    "unreadable folder": "give yourself the right to read it: nothing is known of what is in it",
    "truncated file": _FETCH,
    "not DICOM": "fetch it again if it is an error page or a placeholder (of git lfs, say); otherwise take it out",
    "damaged header": _FETCH,
    "header too long": "take out the private elements that fill it, or the file",
    "larger than any slice": _EXPORT,
    "damaged zip": "fetch the zip again",
    "empty zip": "fetch the zip again",
    "encrypted zip": _UNPACK,
    "zip method that is not known": _UNPACK,
    "zip inside a zip": "unpack the outer zip",
    "zip under another name": "let its name end in .zip",
    "zip entry leaves its folder": _UNPACK + ", if you trust where it comes from",
    "zip entry again": _UNPACK + ": of two entries with one name only the last can be read",
    "symlink loop": "remove the link",
    "not a regular file": _OUT,
    "file name is not text": "rename it: its name is not UTF-8",
    "kills the decoder": _FETCH + "; if it is the same, take it out",
    # Whose it is.
    "no patient": "write PatientID (0010,0020), one for each person",
    "patient of another collection": "name its folder with the option of its own collection",
    "SOP instance of another patient": "give every slice a SOPInstanceUID (0008,0018) of its own",
    "no modality": "write Modality (0008,0060)",
    # The kind of image.
    "multi-frame": "split it into one file per slice (dcm4che's emf2sf, or the scanner's classic export)",
    "colour": "take it out: colour holds no HU",
    "no pixel data": _FETCH,
    "incomplete image header": _HEADER,
    "implausible size": _HEADER,
    "unsupported bits": _EXPORT,
    "unsupported transfer syntax": _EXPORT,
    "pixel data and transfer syntax disagree": _EXPORT,
    "modality LUT": _EXPORT + ", with slope and intercept",
    "implausible slope or intercept": _HEADER,
    "not in HU": "export it in HU: RescaleType (0028,1054) HU, with slope and intercept",
    # The pixels.
    "short pixel data": _FETCH,
    "surplus pixel data": _EXPORT,
    "damaged stream": _FETCH,
    "values outside the bits stored": "correct BitsStored (0028,0101), or export the series again",
    "values beyond any tissue": "correct PixelRepresentation, PixelPaddingValue or the rescale, or take the file out",
    "values not finite": _HEADER,
    "picture of many patients": "take it out: a test pattern or a page, no patient's slice",
}
"""Of images that cannot be used: reason -> remedy."""

# Modality (0008,0060) of what lies beside CT images and is none. Any other modality becomes "another modality".
MODALITIES = ("RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "RTIMAGE", "SEG", "REG", "SR", "PR", "KO", "MR", "PT")
DERIVED, NOT_AXIAL = "derived picture", "not axial"


class Kind(NamedTuple):
    """How a file that is no DICOM is known: by the end or the whole of its name, or by its first bytes."""

    suffixes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # without suffix
    starts: tuple[bytes, ...] = ()


SIDE_KINDS = {
    "system": Kind(
        names=(".ds_store", ".apdisk", "desktop.ini", "thumbs.db", "autorun.inf"), suffixes=(".lnk", ".url")
    ),
    "table": Kind((".csv", ".tsv", ".xls", ".xlsx", ".ods", ".parquet", ".sqlite", ".db")),
    "text": Kind(
        (".txt", ".md", ".rst", ".json", ".jsonl", ".xml", ".html", ".htm", ".log", ".yaml", ".yml", ".ini", ".tcia"),
        ("license", "licence", "readme", "notes", "notice", "changelog", "copying", "authors"),
    ),
    "checksums": Kind((".md5", ".sha1", ".sha256", ".sha512"), ("md5sums", "sha1sums", "sha256sums", "checksums")),
    "document": Kind((".pdf", ".doc", ".docx", ".rtf", ".ppt", ".pptx", ".odt"), starts=(b"%PDF-", b"{\\rtf")),
    "picture": Kind(
        (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".svg", ".webp", ".ico"),
        starts=(b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*"),
    ),
    "video": Kind((".avi", ".mp4", ".mov", ".mpg", ".wmv", ".mkv")),
    "volume": Kind((".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".npy", ".npz", ".h5", ".hdf5")),
    "program": Kind((".py", ".ipynb", ".sh", ".bat", ".exe", ".dll", ".so", ".jar", ".js", ".css", ".m", ".r")),
    "archive": Kind(
        (".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".iso"),
        starts=(b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c", b"Rar!"),
    ),
    "zip": Kind((".zip",), starts=(b"PK\x03\x04",)),
}
"""The first kind that fits counts, names before first bytes. A zip is none: the listing opens it, unless it cannot."""

ARCHIVE, ZIP = "side file: archive", "side file: zip"
OTHER = (
    *MODALITIES,
    *("another modality", "another kind of object", "DICOMDIR", "localizer", "secondary capture", DERIVED, NOT_AXIAL),
    *(f"side file: {kind}" for kind in SIDE_KINDS if kind != "zip"),
)
"""What is by nature no CT slice."""


def side_file(path: str, start: bytes) -> str:
    """The reason of OTHER for a file that is no DICOM, "" where neither its name nor its first bytes explain it."""
    *folders, name = path.replace("\\", "/").lower().split("/")
    if name.startswith("._") or "__macosx" in folders:  # what macOS adds on other file systems and to zips
        return "side file: system"
    by_name = (kind for kind, known in SIDE_KINDS.items() if name.endswith(known.suffixes) or name in known.names)
    by_content = (kind for kind, known in SIDE_KINDS.items() if start.startswith(known.starts))
    kind = next(by_name, None) or next(by_content, None)
    return f"side file: {kind}" if kind else ""

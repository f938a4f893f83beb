"""Made CT archives, like RSNA ICH, RSNA cervical spine and RADCURE on a disk, for tests, benchmarks and dry runs."""

from fake.counts import Counts
from fake.cspine import write_cspine
from fake.defects import write_defects
from fake.dicom_file import SYNTAXES, slice_bytes, write_slice
from fake.ich import write_ich
from fake.phantom import Head
from fake.radcure import write_radcure

__all__ = [
    "SYNTAXES",
    "Counts",
    "Head",
    "slice_bytes",
    "write_cspine",
    "write_defects",
    "write_ich",
    "write_radcure",
    "write_slice",
]

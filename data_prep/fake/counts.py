"""What an archive was made to hold, so that a reader's answer can be compared with it."""

from collections import Counter
from dataclasses import asdict, dataclass, field


@dataclass
class Counts:
    """`images` are CT slices to be stored, `flags` what is odd about some of them.

    `others` counts the rest by the reason why it is no CT image. `twins` are slices whose pixels another patient has
    as well: two slices with equal pixels are one twin.
    """

    images: int = 0
    patients: int = 0
    zips: int = 0
    twins: int = 0
    others: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)

    @property
    def files(self) -> int:
        """Plain files and, in the place of each zip, the files inside."""
        return self.images + self.others.total()

    def note_image(self, shape: tuple[int, int], wrapped=False) -> None:
        self.images += 1
        self.flags["wrapped 12 bit"] += wrapped
        self.flags["cropped"] += shape[0] != shape[1]
        self.flags["upsampled"] += min(shape) < 256

    def as_dict(self) -> dict:
        return {
            "files": self.files,
            **asdict(self),
            "others": dict(+self.others),
            "flags": dict(+self.flags),
        }

"""What every dataset hands to the engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from gcond.data.intensity import Intensity


class ImageSet(Protocol):
    """Raw images of one split: [C, S, S] of an integer dtype (uint8 photographs, int16 CT as HU + 1024)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets of raw images and the one way to normalise them.

    `title` is what a table calls the dataset. `checksum` (JSON-able) is that of its images, as `data.checksums` has it;
    `missing_packages` names sources that a store was made without. `shows_patients` says that the images are of
    patients, who may be recognisable (heads show faces): they are drawn on request only.

    `groups` names, per split (train, val, test), what each image belongs to: its patient or its class; None where that
    is not known. `body_above` is the raw value above which a pixel of a CT shows the body; None for photographs.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet
    intensity: Intensity
    title: str
    checksum: str | dict[str, str]
    missing_packages: Sequence[str] = ()
    shows_patients: bool = False
    groups: dict[str, list[str]] | None = None
    body_above: int | None = None

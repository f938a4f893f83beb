"""What the task "class" is to tell of an image: by how much it was turned, or the class that the data set gives it.

B batch, C channels, S image size, n images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from omegaconf import DictConfig
from torch import Tensor

from gcond.data.splits import ImageSet
from gcond.engine.seeding import generator

SOURCES = ("rotation", "dataset")
TURNS = 4  # by 0, 90, 180 and 270 degrees
CLASSES = {"imagenet256": 1000, "imagenet84": 100}
"""Of data sets that have labels, where a plan is made without reading them."""
EVALUATION_SEED = 0  # of every run's validation and test turns, whatever its own seed


class Labelling(Protocol):
    classes: int

    def drawn(self, raw: Tensor, indices: Sequence[int], draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Training images [B, C, S, S] with their indices -> the images to show, and their labels, long [B]."""

    def fixed(self, images: ImageSet, split: str, indices: Sequence[int]) -> tuple[ImageSet, Tensor]:
        """The evaluation images to show, and the labels of those at `indices`, long [n]: the same in every run."""


class Turns:
    """Rotation prediction (Gidaris et al. 2018, arXiv:1803.07728): an image turned by k x 90 degrees has label k.

    Its stand-in for a class where a data set has none. All tasks see the turned image.
    """

    classes = TURNS

    def drawn(self, raw: Tensor, indices: Sequence[int], draw: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(TURNS, (len(raw),), generator=draw)
        return torch.stack([turned(image, k) for image, k in zip(raw, labels.tolist(), strict=True)]), labels

    def fixed(self, images: ImageSet, split: str, indices: Sequence[int]) -> tuple[ImageSet, Tensor]:
        return Turned(images), torch.tensor([turns_of(index) for index in indices], dtype=torch.long)


class Turned:
    """Every image turned by as much as its index says."""

    def __init__(self, images: ImageSet) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return turned(self._images[index], turns_of(index))


class Given:
    """The data set's own classes by name, split -> n names; numbered in the order of the names of training images.

    Raises ValueError for a class that no training image has.
    """

    def __init__(self, names: Mapping[str, Sequence[str]]) -> None:
        number = {name: place for place, name in enumerate(sorted(set(names["train"])))}
        if unknown := sorted({name for own in names.values() for name in own} - set(number)):
            raise ValueError(f"`loss.labels`: expected classes of training images, found also {', '.join(unknown[:5])}")
        self.classes = len(number)
        self._labels = {split: torch.tensor([number[name] for name in own]) for split, own in names.items()}

    def drawn(self, raw: Tensor, indices: Sequence[int], draw: torch.Generator) -> tuple[Tensor, Tensor]:
        return raw, self._labels["train"][list(indices)]

    def fixed(self, images: ImageSet, split: str, indices: Sequence[int]) -> tuple[ImageSet, Tensor]:
        return images, self._labels[split][list(indices)]


def turned(image: Tensor, k: int) -> Tensor:
    """[C, S, S], by k x 90 degrees, counter-clockwise."""
    return torch.rot90(image, k, (1, 2)).contiguous()


def turns_of(index: int) -> int:
    return int(torch.randint(TURNS, (), generator=generator(EVALUATION_SEED, "turn", index)))


def kind_of(loss: DictConfig) -> str | None:
    """The config's choice, None where no task needs labels. Raises ValueError for an unknown one."""
    kind = loss.get("labels")
    if kind is not None and kind not in SOURCES:
        raise ValueError(f"`loss.labels`: expected one of {', '.join(SOURCES)}, found {kind!r}")
    return kind


def labelling_of(cfg: DictConfig) -> Labelling | None:
    """None where no task needs labels. Raises ValueError where the data set has none and is asked for them."""
    kind = kind_of(cfg.loss)
    if kind != "dataset":
        return Turns() if kind else None
    from gcond.data import imagenet256  # here, since pyarrow takes a while to import

    names = imagenet256.labels(cfg.dataset.root) if cfg.dataset.name in CLASSES else None
    if names is None:
        raise without_labels(cfg.dataset.name)
    return Given(names)


def planned_classes(cfg: DictConfig) -> int | None:
    """Of the model that a run of `cfg` trains, before its data are read. Raises ValueError where that is not known."""
    kind = kind_of(cfg.loss)
    if kind != "dataset":
        return TURNS if kind else None
    if cfg.dataset.name not in CLASSES:
        raise without_labels(cfg.dataset.name)
    return CLASSES[cfg.dataset.name]


def without_labels(dataset: str) -> ValueError:
    return ValueError(
        f"`loss.labels`: expected rotation, since {dataset} has no labels, found dataset (ImageNet-256 has them: a "
        "`label` column of its Parquet files, or a folder per class)"
    )

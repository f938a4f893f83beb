"""The stream of micro-batches: common random numbers for all strategies of one seed, transfer to a GPU, and labels.

B micro-batch, C channels, S image size, N patches, H hidden patches, n images.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.functional import binary_cross_entropy
from torch.utils.data import DataLoader

from gcond.data.intensity import Intensity
from gcond.data.splits import ImageSet
from gcond.engine.process import leave_to_the_parent, signals_held_back
from gcond.model.masking import draw_hidden

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """z-normalised images [B, C, S, S], the indices of their hidden patches [B, H], and labels where there are: [B] of
    classes or [B, k] of findings."""

    images: Tensor
    hidden: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True)
class TrainingImages:
    """What micro-batches are drawn from, and how: B images each, N patches of which a share `mask_ratio` is hidden."""

    images: ImageSet
    intensity: Intensity
    micro_batch: int
    patches: int
    mask_ratio: float
    seed: int
    device: torch.device
    workers: int = 0
    labelling: Labelling | None = None

    def __post_init__(self) -> None:
        if self.micro_batch > len(self.images):
            raise ValueError(
                f"`micro_batch`: expected at most the {len(self.images)} training images, found {self.micro_batch}"
            )


class MicroBatches:
    """Endless micro-batches from `position` on. Order and masks depend on the seed and the position alone.

    The images come in one shuffled pass after the other; a micro-batch may span two passes. Of every `window`
    micro-batches only the places in `share` are given out: those of this process, among several.

    On a GPU the next micro-batch is copied ahead, as raw integers.
    """

    def __init__(self, source: TrainingImages, position: int = 0, window: int = 1, share: Sequence[int] = (0,)) -> None:
        self._source, self._start, self._window, self._share, self._given = source, position, window, share, 0
        size, device = source.micro_batch, source.device
        ordered, indices = itertools.tee(order(len(source.images), size, source.seed, self._position))
        raw = read(
            source.images,
            source.workers,
            batch_sampler=ordered,  # workers read ahead in it
            pin_memory=device.type == "cuda",
            persistent_workers=source.workers > 0,
        )
        self._ahead = ahead(map(self._masked, itertools.count(), indices, raw), transfer_to(device))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        raw, *rest = next(self._ahead)
        self._given += 1
        return Batch(self._source.intensity.normalise(raw), *rest)

    def close(self) -> None:
        """End the workers; else a process that leaves with an exception, which still holds them, waits for them."""
        self._ahead.close()

    def _masked(self, count: int, indices: Sequence[int], raw: Tensor) -> tuple[Tensor, ...]:
        """This process's micro-batch number `count`, all parts still on the CPU."""
        source, position = self._source, self._position(count)
        hidden = draw_hidden(len(raw), source.patches, source.mask_ratio, generator(source.seed, "mask", position))
        if source.labelling is None:
            return raw, hidden
        shown, labels = source.labelling.drawn(raw, indices, generator(source.seed, "labels", position))
        return shown, hidden, labels

    @property
    def position(self) -> int:
        """Micro-batches that all processes have taken together, after whole windows."""
        return self._start + self._given * self._window // len(self._share)

    def _position(self, count: int) -> int:
        """The place in the stream of this process's micro-batch number `count`."""
        windows, place = divmod(count, len(self._share))
        return self._start + windows * self._window + self._share[place]


def read(images: ImageSet, workers: int, generator: torch.Generator | None = None, **how: Any) -> Iterator[Tensor]:
    """Raw images in batches, as `DataLoader` reads them with the options `how`; workers leave signals to this process.

    Nothing is drawn from PyTorch's own generator.
    """
    own = generator or torch.Generator()
    loader: Any = DataLoader(
        images,  # type: ignore[arg-type]
        num_workers=workers,
        worker_init_fn=leave_to_the_parent,
        generator=own,
        **how,
    )
    with signals_held_back():
        return iter(loader)


def order(images: int, size: int, seed: int, position: Callable[[int], int]) -> Iterator[list[int]]:
    """Endless lists of `size` image indices: those of the micro-batches at position(0), position(1), …"""
    known = -1  # the pass over all images that `permutation` is of
    permutation: list[int] = []
    for count in itertools.count():
        indices = []
        start = position(count) * size
        for number in range(start, start + size):
            epoch, place = divmod(number, images)
            if epoch != known:
                known = epoch
                permutation = torch.randperm(images, generator=generator(seed, "order", epoch)).tolist()
            indices.append(permutation[place])
        yield indices


Tensors = tuple[Tensor, ...]


class SideStream:
    """Copies on a CUDA stream of their own, out of pinned memory: beside what computes, not in its queue."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def start(self, tensors: Tensors) -> Tensors:
        """Queue copies to the device and return them; the host does not wait."""
        with torch.cuda.stream(self._stream):
            pinned = (tensor if tensor.is_pinned() else tensor.pin_memory() for tensor in tensors)
            return tuple(tensor.to(self._device, non_blocking=True) for tensor in pinned)

    def finish(self, copies: Tensors) -> None:
        """Nothing that is queued from now on reads `copies` before they are complete."""
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        for copy in copies:
            copy.record_stream(computing)  # else its memory could be written anew as soon as Python lets go of it


def transfer_to(device: torch.device) -> SideStream | None:
    """None for the CPU, where there is nothing to transfer."""
    return SideStream(device) if device.type == "cuda" else None


def ahead(source: Iterable[Tensors], transfer: SideStream | None) -> Generator[Tensors, None, None]:
    """The items of `source`, each on the device, in their order; the transfer of one is under way ahead of its turn.

    Without a transfer the items are given as they are, and none is taken before its turn.
    """
    if transfer is None:
        yield from source
        return
    under_way: Tensors | None = None
    for item in source:
        if under_way is not None:
            transfer.finish(under_way)  # before the next copy, which this one's readers need not wait for
        given, under_way = under_way, transfer.start(item)
        if given is not None:
            yield given
    if under_way is not None:
        transfer.finish(under_way)
        yield under_way


TURNS = 4  # by 0, 90, 180 and 270 degrees
LOGIT, TRUTH = "logit", "truth"  # of a finding: measures "logit/any" and "truth/any" of an image
CHANNELS = {"ct": 1, "headneck": 1, "ich": 1, "photos": 3, "imagenet256": 3, "imagenet84": 3}
CLASSES = {"imagenet256": 1000, "imagenet84": 100, "ich": 6}
"""Of data sets, where a plan is made without reading them."""
EVALUATION_SEED = 0  # of every run's validation and test turns, whatever its own seed


class Labelling(ABC):
    """Where labels come from. `classes`: the model's logits; `measures`: what `evaluate` adds to the losses."""

    classes: int
    measures: tuple[str, ...] = ("top1",)

    @abstractmethod
    def drawn(self, raw: Tensor, indices: Sequence[int], draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Training images [B, C, S, S] with their indices -> the images to show, and their labels."""

    @abstractmethod
    def fixed(self, images: ImageSet, split: str) -> tuple[ImageSet, Tensor]:
        """The evaluation images to show, and their labels: the same in every run."""

    def by_chance(self, labels: Tensor) -> dict[str, float]:
        """What guessing gives on images of these labels."""
        return {"class": math.log(self.classes)} | {name: int(name[3:]) / self.classes for name in self.measures}


class Turns(Labelling):
    """Rotation prediction (Gidaris et al. 2018, arXiv:1803.07728): an image turned by k x 90 degrees has label k.

    Stands in for labels where a data set has none. All tasks see the turned image.
    """

    classes = TURNS

    def drawn(self, raw: Tensor, indices: Sequence[int], draw: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(TURNS, (len(raw),), generator=draw)
        return torch.stack([turned(image, k) for image, k in zip(raw, labels.tolist(), strict=True)]), labels

    def fixed(self, images: ImageSet, split: str) -> tuple[ImageSet, Tensor]:
        return Turned(images), torch.tensor([turns_of(index) for index in range(len(images))], dtype=torch.long)


@dataclass(frozen=True)
class Turned:
    """Every image turned by as much as its index says."""

    _images: ImageSet

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return turned(self._images[index], turns_of(index))


class Given(Labelling):
    """The data set's own classes by name, split -> n names; numbered in the order of the names of training images.

    Raises ValueError for a class that no training image has.
    """

    def __init__(self, names: Mapping[str, Sequence[str]]) -> None:
        number = {name: place for place, name in enumerate(sorted(set(names["train"])))}
        if unknown := sorted({name for own in names.values() for name in own} - set(number)):
            raise ValueError(f"`loss.labels`: expected classes of training images, found also {', '.join(unknown[:5])}")
        self.classes = len(number)
        self.measures = ("top1", "top5") if self.classes > 5 else ("top1",)
        self._labels = {split: torch.tensor([number[name] for name in own]) for split, own in names.items()}

    def drawn(self, raw: Tensor, indices: Sequence[int], draw: torch.Generator) -> tuple[Tensor, Tensor]:
        return raw, self._labels["train"][list(indices)]

    def fixed(self, images: ImageSet, split: str) -> tuple[ImageSet, Tensor]:
        return images, self._labels[split]


class Findings(Given):
    """The data set's own findings, any number of `names` an image: split -> float [n, k] of 0 and 1."""

    def __init__(self, names: Sequence[str], labels: Mapping[str, Tensor]) -> None:
        self.classes, self._labels = len(names), labels
        self.measures = tuple(f"{part}/{name}" for part in (LOGIT, TRUTH) for name in names)

    def by_chance(self, labels: Tensor) -> dict[str, float]:
        """Of answering each finding's share among the training images, one image with and one without added to them."""
        shares = ((self._labels["train"].sum(0) + 1) / (len(self._labels["train"]) + 2)).expand_as(labels)
        return {"class": float(binary_cross_entropy(shares, labels)), "auc": 0.5}


def turned(image: Tensor, k: int) -> Tensor:
    """[C, S, S], by k x 90 degrees, counter-clockwise."""
    return torch.rot90(image, k, (1, 2)).contiguous()


def turns_of(index: int) -> int:
    return int(torch.randint(TURNS, (), generator=generator(EVALUATION_SEED, "turn", index)))


def labelling_of(cfg: DictConfig) -> Labelling | None:
    """None where no task needs labels. Raises ValueError where the data set has none and is asked for them."""
    if (kind := cfg.loss.get("labels")) != "dataset":
        return Turns() if kind else None
    from gcond.data import ct, imagenet256, store  # here, since pyarrow takes a while to import

    if cfg.dataset.get("labelled"):
        return Findings(store.LABELS, ct.labels(cfg.dataset.root))
    photographs = cfg.dataset._target_ == "gcond.data.imagenet256.load"
    return Given(_known(imagenet256.labels(cfg.dataset.root) if photographs else None, cfg))


def planned_shape(cfg: DictConfig) -> dict[str, int | None]:
    """Channels and classes of the model that a run of `cfg` trains, before its data are read.

    Raises ValueError where they are not known.
    """
    name, kind = cfg.dataset.name, cfg.loss.get("labels")
    if name not in CHANNELS:
        raise ValueError(
            f"`dataset`: expected one of {', '.join(CHANNELS)}, whose channels are known here, found {name}; add it to "
            "gcond.engine.batches.CHANNELS"
        )
    classes = TURNS if kind else None
    return {"channels": CHANNELS[name], "classes": _known(CLASSES.get(name), cfg) if kind == "dataset" else classes}


def _known(labels: T | None, cfg: DictConfig) -> T:
    if labels is None:
        raise ValueError(
            f"`loss.labels`: expected rotation, since {cfg.dataset.name} has no labels, found dataset. Photographs "
            "have them in the column `label` of their Parquet files, or a folder per class (dataset=imagenet84 or "
            "imagenet256); CT in RSNA ICH's stage_2_train.csv (dataset=ich)"
        )
    return labels


def subseed(seed: int, *names: str | int) -> int:
    """A seed for the component `names`, the same on every machine and unrelated between components."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(subseed(seed, *names))


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Seed PyTorch's global generator inside, for code that draws from it (weight initialisation); restore it after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subseed(seed, *names))
        yield

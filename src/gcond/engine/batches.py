"""The stream of micro-batches: common random numbers for all strategies of one seed.

B micro-batch, C channels, S image size, N patches, H hidden patches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from gcond.data.intensity import Intensity
from gcond.data.splits import ImageSet
from gcond.engine.interrupt import leave_to_the_parent, signals_held_back
from gcond.engine.labels import Labelling
from gcond.engine.prefetch import Ahead, transfer_to
from gcond.engine.seeding import generator
from gcond.model.masking import draw_hidden


@dataclass(frozen=True)
class Batch:
    """z-normalised images [B, C, S, S], the indices of their hidden patches [B, H], and labels [B] where there are."""

    images: Tensor
    hidden: Tensor
    labels: Tensor | None = None


class MicroBatches:
    """Endless micro-batches from `position` on. Order and masks depend on the seed and the position alone.

    The images come in one shuffled pass after the other; a micro-batch may span two passes. Of every `window`
    micro-batches only the places in `share` are given out: those of this process, among several.

    On a GPU the raw integers of one micro-batch more than given out are there already, or on their way.
    """

    def __init__(
        self,
        images: ImageSet,
        intensity: Intensity,
        size: int,
        patches: int,
        mask_ratio: float,
        seed: int,
        device: torch.device,
        workers: int = 0,
        position: int = 0,
        window: int = 1,
        share: Sequence[int] = (0,),
        labelling: Labelling | None = None,
    ) -> None:
        if size > len(images):
            raise ValueError(f"`micro_batch`: expected at most the {len(images)} training images, found {size}")
        self._start, self._window, self._share, self._given = position, window, share, 0
        self._intensity = intensity
        self._patches, self._mask_ratio, self._seed, self._labelling = patches, mask_ratio, seed, labelling
        order, indices = itertools.tee(Order(len(images), size, seed, self._position))  # workers read ahead in one
        loader: DataLoader[Tensor] = DataLoader(
            images,  # type: ignore[arg-type]
            batch_sampler=order,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=leave_to_the_parent,
        )
        with signals_held_back():
            raw: Iterator[Tensor] = iter(loader)
        self._ahead = Ahead(map(self._masked, itertools.count(), indices, raw), transfer_to(device))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        raw, *rest = next(self._ahead)
        self._given += 1
        return Batch(self._intensity.normalise(raw), *rest)

    def close(self) -> None:
        """End the workers; else a process that leaves with an exception, which still holds them, waits for them."""
        self._ahead = Ahead(iter(()), None)

    def _masked(self, count: int, indices: Sequence[int], raw: Tensor) -> tuple[Tensor, ...]:
        """This process's micro-batch number `count`, all parts still on the CPU."""
        masks = generator(self._seed, "mask", self._position(count))
        hidden = draw_hidden(len(raw), self._patches, self._mask_ratio, masks)
        if self._labelling is None:
            return raw, hidden
        shown, labels = self._labelling.drawn(raw, indices, generator(self._seed, "labels", self._position(count)))
        return shown, hidden, labels

    @property
    def position(self) -> int:
        """Micro-batches that all processes have taken together, after whole windows."""
        return self._start + self._given * self._window // len(self._share)

    def _position(self, count: int) -> int:
        """The place in the stream of this process's micro-batch number `count`."""
        windows, place = divmod(count, len(self._share))
        return self._start + windows * self._window + self._share[place]


class Order:
    """Endless lists of `size` image indices: those of the micro-batches at position(0), position(1), …"""

    def __init__(self, images: int, size: int, seed: int, position: Callable[[int], int]) -> None:
        self._images, self._size, self._seed, self._position = images, size, seed, position
        self._epoch = -1  # the pass that `_permutation` belongs to
        self._permutation: list[int] = []

    def __iter__(self) -> Iterator[list[int]]:
        for count in itertools.count():
            start = self._position(count) * self._size
            yield [self._index(number) for number in range(start, start + self._size)]

    def _index(self, number: int) -> int:
        epoch, place = divmod(number, self._images)
        if self._epoch != epoch:
            self._epoch = epoch
            self._permutation = torch.randperm(self._images, generator=generator(self._seed, "order", epoch)).tolist()
        return self._permutation[place]

"""The stream of micro-batches: common random numbers for all strategies of one seed.

B micro-batch, C channels, S image size, N patches, H hidden patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from gcond.data.intensity import Intensity
from gcond.data.splits import ImageSet
from gcond.engine.seeding import generator
from gcond.model.masking import draw_hidden


@dataclass(frozen=True)
class Batch:
    """z-normalised images [B, C, S, S] and the indices of their hidden patches [B, H]."""

    images: Tensor
    hidden: Tensor


class MicroBatches:
    """Endless micro-batches from `position` on. Order and masks depend on the seed and the position alone.

    The images come in one shuffled pass after the other; a micro-batch may span two passes.
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
    ) -> None:
        if size > len(images):
            raise ValueError(f"`micro_batch`: expected at most the {len(images)} training images, found {size}")
        self.position = position
        self._intensity = intensity
        self._patches, self._mask_ratio, self._seed, self._device = patches, mask_ratio, seed, device
        order = Order(len(images), size, seed, position)
        loader: DataLoader[Tensor] = DataLoader(
            images,  # type: ignore[arg-type]
            batch_sampler=order,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
        )
        self._raw = iter(loader)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        raw = next(self._raw).to(self._device, non_blocking=True)
        masks = generator(self._seed, "mask", self.position)
        hidden = draw_hidden(len(raw), self._patches, self._mask_ratio, masks)
        self.position += 1
        return Batch(self._intensity.normalise(raw), hidden.to(self._device, non_blocking=True))


class Order:
    """Endless lists of `size` image indices, from micro-batch `position` on."""

    def __init__(self, images: int, size: int, seed: int, position: int) -> None:
        self._images, self._size, self._seed, self._position = images, size, seed, position
        self._epoch = -1  # the pass that `_permutation` belongs to
        self._permutation: list[int] = []

    def __iter__(self) -> Iterator[list[int]]:
        position = self._position
        while True:
            start = position * self._size
            yield [self._index(number) for number in range(start, start + self._size)]
            position += 1

    def _index(self, number: int) -> int:
        epoch, place = divmod(number, self._images)
        if self._epoch != epoch:
            self._epoch = epoch
            self._permutation = torch.randperm(self._images, generator=generator(self._seed, "order", epoch)).tolist()
        return self._permutation[place]

"""The next micro-batch on its way to a GPU while the one before computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


class Transfer(Protocol):
    def start(self, tensors: Tensors) -> Tensors:
        """Queue copies to the device and return them; the host does not wait."""

    def finish(self, copies: Tensors) -> None:
        """Nothing that is queued from now on reads `copies` before they are complete."""


class SideStream:
    """Copies on a CUDA stream of their own, out of pinned memory: beside what computes, not in its queue."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def start(self, tensors: Tensors) -> Tensors:
        with torch.cuda.stream(self._stream):
            return tuple(_pinned(tensor).to(self._device, non_blocking=True) for tensor in tensors)

    def finish(self, copies: Tensors) -> None:
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        for copy in copies:
            copy.record_stream(computing)  # else its memory could be written anew as soon as Python lets go of it


class Queue:
    """Copies in the one queue of a device that is neither a CPU nor CUDA."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self, tensors: Tensors) -> Tensors:
        return tuple(tensor.to(self._device, non_blocking=True) for tensor in tensors)

    def finish(self, copies: Tensors) -> None:
        pass


def transfer_to(device: torch.device) -> Transfer | None:
    """None for the CPU, where there is nothing to transfer."""
    if device.type == "cpu":
        return None
    return SideStream(device) if device.type == "cuda" else Queue(device)


class Ahead:
    """The items of `source`, each on the device, in their order; the transfer of one is under way ahead of its turn.

    Without a transfer the items are given as they are, and none is taken before its turn.
    """

    def __init__(self, source: Iterator[Tensors], transfer: Transfer | None) -> None:
        self._source, self._transfer = source, transfer
        self._under_way: Tensors | None = None

    def __iter__(self) -> Iterator[Tensors]:
        return self

    def __next__(self) -> Tensors:
        if self._transfer is None:
            return next(self._source)
        given = self._under_way or self._transfer.start(next(self._source))
        self._transfer.finish(given)  # before the next copy, which this one's readers need not wait for
        following = next(self._source, None)
        self._under_way = None if following is None else self._transfer.start(following)
        return given


def _pinned(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_pinned() else tensor.pin_memory()

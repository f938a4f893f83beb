"""Where each parameter lies in a flat buffer of P numbers, by name, and the way from one layout to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

T = TypeVar("T")


@dataclass(frozen=True)
class Slot:
    """A parameter's range of the buffer: `shape` and `stride` of the view that autograd and optimizers see."""

    name: str
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def view(self, flat: Tensor) -> Tensor:
        """This parameter's part of `flat` [..., P], as [..., *shape]."""
        rows = flat.shape[:-1]
        return flat.as_strided(
            (*rows, *self.shape),
            (*flat.stride()[: len(rows)], *self.stride),
            flat.storage_offset() + self.start,
        )


Layout = tuple[Slot, ...]


def layout_of(names: Sequence[str], tensors: Sequence[Tensor]) -> Layout:
    """The tensors one after the other. A dense tensor keeps its strides; one with gaps lies there contiguous."""
    starts = accumulate([tensor.numel() for tensor in tensors], initial=0)
    return tuple(
        Slot(name, start, tuple(tensor.shape), tensor.stride() if _is_dense(tensor) else _contiguous(tensor.shape))
        for name, start, tensor in zip(names, starts, tensors, strict=False)
    )


def size(layout: Layout) -> int:
    """P."""
    return sum(prod(slot.shape) for slot in layout)


def described(layout: Layout) -> list[list[Any]]:
    """The layout as lists of strings and integers, for a checkpoint."""
    return [[slot.name, list(slot.shape), list(slot.stride)] for slot in layout]


def read(description: list[list[Any]]) -> Layout:
    """What `described` describes."""
    starts = accumulate([prod(shape) for _, shape, _ in description], initial=0)
    return tuple(
        Slot(name, start, tuple(shape), tuple(stride))
        for (name, shape, stride), start in zip(description, starts, strict=False)
    )


class Move:
    """The way of numbers that outlive a step from one layout to another; a parameter that is new in it begins at 0."""

    def __init__(self, old: Layout, new: Layout, dtype: torch.dtype) -> None:
        self._old, self._new, self.dtype = old, new, dtype
        before = {slot.name: slot for slot in old}
        self._pairs = [(before[slot.name], slot) for slot in new if slot.name in before]

    def check(self) -> None:
        """Raise ValueError where a parameter has another shape than before."""
        for was, now in self._pairs:
            if was.shape != now.shape:
                raise ValueError(
                    f"`parameters`: expected {now.name} of shape {was.shape}, for which momentum or previous gradients "
                    f"are kept, found {now.shape}; build another conductor"
                )

    def numbers(self, kept: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """`kept` [..., P before] as [..., P now], in `dtype`. What `kept` lacks at its end is 0.

        Raises:
            ValueError: a parameter has another shape than before, or `dtype` holds fewer digits.
        """
        self.check()
        if dtype is not None and torch.promote_types(kept.dtype, dtype) != dtype:
            raise ValueError(
                f"`parameters`: momentum or previous gradients are kept as {kept.dtype}, which {dtype} would round; "
                "build another conductor after changing the dtype of the parameters, or set `buffer_dtype`"
            )
        kept = kept.to(dtype or kept.dtype)
        if self._old == self._new:
            return kept
        whole = pad(kept, (0, size(self._old) - kept.shape[-1]))
        moved = whole.new_zeros(*whole.shape[:-1], size(self._new))
        for was, now in self._pairs:
            now.view(moved).copy_(was.view(whole))
        return moved

    def each(self, values: Sequence[T], new: T) -> list[T]:
        """One value a parameter, as before; `new` for a parameter that is new."""
        before = {slot.name: value for slot, value in zip(self._old, values, strict=True)}
        return [before.get(slot.name, new) for slot in self._new]


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _is_dense(tensor: Tensor) -> bool:
    """Whether the strides are those of a permuted contiguous tensor, so that a flat range holds it without gaps."""
    expected = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length != 1:
            if stride != expected:
                return False
            expected *= length
    return True

"""Faults caught before a window's result is used: values that are not finite, a GradScaler used in the wrong order,
compiled graphs that serve one backward pass only, and another default device.

A graph of torch.compile lets its only backward pass write into what the forward pass has saved ("donated buffers"), and
torch refuses a second pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch._functorch.config as functorch
import torch.compiler.config
from torch.amp.grad_scaler import OptState
from torch.autograd.graph import Node

ADVICE = (
    '`forward`: a graph that torch.compile made serves one backward pass, "shared" takes one per task; expected '
    "torch._functorch.config.donated_buffer = False and, since torch's cache on disk does not tell both kinds apart, "
    'torch.compiler.config.cache_key_tag = "kept" before the model is first called outside the conductor\'s step, or '
    'forward="per_task"'
)


class NotFinite(FloatingPointError):
    """A loss or a gradient is not finite. `losses` are the window's means by task."""

    def __init__(self, message: str, losses: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        self.losses = dict(losses or {})  # optional, so that the error can be sent to another process


class GradientNotFinite(NotFinite):
    """The losses are finite, a gradient is not: with a GradScaler, an overflow."""


class Unsolved(NotFinite, RuntimeError):
    """All is finite, but the method's equations have no solution for these gradients, or its solver found none."""


@contextmanager
def host() -> Iterator[None]:
    """What is made without a device while this is open is on the CPU, whatever `torch.set_default_device` says."""
    with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
        yield


def scale_of(scaler: torch.amp.GradScaler | None, device: torch.device) -> float | None:
    """The factor on a window's losses; None without a scaler, or with one that is not enabled."""
    if scaler is None or not scaler.is_enabled():
        return None
    expect_not_unscaled(scaler)
    scaler.scale(torch.zeros((), device=device))  # `scaler.step` wants to have seen a loss
    return float(scaler.get_scale())


def expect_not_unscaled(scaler: torch.amp.GradScaler) -> None:
    """Raise ValueError where `scaler.unscale_` has been called for gradients that are yet to come.

    `scaler.step` would leave them enlarged, a step too long by the scale.
    """
    optimizers = getattr(scaler, "_per_optimizer_states", {})  # not public; without it the mistake goes unnoticed
    if any(state["stage"] is OptState.UNSCALED for state in optimizers.values()):
        raise ValueError(
            "`scaler`: expected no call of `scaler.unscale_(optimizer)` before the conductor's step, found one without "
            "`scaler.step(optimizer)` and `scaler.update()` after it; call it after the conductor's step, or not at all"
        )


class Shared:
    """A patch of torch's settings that ends with the last of those who hold it, in whatever order they let go."""

    def __init__(self, patch: Callable[[], AbstractContextManager[Any]]) -> None:
        self._patch, self._holders, self._patched = patch, 0, ExitStack()

    def __enter__(self) -> None:
        if not self._holders:
            self._patched.enter_context(self._patch())
        self._holders += 1

    def __exit__(self, *error: object) -> None:
        self._holders -= 1
        if not self._holders:
            self._patched.close()


SETTINGS: Any = torch.compiler.config
TAG = Shared(lambda: SETTINGS.patch(cache_key_tag=f"{SETTINGS.cache_key_tag} keeping buffers"))
KEPT = Shared(lambda: functorch.patch(donated_buffer=False))


@contextmanager
def keeping_buffers(backward: bool = False) -> Iterator[None]:
    """What is compiled while this is open leaves its saved tensors as they are; what was compiled before does not.

    A `backward` pass is compiled when it first runs, by what the forward pass was told; but torch looks for it on disk,
    where the donating one of another run lies under the same key, unless the key has a tag of its own.
    """
    with TAG, nullcontext() if backward else KEPT:
        yield


def note_kept_buffers(node: Node) -> bool:
    """Whether `node` is a compiled part; if it donates nothing, torch is told so.

    Such a part is marked None, which torch's check takes for a donation unless the backward pass is yet to be compiled.
    """
    metadata: Any = getattr(getattr(type(node), "_forward_cls", None), "metadata", None)
    if not hasattr(metadata, "bw_donated_idxs"):
        return False
    if metadata.bw_donated_idxs is None:
        metadata.bw_donated_idxs = []
    return True

"""`torch.compile` and graphs that serve several backward passes.

A compiled graph lets its only backward pass write into what the forward pass has saved ("donated buffers"), and torch
refuses a second one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch._functorch.config as functorch
from torch.autograd.graph import Node

ADVICE = (
    '`forward`: a graph that torch.compile made serves one backward pass, "shared" takes one per task; expected '
    "torch._functorch.config.donated_buffer = False before the model is first called outside the conductor's step, or "
    'forward="per_task"'
)


def keeping_buffers() -> AbstractContextManager[Any]:
    """What is compiled while this is open leaves its saved tensors as they are; what was compiled before does not."""
    patch: AbstractContextManager[Any] = functorch.patch(donated_buffer=False)
    return patch


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


def refused_donated_buffers(error: RuntimeError) -> bool:
    return "donated buffer" in str(error)

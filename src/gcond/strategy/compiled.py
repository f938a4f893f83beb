"""`torch.compile` and graphs that serve several backward passes.

A compiled graph lets its only backward pass write into what the forward pass has saved ("donated buffers"), and torch
refuses a second one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch._functorch.config as functorch
import torch.compiler.config
from torch.autograd.graph import Node

ADVICE = (
    '`forward`: a graph that torch.compile made serves one backward pass, "shared" takes one per task; expected '
    "torch._functorch.config.donated_buffer = False and, since torch's cache on disk does not tell both kinds apart, "
    'torch.compiler.config.cache_key_tag = "kept" before the model is first called outside the conductor\'s step, or '
    'forward="per_task"'
)


@contextmanager
def keeping_buffers(backward: bool = False) -> Iterator[None]:
    """What is compiled while this is open leaves its saved tensors as they are; what was compiled before does not.

    A `backward` pass is compiled when it first runs, by what the forward pass was told; but torch looks for it on disk,
    where the donating one of another run lies under the same key, unless the key has a tag of its own.
    """
    settings: Any = torch.compiler.config
    tag = settings.patch(cache_key_tag=f"{settings.cache_key_tag} keeping buffers")
    with tag, nullcontext() if backward else functorch.patch(donated_buffer=False):
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


def refused_donated_buffers(error: RuntimeError) -> bool:
    return "donated buffer" in str(error)

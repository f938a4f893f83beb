"""How many bytes of tensors are alive, real or fake."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While open, `now` is the size of all living storages that operations have made, backward passes included; `peak`
    is the largest that it was. The storages of `known` tensors do not count.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: set[int] = set()
        for tensor in known:
            self._follow(tensor, counts=False)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._follow(tensor, counts=True)
        return made

    def _follow(self, tensor: Tensor, counts: bool) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self._seen:
            return
        self._seen.add(id(storage))  # PyTorch keeps one Python object for a storage as long as it lives
        size = storage.nbytes() if counts else 0
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, id(storage), size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

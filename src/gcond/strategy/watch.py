"""Checks in every step that the losses reach known parameters only, and that nothing else reduces gradients.

A graph of some hundred nodes takes half a millisecond to walk. All are walked until a first window is complete, and
after a change; later one of each kind in every window, at a place that moves on from window to window.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from gcond.strategy.arguments import expect
from gcond.strategy.estimate import Look, LookAt
from gcond.strategy.gradients import TaskGradients
from gcond.strategy.safety import note_kept_buffers

WRAPPERS = {
    "DistributedDataParallel": "torch.nn.parallel.distributed",
    "FullyShardedDataParallel": "torch.distributed.fsdp.fully_sharded_data_parallel",
}
"""What reduces gradients over processes by itself, in every backward pass: class -> module."""


class Watch:
    """Walks the graphs of losses.

    `materialises`: a part of a graph seen so far gives zeros, not nothing, for outputs that a loss does not depend on,
    as torch.compile and reentrant checkpoints do.

    Args:
        modules: whose names an error may use.
    """

    def __init__(self, modules: Sequence[nn.Module] = ()) -> None:
        self._modules = modules
        self.materialises = False
        self._compiled = False  # a part of a graph seen so far
        self.fresh = True  # no window has been completed yet, or none since something has changed
        self._told_sparse = False
        self._asked: Counter[tuple[str, ...]] = Counter()
        self._before = self._asked
        self._windows = 0

    def window(self, held: TaskGradients) -> Look:
        """A window begins, in which backward passes fill the rows of `held`.

        What it gives is called before the losses of a micro-batch are computed, with their names and whether they serve
        several backward passes; and what that gives is called with the losses. It raises ValueError where a wrapper
        reduces gradients by itself, and where the losses reach a trainable parameter that the conductor does not hold,
        or another leaf whose `.grad` is there already: it would add up from step to step.
        """
        self._before = Counter() if self.fresh else self._asked
        self._asked = Counter()
        self._windows += 1
        return partial(self._look, held)

    def _look(self, held: TaskGradients, names: Sequence[str], several_passes: bool) -> LookAt:
        wrappers_are_due = self.fresh and not self._asked  # one may make itself in the first forward pass
        kind = tuple(names)
        place, count = self._asked[kind], self._before[kind]
        self._asked[kind] += 1
        due = not count or place == self._windows % count
        if not due and not (several_passes and (self._compiled or place == 0)):  # each such graph keeps its buffers
            return lambda losses: None

        def look_at(losses: Mapping[str, Tensor]) -> None:
            if wrappers_are_due:
                _refuse_wrapped(held.parameters)
            self._look_for_others(losses, held)

        return look_at

    def complete(self, held: TaskGradients) -> None:
        """A window is over; raises ValueError where it is the first and has reached nothing, in no process."""
        reached = not self.fresh or any(held.reached_in_window)
        expect(reached, "losses", "a loss that reaches a parameter of the conductor", "none; is it of another model?")
        self.fresh = False

    def _look_for_others(self, losses: Mapping[str, Tensor], held: TaskGradients) -> None:
        leaves = list(self._leaves(losses.values()))
        own = held.awaited.union(map(id, held.gathered()))
        for leaf in leaves:
            if id(leaf) not in own and (isinstance(leaf, nn.Parameter) or leaf.grad is not None):
                raise ValueError(self._told(leaf, losses, leaves, held))

    def _leaves(self, losses: Iterable[Tensor]) -> Iterator[Tensor]:
        losses = list(losses)
        yield from (loss for loss in losses if loss.is_leaf)
        for node in nodes(losses):
            if getattr(node, "_saved_sparse", False) and not self._told_sparse:
                self._told_sparse = True
                warnings.warn(
                    "`sparse=True` (Embedding, EmbeddingBag): the gradient becomes dense, with zeros for rows that no "
                    "index names; leave sparse out, and take Adam, not SparseAdam, which refuses dense gradients. "
                    "Said once",
                    stacklevel=2,
                )
            if not node.next_functions and hasattr(node, "variable"):
                yield node.variable
            elif isinstance(node, BackwardCFunction):
                self._compiled |= note_kept_buffers(node)
                self.materialises |= len(node._input_metadata) > 1

    def _told(self, leaf: Tensor, tasks: Iterable[str], leaves: list[Tensor], held: TaskGradients) -> str:
        names = {id(p): f" {name}" for module in self._modules for name, p in module.named_parameters()}
        reached = set(map(id, leaves))
        gone = [
            name
            for name, parameter in zip(held.names, held.parameters, strict=True)
            if parameter.shape == leaf.shape and id(parameter) not in reached
        ]
        instead = f", perhaps in place of {' or '.join(gone)}, which it holds and the loss misses" if gone else ""
        return (
            f"`parameters`: the loss of {' and '.join(map(repr, tasks))} reaches a leaf that the conductor does not "
            f"hold, {type(leaf).__name__}{names.get(id(leaf), '')} of shape {tuple(leaf.shape)}{instead}. Its gradient "
            "would add up from step to step: hand over every trainable parameter, build conductor and optimizer anew "
            "after replacing one, freeze it by requires_grad_(False), or use an input as x.detach().requires_grad_()"
        )


def nodes(losses: Iterable[Tensor]) -> Iterator[Node]:
    """Every node of the losses' graph, once."""
    seen: set[Node | None] = {None}
    waiting = [loss.grad_fn for loss in losses]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
            yield node


def _refuse_wrapped(parameters: Iterable[Tensor]) -> None:
    """Raise ValueError where a wrapper that is alive reduces the gradients of one of `parameters`.

    A wrapper's hooks on parameters cannot be seen; the wrapper itself can, among the objects of this process.
    """
    if not dist.is_available() or not dist.is_initialized():
        return
    kinds = tuple(getattr(sys.modules[module], name) for name, module in WRAPPERS.items() if module in sys.modules)
    own = {id(parameter) for parameter in parameters}
    for each in gc.get_objects():
        if issubclass(type(each), kinds) and any(id(parameter) in own for parameter in each.parameters()):
            raise ValueError(
                f"`parameters`: found a model in {type(each).__name__}, which adds the tasks up over processes before "
                "anything is resolved; expected the model as it is, with processes=Replicated() and the same initial "
                "weights everywhere, or in fully_shard (FSDP2)"
            )

"""What the forward and backward passes of one micro-batch hold, counted on tensors without content.

Letters: m tasks, B micro-batch, C channels, S image size, p patch size, H hidden patches.

The run's model and loss run on fake tensors (shapes alone) while `LiveBytes` follows which storages are alive. So the
backward passes' own temporaries are in the count, not in a factor. CPU kernels are assumed on CUDA too (a backward
pass on fake CUDA tensors needs a GPU), but under autocast the operations that CUDA computes in float32 are in float32.
Forward passes of fake CUDA tensors hold the same within 2 % for ConvNeXt, 6 % for MobileNet (a test shows it).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gcond.config import build
from gcond.data.intensity import Intensity
from gcond.engine import evaluate
from gcond.engine.device import autocast
from gcond.engine.settings import Settings
from gcond.loss import TASKS, outside_unit_share
from gcond.model import MaskedAutoencoder
from gcond.model.masking import hidden_count
from gcond.strategy import Joint, Sequential

GRAPHS = ("freed", "kept", "kept until the next")
"""When the graph of a micro-batch goes: its buffers with the last task's backward pass; the whole after it, since that
pass retains it as well; or only once the next micro-batch's losses take the place of its own in a variable."""

LINE = (8, 16, 192)
"""Micro-batches: a line through the first two serves up to the third, if it meets that count to the byte."""

Loss = Callable[..., Mapping[str, Tensor]]


class Passes:
    """Counts of one model, loss and precision, each made once; strategies that run the same passes share them.

    `model` may be on "meta" and is not changed, `device` need not exist here. `loss` replaces the config's, for tasks
    that the project does not have. With `lines` few micro-batches are counted and a line is drawn where the counts lie
    on one (`LINE`), to plan many.
    """

    def __init__(
        self,
        cfg: DictConfig,
        model: MaskedAutoencoder,
        device: torch.device,
        loss: Loss | None = None,
        lines: bool = False,
    ) -> None:
        self._lines = lines
        self._model, self._image_size, self._device = model, cfg.scale.image_size, device
        self._precision = cfg.get("precision", "fp32")
        self.hidden = hidden_count(Settings(cfg).patches, cfg.scale.mask_ratio)
        channels, side = model.channels, cfg.scale.patch_size
        self._intensity = Intensity(0, 1, (0.0,) * channels, (1.0,) * channels)
        own = build(cfg.loss.reconstruction)(patch_size=side, intensity=self._intensity)
        self.loss: Loss = loss or own
        self._measured: Sequence[str] = TASKS if loss else own.tasks
        cached: Sequence[str] = TASKS if loss else own.pixel_tasks
        patch = torch.zeros(1, channels, side, side)
        place = torch.zeros(1, 1, dtype=torch.long)
        self.loss(patch.unsqueeze(1), patch, place, cached)  # fills its cache: not fake
        outside_unit_share(patch, self._intensity)  # likewise
        self._counted: dict[tuple[Any, ...], int] = {}

    def training(
        self,
        tasks: Sequence[str],
        estimator: Any,
        micro_batch: int,
        training: bool = True,
        direct: bool = True,
        graph: str = "freed",
    ) -> int:
        """Peak in bytes of one micro-batch, in the order in which the estimator runs its passes; images not counted.

        `training` is the model's mode, `direct` whether autograd accumulates in the rows themselves, `graph` one of
        `GRAPHS`.
        """
        shared = isinstance(estimator, Sequential) and estimator.forward == "shared"
        stale = isinstance(estimator, Sequential) and not direct  # what stood in p.grad before
        together = [list(tasks)] if shared or isinstance(estimator, Joint) else [[task] for task in tasks]

        def count(size: int) -> int:
            key = (*map(tuple, together), shared, stale, size, training, direct, graph)
            if key not in self._counted:
                self._counted[key] = self._count(together, shared, stale, size, training, direct, graph)
            return self._counted[key]

        first, second, last = LINE
        if self._lines and first < micro_batch < last:
            slope, rest = divmod(count(second) - count(first), second - first)
            if rest == 0 and count(first) + slope * (last - first) == count(last):
                return count(first) + slope * (micro_batch - first)
        return count(micro_batch)

    def _count(
        self,
        groups: list[list[str]],
        shared: bool,
        stale: bool,
        micro_batch: int,
        training: bool,
        direct: bool,
        graph: str,
    ) -> int:
        with FakeTensorMode(allow_non_fake_inputs=True):
            pass_ = _FakePass(self, micro_batch, self._precision)
            model = pass_.model.train(training)
            for parameter in model.parameters():
                if direct:
                    parameter.grad = torch.empty_like(parameter)  # a view into a row
                else:
                    parameter.register_post_accumulate_grad_hook(_drop)  # type: ignore[no-untyped-call]
            with pass_.counting() as live:
                if stale:
                    for parameter in model.parameters():
                        parameter.grad = torch.empty_like(parameter)
                for _ in range(1 if graph == "freed" else 2):
                    for asked in groups:
                        if graph == "kept":
                            losses: Any = None
                        losses = pass_.losses(asked)
                        if not direct:
                            model.zero_grad()
                        values = [losses[task] for task in asked]
                        for value in values if shared else [torch.stack(values).sum()]:
                            kept = graph != "freed" or (shared and value is not values[-1])
                            torch.autograd.backward(value, retain_graph=kept)
                        del value, values
                        if graph == "freed":
                            del losses
        return int(live.peak)

    def validation(self) -> int:
        """Peak in bytes of the forward pass on a batch of validation images; they are not counted."""
        if ("validation",) not in self._counted:
            with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                pass_ = _FakePass(self, evaluate.BATCH, "fp32")
                pass_.model.eval()
                with pass_.counting() as live:
                    pass_.losses(self._measured)
            self._counted["validation",] = int(live.peak)
        return self._counted["validation",]


class _FakePass:
    """A micro-batch of fake images for a fake copy of the model; to be made and used in a fake mode."""

    def __init__(self, passes: Passes, micro_batch: int, precision: str) -> None:
        self._loss, self._intensity = passes.loss, passes._intensity
        self._precision, self._on_cuda = precision, passes._device.type == "cuda"
        self.model = copy_to(passes._model, "cpu")
        size = passes._image_size
        self._images = torch.empty(micro_batch, self.model.channels, size, size)
        self._hidden = torch.zeros(micro_batch, passes.hidden, dtype=torch.long)
        self._labels = torch.zeros(micro_batch, dtype=torch.long)

    def counting(self) -> LiveBytes:
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        return LiveBytes([*state_of(self.model), *gradients, self._images, self._hidden])

    def losses(self, tasks: Iterable[str]) -> Mapping[str, Tensor]:
        low = self._precision != "fp32" and self._on_cuda
        casts: AbstractContextManager[Any] = CudaCasts() if low else nullcontext()
        more: dict[str, Tensor] = {}
        with autocast("cpu", self._precision), casts:
            if getattr(self._loss, "classifies", False):
                predictions, logits = self.model(self._images, self._hidden, classify=True)
                more = {"logits": logits, "labels": self._labels}
            else:
                predictions = self.model(self._images, self._hidden)
        outside_unit_share(predictions.detach(), self._intensity)
        return self._loss(predictions, self._images, self._hidden, list(tasks), **more)


class CudaCasts(TorchFunctionMode):
    """While open, the operations of the encoders here that CUDA's autocast computes in float32, and the CPU's does not,
    do so: of a float32 copy of their input, or without one."""

    COPIED = frozenset(
        {nn.functional.layer_norm, nn.functional.group_norm, nn.functional.softmax, torch.softmax, Tensor.softmax}
    )
    AS_THEY_ARE = frozenset({torch.norm, Tensor.norm, torch.linalg.vector_norm})

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in self.COPIED:
            args = (args[0].float(), *args[1:])
        elif function in self.AS_THEY_ARE:
            kwargs = {**kwargs, "dtype": kwargs.get("dtype") or torch.float32}
        return function(*args, **kwargs)


def state_of(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def copy_to(model: MaskedAutoencoder, device: str) -> MaskedAutoencoder:
    """A copy whose parameters and buffers have the shapes and strides of the model's, and no content."""
    empty: dict[int, Any] = {}
    for tensor in state_of(model):
        copied = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        is_parameter = isinstance(tensor, nn.Parameter)
        empty[id(tensor)] = nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied
    return copy.deepcopy(model, empty)


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


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

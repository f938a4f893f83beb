"""What a training step holds in memory, planned from the config: no data is read, nothing large is allocated, no GPU.

Letters: m tasks, P parameters, B micro-batch, K micro-batches of a window, C channels, S image size, p patch size,
H hidden patches.

Weights, rows and moments follow from P. Forward and backward passes are counted: the run's model and loss run on fake
tensors (shapes without content) while `LiveBytes` follows which storages are alive. So the backward passes' own
temporaries are in the count, not in a factor.

Not counted, and why a plan has to fit with a margin: what a kernel allocates inside itself (a convolution's workspace),
the allocator's fragments, the few chunks that methods on coordinates add to `resolution`. Not part of it: the process
(libraries, images held in memory, a CUDA context). One process is planned, and CPU kernels are assumed on CUDA too.
"""

from __future__ import annotations

import copy
import weakref
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gcond.data.intensity import Intensity
from gcond.engine import evaluate
from gcond.engine.gradient_probe import rows_held
from gcond.engine.precision import autocast
from gcond.engine.settings import Settings
from gcond.loss import TASKS, ReconstructionLoss, outside_unit_share
from gcond.model import MaskedAutoencoder
from gcond.model.masking import hidden_count
from gcond.strategy import EMA, Joint, Sequential, Stochastic
from gcond.strategy.gradients import CHUNK_ELEMENTS

MARGINS = {"cpu": 1.35, "cuda": 1.1}
"""A plan fits where its peak times this does. CPU: what `scripts/plan_memory.py --measure` found glibc's allocator to
keep besides; CUDA: a guess, not measured."""


@dataclass(frozen=True)
class Plan:
    """Bytes. `held` is there all through the training; of `phases`, on top of it, there is one at a time."""

    micro_batch: int
    accumulation_steps: int
    held: dict[str, int]
    phases: dict[str, int]
    margin: float

    @property
    def peak(self) -> int:
        return sum(self.held.values()) + max(self.phases.values())

    def fits(self, room: float) -> bool:
        """Whether it fits into `room` bytes, with the margin."""
        return self.peak * self.margin <= room


class Planner:
    """Plans of one config at any micro-batch.

    Args:
        cfg: of the run; `precision` (fp32, bf16, fp16) is read where there is one.
        model: of the run, on any device, "meta" included. It is not run and not changed.
        device: that the run is for; it need not exist here.
    """

    def __init__(self, cfg: DictConfig, model: MaskedAutoencoder, device: torch.device) -> None:
        self._cfg, self._model, self._device = cfg, model, device
        self._precision = cfg.get("precision", "fp32")
        settings = Settings(cfg)
        self._hidden = hidden_count(settings.patches, cfg.scale.mask_ratio)
        self.conductor = settings.conductor(copy_to(model, "meta").parameter_groups(), seed=0)
        self._margin = MARGINS.get(device.type, MARGINS["cuda"])
        self._plans: dict[tuple[int, int], Plan] = {}
        channels, side = model.channels, cfg.scale.patch_size
        self._intensity = Intensity(0, 1, (0.0,) * channels, (1.0,) * channels)
        self._loss: ReconstructionLoss = instantiate(cfg.loss.reconstruction)(
            patch_size=side, intensity=self._intensity
        )
        patch = torch.zeros(1, channels, side, side)
        self._loss(patch.unsqueeze(1), patch, torch.zeros(1, 1, dtype=torch.long), TASKS)  # fills its cache: not fake

    def plan(self, micro_batch: int, accumulation_steps: int) -> Plan:
        choice = (micro_batch, accumulation_steps)
        if choice not in self._plans:
            self._plans[choice] = Plan(*choice, self.held(*choice), self._phases(micro_batch), self._margin)
        return self._plans[choice]

    def choices(self) -> list[tuple[int, int]]:
        """All (B, K) with the config's effective batch, B ascending; K a multiple of m where tasks take turns."""
        scale = self._cfg.scale
        images = scale.micro_batch * scale.accumulation_steps
        unit = len(self.conductor.tasks) if isinstance(self.conductor.estimator, Stochastic) else 1
        return [(b, images // b) for b in range(1, images + 1) if images % b == 0 and images // b % unit == 0]

    def largest(self, room: float, below: int | None = None) -> Plan | None:
        """The plan of the largest micro-batch, below `below`, that fits into `room` bytes; None where none does."""
        choices = [choice for choice in self.choices() if below is None or choice[0] < below]
        fitting = bisect_right(choices, room, key=lambda choice: self.plan(*choice).peak * self._margin)
        return self.plan(*choices[fitting - 1]) if fitting else None

    def held(self, micro_batch: int, accumulation_steps: int) -> dict[str, int]:
        """Bytes of each part that is there all through the training."""
        conductor = self.conductor
        averages = conductor.estimator.resolves_micro_batches and accumulation_steps > 1
        return {
            "weights": sum(tensor.nbytes for tensor in state_of(self._model)),
            "task-gradient rows": conductor.gradients.rows.nbytes,
            "reference rows": conductor.gradients.rows.nbytes if conductor.resolver.uses_history else 0,
            "resolved gradient": self._row if conductor.resolver.uses_history or averages else 0,
            "momentum": self._row if isinstance(conductor.update, EMA) else 0,
            "optimizer state": self._optimizer[0],
            "gradient kept for diagnosis": self._row,
            "images of the window": micro_batch * accumulation_steps * self._image,
        }

    def _phases(self, micro_batch: int) -> dict[str, int]:
        conductor = self.conductor
        rows, m = conductor.gradients.rows, len(conductor.tasks)
        copied = not self._direct or self._precision == "fp16"  # what stands in p.grad: converted, or scaled
        written = self._parameter_row if copied else 0
        extra = 0
        phases = {"forward and backward": self._training(conductor.estimator, micro_batch)}
        if len(rows) < m and not conductor.resolver.weighs_losses:
            extra = m * self._row
            # Of the step before, if diagnosed, p.grad are still views into such rows; if not, no gradient is kept.
            before = extra if self._cfg.scale.diagnose_every == 1 else -self._row
            phases["forward and backward, diagnosed"] = before + extra + self._training(Sequential(), micro_batch)
        chunk = min(conductor.gradients.size, CHUNK_ELEMENTS.get(self._device.type, CHUNK_ELEMENTS["cuda"]))
        chunks = 2 if conductor.resolver.uses_history else 1
        phases["resolution"] = extra + chunks * max(len(rows), m if extra else 0) * chunk * 8
        lasting = written + (extra if self._direct else 0)  # p.grad are views into the extra rows
        phases["optimizer step, diagnosed"] = lasting + self._optimizer[1] + self._parameter_row
        phases["step probe"] = lasting + 3 * self._parameter_row
        phases[f"validation, {evaluate.BATCH} images"] = lasting + evaluate.BATCH * self._image + self._validation
        if self._cfg.scale.probe_micro_batches:
            phases["gradient probe"] = lasting + self._gradient_probe(micro_batch)
        return phases

    def _gradient_probe(self, micro_batch: int) -> int:
        """Images, a pass whose gradients are not written anywhere, sums of them."""
        tasks = sum(weight > 0 for weight in self.conductor.tasks.values())
        rows = 1 + rows_held(self._cfg.scale.probe_micro_batches, tasks)
        images = micro_batch * self._image
        return images + self._training(Sequential(), micro_batch) + rows * self._parameter_row

    @property
    def _image(self) -> int:
        """An image in float32, and the indices of its hidden patches."""
        return int(self._model.channels * self._cfg.scale.image_size**2 * 4 + self._hidden * 8)

    @property
    def _row(self) -> int:
        rows = self.conductor.gradients.rows
        return rows.shape[1] * rows.element_size()

    @property
    def _parameter_row(self) -> int:
        gradients = self.conductor.gradients
        return int(gradients.size * gradients.parameter_dtype.itemsize)

    @property
    def _direct(self) -> bool:
        gradients = self.conductor.gradients
        return bool(gradients.rows.dtype == gradients.parameter_dtype)

    @cached_property
    def _optimizer(self) -> tuple[int, int]:
        """What the optimizer keeps, and what one step makes besides."""
        parameters = list(copy_to(self._model, "meta").parameters())
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        optimizer: torch.optim.Optimizer = instantiate(self._cfg.optimizer.build)(parameters, lr=1.0)
        for group in optimizer.param_groups:
            if self._device.type == "cuda" and "foreach" in group and not group.get("fused"):
                group["foreach"] = group["foreach"] is not False  # PyTorch's choice there
        optimizer.step()
        kept = sum(tensor.nbytes for tensor in tree_leaves(list(optimizer.state.values())) if torch.is_tensor(tensor))
        with LiveBytes() as live:
            optimizer.step()
        return kept, live.peak

    def _training(self, estimator: Any, micro_batch: int) -> int:
        """Peak of the forward and backward passes of one micro-batch, in the order in which the estimator runs them."""
        tasks = list(self.conductor.tasks)
        shared = isinstance(estimator, Sequential) and estimator.forward == "shared"
        together = shared or isinstance(estimator, Joint)
        with FakeTensorMode(allow_non_fake_inputs=True):
            pass_ = _FakePass(self, micro_batch, self._precision)
            model = pass_.model.train(self._cfg.strategy.model_mode == "train")
            for parameter in model.parameters():
                if self._direct:
                    parameter.grad = torch.empty_like(parameter)  # a view into a row
                else:
                    parameter.register_post_accumulate_grad_hook(_drop)  # type: ignore[no-untyped-call]
            with pass_.counting() as live:
                if isinstance(estimator, Sequential) and not self._direct:
                    for parameter in model.parameters():
                        parameter.grad = torch.empty_like(parameter)  # of the step before
                for asked in [tasks] if together else [[task] for task in tasks]:
                    losses = pass_.losses(asked)
                    if not self._direct:
                        model.zero_grad()
                    if shared:
                        for task in asked[:-1]:
                            torch.autograd.backward(losses[task], retain_graph=True)
                        torch.autograd.backward(losses[asked[-1]])
                    else:
                        torch.autograd.backward(torch.stack([losses[task] for task in asked]).sum())
                    del losses
        return int(live.peak)

    @cached_property
    def _validation(self) -> int:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            pass_ = _FakePass(self, evaluate.BATCH, "fp32")
            pass_.model.eval()
            with pass_.counting() as live:
                pass_.losses(TASKS)
        return int(live.peak)


class _FakePass:
    """A micro-batch of fake images for a fake copy of the planner's model; to be made and used in a fake mode."""

    def __init__(self, planner: Planner, micro_batch: int, precision: str) -> None:
        scale, channels = planner._cfg.scale, planner._model.channels
        self._loss, self._intensity = planner._loss, planner._intensity
        self._precision = precision
        self.model = copy_to(planner._model, "cpu")
        self._images = torch.empty(micro_batch, channels, scale.image_size, scale.image_size)
        self._hidden = torch.zeros(micro_batch, planner._hidden, dtype=torch.long)

    def counting(self) -> LiveBytes:
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        return LiveBytes([*state_of(self.model), *gradients, self._images, self._hidden])

    def losses(self, tasks: Iterable[str]) -> dict[str, Tensor]:
        with autocast("cpu", self._precision):
            predictions = self.model(self._images, self._hidden)
            outside_unit_share(predictions.detach(), self._intensity)
            return self._loss(predictions, self._images, self._hidden, list(tasks))


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

"""What a training step holds in memory, planned from the config: no data is read, nothing large is allocated, no GPU.

Letters: m tasks, P parameters, B micro-batch, K micro-batches of a window.

Weights, rows and moments follow from P. Forward and backward passes are counted (`gcond.engine.passes`).

Not counted, and why a plan has to fit with a margin: what a kernel allocates inside itself (a convolution's workspace),
the allocator's fragments, the few chunks that methods on coordinates add to `resolution`. Not part of it: the process
(libraries, images held in memory, a CUDA context). One process is planned.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from omegaconf import DictConfig
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from gcond.engine import evaluate
from gcond.engine.passes import LiveBytes, Passes, copy_to, state_of
from gcond.engine.probes import rows_held
from gcond.engine.settings import Settings
from gcond.engine.trainer import optimizer_of
from gcond.model import MaskedAutoencoder
from gcond.strategy import EMA, Sequential, Stochastic
from gcond.strategy.products import CHUNK_ELEMENTS

MARGINS = {"cpu": 1.35, "cuda": 1.1}
"""A plan fits where its peak times this does. CPU: what glibc's allocator was found to keep besides in
real steps at scale=mini; CUDA: a guess, not measured."""
RAW_BYTES = {"ct": 2, "headneck": 2}
"""Of a pixel as the data set gives it: int16 CT slices; all others are uint8."""
NOT_IN_A_STEP = ("diagnos", "probe", "validation")
"""In the names of parts that a step which only trains does not have."""
UNITS = {"GB": 10**9, "GiB": 2**30}


def bytes_of(size: str, setting: str) -> int:
    """Of "16GB" or "16GiB". Raises ValueError that names the setting."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(GB|GiB)", size)
    if not found or float(found[1]) == 0:
        raise ValueError(f"`{setting}`: expected a size such as 16GB (10^9 bytes) or 16GiB (2^30), found {size!r}")
    return int(float(found[1]) * UNITS[found[2]])


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

    @property
    def step_peak(self) -> int:
        """Of steps that are not diagnosed, without the validations: what the paper's methods do in a step."""

        def own(parts: dict[str, int]) -> list[int]:
            return [size for name, size in parts.items() if not any(word in name for word in NOT_IN_A_STEP)]

        return sum(own(self.held)) + max(own(self.phases))

    def fits(self, room: float) -> bool:
        """Into `room` bytes, with the margin."""
        return self.peak * self.margin <= room


class Planner:
    """Plans of one config at any micro-batch; `model` may be on "meta" and is not changed, `device` need not exist.

    `passes` are counts of the same model, loss and precision to share with other planners, `tasks` (name -> lambda)
    takes the place of the config's, `graph` is one of `gcond.engine.passes.GRAPHS`: the conductor's own is "freed".
    """

    def __init__(
        self,
        cfg: DictConfig,
        model: MaskedAutoencoder,
        device: torch.device,
        passes: Passes | None = None,
        tasks: Mapping[str, float] | None = None,
        graph: str = "freed",
    ) -> None:
        self._cfg, self._model, self._device, self._graph = cfg, model, device, graph
        self._passes = passes or Passes(cfg, model, device)
        self.conductor = Settings(cfg).conductor(copy_to(model, "meta").parameter_groups(), seed=0, tasks=tasks)
        self._margin = MARGINS.get(device.type, MARGINS["cuda"])
        self._plans: dict[tuple[int, int], Plan] = {}

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
        """The plan of the largest micro-batch, below `below`, that fits into `room` bytes; None where none does.

        The effective batch stays the config's.
        """
        choices = [choice for choice in self.choices() if below is None or choice[0] < below]
        fitting = bisect_right(choices, room, key=lambda choice: self.plan(*choice).peak * self._margin)
        return self.plan(*choices[fitting - 1]) if fitting else None

    def largest_of(self, accumulation_steps: int, room: float, step_only: bool = False) -> Plan | None:
        """The plan of the largest micro-batch that fits into `room` bytes; K stays, the effective batch does not.

        `step_only`: by `step_peak` and without a margin, to be compared with what others report. Few plans are made:
        memory is almost linear in B, so the next guess lies on a line through two that are known.
        """

        def need(size: int) -> float:
            plan = self.plan(size, accumulation_steps)
            return plan.step_peak if step_only else plan.peak * plan.margin

        if need(1) > room:
            return None
        fitting, other = 1, 8  # `other` is too large once it does not fit
        while need(other) <= room:
            per_image = max(1.0, (need(other) - need(fitting)) / (other - fitting))  # 1: of a phase without images
            guess = int(other + (room - need(other)) / per_image) + 1
            fitting, other = other, min(8 * other, guess)
        while other - fitting > 1:
            share = (room - need(fitting)) / (need(other) - need(fitting))
            guess = min(max(int(fitting + share * (other - fitting)), fitting + 1), other - 1)
            fitting, other = (guess, other) if need(guess) <= room else (fitting, guess)
        return self.plan(fitting, accumulation_steps)

    def held(self, micro_batch: int, accumulation_steps: int) -> dict[str, int]:
        """Bytes of each part that is there all through the training."""
        conductor = self.conductor
        rows = conductor.gradients.rows
        averages = conductor.estimator.resolves_micro_batches and accumulation_steps > 1
        reference = rows.numel() * conductor.reference_dtype.itemsize
        return {
            "weights": sum(tensor.nbytes for tensor in state_of(self._model)),
            "task-gradient rows": rows.nbytes,
            "reference rows": reference if conductor.resolver.uses_history else 0,
            "mean of the resolutions": self._row if averages else 0,
            "momentum": self._row if isinstance(conductor.update, EMA) else 0,
            "optimizer state": self._optimizer[0],
            "gradient kept for diagnosis": self._row,
            "next micro-batch on its way": micro_batch * self._raw_image if self._device.type == "cuda" else 0,
        }

    def _phases(self, micro_batch: int) -> dict[str, int]:
        conductor = self.conductor
        rows, m = conductor.gradients.rows, len(conductor.tasks)
        images = micro_batch * self._image
        written = 0 if self._direct else self._parameter_row  # what stands in p.grad: converted
        extra = 0
        phases = {"forward and backward": images + self._training(conductor.estimator, micro_batch)}
        if len(rows) < m and not conductor.resolver.weighs_losses:
            extra = m * self._row
            # Of the step before, if diagnosed, p.grad are still views into such rows; if not, no gradient is kept.
            before = extra if self._cfg.scale.diagnose_every == 1 else -self._row
            phases["forward and backward, diagnosed"] = (
                before + extra + images + self._training(Sequential(), micro_batch, graph="freed")
            )
        chunk = CHUNK_ELEMENTS.get(self._device.type, CHUNK_ELEMENTS["cuda"])
        longest = max(segment.stop - segment.start for segment in conductor.gradients.segments)
        dot = 2 * min(chunk, conductor.gradients.size) * 8
        parts = 2 if conductor.resolver.uses_history else 1

        def resolution(rows: int) -> int:
            return images + max(parts * rows * min(chunk, longest) * 8, dot)

        phases["resolution"] = resolution(len(rows))
        if extra:
            phases["resolution, diagnosed"] = extra + resolution(m)
        lasting = written + (extra if self._direct else 0)  # p.grad are views into the extra rows
        phases["optimizer step"] = written + self._optimizer[1]
        phases["optimizer step, diagnosed"] = lasting + self._optimizer[1] + self._parameter_row
        phases["step probe"] = lasting + 2 * self._parameter_row + max(self._parameter_row, dot)
        phases[f"validation, {evaluate.BATCH} images"] = (
            lasting + evaluate.BATCH * self._image + self._passes.validation()
        )
        if self._cfg.scale.probe_micro_batches:
            phases["gradient probe"] = lasting + self._gradient_probe(micro_batch)
        return phases

    def _gradient_probe(self, micro_batch: int) -> int:
        """Images, a pass whose gradients are not written anywhere, sums of them."""
        tasks = sum(weight > 0 for weight in self.conductor.tasks.values())
        rows = 1 + rows_held(self._cfg.scale.probe_micro_batches, tasks)
        images = micro_batch * self._image
        return images + self._training(Sequential(), micro_batch, graph="freed") + rows * self._parameter_row

    def _training(self, estimator: object, micro_batch: int, graph: str | None = None) -> int:
        training = self._cfg.strategy.model_mode == "train"
        tasks = list(self.conductor.tasks)
        return self._passes.training(tasks, estimator, micro_batch, training, self._direct, graph or self._graph)

    @property
    def _image(self) -> int:
        """An image in float32, and the indices of its hidden patches."""
        return self._pixels * 4 + self._passes.hidden * 8

    @property
    def _raw_image(self) -> int:
        return self._pixels * RAW_BYTES.get(self._cfg.dataset.name, 1) + self._passes.hidden * 8

    @property
    def _pixels(self) -> int:
        return int(self._model.channels * self._cfg.scale.image_size**2)

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
        with FakeTensorMode():
            parameters = list(copy_to(self._model, "cpu").parameters())
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter)
            optimizer = optimizer_of(self._cfg.optimizer.build, parameters, 1.0)
            for group in optimizer.param_groups:
                if self._device.type == "cuda" and "foreach" in group and not group.get("fused"):
                    group["foreach"] = group["foreach"] is not False  # PyTorch's choice there
            optimizer.step()
            state = tree_leaves(list(optimizer.state.values()))
            with LiveBytes() as live:
                optimizer.step()
        return sum(tensor.nbytes for tensor in state if torch.is_tensor(tensor)), live.peak

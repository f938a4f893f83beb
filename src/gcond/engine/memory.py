"""What a training step holds in memory, part by part, and the largest micro-batch for a budget.

    gcond plan-memory model=convnextv2_base strategy=gcond_stochastic dataset=ct batch=70 [--budget 16GB]

Planned from the config: no data is read, nothing large is allocated, no GPU is needed. `batch=N` is short for
`scale.micro_batch=N`; the scale is the paper's unless `scale=` is given. `device=cpu` plans for the CPU, anything else
for CUDA.

Letters: m tasks, P parameters, B micro-batch, K micro-batches of a window.

Weights, rows and moments follow from P. Of the passes the run's model and loss run on fake tensors (shapes alone) while
`LiveBytes` follows which storages are alive, so that the backward passes' own temporaries are in the count. CPU kernels
are assumed on CUDA too (a backward pass on fake CUDA tensors needs a GPU), but under autocast the operations that CUDA
computes in float32 are in float32. Forward passes of fake CUDA tensors hold the same within 2 % for ConvNeXt, 6 % for
MobileNet (a test shows it).

Not counted, and why a plan has to fit with a margin: what a kernel allocates inside itself (a convolution's workspace),
the allocator's fragments, the few chunks that methods on coordinates add to `resolution`. Not part of it: the process
(libraries, images held in memory, a CUDA context). One process is planned.
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gcond.config import build, compose
from gcond.data.intensity import Intensity
from gcond.engine import evaluate
from gcond.engine.batches import Batch, planned_shape
from gcond.engine.settings import Settings
from gcond.engine.trainer import Objective, optimizer_of
from gcond.loss import ReconstructionLoss, outside_unit_share
from gcond.model import MaskedAutoencoder
from gcond.model.masking import hidden_count
from gcond.output import status_of
from gcond.strategy import EMA, Joint, Sequential, Stochastic
from gcond.strategy.gradient_noise import rows_held
from gcond.strategy.products import CHUNK_ELEMENTS

MARGINS = {"cpu": 1.35, "cuda": 1.1}
"""A plan fits where its peak times this does. CPU: what glibc's allocator was found to keep besides in
real steps at scale=mini; CUDA: a guess, not measured."""
NOT_IN_A_STEP = ("diagnos", "probe", "validation")
"""In the names of parts that a step which only trains does not have."""
UNITS = {"GB": 10**9, "GiB": 2**30}
GRAPHS = ("freed", "kept", "kept until the next")
"""When the graph of a micro-batch goes: its buffers with the last task's backward pass; the whole after it, since that
pass retains it as well; or only once the next micro-batch's losses take the place of its own in a variable."""


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

    def __str__(self) -> str:
        lines = [f"micro-batch {self.micro_batch}, {self.accumulation_steps} of them a step", "", "held throughout"]
        lines += [f"  {part:34} {size / 1e9:9.3f} GB" for part, size in self.held.items() if size]
        lines += ["on top, one at a time (passes: a micro-batch's images, activations and their gradients)"]
        lines += [f"  {part:34} {size / 1e9:9.3f} GB" for part, size in self.phases.items()]
        return "\n".join([*lines, f"{'peak':36} {self.peak / 1e9:9.3f} GB"])


class Planner:
    """Plans of one config at any micro-batch; `device` need not exist.

    `passes` are counts of the same model, loss and precision to share with other planners, `tasks` (name -> lambda)
    takes the place of the config's, `graph` is one of `GRAPHS`: the conductor's own is "freed".
    """

    def __init__(
        self,
        cfg: DictConfig,
        device: torch.device,
        passes: Passes | None = None,
        tasks: Mapping[str, float] | None = None,
        graph: str = "freed",
    ) -> None:
        self._cfg, self._device, self._graph = cfg, device, graph
        self._passes = passes or Passes(cfg, device)
        model = copy.deepcopy(self._passes.model)
        self._weights = sum(tensor.nbytes for tensor in state_of(model))
        self.conductor = Settings(cfg).conductor(model.parameter_groups(), seed=0, tasks=tasks)
        self._moments, self._optimizer_step = optimizer_bytes(cfg, model, device)
        self._plans: dict[tuple[int, int], Plan] = {}

        gradients = self.conductor.gradients
        self._row = gradients.rows.shape[1] * gradients.rows.element_size()
        self._parameter_row = int(gradients.size * gradients.parameter_dtype.itemsize)
        self._direct = gradients.rows.dtype == gradients.parameter_dtype  # autograd writes into the rows themselves
        pixels, places = int(model.channels * cfg.scale.image_size**2), 8 * self._passes.hidden
        self._image = 4 * pixels + places
        self._raw_image = (2 if model.channels == 1 else 1) * pixels + places  # int16 CT slices, uint8 photographs

    def plan(self, micro_batch: int, accumulation_steps: int) -> Plan:
        choice = (micro_batch, accumulation_steps)
        if choice not in self._plans:
            margin = MARGINS.get(self._device.type, MARGINS["cuda"])
            self._plans[choice] = Plan(*choice, self._held(*choice), self._phases(micro_batch), margin)
        return self._plans[choice]

    def choices(self) -> list[tuple[int, int]]:
        """All (B, K) with the config's effective batch, B ascending; K a multiple of m where tasks take turns."""
        scale = self._cfg.scale
        images = scale.micro_batch * scale.accumulation_steps
        unit = len(self.conductor.tasks) if isinstance(self.conductor.estimator, Stochastic) else 1
        return [(b, images // b) for b in range(1, images + 1) if images % b == 0 and images // b % unit == 0]

    def largest(self, room: float) -> Plan | None:
        """The plan of the largest micro-batch that fits into `room` bytes; None where none does.

        The effective batch stays the config's.
        """
        choices = self.choices()
        fitting = bisect_right(choices, room, key=lambda choice: self.plan(*choice).peak * self.plan(*choice).margin)
        return self.plan(*choices[fitting - 1]) if fitting else None

    def largest_of(self, accumulation_steps: int, room: float, step_only: bool = False) -> Plan | None:
        """The plan of the largest micro-batch that fits into `room` bytes; K stays, the effective batch does not.

        `step_only`: by `step_peak` and without a margin, to be compared with what others report.
        """

        def need(size: int) -> float:
            plan = self.plan(size, accumulation_steps)
            return plan.step_peak if step_only else plan.peak * plan.margin

        if need(1) > room:
            return None
        too_large = 8
        while need(too_large) <= room:
            too_large *= 2
        return self.plan(bisect_right(range(1, too_large), room, key=need), accumulation_steps)

    def _held(self, micro_batch: int, accumulation_steps: int) -> dict[str, int]:
        conductor = self.conductor
        rows = conductor.gradients.rows
        averages = conductor.estimator.resolves_micro_batches and accumulation_steps > 1
        reference = rows.numel() * conductor.reference_dtype.itemsize
        return {
            "weights": self._weights,
            "task-gradient rows": rows.nbytes,
            "reference rows": reference if conductor.resolver.uses_history else 0,
            "mean of the resolutions": self._row if averages else 0,
            "momentum": self._row if isinstance(conductor.update, EMA) else 0,
            "optimizer state": self._moments,
            "gradient kept for diagnosis": self._row,
            "next micro-batch on its way": micro_batch * self._raw_image if self._device.type == "cuda" else 0,
        }

    def _phases(self, micro_batch: int) -> dict[str, int]:
        conductor, scale = self.conductor, self._cfg.scale
        gradients, m = conductor.gradients, len(conductor.tasks)
        images, row = micro_batch * self._image, self._parameter_row
        written = 0 if self._direct else row  # what stands in p.grad: converted
        chunk = CHUNK_ELEMENTS.get(self._device.type, CHUNK_ELEMENTS["cuda"])
        longest = max(segment.stop - segment.start for segment in gradients.segments)
        dot = 2 * min(chunk, gradients.size) * 8

        def training(estimator: Any, graph: str) -> int:
            mode = self._cfg.strategy.model_mode == "train"
            passes = self._passes.training(list(conductor.tasks), estimator, micro_batch, mode, self._direct, graph)
            return images + passes

        def resolution(rows: int) -> int:
            parts = 2 if conductor.resolver.uses_history else 1
            return images + max(parts * rows * min(chunk, longest) * 8, dot)

        phases = {"forward and backward": training(conductor.estimator, self._graph)}
        extra = 0  # a diagnosed step has a row of every task, also where fewer are resolved
        if len(gradients.rows) < m and not conductor.resolver.weighs_losses:
            extra = m * self._row
            before = (
                0 if scale.diagnose_every == 1 else -self._row
            )  # the gradient kept, if the step before was diagnosed
            phases["forward and backward, diagnosed"] = before + extra + training(Sequential(), "freed")
        phases["resolution"] = resolution(len(gradients.rows))
        if extra:
            phases["resolution, diagnosed"] = extra + resolution(m)
        lasting = written + (extra if self._direct else 0)  # p.grad are views into the extra rows
        phases["optimizer step"] = written + self._optimizer_step
        phases["optimizer step, diagnosed"] = lasting + self._optimizer_step + row
        phases["step probe"] = lasting + 2 * row + max(row, dot)
        validation = evaluate.BATCH * self._image + self._passes.validation()
        phases[f"validation, {evaluate.BATCH} images"] = lasting + validation
        if scale.probe_micro_batches:
            # Sums of gradients, and those of a pass that are not written anywhere.
            tasks = sum(weight > 0 for weight in conductor.tasks.values())
            sums = 1 + rows_held(scale.probe_micro_batches, tasks)
            phases["gradient probe"] = lasting + training(Sequential(), "freed") + sums * row
        return phases


def optimizer_bytes(cfg: DictConfig, model: nn.Module, device: torch.device) -> tuple[int, int]:
    """What the optimizer of the model's parameters keeps, and what one step makes besides."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        parameters = [nn.Parameter(torch.empty_like(each, device="cpu")) for each in model.parameters()]
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        optimizer = optimizer_of(cfg.optimizer.build, parameters, 1.0)
        for group in optimizer.param_groups:
            if device.type == "cuda" and "foreach" in group and not group.get("fused"):
                group["foreach"] = group["foreach"] is not False  # PyTorch's choice there
        optimizer.step()
        state = tree_leaves(list(optimizer.state.values()))
        with LiveBytes() as live:
            optimizer.step()
    return sum(tensor.nbytes for tensor in state if torch.is_tensor(tensor)), live.peak


class Passes:
    """Bytes of the forward and backward passes of one config's model, loss and precision, each counted once.

    Strategies that run the same passes share them.
    """

    def __init__(self, cfg: DictConfig, device: torch.device) -> None:
        self._precision, self._image_size = cfg.precision, cfg.scale.image_size
        self._casts = device.type == "cuda" and cfg.precision != "fp32"
        self.hidden = hidden_count(Settings(cfg).patches, cfg.scale.mask_ratio)
        with torch.device("meta"):
            self.model: MaskedAutoencoder = build(cfg.model, **planned_shape(cfg))
        channels, side = self.model.channels, cfg.scale.patch_size
        intensity = Intensity(0, 1, (0.0,) * channels, (1.0,) * channels)
        self.loss: ReconstructionLoss = build(cfg.loss.reconstruction)(patch_size=side, intensity=intensity)
        patch, place = torch.zeros(1, channels, side, side), torch.zeros(1, 1, dtype=torch.long)
        self.loss(patch.unsqueeze(1), patch, place, self.loss.pixel_tasks)  # fills its cache: not fake
        outside_unit_share(patch, intensity)  # likewise
        self._counted: dict[tuple[Any, ...], dict[int, int]] = {}

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
        together = shared or isinstance(estimator, Joint)
        groups = (tuple(tasks),) if together else tuple((task,) for task in tasks)
        known = self._counted.setdefault((groups, shared, training, direct, graph), {})
        if micro_batch in known:
            return known[micro_batch]
        if (told := on_a_line(known, micro_batch)) is not None:
            known[micro_batch] = told
            return told

        model = copy.deepcopy(self.model).train(training)
        with FakeTensorMode(allow_non_fake_inputs=True), CudaCasts() if self._casts else nullcontext():
            model.to_empty(device="cpu")
            for parameter in model.parameters():
                if direct:
                    parameter.grad = torch.empty_like(parameter)  # a view into a row
                else:
                    parameter.register_post_accumulate_grad_hook(_drop)  # type: ignore[no-untyped-call]
            losses_of, live = self._losses(model, micro_batch, self._precision)
            with live:
                for _ in range(1 if graph == "freed" else 2):
                    for asked in groups:
                        if graph == "kept":
                            losses: Any = None
                        losses = losses_of(asked)
                        if not direct:
                            model.zero_grad()
                        values = [losses[task] for task in asked]
                        for value in values if shared else [torch.stack(values).sum()]:
                            kept = graph != "freed" or (shared and value is not values[-1])
                            torch.autograd.backward(value, retain_graph=kept)
                        del value, values
                        if graph == "freed":
                            del losses
        known[micro_batch] = live.peak
        return live.peak

    def validation(self) -> int:
        """Peak in bytes of the forward pass on a batch of validation images; they are not counted."""
        known = self._counted.setdefault(("validation",), {})
        if evaluate.BATCH not in known:
            model = copy.deepcopy(self.model).eval()
            with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                model.to_empty(device="cpu")
                losses_of, live = self._losses(model, evaluate.BATCH, "fp32")
                with live:
                    losses_of(self.loss.tasks)
            known[evaluate.BATCH] = live.peak
        return known[evaluate.BATCH]

    def _losses(
        self, model: MaskedAutoencoder, micro_batch: int, precision: str
    ) -> tuple[Callable[[Sequence[str]], Mapping[str, Tensor]], LiveBytes]:
        """The forward pass on a fake micro-batch, and a count of all but it, the model and its gradients."""
        images = torch.empty(micro_batch, model.channels, self._image_size, self._image_size)
        hidden = torch.zeros(micro_batch, self.hidden, dtype=torch.long)
        batch = Batch(images, hidden, torch.zeros(micro_batch, dtype=torch.long))
        objective = Objective(model, self.loss, precision)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

        def losses(tasks: Sequence[str]) -> Mapping[str, Tensor]:
            objective.watch(True)
            return objective(batch, tasks)

        return losses, LiveBytes([*state_of(model), *gradients, images, hidden])


def on_a_line(known: Mapping[int, int], size: int) -> int | None:
    """The bytes at micro-batch `size` where those at its neighbours, on both sides, and at the next ones tell them.

    Every point of a pass holds a linear function of B, so the peak is convex in B: where three counts lie on a line, so
    do all between them.
    """
    below, above = (sorted(each for each in known if (each < size) is side) for side in (True, False))
    if not below or not above or len(known) < 3:
        return None
    points = [*below[-2:], *above[:2]]
    first, last = points[0], points[-1]
    slope, rest = divmod(known[last] - known[first], last - first)
    straight = all(known[each] == known[first] + slope * (each - first) for each in points)
    return known[first] + slope * (size - first) if straight and rest == 0 else None


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


def report(cfg: DictConfig, budget: str | None) -> str:
    """The plan of the config; for a budget also whether it fits, and the largest micro-batches that do."""
    room = None if budget is None else bytes_of(budget, "--budget")
    planner = Planner(cfg, torch.device("cpu" if cfg.device == "cpu" else "cuda"))
    micro_batch, steps = cfg.scale.micro_batch, cfg.scale.accumulation_steps
    plan = planner.plan(micro_batch, steps)
    if room is None:
        return str(plan)

    def choice(found: Plan | None) -> str:
        if found is None:
            return "none fits"
        words = f"scale.micro_batch={found.micro_batch} scale.accumulation_steps={found.accumulation_steps}"
        return f"{words} ({found.peak / 1e9:.3f} GB)"

    verdict = "fits" if plan.fits(room) else "does not fit"
    return "\n".join(
        [
            f"{plan}\n",
            f"{verdict} into {budget} with a margin of {plan.margin - 1:.0%}",
            f"largest micro-batch with {steps} of them a step:     {choice(planner.largest_of(steps, room))}",
            f"largest with the effective batch kept at {micro_batch * steps}: {choice(planner.largest(room))}",
        ]
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gcond plan-memory", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--budget", help="memory of the device, such as 16GB or 16GiB")
    parser.add_argument("overrides", nargs="*", help="e.g. model=convnext_tiny strategy=pcgrad dataset=ct batch=96")
    options = parser.parse_intermixed_args(words)
    overrides = [re.sub("^batch=", "scale.micro_batch=", word) for word in options.overrides]
    if not any(word.startswith("scale=") for word in overrides):
        overrides.insert(0, "scale=paper")
    return status_of(lambda: print(report(compose(overrides), options.budget)))


if __name__ == "__main__":
    sys.exit(main())

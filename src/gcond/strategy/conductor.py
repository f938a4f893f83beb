"""The public API: one step gathers task gradients, resolves their conflicts, smooths the result and fills `p.grad`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from gcond.strategy.conflict import Conflict, LossWeighting, Resolution, Resolver
from gcond.strategy.diagnose import average, describe
from gcond.strategy.estimate import Estimator, Losses, Sequential, Stochastic
from gcond.strategy.gradients import TaskGradients
from gcond.strategy.resolve import GCond
from gcond.strategy.update import EMA, Update


class GradientConductor:
    """A multi-task strategy: an estimator, a resolver and an update.

    It wraps neither the model nor the optimizer: call `step`, then `optimizer.step()`. `p.grad` is overwritten, so that
    `optimizer.zero_grad()` is not needed.

    Args:
        parameters: the trainable parameters, or a mapping from group name to parameters; conflicts are then also
            reported per group.
        tasks: name -> lambda, the weight of the task's loss; >= 0 and not all 0.
        estimator, resolver, update: what the strategy is made of. The defaults are the paper's GCond stochastic, whose
            outer optimizer is AdamW with betas (0, 0.95).
        clip_norm: the resolved gradient is clipped to this norm before the update; None is off. 50 in the paper.
        buffer_dtype: of task gradients, history and momentum; None is the parameters' own. bfloat16 as published.
        seed: of the resolver's own randomness (PCGrad's order).

    Raises:
        ValueError: settings that contradict each other; the message names the setting.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Mapping[str, Iterable[Tensor]],
        tasks: Mapping[str, float],
        estimator: Estimator | None = None,
        resolver: Resolver | None = None,
        update: Update | None = None,
        clip_norm: float | None = 50.0,
        buffer_dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        self.tasks = _checked_tasks(tasks)
        self.estimator = estimator if estimator is not None else Stochastic()
        self.resolver = resolver if resolver is not None else GCond()
        self.update = update if update is not None else EMA()
        if clip_norm is not None and clip_norm <= 0:
            raise ValueError(f"`clip_norm`: expected None or a number > 0, found {clip_norm}")
        self.clip_norm = clip_norm
        rows = self.estimator.rows(list(self.tasks))
        if rows < len(self.tasks) and self.resolver.needs_task_gradients:
            raise ValueError(
                f"`estimator`: {type(self.resolver).__name__} needs a gradient per task, "
                f"{type(self.estimator).__name__} gives only their sum; expected Sequential or Stochastic"
            )
        parameters = (
            {k: list(v) for k, v in parameters.items()} if isinstance(parameters, Mapping) else list(parameters)
        )
        groups = tuple(parameters) if isinstance(parameters, Mapping) else ("all",)
        if self.resolver.weighs_losses and rows == len(self.tasks) > 1:
            raise ValueError(
                f"`estimator`: {type(self.resolver).__name__} weights losses before one joint backward pass, so task "
                f"gradients would be wasted; expected Joint, found {type(self.estimator).__name__}"
            )
        self.resolver.check(self.tasks, groups)
        self._parameters = parameters
        self._dtype = buffer_dtype
        self.gradients = self._allocate(rows)
        self._generator = torch.Generator().manual_seed(seed)
        self._lambdas = torch.tensor(list(self.tasks.values()), dtype=torch.float64)
        self._reference: Tensor | None = None  # [m, P], the previous task gradients
        self._direction: Tensor | None = None  # [P], where the rows must outlive the resolution
        self._resolutions = 0
        self.steps = 0
        self.resolved_gradient: Tensor | None = None  # [P], clipped; kept by `step(diagnose=True)` only

    def step(self, batches: Iterable[Any], losses: Losses, diagnose: bool = False) -> dict[str, float]:
        """Fill `p.grad` from the next `accumulation_steps` micro-batches.

        Args:
            batches: an iterator, of which K are taken, or a collection of exactly K.
            losses: called as losses(batch, names), returns {name: scalar loss} for exactly those names, lambdas not
                applied. Autocast belongs inside.
            diagnose: gather task gradients even where the strategy does not need them (m - 1 extra backward passes per
                micro-batch), so that conflicts are reported; and keep the resolved, clipped gradient in
                `resolved_gradient` [P].

        Returns:
            What there is to log, by name: losses, norms, minimum cosines, implied weights, correction, zones …

        Raises:
            FloatingPointError: a loss or a gradient is not finite; `p.grad` is then not to be used.
        """
        window = _take(batches, self.estimator.accumulation_steps)
        estimator: Estimator = self.estimator
        gradients = self.gradients
        if diagnose and len(gradients.rows) < len(self.tasks) and not self.resolver.weighs_losses:
            estimator, gradients = Sequential(estimator.accumulation_steps), self._allocate(len(self.tasks))

        resolutions: list[dict[str, float]] = []
        parts = len(window) if estimator.resolves_micro_batches else 1
        out = self._output(gradients, parts)
        weigh = self.resolver.weigh if isinstance(self.resolver, LossWeighting) else None
        for mean_losses in estimator.gather(gradients, window, losses, self.tasks, weigh):
            resolution, metrics = self._resolve(gradients, mean_losses)
            exclusive = torch.ones(len(gradients.rows)) if resolution.exclusive is None else resolution.exclusive
            if resolution.blockwise is not None:
                gradients.combine_blocks(resolution.blockwise, exclusive, out, 1 / parts, bool(resolutions))
            else:
                gradients.combine(resolution.weights, exclusive, out, 1 / parts, bool(resolutions))
            self._keep_history(gradients)
            resolutions.append(metrics)

        metrics = average(resolutions)
        if "resolved_norm" not in metrics or parts > 1:
            metrics["resolved_norm"] = math.sqrt(float(gradients.dot(out, out)))
        metrics["clipped"] = float(self._clip(out, metrics["resolved_norm"]))
        self.resolved_gradient = out.clone() if diagnose else None
        self.update.apply(out, gradients)
        gradients.write(out)
        self.steps += 1
        return metrics

    def _resolve(self, gradients: TaskGradients, mean_losses: Tensor) -> tuple[Resolution, dict[str, float]]:
        statistics = gradients.statistics(self._reference)
        joint = len(gradients.rows) < len(self.tasks)
        names = ("+".join(self.tasks),) if joint else tuple(self.tasks)
        values = mean_losses.cpu()
        self._check_finite(values, (statistics.gram.diagonal() + statistics.exclusive), names)
        conflict = Conflict(
            tasks=names,
            gram=statistics.gram,
            cross=statistics.cross,
            group_grams=statistics.group_grams,
            losses=(values * self._lambdas).sum(0, keepdim=True) if joint else values,
            lambdas=torch.ones(1, dtype=torch.float64) if joint else self._lambdas,
            step=self._resolutions,
            generator=self._generator,
        )
        resolution = self.resolver.resolve(conflict)
        self._resolutions += 1
        metrics = describe(conflict, resolution)
        metrics |= {f"loss/{task}": value for task, value in zip(self.tasks, values.tolist(), strict=True)}
        if isinstance(self.resolver, LossWeighting):
            metrics |= self.resolver.after_window(values)
        if resolution.coefficients is None:
            return resolution, metrics
        weights, exclusive = resolution.weights, resolution.exclusive
        alone = statistics.exclusive if exclusive is None else exclusive**2 * statistics.exclusive
        square = float(weights @ statistics.gram @ weights + alone.sum())
        metrics["resolved_norm"] = math.sqrt(max(0.0, square))
        return resolution, metrics

    def _output(self, gradients: TaskGradients, parts: int) -> Tensor:
        if parts == 1 and not self.resolver.uses_history:
            return gradients.rows[0]
        if self._direction is None:
            self._direction = gradients.new_rows(1)[0]
        return self._direction

    def _keep_history(self, gradients: TaskGradients) -> None:
        if self.resolver.uses_history:
            self._reference = gradients.swap(
                gradients.new_rows(len(gradients.rows)) if self._reference is None else self._reference
            )

    def _clip(self, out: Tensor, norm: float) -> bool:
        if self.clip_norm is None or norm <= self.clip_norm:
            return False
        out.mul_(self.clip_norm / norm)
        return True

    def _check_finite(self, losses: Tensor, squared_norms: Tensor, names: Sequence[str]) -> None:
        for task, value in zip(self.tasks, losses.tolist(), strict=True):
            if not math.isfinite(value):
                raise FloatingPointError(f"step {self.steps}: the loss of task {task!r} is {value}")
        for name, value in zip(names, squared_norms.tolist(), strict=True):
            if not math.isfinite(value):
                raise FloatingPointError(f"step {self.steps}: the gradient of task {name!r} is not finite")

    def _allocate(self, rows: int) -> TaskGradients:
        return TaskGradients(self._parameters, rows, self._dtype)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; tensors and plain numbers, loadable with `weights_only=True`."""
        return {
            "steps": self.steps,
            "resolutions": self._resolutions,
            "reached": self.gradients.reached,
            "reference": self._reference,
            "generator": self._generator.get_state(),
            "resolver": self.resolver.state_dict(),
            "update": self.update.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self._resolutions = state["resolutions"]
        self.gradients.restore_reached(state["reached"])
        reference = state["reference"]
        self._reference = None if reference is None else reference.to(self.gradients.rows, copy=True)
        self._generator.set_state(state["generator"])
        self.resolver.load_state_dict(state["resolver"])
        self.update.load_state_dict(state["update"])


def _checked_tasks(tasks: Mapping[str, float]) -> dict[str, float]:
    checked = {str(name): float(value) for name, value in tasks.items()}
    if not checked:
        raise ValueError("`tasks`: expected at least one task name with its lambda, found none")
    wrong = {name: value for name, value in checked.items() if not math.isfinite(value) or value < 0}
    if wrong or sum(checked.values()) == 0:
        raise ValueError(f"`tasks`: expected finite lambdas >= 0, not all 0, found {wrong or checked}")
    return checked


def _take(batches: Iterable[Any], count: int) -> list[Any]:
    if isinstance(batches, Sized) and len(batches) != count:
        raise ValueError(f"`batches`: expected accumulation_steps = {count} micro-batches, found {len(batches)}")
    window = list(islice(batches, count))
    if len(window) < count:
        raise ValueError(f"`batches`: expected accumulation_steps = {count} micro-batches, found only {len(window)}")
    return window

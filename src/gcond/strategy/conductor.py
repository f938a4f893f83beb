"""The public API: one step gathers task gradients, resolves their conflicts, smooths the result and fills `p.grad`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from itertools import islice, pairwise
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from gcond.strategy import products
from gcond.strategy.arguments import checked_lambdas, expect, expect_one_of, floating_dtype, object_or_default
from gcond.strategy.conflict import Conflict, LossWeighting, Resolution, Resolver, by_task, resolve
from gcond.strategy.diagnose import WindowRecord, average, describe
from gcond.strategy.estimate import Estimator, Joint, Losses, Sequential, Window
from gcond.strategy.flat import COMPILED, FlatParameters, Layout, Move, Parameters, described, grouped, lay_out
from gcond.strategy.gradients import Statistics, TaskGradients
from gcond.strategy.named import ESTIMATORS, RESOLVERS, UPDATES
from gcond.strategy.processes import ImplicitSingleProcess, Processes, ReplicatedPerRank, Sharded
from gcond.strategy.resolve.gcond import GCond
from gcond.strategy.safety import GradientNotFinite, NotFinite, Unsolved, expect_not_unscaled, host, scale_of
from gcond.strategy.update import EMA, Raw, Update
from gcond.strategy.watch import Watch

FIXED = ("estimator", "resolver", "update", "processes")
ONCE = ("parameters", "accumulate", "buffer_dtype", "compiled", "seed")  # given once, and no attribute


class GradientConductor:
    """A multi-task strategy: an estimator, a resolver and an update.

    It wraps neither the model nor the optimizer: call `step`, then `optimizer.step()`. `p.grad` is overwritten, so that
    `optimizer.zero_grad()` is not needed.

    Every step looks again at what may have changed: parameters that were moved, cast, permuted or (un)frozen are laid
    out anew, with momentum and history; what cannot be followed is an error. See docs/conductor.md.

    Args:
        parameters: the model, or every parameter that is trained, or a mapping from group name to such; conflicts are
            then also reported per group. (name, parameter) pairs, as `model.named_parameters()` gives them, name
            parameters in errors and in the state. One that is frozen now takes part once it requires a gradient.
        tasks: name -> lambda, the weight of the task's loss; >= 0 and not all 0.
        estimator, resolver, update: what the strategy is made of, as objects or by name (`gcond.strategy.named`). The
            defaults suit any loop: `Sequential`, or `Joint` for a resolver that needs no task gradients; `GCond`;
            `Raw`, so that the optimizer keeps its momentum. The paper's strategies are `Stochastic(24)` or
            `Sequential(24)`, `GCond()`, `EMA()` and clip_norm=50, with AdamW's betas at (0.0, 0.95).
        clip_norm: the resolved gradient is clipped to this norm before the update; None is off. 50 in the paper.
        buffer_dtype: of task gradients, history and momentum, as a dtype or its name; None is the parameters' own.
            bfloat16 as published.
        reference_dtype: of the previous task gradients alone, which a resolver with history (GCond) compares with;
            None is that of the buffers. bfloat16 halves their memory; they enter only the choice between tasks.
        compiled: compute inner products by `torch.compile`: fewer passes over the rows, and seconds of compiling in the
            first window. Needs a C++ compiler, on CUDA Triton.
        seed: of the resolver's own randomness (PCGrad's order).
        nonfinite: what to do when a loss or a gradient is not finite, or the resolver finds no solution (`Unsolved`):
            "raise" `NotFinite`, or "skip" the step: `p.grad` is then None everywhere, so that `optimizer.step()` moves
            nothing, `skipped` counts it, and the resolver, history and momentum stay as they were (with
            `resolve_every="micro_batch"` a stateful resolver has seen the micro-batches before; and one whose own
            arithmetic failed, or whose sum float16 does not hold, has seen the window). Statistics that the model keeps
            (BatchNorm) are the caller's to restore.
        processes: who takes part (`gcond.strategy.processes`): `Replicated()`, `ReplicatedPerRank()`, `Sharded()`;
            None is this process alone, or Sharded() for parameters of `fully_shard`.
        accumulate: K, the micro-batches of a window, where `estimator` is the default or a name.

    Raises:
        ValueError: settings that contradict each other; the message names the setting.
    """

    @host()
    def __init__(
        self,
        parameters: Parameters,
        tasks: Mapping[str, float],
        estimator: Estimator | str | None = None,
        resolver: Resolver | str | None = None,
        update: Update | str | None = None,
        clip_norm: float | None = None,
        buffer_dtype: torch.dtype | str | None = None,
        reference_dtype: torch.dtype | str | None = None,
        compiled: bool = False,
        seed: int = 0,
        nonfinite: str = "raise",
        processes: Processes | None = None,
        accumulate: int = 1,
    ) -> None:
        self._tasks = checked_lambdas(tasks)
        self.resolver: Resolver = object_or_default("resolver", resolver, "resolve", GCond, RESOLVERS)
        default = Sequential if self.resolver.needs_task_gradients else Joint
        estimators = {name: partial(kind, accumulate) for name, kind in ESTIMATORS.items()}
        self.estimator: Estimator = object_or_default(
            "estimator", estimator, "backward", partial(default, accumulate), estimators
        )
        steps = self.estimator.accumulation_steps
        expect(accumulate in (1, steps), "accumulate", f"{steps} as in `estimator`, or one of the two", accumulate)
        self.update: Update = object_or_default("update", update, "apply", Raw, UPDATES)
        expect(clip_norm is None or clip_norm > 0, "clip_norm", "None or a number > 0", clip_norm)
        self.clip_norm = clip_norm
        expect_one_of("nonfinite", nonfinite, "raise", "skip")
        self.nonfinite = nonfinite
        self._parameters = grouped(parameters)
        for kind, part in {"resolver": self.resolver, "update": self.update}.items():
            self._expect_unclaimed(kind, part)
        rows = self._check_tasks(self._tasks)
        self._dtype = floating_dtype("buffer_dtype", buffer_dtype)
        self._products = products.compiled if compiled else products.by_chunks
        self.gradients = TaskGradients(self._parameters, rows, self._dtype, self._products)
        none = f"None, since {type(self.resolver).__name__} keeps no previous task gradients"
        expect(self.resolver.uses_history or reference_dtype is None, "reference_dtype", none, reference_dtype)
        self._reference_dtype = floating_dtype("reference_dtype", reference_dtype)
        sharded = self.gradients.sharded
        implicit = Sharded if sharded else ImplicitSingleProcess
        self.processes: Processes = object_or_default("processes", processes, "gather", implicit)
        self.processes.check(self.estimator, self.resolver, sharded)
        self.processes.bind(self.gradients)
        rank, size = self.processes.rank, self.processes.size
        self.micro_batch_indices = self.estimator.micro_batch_indices(rank, size, list(self.tasks))
        given = parameters.values() if isinstance(parameters, Mapping) else [parameters]
        self._watch = Watch([each for each in given if isinstance(each, nn.Module)])
        self._generator = torch.Generator().manual_seed(seed)
        self._reference: Tensor | None = None  # [m, P], the previous task gradients
        self._direction: Tensor | None = None  # [P], where the rows must outlive the resolution
        self._window: Window | None = None  # of `micro_batch`
        self.last: WindowRecord | None = None  # of the last window that was not left out
        self._told_absent: set[str] = set()
        self._reweighted = False
        self._claims = False  # true after the first step: its resolver and update are no other conductor's
        self._resolutions = 0
        self.steps = 0
        self.skipped = 0  # steps left out, by `nonfinite="skip"` or since a GradScaler's scale was too large
        self.resolved_gradient: Tensor | None = None  # [P], clipped; kept by `step(diagnose=True)` only

    @property
    def tasks(self) -> Mapping[str, float]:
        """Name -> lambda, to be read only."""
        return MappingProxyType(self._tasks)

    def set_weight(self, name: str, weight: float) -> None:
        """Give a task another lambda, from the next window on: 0 too, as long as one is above 0.

        Several processes all make the call; they compare lambdas in the next step.

        Raises:
            ValueError: in the middle of a window; an unknown task; a resolver whose update no lambda changes.
        """
        expect(name in self._tasks, "name", f"a task among {list(self._tasks)}; `add_task` makes one", repr(name))
        if self.resolver.weighs_losses or self.resolver.ignores_lambdas:
            raise ValueError(f"`weight`: {type(self.resolver).__name__} replaces the lambdas by weights of its own")
        self._expect_no_window("set_weight")
        tasks = checked_lambdas({**self._tasks, name: weight})
        self._hand_over(tasks)
        self._tasks = tasks
        self._reweighted = True

    def add_task(self, name: str, weight: float) -> None:
        """Take on another task, as the last, from the next window on.

        Parameters that it alone reaches must have been handed over. What is kept of the other tasks stays; a new task
        has no previous gradients and the resolver's initial numbers.

        Raises:
            ValueError: in the middle of a window; a name that is taken; an estimator or resolver that cannot follow.
        """
        expect(name not in self._tasks, "name", f"another than {list(self._tasks)}", repr(name))
        self._change_tasks({**self._tasks, name: weight})

    def remove_task(self, name: str) -> None:
        """Give a task up, from the next window on, with what is kept of it; raises as `add_task` does."""
        expect(name in self._tasks, "name", f"a task among {list(self._tasks)}", repr(name))
        self._change_tasks({task: weight for task, weight in self._tasks.items() if task != name})

    def _expect_no_window(self, call: str) -> None:
        found = "one of `micro_batch`; call `resolve`, `flush` or `discard` first"
        expect(self._window is None, call, "no window to be open", found)

    def _check_tasks(self, tasks: dict[str, float]) -> int:
        """The rows that the estimator fills; ValueError where it or the resolver cannot serve these tasks."""
        method, estimator = type(self.resolver).__name__, type(self.estimator).__name__
        rows = self.estimator.rows(list(tasks))
        summed = rows < len(tasks) and self.resolver.needs_task_gradients
        expect(not summed, "estimator", f"Sequential or Stochastic, as {method} needs a gradient per task", estimator)
        wasted = rows == len(tasks) and self.resolver.weighs_losses and not isinstance(self.estimator, Joint)
        expect(not wasted, "estimator", f"Joint, as {method} weights losses before one backward pass of all", estimator)
        self.resolver.check(dict(tasks), tuple(self._parameters))
        return rows

    @host()
    def _hand_over(self, tasks: dict[str, float]) -> int:
        """As `_check_tasks`, and the resolver keeps what it remembers; after an error it is as before."""
        state, before = self.resolver.state_dict(), self._tasks
        try:
            rows = self._check_tasks(tasks)
            self.resolver.load_state_dict(state)
            if list(tasks) != list(before):
                self.resolver.follow_tasks(list(before), list(tasks))
        except ValueError:
            self._check_tasks(before)
            self.resolver.load_state_dict(state)
            raise
        return rows

    @host()
    def _change_tasks(self, tasks: dict[str, float]) -> None:
        self._expect_no_window("tasks")
        tasks, before = checked_lambdas(tasks), self._tasks
        indices = self.estimator.micro_batch_indices(self.processes.rank, self.processes.size, list(tasks))
        rows = self._hand_over(tasks)
        self._tasks, self.micro_batch_indices = tasks, indices
        if rows != len(self.gradients.rows):
            self.gradients = self._allocate(rows, self.gradients.names)
        self._reference = by_task(self._reference, list(before), list(tasks), 0.0)
        self._watch.fresh = True

    def attach(self, *optimizers: torch.optim.Optimizer) -> None:
        """Warn, once, where they do not fit: one smooths what `EMA` has smoothed, or they move other parameters."""
        expected = "one or several torch.optim.Optimizer, attach(first, second)"
        fit = bool(optimizers) and all(hasattr(each, "param_groups") for each in optimizers)
        expect(fit, "attach", expected, [type(each).__name__ for each in optimizers])
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        beta = max(max((group.get("betas") or [0.0])[0], group.get("momentum") or 0.0) for group in groups)
        if isinstance(self.update, EMA) and self.update.beta > 0 and beta > 0:
            warnings.warn(
                f"{type(self.update).__name__} averages gradients over steps, and so does the optimizer (beta1 or "
                f'momentum {beta}): set that to 0, as in betas=(0.0, 0.95), or take update="raw"',
                stacklevel=2,
            )
        moved = {id(parameter) for group in groups for parameter in group["params"] if parameter.requires_grad}
        pairs = zip(self.gradients.parameters, self.gradients.names, strict=True)
        held = {id(parameter): name for parameter, name in pairs if parameter.requires_grad}
        missed = [name for key, name in held.items() if key not in moved]
        if missed or moved - held.keys():
            warnings.warn(
                f"`attach`: the optimizer lacks {len(missed)} of the conductor's parameters {missed[:3]}, and has "
                f"{len(moved - held.keys())} that the conductor does not hold, whose gradients it does not fill",
                stacklevel=2,
            )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ONCE or (name in FIXED and name in self.__dict__):
            raise AttributeError(f"`{name}`: stays as the conductor was built; build another one")
        super().__setattr__(name, value)

    def step(
        self,
        batches: Iterable[Any],
        losses: Losses,
        diagnose: bool = False,
        scaler: torch.amp.GradScaler | None = None,
    ) -> dict[str, float]:
        """Fill `p.grad` from the next `accumulation_steps` micro-batches.

        Args:
            batches: an iterator, of which K are taken, or a collection of exactly K; of several processes each takes
                those at `micro_batch_indices`.
            losses: called as losses(batch, names), returns {name: scalar loss} for those of the names that the batch
                has, lambdas not applied. Autocast belongs inside.
            diagnose: gather task gradients even where the strategy does not need them (m - 1 extra backward passes per
                micro-batch), so that conflicts are reported; and keep the resolved, clipped gradient in
                `resolved_gradient` [P].
            scaler: for float16. Losses are scaled by it, task gradients unscaled once, before they are resolved, and
                what stands in `p.grad` is scaled again: go on with `scaler.step(optimizer)` and `scaler.update()`.
                `scaler.unscale_` may be called in between, never before this step. Where a gradient overflows, `p.grad`
                is infinite, so that the scaler leaves the step out and lowers its scale; `skipped` counts it, and the
                rest is as in a step left out by `nonfinite="skip"`. A gradient that is not finite at a scale of 1 or
                less, or a loss, is no overflow: it falls to `nonfinite`; "skip" then lowers the scale too.

        Returns:
            What there is to log, by name: losses, norms, minimum cosines, implied weights, correction, zones …; of a
            step that was left out only the losses and `skipped` = 1, with `unsolved` = 1 where that was why.

        Raises:
            NotFinite: a loss or a gradient is not finite, with `nonfinite="raise"`; as `Unsolved`, the resolver has
                found no solution.
            ValueError: losses or batches are not what is expected above; a loss reaches a parameter that the conductor
                does not hold; parameters or processes have changed in a way that cannot be followed.

        An exception from within the window leaves `p.grad` None everywhere. One that comes while its result is
        written (Ctrl-C) drops the previous task gradients, too: they may be half overwritten.
        """
        expect(callable(losses), "losses", "a function losses(batch, names)", type(losses).__name__)
        self._expect_no_window("step")
        window = self._open(scaler, diagnose)
        with self._guarded(window):
            self._expect_batches(not isinstance(batches, Mapping), f"one {type(batches).__name__}; put it in a list")
            if isinstance(batches, Sized) and not isinstance(batches, Iterator):
                found = _length(batches)
                self._expect_batches(found == window.count, found)
            for batch in self._take(batches):
                window.open_micro_batch()
                window.take(batch, losses)
                self._close_micro_batch(window)
                if window.problem is not None:
                    break
        return self._expect_some(self._finish(window))

    @contextmanager
    def micro_batch(self, scaler: torch.amp.GradScaler | None = None) -> Iterator[None]:
        """Push style: one micro-batch, whose losses are computed within and handed to `backward`.

            for batch in loader:
                with conductor.micro_batch():
                    conductor.backward({"a": ..., "b": ...})
                if conductor.ready:
                    conductor.resolve()
                    optimizer.step()
            if conductor.flush():
                optimizer.step()

        gives the same bits as `step`. Between micro-batches `p.grad` is None, and so it is after an exception, which
        ends the window.

        Args:
            scaler: as for `step`, and the same in all of a window.
        """
        window = self._window or self._open(scaler)
        self._window = window
        expect(not window.full, "micro_batch", f"`resolve` after {window.taken} micro-batches", "another one")
        expect(window.awaited is None, "micro_batch", "one at a time", "one within another")
        expect(scaler is window.scaler, "scaler", "the same in all micro-batches of a window", scaler)
        with self._guarded(window):
            window.open_micro_batch()
            window.expect_losses(window.serves)
            yield
            self._close_micro_batch(window)
        window.gradients.clear_grads()

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """The backward passes of losses of this `micro_batch`, task name -> scalar loss, lambdas not applied.

        May be called several times in a micro-batch, each time with other tasks, whose graphs the call frees: losses
        that share a graph go into one call.
        """
        window = self._window
        if window is None or window.awaited is None:
            raise ValueError("`backward`: expected to be called within `with conductor.micro_batch():`")
        window.backward(losses)
        if window.awaited:
            window.expect_losses(window.awaited)

    @property
    def serves(self) -> list[str]:
        """The tasks whose losses the open or the next micro-batch takes: all, but under `Stochastic`."""
        tasks, count = list(self.tasks), len(self.micro_batch_indices)
        return self._window.serves if self._window else self.estimator.serves(0, count, tasks)

    @property
    def ready(self) -> bool:
        """Whether the window has all its micro-batches, or one of them has made it void, so that `resolve` is due."""
        return self._window is not None and self._window.full

    def resolve(self) -> dict[str, float]:
        """End the window of `micro_batch`: fill `p.grad` from what there is; returns what `step` does."""
        return self._expect_some(self._finish(self._pushed()))

    def flush(self) -> bool:
        """`resolve`, where there is something to resolve: the incomplete window at an epoch's end. Returns whether.

        Means are over the micro-batches that there are. Of several processes all call it, after as many micro-batches.
        """
        return self._window is not None and bool(self._finish(self._pushed()))

    def discard(self) -> int:
        """Drop the open window of `micro_batch`, and return how many micro-batches it had.

        Steps and memory stay as they were; but a resolver with a memory has seen them where it resolves every one.
        """
        window = self._window
        if window is None:
            return 0
        expect(window.awaited is None, "discard", "to be called between micro-batches", "an open one")
        self._end(window)
        return window.taken

    def _pushed(self) -> Window:
        """The window of `micro_batch`, between two of them."""
        window = self._window
        if window is None or window.awaited is not None:
            raise ValueError("`resolve`: expected to be called between micro-batches, after at least one")
        with self._guarded(window):
            expect(not window.gradients.changed(), "parameters", "none to change within a window", "a change")
        return window

    @staticmethod
    def _expect_some(metrics: dict[str, float]) -> dict[str, float]:
        expect(bool(metrics), "losses", "the loss of at least one task in the window", "none")
        return metrics

    @host()
    def _open(self, scaler: torch.amp.GradScaler | None, diagnose: bool = False) -> Window:
        """Begin a window."""
        self._claim_parts(stepped=False)
        self._follow_changes()
        estimator: Estimator = self.estimator
        gradients = self.gradients
        if diagnose and len(gradients.rows) < len(self.tasks) and not self.resolver.weighs_losses:
            estimator = Sequential(estimator.accumulation_steps)
            gradients = self._allocate(len(self.tasks), self.gradients.names)
        return Window(
            estimator,
            gradients,
            self.tasks,
            len(self.micro_batch_indices),
            weigh=self.resolver.weigh if isinstance(self.resolver, LossWeighting) else None,
            look=self._watch.window(gradients),
            scaler=scaler,
            scale=scale_of(scaler, gradients.device),
            diagnose=diagnose,
        )

    @contextmanager
    def _guarded(self, window: Window) -> Iterator[None]:
        """An exception ends the window and leaves no gradient in any parameter.

        One that comes from nothing that is checked, such as Ctrl-C, may leave previous gradients half written: they go.
        """
        try:
            yield
        except BaseException as error:
            self._end(window)
            if window.direction is not None and not isinstance(error, (ValueError, NotFinite)):
                self._reference = None
            raise

    def _end(self, window: Window) -> None:
        self._window = None
        window.close()
        window.gradients.clear_grads()
        if isinstance(self.resolver, LossWeighting):
            self.resolver.forget_window()

    def _close_micro_batch(self, window: Window) -> None:
        expect(
            not (window.awaited and window.gradients.sharded),
            "losses",
            f"{window.serves} in every micro-batch, as all processes of Sharded() run each backward pass together",
            f"none of {window.awaited}; group batches by their tasks",
        )
        window.close_micro_batch()
        if window.estimator.resolves_micro_batches:
            try:
                self._resolve_rows(window)
            except NotFinite as problem:
                window.problem = problem

    @host()
    def _finish(self, window: Window) -> dict[str, float]:
        """Fill `p.grad` from the window; no metrics where no task had a loss."""
        gradients = window.gradients
        try:
            with self._guarded(window):
                if window.scaler is not None:
                    expect_not_unscaled(window.scaler)
                metrics = self._settle(window)
                out = window.direction
                if not metrics or out is None:
                    self._end(window)
                    return {}
                self.resolved_gradient = out.clone() if window.diagnose else None
                self.update.apply(out, gradients)
                if window.scaler is not None and window.scale is not None:
                    out = out.to(gradients.parameter_dtype).mul_(window.scaler.get_scale())  # as it is by now
                gradients.write(out, gradients.reached_in_window)
        except NotFinite as problem:
            return self._leave_out(problem, gradients, window.scale)
        self._window = None
        self.steps += 1
        self._claim_parts(stepped=True)
        self.last = self._record(window, metrics)
        return metrics

    def _settle(self, window: Window) -> dict[str, float]:
        """Resolve what is left to resolve and make the window's direction whole; returns its metrics, if any."""
        if window.problem is not None:
            raise window.problem
        if not window.estimator.resolves_micro_batches:
            self._resolve_rows(window)
        if window.direction is None:
            return {}
        metrics = average(window.resolutions)
        if len(window.resolutions) > 1:
            metrics.pop("resolved_norm", None)  # of the mean it is another
        metrics |= self._counts(window)
        if window.resolved < window.planned_resolutions:
            window.direction.mul_(window.planned_resolutions / window.resolved)
        self.processes.finish(window.direction, window.gradients)
        if "resolved_norm" not in metrics:
            metrics["resolved_norm"] = math.sqrt(float(window.gradients.dot(window.direction, window.direction)))
        if not math.isfinite(metrics["resolved_norm"]):
            by = f"{type(self.resolver).__name__} made a gradient of norm {metrics['resolved_norm']} from finite ones"
            raise NotFinite(f"step {self.steps}: {by}", self._losses_in(metrics))
        limit = math.inf if self.clip_norm is None else self.clip_norm
        norm = metrics["resolved_norm"]
        metrics["clipped"] = float(norm > limit)
        if norm > limit:
            window.direction.mul_(limit / norm)
        self._expect_range(window.direction, window.gradients, metrics)
        self._watch.complete(window.gradients)
        return metrics

    def _expect_range(self, direction: Tensor, gradients: TaskGradients, metrics: dict[str, float]) -> None:
        """Raise GradientNotFinite where float16 does not hold the sum of gradients that it holds."""
        dtypes = {direction.dtype, gradients.parameter_dtype}
        if torch.float16 not in dtypes:
            return  # others reach further than any norm that is finite
        holds = bool((direction.abs() <= torch.finfo(torch.float16).max).all())
        if not self.processes.min_index(int(holds)):
            problem = f"step {self.steps}: the resolved gradient overflows float16; buffer_dtype={direction.dtype}"
            raise GradientNotFinite(f"{problem}, parameters {gradients.parameter_dtype}", self._losses_in(metrics))

    def _losses_in(self, metrics: dict[str, float]) -> dict[str, float]:
        return {task: metrics[f"loss/{task}"] for task in self.tasks if f"loss/{task}" in metrics}

    def _record(self, window: Window, metrics: dict[str, float]) -> WindowRecord:
        gradients = window.gradients
        sizes = [stop - start for start, stop in pairwise(gradients.bounds)]
        return WindowRecord(
            self._names(gradients),
            dict(metrics),
            {task: int(count) for task, count in zip(self.tasks, window.counts.tolist(), strict=True)},
            {group: gram / window.resolved for group, gram in window.grams.items()},
            window.reached,
            dict(zip(gradients.names, sizes, strict=True)),
        )

    def summary(self) -> str:
        """A table of which parameters the tasks shared in the last window, and which one of them reached alone.

        Nothing needs to be declared for that: it is what the losses reach. `Joint` tells tasks apart in
        `step(diagnose=True)` alone.
        """
        if self.last is None:
            raise ValueError("`summary`: expected a window before it, found none")
        counts = ", ".join(f"{task}: {count}" for task, count in self.last.counts.items())
        return f"losses in the last window: {counts}\n{self.last.reach()}"

    def _claim_parts(self, stepped: bool) -> None:
        """A resolver or update with a memory serves this conductor alone, once it has stepped."""
        if self._claims:
            return
        parts: dict[str, Resolver | Update] = {"resolver": self.resolver, "update": self.update}
        remembering = {kind: part for kind, part in parts.items() if part.state_dict()}
        for kind, part in remembering.items():
            self._expect_unclaimed(kind, part)
        if not stepped:
            return
        for part in remembering.values():
            vars(part)["_claimed"] = id(part)  # a copy is nobody's
        self._claims = True

    @staticmethod
    def _expect_unclaimed(kind: str, part: Resolver | Update) -> None:
        own = f"a {type(part).__name__}() of this conductor's own, since it remembers its steps"
        claimed = vars(part).get("_claimed") == id(part)
        expect(not claimed, kind, own, "one that another conductor has stepped with")

    def _follow_changes(self) -> None:
        """Notice what has changed since the last step, before anything is computed."""
        expect(torch.is_grad_enabled(), "step", "to be called with gradients on", "no_grad() or inference_mode()")
        self.processes.check_unchanged()
        if self.gradients.changed():
            self._watch.fresh = True
            kept = None if self._reference is None else self.processes.gather_full(self._reference, self.gradients)
            self._lay_out(self.gradients.layout, kept)
        if self._watch.fresh and self.processes.size > 1:
            self.processes.compare(self._facts())
        elif self._reweighted and self.processes.size > 1:
            self.processes.compare({"lambdas": list(self.tasks.items())})
        self._reweighted = False

    def _lay_out(self, layout: Layout, reference: Tensor | None) -> None:
        """Lay the parameters out as they are now; until now `reference` and what the parts keep had this `layout`."""
        now, move = self._move_from(layout)
        if reference is not None:
            reference = move.numbers(reference, self._reference_dtype or now.dtype).to(now.device)
        self.update.follow(move)
        if self.resolver.remembers_coordinates:
            self.resolver.follow(move)
        if self.gradients.laid_out_like(now):
            self.gradients.renew()
        else:
            self.gradients = self._allocate(len(self.gradients.rows), now.names)
            self._direction = None
        self._reference = reference

    def _move_from(self, layout: Layout) -> tuple[FlatParameters, Move]:
        """The parameters as they are now, and the way to them from `layout`."""
        now = FlatParameters(self._parameters, self._dtype, held={slot.name for slot in layout})
        return now, Move(layout, now.layout, now.dtype)

    def _facts(self) -> dict[str, Any]:
        """What has to be the same in every process."""
        gradients = self.gradients
        facts: dict[str, Any] = {
            "lambdas": list(self.tasks.items()),
            "accumulation_steps": self.estimator.accumulation_steps,
            "strategy": [type(self.estimator).__name__, *self._methods],
            "number of steps taken": self.steps,
            "list of parameters": gradients.names,
            "clip_norm": self.clip_norm,
            "nonfinite": self.nonfinite,
        }
        if not isinstance(self.processes, ReplicatedPerRank):  # each may draw its own numbers there
            facts["seed"] = self._generator.initial_seed()
        if gradients.sharded:
            return facts
        values = gradients.flatten().cpu().view(torch.uint8)
        width = gradients.parameter_dtype.itemsize
        for slot, stop in zip(gradients.layout, gradients.bounds[1:], strict=True):
            facts[f"layout (shape, strides) of {slot.name}"] = (slot.shape, slot.stride)
            content = values[slot.start * width : stop * width].numpy().tobytes()
            facts[f"value (a checksum) of {slot.name}"] = sha256(content).hexdigest()[:12]
        return facts

    @host()
    def _resolve_rows(self, window: Window) -> None:
        """Resolve what the rows hold, into the window's direction."""
        gradients = window.gradients
        mean_losses, counts = window.mean_losses()
        gradients.materialised = self._watch.materialises
        if window.scale is not None and window.scale != 1:
            gradients.rows.mul_(1 / window.scale)
        gathered = self.processes.gather(gradients, self._reference, mean_losses, counts, window.planned)
        parts = window.count if window.estimator.resolves_micro_batches else 1
        window.planned_resolutions = parts * len(gathered.statistics)
        window.planned_counts = window.planned_resolutions * gathered.planned
        window.reached = window.reached | gradients.reached_by_row
        own = None
        for place, (statistics, values) in enumerate(zip(gathered.statistics, gathered.losses, strict=True)):
            counts = gathered.counts[place]
            window.counts = window.counts + counts
            absent = tuple(task for task, count in zip(self.tasks, counts.tolist(), strict=True) if count == 0)
            if len(absent) == len(self.tasks):
                continue
            losses = {task: float(values[i]) for i, task in enumerate(self.tasks) if task not in absent}
            self._check(gradients, statistics, losses, gathered.nonfinite)
            metrics, problem = {f"loss/{task}": value for task, value in losses.items()}, None
            try:
                resolution, found = self._resolve(gradients, statistics, values, absent)
                metrics = found | metrics
            except Unsolved as error:
                error.losses, problem = losses, error
            window.resolutions += self.processes.merge_metrics(metrics, problem)
            window.resolved += 1
            for group, gram in {"all": statistics.gram, **statistics.group_grams}.items():
                window.grams[group] = window.grams[group] + gram if group in window.grams else gram
            if place == gathered.own:
                own = resolution
        if own is not None:
            self._add_up(window, own, parts)
        elif window.resolved and window.direction is None:  # other processes had losses
            window.direction = self._output(gradients, parts).zero_()

    def _add_up(self, window: Window, own: Resolution, parts: int) -> None:
        """Write the resolution of the rows into the direction, or add it there; the rows become history."""
        gradients, add = window.gradients, window.direction is not None
        if self.resolver.uses_history and not self._swaps:
            self._previous(gradients).copy_(gradients.rows)
        if window.direction is None:
            window.direction = self._output(gradients, parts)
        exclusive = torch.ones(len(gradients.rows)) if own.exclusive is None else own.exclusive
        gradients.combine(own.blockwise or own.weights, exclusive, window.direction, 1 / parts, add)
        if self._swaps:
            self._reference = gradients.swap(self._previous(gradients))

    def _counts(self, window: Window) -> dict[str, float]:
        """How many losses each task had, if not as planned; a task without any in a full one is warned about."""
        counts = dict(zip(self.tasks, window.counts.tolist(), strict=True))
        for task, count in counts.items():
            if not count and window.full and task not in self._told_absent:
                self._told_absent.add(task)
                warnings.warn(
                    f"task {task!r} had no loss in a whole window, so it takes no part in it; this is said once. Is it "
                    "another name in `losses`?",
                    stacklevel=5,
                )
        short = any(count != window.planned_counts for count in counts.values())
        return {f"count/{task}": count for task, count in counts.items()} if short else {}

    def _leave_out(self, problem: NotFinite, gradients: TaskGradients, scale: float | None) -> dict[str, float]:
        overflow = scale is not None and scale > 1 and isinstance(problem, GradientNotFinite)
        if self.nonfinite == "raise" and not overflow:
            raise problem
        if scale is None:
            gradients.clear_grads()
        else:
            gradients.write(gradients.rows[0].fill_(math.inf), gradients.reached_in_window)
        self.resolved_gradient = None
        self.steps += 1
        self.skipped += 1
        metrics = {f"loss/{task}": value for task, value in problem.losses.items()} | {"skipped": 1.0}
        return metrics | ({"unsolved": 1.0} if isinstance(problem, Unsolved) else {})

    def _names(self, gradients: TaskGradients) -> tuple[str, ...]:
        return ("+".join(self.tasks),) if len(gradients.rows) < len(self.tasks) else tuple(self.tasks)

    def _check(
        self, gradients: TaskGradients, statistics: Statistics, losses: dict[str, float], nonfinite: str
    ) -> None:
        """Raise NotFinite where a loss, else GradientNotFinite where a gradient is not finite.

        Of the kind `nonfinite`, where processes resolve for themselves and one of them has found such a one.
        """
        for task, value in losses.items():
            if not math.isfinite(value):
                raise NotFinite(f"step {self.steps}: the loss of task {task!r} is {value}", losses)
        elsewhere = f"step {self.steps}: another process found a {nonfinite} that is not finite"
        if nonfinite == "loss":
            raise NotFinite(elsewhere, losses)
        squares = (statistics.gram.diagonal() + statistics.exclusive).tolist()
        for row, (task, square) in enumerate(zip(self._names(gradients), squares, strict=True)):
            if not math.isfinite(square):
                place = self.processes.min_index(gradients.first_nonfinite(row))
                first = [*(f"parameter {name}" for name in gradients.names), "no single parameter"][place]
                raise GradientNotFinite(
                    f"step {self.steps}: the gradient of task {task!r} is not finite, first in {first}", losses
                )
        if nonfinite:
            raise GradientNotFinite(elsewhere, losses)

    def _resolve(
        self, gradients: TaskGradients, statistics: Statistics, values: Tensor, absent: tuple[str, ...]
    ) -> tuple[Resolution, dict[str, float]]:
        every = f"a loss of every task in a window, which {type(self.resolver).__name__} needs"
        away = f"none of {list(absent)}; take a longer window, or another resolver"
        expect(not absent or not self.resolver.needs_every_task, "losses", every, away)
        joint = len(gradients.rows) < len(self.tasks)
        conflict = Conflict(
            tasks=self._names(gradients),
            gram=statistics.gram,
            cross=statistics.cross,
            group_grams=statistics.group_grams,
            losses=(values * self._lambdas).sum(0, keepdim=True) if joint else values,
            lambdas=torch.ones(1, dtype=torch.float64) if joint else self._lambdas,
            step=self._resolutions,
            generator=self._generator,
            absent=absent,
        )
        resolution = resolve(self.resolver, conflict)
        self._resolutions += 1
        metrics = describe(conflict, resolution)
        if isinstance(self.resolver, LossWeighting):
            metrics |= self.resolver.after_window(values)
        if resolution.coefficients is None:
            return resolution, metrics
        weights, exclusive = resolution.weights, resolution.exclusive
        alone = statistics.exclusive if exclusive is None else exclusive**2 * statistics.exclusive
        square = float(weights @ statistics.gram @ weights + alone.sum())
        metrics["resolved_norm"] = math.sqrt(max(square, 0.0))  # in this order nan stays nan
        return resolution, metrics

    def _output(self, gradients: TaskGradients, parts: int) -> Tensor:
        """Where the window's resolution goes [P]: a row that nothing needs any more, if there is one."""
        if parts == 1:
            return self._previous(gradients)[0] if self._swaps else gradients.rows[0]
        if self._direction is None:
            self._direction = gradients.new_rows(1)[0]
        return self._direction

    @property
    def _methods(self) -> list[str]:
        return [type(part).__name__ for part in (self.resolver, self.update)]

    @property
    def _lambdas(self) -> Tensor:
        return torch.tensor(list(self.tasks.values()), dtype=torch.float64)

    @property
    def reference_dtype(self) -> torch.dtype:
        """Of the previous task gradients."""
        return self._reference_dtype or self.gradients.dtype

    @property
    def _swaps(self) -> bool:
        """Whether the rows themselves become the reference; in another dtype they are copied."""
        return self.resolver.uses_history and self.reference_dtype == self.gradients.dtype

    def _previous(self, gradients: TaskGradients) -> Tensor:
        if self._reference is None:
            self._reference = gradients.new_rows(len(gradients.rows), self.reference_dtype)
        return self._reference

    def _take(self, batches: Iterable[Any]) -> Iterator[Any]:
        """This process's micro-batches, one after the other: the window's images need never be in memory together."""
        taken, count = 0, len(self.micro_batch_indices)
        for batch in islice(batches, count):
            taken += 1
            yield batch
        self._expect_batches(taken == count, f"only {taken}")

    def _expect_batches(self, holds: bool, found: Any) -> None:
        count, steps = len(self.micro_batch_indices), self.estimator.accumulation_steps
        share = f", this process's share of {steps}" if count < steps else ""
        expected = f"{count} micro-batches{share}, or an iterator of more, such as iter(loader)"
        expect(holds, "batches", expected, found)

    def _allocate(self, rows: int, held: Collection[str]) -> TaskGradients:
        gradients = TaskGradients(self._parameters, rows, self._dtype, self._products, held)
        self.processes.bind(gradients)
        return gradients

    @host()
    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next step depends on: tensors and plain numbers, loadable with `weights_only=True`.

        Of an open window of `micro_batch` it has nothing, which is said by a warning: whoever goes on from it takes
        that window's micro-batches anew. A collective call: every process makes it. Under `Replicated` all get the same
        state, whatever their number.

        Raises:
            ValueError: in a window whose micro-batches are resolved one by one, by a resolver that has seen them.
        """
        if self._window is not None:
            if self.estimator.resolves_micro_batches:
                self._expect_no_window("state_dict")
            warnings.warn(
                f"`state_dict`: the {self._window.taken} micro-batches of the open window are not in it; save after "
                "`resolve` or `flush`, or take them anew",
                stacklevel=2,
            )
        reference = None if self._reference is None else self.processes.gather_full(self._reference, self.gradients)
        return {
            "tasks": list(self.tasks),
            "methods": self._methods,
            "handed_over": self.gradients.all_names,
            "layout": described(self.gradients.layout),
            "steps": self.steps,
            "skipped": self.skipped,
            "resolutions": self._resolutions,
            "reference": reference,
            "generator": self._generator.get_state(),
            "resolver": self.resolver.state_dict(),
            "update": self.update.state_dict(),
        }

    @host()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, whatever the order of the tasks and the order and layout of the parameters were.

        All are known by their names. Lambdas stay the conductor's.

        Raises:
            ValueError: the state is of other tasks, parameters or methods, or of a wider dtype. After any error the
                conductor is as it was.
        """
        self._expect_no_window("load_state_dict")
        layout = lay_out([(name.replace(COMPILED, ""), *rest) for name, *rest in state.get("layout", ())])
        state = state | {"handed_over": [name.replace(COMPILED, "") for name in state.get("handed_over", ())]}
        self._check_state(state, layout)
        before = [(part, dict(vars(part))) for part in (self, self.resolver, self.update)]
        random = self._generator.get_state()
        try:
            self._load(state, layout)
        except BaseException:
            for part, own in before:
                vars(part).clear()
                vars(part).update(own)
            self._generator.set_state(random)
            raise

    def _load(self, state: dict[str, Any], layout: Layout) -> None:
        self.steps, self.skipped = state["steps"], state["skipped"]
        self._resolutions = state["resolutions"]
        self._generator.set_state(state["generator"].cpu())
        self.resolver.load_state_dict(state["resolver"])
        reference = None if state["reference"] is None else state["reference"].clone()
        if state["tasks"] != list(self.tasks):
            self.resolver.follow_tasks(state["tasks"], list(self.tasks))
            reference = by_task(reference, state["tasks"], list(self.tasks), 0.0)
        self.update.load_state_dict(state["update"])
        self._lay_out(layout, reference)
        self._watch.fresh = True

    def _check_state(self, state: dict[str, Any], layout: Layout) -> None:
        expect(bool(layout), "state", "one with the names of tasks and parameters", "an older version's")
        for what, found, expected, advice in (
            ("tasks", state["tasks"], self.tasks, "build the conductor with these, then use `add_task`, `remove_task`"),
            ("parameters", sorted(state["handed_over"]), sorted(self.gradients.all_names), "hand over the same"),
        ):
            odd = sorted(set(found) ^ set(expected))
            if odd:
                raise ValueError(
                    f"`state`: expected the state of {len(expected)} {what} with the same names, {list(expected)[:5]}, "
                    f"found {len(found)}, {found[:5]}; differing: {odd[:5]}; {advice}"
                )
        kept = state.get("methods", self._methods)  # older states do not say
        expect(kept == self._methods, "state", f"the state of {' and '.join(self._methods)}", " and ".join(kept))
        self._move_from(layout)[1].check()


def _length(batches: Sized) -> int | str:
    try:
        return len(batches)
    except TypeError:  # a DataLoader of an IterableDataset
        return "a loader that does not know its length"

"""Does a model have gradient conflict, is it more than noise, and what would a method make of it?

Letters: n micro-batches in b blocks, m tasks, P parameters, K micro-batches of a window.

Inner products between gradients of *different* micro-batches estimate those of the true gradients without bias, however
noisy each is, and whether or not tasks share a batch and with it the noise. Cosines are made of them, so noise neither
shrinks nor tilts them. Their intervals are the jackknife's, a block left out at a time, with Student's t of b - 1.
"""

from __future__ import annotations

import html
import inspect
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gcond.strategy.arguments import checked_lambdas, expect, object_or_default
from gcond.strategy.conflict import Conflict, Resolver, resolve
from gcond.strategy.diagnose import aligned, cosines
from gcond.strategy.estimate import Losses, checked_losses
from gcond.strategy.flat import FlatParameters, grouped
from gcond.strategy.gradient_noise import GradientSums, between, jackknife
from gcond.strategy.named import RESOLVERS
from gcond.strategy.resolve.linear import Linear
from gcond.strategy.safety import host, keeping_buffers, scale_of
from gcond.strategy.watch import WRAPPERS, nodes

CONFIDENCE = 0.95  # that all intervals of a table hold together (Bonferroni)
RIGHT = 0.9  # share of windows that must show the sign of the true cosine
FEWEST = 8  # windows of a size that are enough to say how many do
MINOR = 0.1  # the size of a negative cosine that makes little difference: of equal norms no method turns the sum for it
REENTRANT = "CheckpointFunctionBackward"  # whose parameters torch.autograd.grad does not see
Rows = list[dict[str, Any]]


def profile(
    model: nn.Module,
    losses: Losses,
    loader: Iterable[Any],
    tasks: Mapping[str, float] | Sequence[str],
    micro_batches: int = 64,
    groups: Mapping[str, Any] | None = None,
    methods: Sequence[str] | Mapping[str, Resolver] = ("pcgrad", "cagrad", "gcond"),
    blocks: int = 16,
    scaler: torch.amp.GradScaler | None = None,
) -> Profile:
    """Measure the conflict of the tasks' gradients at the model's present weights; docs/profiler.md reads a report.

    Nothing is moved: weights, buffers (BatchNorm), train or eval mode, `p.grad` and the states of random generators
    (PyTorch's on the CPU and on the model's devices, Python's, NumPy's, the loader's) are as before. A state that the
    model, the losses or an iterator keep elsewhere is not known here.

    Memory: b + 1 rows of P float32 numbers for each task, and one for each size of window below a block: 18 by default.
    Time: a forward pass and m backward passes per micro-batch.

    Args:
        model: in the mode that it is trained in. Not one that a wrapper shards or reduces gradients of.
        losses: called as losses(batch, names), as the conductor's. A task that the batch lacks is left out.
        loader: gives micro-batches that are independent of each other, as a sampler with replacement draws them. Those
            of one pass together have its mean gradient, so that each leans against the others; the report says so
            where that matters (if the loader has a sampler).
        tasks: name -> lambda, > 0; or names, of lambda 1.
        micro_batches: n, `blocks` times a power of two.
        groups: group name -> its parameters or module, as the conductor takes them; "all" is then all of these. None:
            the model's children, and "(own)", the parameters that belong to none of them.
        methods: names that the conductor knows, or name -> resolver; of those that work on inner products alone.
        blocks: b, even, at least 8.
        scaler: for float16: its scale enlarges the losses.

    Raises:
        ValueError: an argument is not as above; no parameter is shared between tasks; a gradient is not finite.
    """
    lambdas = checked_lambdas(tasks if isinstance(tasks, Mapping) else dict.fromkeys(tasks, 1.0))
    expect(len(lambdas) > 1 and all(lambdas.values()), "tasks", "two or more, of lambdas above 0", lambdas)
    kind = type(model).__name__
    expect(kind not in WRAPPERS, "model", "the model in the wrapper, its `.module`", kind)
    powers = {blocks << power for power in range(1, 20)}
    expect(blocks >= 8 and blocks % 2 == 0, "blocks", "an even integer >= 8", blocks)
    expect(micro_batches in powers, "micro_batches", f"{2 * blocks}, {4 * blocks}, {8 * blocks} …", micro_batches)
    flat = FlatParameters(_children(model) if groups is None else grouped(groups))
    expect(not flat.sharded, "model", "parameters that are not sharded", "those of fully_shard")
    given = methods if isinstance(methods, Mapping) else dict(zip(methods, methods, strict=True))
    resolvers: dict[str, Resolver] = {
        name: object_or_default("resolver", each, "resolve", Linear, RESOLVERS) for name, each in given.items()
    }
    for name, resolver in resolvers.items():
        reads = resolver.needs_task_gradients and not resolver.works_on_coordinates and not resolver.needs_every_task
        expect(reads, "methods", "resolvers that work on inner products of task gradients alone", name)
        resolver.check(lambdas, tuple(dict.fromkeys(flat.groups)))
    sums = GradientSums(flat, len(lambdas), micro_batches, blocks, by_parameter=True)
    brought: list[list[bool]] = []
    with untouched(model, loader, flat.device), torch.enable_grad():
        for batch in itertools.islice(loader, micro_batches):
            factor = scale_of(scaler, flat.device) or 1.0
            with keeping_buffers():
                values = checked_losses(losses(batch, list(lambdas)), list(lambdas))
            reentrant = not brought and any(type(node).__name__ == REENTRANT for node in nodes(values.values()))
            expect(not reentrant, "losses", "checkpoints with use_reentrant=False", "reentrant ones")
            gram = sums.add(task_gradients(values, lambdas, factor, flat.parameters), 1 / factor)
            for index, name in enumerate(lambdas):
                found = f"that of {name} in micro-batch {len(brought)}, losses times {factor:g}, is not"
                expect(bool(torch.isfinite(gram[:, index, index]).all()), "losses", "finite gradients", found)
            brought.append([name in values for name in lambdas])
    found = f"{len(brought)}; set `micro_batches`, or give more data: the same again would pass for new"
    expect(len(brought) == micro_batches, "loader", f"{micro_batches} micro-batches", found)
    sampler: Any = getattr(loader, "sampler", None)
    replaced = not isinstance(sampler, Sized) or getattr(sampler, "replacement", False)
    one_pass = len(loader) if isinstance(loader, Sized) and not replaced else None
    with host():
        return _Measured(flat, list(lambdas), sums, torch.tensor(brought).double()).report(resolvers, one_pass)


def task_gradients(
    values: Mapping[str, Tensor], lambdas: Mapping[str, float], factor: float, parameters: Sequence[Tensor]
) -> Iterator[Sequence[Tensor | None]]:
    """For each task the gradient of its loss, times lambda and `factor`; one that has none reaches no parameter."""
    left = [name for name in lambdas if name in values]
    for name, weight in lambdas.items():
        if name not in values:
            yield [None] * len(parameters)
            continue
        left.remove(name)
        loss = values[name] * (weight * factor)
        with keeping_buffers(backward=True):
            gradients = torch.autograd.grad(loss, parameters, retain_graph=bool(left), allow_unused=True)
        yield gradients


def _children(model: nn.Module) -> dict[str, Any]:
    """Group name -> (name, parameter) pairs, without groups that have nothing to train."""
    groups: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(name.partition(".")[0] if "." in name else "(own)", []).append((name, parameter))
    return {group: own for group, own in groups.items() if any(p.requires_grad for _, p in own)} or {"all": []}


@contextmanager
def untouched(model: nn.Module, loader: Any, device: torch.device) -> Iterator[None]:
    """Put back what forward passes and the reading of data move; `p.grad` is the tensor that it was."""
    held = [(module._buffers, *each) for module in model.modules() for each in module._buffers.items()]
    buffers = [(own, name, buffer, buffer.clone()) for own, name, buffer in held if buffer is not None]
    modes = [(module, module.training) for module in model.modules()]
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    sources = [loader, *(getattr(loader, name, None) for name in ("sampler", "batch_sampler", "dataset"))]
    drawn = [each.generator for each in sources if isinstance(getattr(each, "generator", None), torch.Generator)]
    states: list[tuple[Callable[[Any], object], Any]] = [(each.set_state, each.get_state()) for each in drawn]
    states += [(random.setstate, random.getstate()), (torch.set_rng_state, torch.get_rng_state())]
    states += [(np.random.set_state, np.random.get_state())]  # noqa: NPY002
    if device.type != "cpu":
        of_device: Any = torch.get_device_module(device)
        every = "_all" if hasattr(of_device, "get_rng_state_all") else ""
        get, put = (getattr(of_device, f"{act}_rng_state{every}") for act in ("get", "set"))
        states.append((put, get()))
    try:
        yield
    finally:
        for put_back, state in states:
            put_back(state)
        with torch.no_grad():
            for own, name, buffer, value in buffers:
                own[name] = buffer.copy_(value)
        for module, training in modes:
            module.training = training
        for parameter, gradient in grads:
            parameter.grad = gradient


class _Measured:
    """Sums of n micro-batches, and what they say. `present` [n, m]: which tasks each brought."""

    def __init__(self, flat: FlatParameters, tasks: list[str], sums: GradientSums, present: Tensor) -> None:
        self._tasks, self._present = tasks, present
        blocks, self._windows = sums.grams()
        grams = torch.stack(list(blocks.values()))
        n, m = present.shape
        self._b = grams.shape[1] // m
        self._blocks = grams.view(-1, self._b, m, self._b, m)
        self._reached = (self._windows[1].diagonal(dim1=2, dim2=3) > 0).any(0)  # [parameters, m]
        shared = self._reached.sum(1) > 1
        expect(bool(shared.any()), "losses", "parameters that two tasks reach", "none")
        self._places = {"all": shared}
        for group in dict.fromkeys(flat.groups):
            own = shared & torch.tensor([each == group for each in flat.groups])
            self._places |= {group: own} if own.any() and not own.equal(shared) else {}
        sizes = torch.tensor([parameter.numel() for parameter in flat.parameters])
        self._about = {"micro_batches": n, "tasks": tasks, "parameters": flat.size, "shared": int(sizes[shared].sum())}

    def report(self, methods: Mapping[str, Resolver], one_pass: int | None) -> Profile:
        m = len(self._tasks)
        found = [
            (group, i, j)
            for group, places in self._places.items()
            for i, j in itertools.combinations(range(m), 2)
            if bool((self._reached[places, i] & self._reached[places, j]).any())
        ]
        pairs = [self._pair(*each, family=len(found)) for each in found]
        changes = [{"method": name} | self._changes(resolver) for name, resolver in methods.items()]
        return Profile(pairs, [self._task(index) for index in range(m)], changes, self._about | {"pass": one_pass})

    def _between(self, group: str, blocks: int) -> Tensor:
        """[w, m, w, m], inner products of the sums over w windows of so many blocks."""
        return between(self._blocks[self._places[group]].sum(0), blocks)

    def _within(self, group: str, size: int) -> Tensor:
        """[n / K, m, m], inner products of the sums over windows of K."""
        return self._windows[size][:, self._places[group]].sum(1)

    def _unbiased(self, group: str) -> Tensor:
        """[1 + b, m, m]: inner products of the tasks' true gradients, by all blocks and by all but one."""
        grams, m = self._between(group, 1), len(self._tasks)
        same = self._within(group, 1).view(self._b, -1, m, m).sum(1)  # of micro-batches with themselves
        present = self._present.view(self._b, -1, m)
        counts, both = present.sum(1), torch.einsum("bki,bkj->bij", present, present)
        found = []
        for left_out in range(-1, self._b):
            kept = [block for block in range(self._b) if block != left_out]
            count = counts[kept].sum(0)
            products = grams[kept][:, :, kept].sum((0, 2)) - same[kept].sum(0)
            found.append(products / (torch.outer(count, count) - both[kept].sum(0)))
        return torch.stack(found)

    def _halves(self, group: str) -> Tensor:
        """[2 m, 2 m], cosines of the tasks' means over the two halves."""
        return cosines(self._between(group, self._b // 2).flatten(0, 1).flatten(1))

    def _pair(self, group: str, i: int, j: int, family: int) -> dict[str, Any]:
        value, low, high = _interval(cosines(self._unbiased(group))[:, i, j], family)
        halves, m = self._halves(group), len(self._tasks)
        row: dict[str, Any] = {"pair": f"{self._tasks[i]}, {self._tasks[j]}", "group": group}
        row |= {"cosine": value, "low": low, "high": high}
        row["verdict"] = verdict = "conflict" if high < 0 else "agreement" if low > 0 else "not known"
        row["halves"] = float(halves[i, m + j] + halves[j, m + i]) / 2
        row["floor"] = min(float(halves[i, m + i]), float(halves[j, m + j]))
        sign_from, shares = None, {}
        for size in [size for size, grams in self._windows.items() if len(grams) >= FEWEST]:
            grams = self._within(group, size)
            both = (grams[:, i, i] > 0) & (grams[:, j, j] > 0)
            share = float((grams[both, i, j] < 0).double().mean()) if both.sum() >= FEWEST else math.nan
            shares[f"conflict/{size}"] = share
            right = {"conflict": share, "agreement": 1 - share, "not known": math.nan}[verdict]
            sign_from = (sign_from or size) if right >= RIGHT else None
        return row | {"sign_from": sign_from} | shares

    def _task(self, i: int) -> dict[str, Any]:
        products, m = self._unbiased("all"), len(self._tasks)
        square = float(products[0, i, i])
        mean = float(self._within("all", 1)[:, i, i].sum() / self._present[:, i].sum())  # of a micro-batch
        norm, noise = (math.sqrt(square), mean / square - 1) if square > 0 else (math.nan, math.inf)
        row = {"task": self._tasks[i], "micro_batches": int(self._present[:, i].sum()), "norm": norm, "noise": noise}
        row["floor"] = float(self._halves("all")[i, m + i])
        and_sum = torch.cat([torch.eye(m), torch.ones(m, 1)], 1).double()  # the tasks, and one that is their sum
        value, low, high = _interval(cosines(and_sum.T @ products @ and_sum)[:, i, m], m)
        return row | {"with_sum": value, "low": low, "high": high}

    def _changes(self, resolver: Resolver) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for size in (1, len(self._present) // FEWEST, len(self._present)):
            measurable = size > 1 or not resolver.uses_history
            try:
                found[f"change/{size}"] = self._change(deepcopy(resolver), size) if measurable else None
            except RuntimeError as error:  # of a solver; all else is measured, and would be lost
                found |= {f"change/{size}": None, "failed": str(error)}
        return found

    def _change(self, resolver: Resolver, size: int) -> float:
        m, draw = len(self._tasks), torch.Generator().manual_seed(0)
        given = self._present.view(-1, size, m).sum(1)
        counts = given.clamp(min=1)
        grams = self._within("all", 1)
        cross = torch.zeros_like(grams)
        if size > 1:
            across = self._between("all", size * self._b // len(self._present))
            grams = across.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            cross[1 : len(grams)] = across.diagonal(-1, 0, 2).permute(2, 0, 1) / counts[:-1, None]
        unknown, ones = torch.full((m,), math.nan), torch.ones(m, dtype=torch.float64)
        sines = []
        for step, count in enumerate(counts):
            gram, before = grams[step] / count / count[:, None], cross[step] / count[:, None]
            absent = tuple(task for task, there in zip(self._tasks, given[step].tolist(), strict=True) if not there)
            conflict = Conflict(tuple(self._tasks), gram, before, {}, unknown, ones, step, draw, absent)
            if gram.sum() <= 0:
                continue  # nothing to turn
            weights = resolve(resolver, conflict).weights
            along, square = weights @ gram.sum(1), weights @ gram @ weights
            cosine = float(along / (square * gram.sum()).sqrt()) if square > 0 else 0.0
            sines.append(math.sqrt(max(0.0, 1 - cosine**2)) if cosine > 0 else 1.0)
        return sum(sines) / len(sines) if sines else math.nan


def _interval(values: Tensor, family: int) -> tuple[float, float, float]:
    """A cosine by all blocks and by all but one [1 + b] -> it and its interval, one of `family` that hold together."""
    from scipy.special import stdtrit

    value, *without = values.tolist()
    if not math.isfinite(value + sum(without)):
        return math.nan, -1.0, 1.0
    reach = float(stdtrit(len(without) - 1, 1 - (1 - CONFIDENCE) / 2 / family)) * jackknife(without)
    value, low, high = (min(1.0, max(-1.0, each)) for each in (value, value - reach, value + reach))
    return value, low, high


@dataclass(frozen=True)
class Profile:
    """What `profile` has found: print it, or save it as a page.

    pairs: a row for each pair of tasks, in all parameters that tasks share, then in each group.
        cosine, low, high: between the true gradients, with the interval; nan, -1, 1 where noise hides one of them.
        verdict: what the interval allows: conflict, agreement, or not known.
        halves: cosine of one task's mean over half of the micro-batches with the other's over the other half.
        floor: the noise floor, the same of a task with itself, for the noisier of the two.
        sign_from: the K from which on at least 90 % of windows show the sign; None: no such K, or no known sign.
        conflict/K: share of windows of K micro-batches with a cosine below 0; nan: of fewer than eight windows.
    tasks: a row for each, over all parameters that tasks share.
        norm: of the true gradient, lambda applied. floor: as above.
        noise: so many micro-batches have a mean with as much noise as gradient.
        with_sum, low, high: cosine with the sum of all; below 0 a small step along the sum makes the task worse.
    methods: a row for each.
        change/K: how far the method turns the sum of the gradients in a window of K, the mean sine of the angle.
            Lengths do not count. None: not measured (of a method with a history, K = 1), or `failed`.
    """

    pairs: Rows
    tasks: Rows
    methods: Rows
    about: dict[str, Any]

    @property
    def recommendation(self) -> str:
        return "\n".join(_advice(self))

    def __str__(self) -> str:
        return "\n\n".join([self._title(), *map(aligned, self._tables()), self.recommendation])

    def save(self, path: str | Path) -> None:
        """One HTML page that needs nothing else."""
        tables = ""
        for table, rows in zip(self._tables(), (self.pairs, self.tasks, self.methods), strict=True):
            drawn = ["", *map(_drawn, rows)]
            lines = ["".join(f"<td>{html.escape(cell)}" for cell in line) for line in table]
            lines = [f"<tr><td>{picture}{line}" for line, picture in zip(lines, drawn, strict=True)]
            tables += f"<table>{''.join(lines)}</table>"
        advice = "".join(f"<p class=advice>{html.escape(line)}" for line in _advice(self))
        notes = html.escape(inspect.getdoc(type(self)) or "").partition("\n")[2]
        page = PAGE.format(title=html.escape(self._title()), advice=advice, tables=tables, notes=notes)
        Path(path).write_text(page, encoding="utf-8")

    def _title(self) -> str:
        tasks = ", ".join(self.about["tasks"])
        return (
            f"{self.about['micro_batches']} micro-batches; {tasks} share {self.about['shared']:,} of "
            f"{self.about['parameters']:,} parameters; the intervals of a table hold together at {CONFIDENCE:.0%}"
        )

    def _tables(self) -> list[list[list[str]]]:
        """Headings, and a line of cells for each row."""
        tables = [[_cells(row) for row in rows] for rows in (self.pairs, self.tasks, self.methods)]
        headings = [list(dict.fromkeys(name for row in table for name in row)) for table in tables]
        return [
            [names, *([row.get(name, "") for name in names] for row in table)]
            for names, table in zip(headings, tables, strict=True)
        ]


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    """What is shown of a row."""
    found = {}
    for name, value in row.items():
        if name == "low":
            found["interval"] = f"[{value:+.2f}, {row['high']:+.2f}]"
        elif name != "high":
            form = ".0%" if "/" in name else ".3g" if name in ("norm", "noise") else "+.2f"
            known = value is not None and value == value  # not nan
            found[name] = "-" if not known else f"{value:{form}}" if isinstance(value, float) else str(value)
    return found


def _advice(profile: Profile) -> Iterator[str]:
    """What the intervals allow to say."""
    pairs, tasks, batches = profile.pairs, profile.tasks, profile.about["pass"]
    if batches is not None and any(row["noise"] > MINOR * batches for row in tasks):
        yield (
            f"A pass of {batches} batches is short beside the noise: they are not independent, which tilts cosines. "
            "Draw them with replacement, RandomSampler(data, replacement=True)."
        )
    whole = [row for row in pairs if row["group"] == "all"]
    for row in whole:
        said = f"cosine {row['cosine']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        own = [each for each in pairs if each["pair"] == row["pair"] and each is not row]
        places = ", ".join(each["group"] for each in own if each["verdict"] == "conflict")
        if row["verdict"] == "conflict":
            also = f", also within {places}" if places else ""
            yield f"{row['pair']}: real conflict, {said}{also}. {_accumulate(row)}"
            continue
        if math.isnan(row["cosine"]):
            yield (
                f"{row['pair']}: not known, noise hides a gradient: of so many micro-batches a method resolves noise. "
                "Profile many more, or larger ones."
            )
        elif row["low"] <= -MINOR:
            times = math.ceil(((row["high"] - row["low"]) / 2 / max(abs(row["cosine"]), MINOR)) ** 2)
            yield f"{row['pair']}: not known, {said}. Profile about {max(2, times)} times as many micro-batches."
        elif (share := row["conflict/1"]) > 1 - RIGHT:
            yield f"{row['pair']}: {said}; the {share:.0%} of conflicts at K=1 are noise. {_accumulate(row)}"
        if places:
            yield (
                f"{row['pair']}: real conflict in {places} only. Methods that work on inner products over all "
                "parameters hardly see it: try separate layers there, or other lambdas."
            )
    if not any(row["verdict"] == "conflict" or row["low"] <= -MINOR for row in whole):
        lowest = min(row["low"] for row in whole)
        yield f"No conflict beyond noise over all parameters (every cosine above {lowest:+.2f}): sum the losses."
    elif any(row["verdict"] == "conflict" for row in whole):
        against = ", ".join(row["task"] for row in tasks if row["high"] < 0)
        if against:
            yield f"A step along the sum makes {against} worse: try a method of the table, or other lambdas."
        elif all(row["low"] > 0 for row in tasks):
            yield "A step along the sum still improves every task: try a method only if one of them lags behind."
        else:
            yield "Whether a step along the sum improves every task is not known: compare with a method of the table."


def _accumulate(row: Mapping[str, Any]) -> str:
    if row["sign_from"] == 1:
        return "Single micro-batches show the sign."
    if row["sign_from"]:
        return f"Accumulate K={row['sign_from']} before resolving: at least {RIGHT:.0%} of windows then show the sign."
    longest = [name.partition("/")[2] for name in row if name.startswith("conflict/")][-1]
    return f"No window up to K={longest} shows its sign reliably, so resolving acts on noise."


def _drawn(row: Mapping[str, Any]) -> str:
    """The cosine and its interval between -1 and 1."""
    if "low" not in row:
        return ""
    value = row.get("cosine", row.get("with_sum"))
    colour = "#c0392b" if row["high"] < 0 else "#1e8449" if row["low"] > 0 else "#888"
    dot = f'<circle cx="{100 + 95 * value:.1f}" cy="9" r="4"/>' if math.isfinite(value) else ""
    line = f'<path d="M{100 + 95 * row["low"]:.1f} 9H{100 + 95 * row["high"]:.1f}" stroke-width="3"/>'
    axis = '<path d="M100 0V18M5 9H195" stroke="#ccc"/>'
    return f'<svg width="200" height="18" stroke="{colour}" fill="{colour}">{axis}{line}{dot}</svg>'


PAGE = """<!doctype html><meta charset="utf-8"><title>Gradient conflict</title><style>
body{{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:90em;padding:0 1em;color:#222}}
table{{display:block;overflow-x:auto;border-collapse:collapse;margin:1.5em 0;white-space:nowrap}}
td{{padding:.2em .7em;text-align:right;border-bottom:1px solid #ddd}}
td:nth-child(2){{text-align:left}}tr:first-child{{font-weight:600}}
.advice{{font-size:1.1em;border-left:4px solid #2471a3;padding-left:.8em}}
pre{{color:#555;white-space:pre-wrap}}</style><h1>Gradient conflict</h1><p>{title}{advice}{tables}<pre>{notes}</pre>
"""

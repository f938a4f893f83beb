"""What each of several processes does in test_processes.py, and how they are started."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from strategy.problems import ConvNet, image_batches, seeded
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gcond
from gcond import EMA, GCond, GradDrop, GradientConductor, Joint, Linear, LionLARS, PCGrad, Raw, Sequential, Stochastic
from gcond.strategy import FAMO, SAMGS, UW, GradNorm, TorchJD
from gcond.strategy.batchnorm import merged_batchnorm
from gcond.strategy.processes import Processes, Replicated, ReplicatedPerRank

TASKS = {"l1": 0.5, "ssim": 0.3, "classify": 0.2}
GOALS = {"l1": (1.0, 1.0), "ssim": (-2.0, 0.0), "classify": (0.5, -3.0)}
K, STEPS = 12, 3  # micro-batches of a window; 12 = 3 tasks x 4 processes
TIMEOUT = timedelta(seconds=60)
PRELOADED = ["torch.distributed.fsdp", "scipy.optimize", "torchjd.aggregation", "gcond.strategy"]


class Model(ConvNet):
    """Two outputs that three tasks want in different places, and a head of each task's own; float64.

    1913 parameters, which neither 2 nor 4 divides.
    """

    @seeded(1)
    def __init__(self) -> None:
        super().__init__()
        self.own = nn.ModuleDict({task: nn.Linear(2, 1) for task in TASKS})
        self.double()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return super().parameter_groups() | {"own": list(self.own.parameters())}


def losses_of(
    model: nn.Module,
    head: Callable[[str, Tensor], str] = lambda task, batch: task,
    has: Callable[[str, Tensor], bool] = lambda task, batch: True,
) -> Any:
    """`head` is whose head a task uses for a batch; `has` says which tasks a batch serves."""

    def losses(batch: Tensor, names: Any) -> dict[str, Tensor]:
        outputs = model(batch)
        return {
            name: (outputs - outputs.new_tensor(GOALS[name])).square().mean()
            + (model.own[head(name, batch)](outputs) - GOALS[name][1]).square().mean()
            for name in names
            if has(name, batch)
        }

    return losses


def routed(model: nn.Module) -> Any:
    """Heads as experts: the batch's first number says which of two the tasks use; "l1" at times takes the other one."""

    def expert(task: str, batch: Tensor) -> str:
        first, second = batch.flatten()[:2].tolist()
        return ("l1", "ssim")[(first > 0) ^ (task == "l1" and abs(second) < 0.7)]

    return losses_of(model, expert)


def uneven(model: nn.Module) -> Any:
    """A batch has some of the tasks, by its first three numbers."""
    return losses_of(model, has=lambda task, batch: batch.flatten()[list(TASKS).index(task)].item() > -0.4)


@dataclass(frozen=True)
class Case:
    """A strategy; `parts` makes (estimator, resolver, update) anew for each conductor. `trains` begins the names of
    parameters that are not frozen."""

    parts: Callable[[], tuple[Any, Any, Any]]
    losses: Callable[[nn.Module], Any] = losses_of
    trains: str = ""
    diagnose: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def gcond_window() -> Any:
    return Sequential(K), GCond(), EMA()


def in_turns() -> Sequential:
    return Sequential(K, resolve_every="micro_batch")


CASES = {
    "experts micro-batch": Case(lambda: (in_turns(), PCGrad(), Raw()), routed),
    "joint": Case(lambda: (Joint(K), Linear(), Raw())),
    "joint diagnosed": Case(lambda: (Joint(K), Linear(), Raw()), diagnose=True),
    "gcond": Case(gcond_window),
    "gcond forward per task": Case(lambda: (Sequential(K, "per_task"), GCond(), EMA()), settings={"clip_norm": 0.05}),
    "gcond stochastic": Case(lambda: (Stochastic(K), GCond(), EMA())),
    "gcond lion": Case(lambda: (Stochastic(K), GCond(), LionLARS())),
    "pcgrad": Case(lambda: (Sequential(K), PCGrad(), Raw())),
    "pcgrad micro-batch": Case(lambda: (in_turns(), PCGrad(), Raw())),
    "gradnorm micro-batch": Case(lambda: (in_turns(), GradNorm(lr=0.1), Raw())),
    "graddrop": Case(lambda: (Sequential(K), GradDrop(), Raw())),
    "graddrop micro-batch": Case(lambda: (in_turns(), GradDrop(), Raw())),
    "sam-gs": Case(lambda: (Sequential(K), SAMGS(), Raw())),
    "uw": Case(lambda: (Joint(K), UW(), Raw())),
    "famo": Case(lambda: (Joint(K), FAMO({"ssim": -3.0}), Raw())),
    "experts": Case(gcond_window, routed),
    "uneven": Case(gcond_window, uneven),
    "uneven stochastic": Case(lambda: (Stochastic(K), GCond(), EMA()), uneven),
    "uneven micro-batch": Case(lambda: (in_turns(), PCGrad(), Raw()), uneven),
    "fewer parameters than processes": Case(
        gcond_window, lambda model: losses_of(model, lambda task, batch: "l1"), trains="own.l1"
    ),
}
SHARDED = ("joint", "joint diagnosed", "gcond", "gcond forward per task", "gcond stochastic", "gcond lion", "uw")


# One run of a case


class Run:
    """A case's model, conductor and optimizer in this process, which takes the micro-batches `own` of a window."""

    def __init__(self, case: Case, processes: Processes, build: Any = Model, lr: float = 1e-2, own: Any = None) -> None:
        self.case, self.processes, self.model = case, processes, build()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(case.trains))
        groups = self.model.parameter_groups()
        self.conductor = GradientConductor(groups, TASKS, *case.parts(), processes=processes, **case.settings)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, foreach=True)
        self.own = self.conductor.micro_batch_indices if own is None else own

    def steps(self, first: int, last: int) -> list[dict[str, Any]]:
        return [self.step(seed) for seed in range(first, last)]

    def step(self, seed: int) -> dict[str, Any]:
        window = images(seed)
        with merged_batchnorm(self.model, self.processes):
            losses = self.case.losses(self.model)
            metrics = self.conductor.step([window[index] for index in self.own], losses, self.case.diagnose)
        gradients = {
            name: None if p.grad is None else whole(p.grad).clone() for name, p in self.model.named_parameters()
        }
        self.optimizer.step()
        return {"metrics": metrics, "gradients": gradients, "resolved": self.conductor.resolved_gradient}

    def parts(self) -> list[Any]:
        return [self.conductor, self.model, self.optimizer]


def images(seed: int, count: int = K) -> list[Tensor]:
    return [batch.double() for batch in image_batches(count, seed, size=2)]


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def trained(name: str, kind: str = "Replicated", build: Any = Model, lr: float = 1e-2) -> dict[str, Any]:
    """What a run of the case logs and leaves, what it sends, and its state before the last step."""
    processes = getattr(gcond, kind)()
    run = Run(CASES[name], processes, build, lr)
    records = run.steps(0, STEPS - 1)
    counts = processes.counts.copy()
    state = deepcopy([part.state_dict() for part in run.parts()])
    processes.counts = counts  # what a checkpoint sends is left out
    records += run.steps(STEPS - 1, STEPS)
    model = {name: whole(value).clone() for name, value in run.model.state_dict().items()}
    return {"records": records, "state": state, "model": model, "counts": dict(processes.counts)}


def continued(name: str, state: list[Any], kind: str = "Replicated", build: Any = Model) -> list[dict[str, Any]]:
    """What the last step logs, after `state`."""
    run = Run(CASES[name], getattr(gcond, kind)(), build)
    for part, own in zip(run.parts(), state, strict=True):
        part.load_state_dict(own)
    return run.steps(STEPS - 1, STEPS)


def sharded_model(reshard: bool = True) -> nn.Module:
    model = Model()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (model.encoder, model.body, model.head, *model.own.values(), model):
        fully_shard(part, mesh=mesh, reshard_after_forward=reshard)
    return model


def sharded(name: str, reshard: bool = True) -> dict[str, Any]:
    """A run of FSDP2, and its last step once more from a state; `reshard`: parameters are not kept for the backward
    pass."""
    build = lambda: sharded_model(reshard)  # noqa: E731
    found = trained(name, "Sharded", build)
    again = continued(name, found.pop("state"), "Sharded", build)  # shards cannot be handed to another process
    return found | {"continued": again}


def permuted() -> list[dict[str, Any]]:
    """GCond by several processes, channels_last from the second step on."""
    run = Run(CASES["gcond"], Replicated())
    records = run.steps(0, 1)
    run.model.to(memory_format=torch.channels_last)
    return records + run.steps(1, STEPS)


PUSHED = {
    "gcond": lambda: (Sequential(4), GCond(), Raw()),
    "graddrop": lambda: (Sequential(4), GradDrop(), Raw()),
    "joint": lambda: (Joint(4), Linear(), Raw()),
}


def pushed(name: str, counts: tuple[int, int], kind: str = "Replicated") -> list[Tensor | None]:
    """Gradients after `flush`: each of two processes has its count of two micro-batches; one process has both's."""
    model, processes = Model(), getattr(gcond, kind)()
    conductor = GradientConductor(model.parameter_groups(), TASKS, *PUSHED[name](), processes=processes)
    window, ask = images(0), losses_of(model)
    for rank in range(2) if processes.size == 1 else [processes.rank]:
        for batch in window[2 * rank : 2 * rank + counts[rank]]:
            with conductor.micro_batch():
                conductor.backward(ask(batch, list(TASKS)[rank if conductor.resolver.needs_task_gradients else 0 :]))
    assert conductor.flush()
    return [parameter.grad for parameter in model.parameters()]


# One process meets what the others do not


def is_last() -> bool:
    return dist.get_rank() == dist.get_world_size() - 1


def message(call: Callable[[], Any]) -> str:
    """What `call` raises, with its type but for a ValueError; empty if it does not."""
    try:
        call()
    except Exception as error:
        return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
    return ""


def poisoned(model: nn.Module, where: str) -> Any:
    """Losses whose "ssim", or its gradient in body.weight, is not finite in the last process."""
    losses = losses_of(model)

    def ask(batch: Tensor, names: Any) -> dict[str, Tensor]:
        values = losses(batch, names)
        if is_last() and "ssim" in values:
            factor = float("nan") if where == "loss" else 1.0
            values["ssim"] = values["ssim"] * factor + (model.body.weight.sum() * 0).sqrt()  # 0, its slope 0 x inf
        return values

    return ask


def not_finite(kind: str, where: str, resolver: str, mode: str) -> dict[str, Any]:
    """The second step is poisoned; `mode` is the policy `nonfinite`, or "scaler"."""
    model, processes = Model(), getattr(gcond, kind)()
    estimator = Sequential(4, resolve_every="micro_batch" if resolver == "pcgrad" else "window")
    policy = "skip" if mode == "skip" else "raise"
    conductor = GradientConductor(model, TASKS, estimator, resolver, Raw(), nonfinite=policy, processes=processes)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=mode == "scaler")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    own = [images(0)[index] for index in conductor.micro_batch_indices]
    conductor.step(own, losses_of(model), scaler=scaler)
    before = conductor.state_dict()
    metrics: dict[str, float] = {}
    said = message(lambda: metrics.update(conductor.step(own, poisoned(model, where), scaler=scaler)))
    gradients = [p.grad for p in model.parameters()]
    found = {"said": said, "state": [before, conductor.state_dict()], "gradients": gradients}
    if mode == "scaler" and not said:
        held = model.body.weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        found |= {"scale": scaler.get_scale(), "moved": not torch.equal(model.body.weight, held)}
    return found | {"skipped": metrics.get("skipped", 0.0)}


def unsolved(policy: str) -> tuple[str, float]:
    """What is said and counted where the last process alone has a problem without a solution."""
    parts = (Sequential(2, resolve_every="micro_batch"), TorchJD("FairGrad", alpha=1.0), Raw())
    model, metrics = Model(), {}
    conductor = GradientConductor(model, TASKS, *parts, nonfinite=policy, processes=ReplicatedPerRank())

    def losses(batch: Tensor, names: Any) -> dict[str, Tensor]:
        values = losses_of(model)(batch, names)
        return values | {"ssim": values["ssim"] * float(not is_last())}

    said = message(lambda: metrics.update(conductor.step(images(dist.get_rank(), 1), losses)))
    return said, metrics.get("unsolved", 0.0)


def sharded_says(wrong: str) -> str:
    """Where all processes lack a task, or the last one's gradient is not finite; or gradients are not reduced."""
    model: Any = sharded_model()
    model.set_requires_gradient_sync(wrong != "not reduced")
    model.body.set_requires_gradient_sync("not reduced" not in wrong, recurse=False)
    conductor = GradientConductor(model.parameter_groups(), TASKS, Sequential(K), GCond(), Raw())
    ask = losses_of(model, has=lambda task, batch: wrong != "lacks a task" or task != "l1")

    def losses(batch: Tensor, names: Any) -> dict[str, Tensor]:
        values = ask(batch, names)
        return values | ({"ssim": (values["ssim"] * 0).sqrt()} if wrong == "not finite" and is_last() else {})

    return message(lambda: conductor.step([images(0)[index] for index in conductor.micro_batch_indices], losses))


def unlike() -> list[tuple[str, str]]:
    """The last process differs from the others: what is said, and the pattern that it has to match."""

    def said(change: Any = None, kind: Any = Replicated, **other: Any) -> str:
        """`change(model, conductor, step)` is made everywhere; `other` settings are the last process's alone."""
        settings = {"tasks": TASKS, "estimator": Sequential(K), "resolver": "gcond"} | (other if is_last() else {})
        model = Model()
        conductor = GradientConductor(model, processes=kind(), **settings)
        step = lambda: conductor.step(images(0, len(conductor.micro_batch_indices)), losses_of(model))  # noqa: E731
        if change:
            change(model, conductor, step)
        return message(step)

    def scaled(model: Any, *_: Any) -> None:
        model.body.weight.data[3, 7].mul_(1.001 if is_last() else 1)

    def ahead(model: Any, conductor: GradientConductor, *_: Any) -> None:
        conductor.steps += is_last()

    def reweighted(model: Any, conductor: GradientConductor, step: Any) -> None:
        step()
        conductor.set_weight("ssim", 0.25 if is_last() else 0.5)

    def frozen_later(model: Any, conductor: GradientConductor, step: Any) -> None:
        """All processes permute the weights after a step, and then only the last one has other numbers."""
        step()
        model.to(memory_format=torch.channels_last)
        step()
        model.head.bias.requires_grad_(False).data.add_(is_last())

    permuted = lambda model, *_: model.to(memory_format=torch.channels_last) if is_last() else None  # noqa: E731
    swapped = dict(reversed(TASKS.items()))
    found = [
        (said(scaled), r"value .* of body.weight \w+ in process 1, \w+ in process 0"),
        (said(scaled, ReplicatedPerRank), r"value .* of body.weight \w+ in process 1, \w+ in process 0"),
        (said(permuted), "layout .* of encoder.0.weight .* in process 1, "),
        (said(estimator=Sequential(2 * K)), "accumulation_steps 24 in process 1, 12 in process 0"),
        (said(tasks=TASKS | {"l1": 0.6}), "lambdas .*'l1', 0.6.* in process 1, .*'l1', 0.5"),
        (said(tasks=swapped), r"lambdas \[\('classify', 0.2\), .* in process 1, \[\('l1', 0.5\), "),
        (said(resolver="pcgrad"), r"strategy .*PCGrad.* in process 1, .*GCond.* in process 0"),
        (said(ahead), "number of steps taken 1 in process 1, 0 in process 0"),
        (said(reweighted), r"lambdas .*'ssim', 0.25.* in process 1, .*'ssim', 0.5"),
        (said(seed=1), "seed 1 in process 1, 0 in process 0"),
        (said(clip_norm=1.0), "clip_norm 1.0 in process 1, None in process 0"),
        (said(frozen_later), r"value .* of head.bias \w+ in process 1, "),
    ]
    same = "`processes`: expected the same in every process, found "
    alike = [said(), said(kind=ReplicatedPerRank, seed=1)]
    return [*((said, same + pattern) for said, pattern in found), *((said, "$") for said in alike)]


# BatchNorm


class Normed(nn.Module):
    """BatchNorm of every kind of momentum: a number, the cumulative mean, all of the last batch, none; after a start,
    so that neither values nor counts are those of new modules."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(5, momentum=momentum) for momentum in (0.1, None, 1.0, 0.0))
        self.wide = nn.BatchNorm2d(2, momentum=0.3)
        self.bare = nn.BatchNorm1d(5, track_running_stats=False)
        self.double()
        for batch in vectors(2):
            self(batch)

    def forward(self, batch: Tensor) -> None:
        for norm in [*self.norms, self.bare]:
            norm(batch)
        self.wide(batch.reshape(-1, 2, 1, 5))


def vectors(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(8, 5, generator=generator, dtype=torch.float64) + index for index in range(count)]


def normed(how: str) -> tuple[dict[str, Tensor], int, str]:
    """State of a model that this process's four of eight batches have passed, the number of sums, what was raised."""
    model, processes, batches = Normed(), Replicated(), vectors(8)[4 * dist.get_rank() :][:4]
    if how == "in eval":
        model.eval()
    elif how == "one in eval":
        model.norms[0].eval()
    elif how == "unequal":
        batches = batches[dist.get_rank() :]
    elif how == "synchronised":
        model, batches = nn.SyncBatchNorm(5).eval(), [torch.zeros(8, 5)]

    def work() -> None:
        with merged_batchnorm(model, processes):
            for batch in batches:
                model(batch)
            if how == "synchronised":
                model.num_batches_tracked.add_(dist.get_rank())
            if how == "fails":
                raise ArithmeticError("nan")

    said = message(work)
    return model.state_dict(), processes.counts["all_reduce/calls"], said


# How they are started


class Group:
    """`size` processes of torch.distributed; a call has each of them do a function of this module."""

    def __init__(self, size: int, folder: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        joined = context.Value("i", 0)
        self.size, self.broken = size, False
        self.pool = ProcessPoolExecutor(size, context, _join, (joined, size, f"file://{folder}/rendezvous"))

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What each process returns, by rank."""
        assert not self.broken, "an earlier call failed, after which the processes may wait for each other"
        self.broken = True
        tasks = [self.pool.submit(_work, work, *arguments) for _ in range(self.size)]
        found = dict(pickle.loads(task.result()) for task in tasks)
        self.broken = False
        return [found[rank] for rank in range(self.size)]


def _join(joined: Any, size: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    with joined.get_lock():
        rank = joined.value
        joined.value += 1
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size, timeout=TIMEOUT)


def _work(work: Callable[..., Any], *arguments: Any) -> bytes:
    dist.barrier()  # so that each process takes one
    return pickle.dumps((dist.get_rank(), work(*arguments)))

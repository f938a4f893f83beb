"""What each of several processes does in the tests of gcond.strategy.processes, and how they are started.

Every function that is named in `WORK` runs in each process; what it returns is what `started` hands back, by process.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from strategy.problems import ConvNet, image_batches, seeded, three_losses
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from gcond.strategy import (
    EMA,
    CAGrad,
    GCond,
    GradientConductor,
    GradNorm,
    Joint,
    Linear,
    LionLARS,
    PCGrad,
    Raw,
    Sequential,
    Stochastic,
)
from gcond.strategy.batchnorm import merged_batchnorm
from gcond.strategy.processes import Processes, Replicated, ReplicatedPerRank, Sharded, SingleProcess
from gcond.strategy.resolve.famo import FAMO
from gcond.strategy.resolve.graddrop import GradDrop
from gcond.strategy.resolve.sam_gs import SAMGS
from gcond.strategy.resolve.torchjd import TorchJD
from gcond.strategy.resolve.uw import UW

TASKS = {"l1": 0.5, "ssim": 0.3, "classify": 0.2}
K, STEPS = 12, 3  # micro-batches of a window; 12 = 3 tasks x 4 processes
TIMEOUT = timedelta(seconds=60)
PRELOADED = ["torch.distributed.fsdp", "scipy.optimize", "torchjd.aggregation", "gcond.strategy"]


@dataclass(frozen=True)
class Case:
    """A strategy; `parts` makes (estimator, resolver, update) anew for each conductor."""

    parts: Callable[[], tuple[Any, Any, Any]]
    model: Callable[[], nn.Module] = lambda: ConvNet().double()
    losses: Callable[[nn.Module], Any] = three_losses
    batches: Callable[[int], list[Tensor]] = lambda seed: [b.double() for b in image_batches(K, seed, size=2)]
    groups: Callable[[nn.Module], Any] = lambda model: model.parameter_groups()
    settings: dict[str, Any] = field(default_factory=dict)
    diagnose: bool = False
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    lr: float = 1e-2


class Perceptron(nn.Module):
    """Layers of 7, 5 and 3 outputs and a head for each task: 119 parameters, which neither 2 nor 4 divides."""

    @seeded(1)
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 7), nn.Linear(7, 5), nn.Linear(5, 3)
        self.heads = nn.ModuleDict({name: nn.Linear(3, 1) for name in TASKS})
        self.double()

    def forward(self, batch: Tensor) -> Tensor:
        return torch.tanh(self.third(torch.tanh(self.second(torch.tanh(self.first(batch))))))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            "trunk": [*self.first.parameters(), *self.second.parameters()],
            "head": list(self.third.parameters()),
            "heads": list(self.heads.parameters()),
        }


def perceptron_losses(model: nn.Module) -> Any:
    goals = {"l1": 1.0, "ssim": -1.0, "classify": 0.3}

    def losses(batch: Tensor, names: Any) -> dict[str, Tensor]:
        features = model(batch)
        return {
            name: ((features.sum(1) - goals[name] + 0.3 * model.heads[name](features).squeeze(1)) ** 2).mean()
            for name in names
        }

    return losses


def routed_losses(model: nn.Module) -> Any:
    """Heads as experts: the batch's first number says which of two the tasks use; "l1" at times takes the other one."""
    goals = {"l1": 1.0, "ssim": -2.0, "classify": 0.5}

    def losses(batch: Tensor, names: Any) -> dict[str, Tensor]:
        features = model(batch)
        own = int(batch[0, 0] > 0)
        experts = {name: ("l1", "ssim")[own ^ (name == "l1" and abs(batch[0, 1]) < 0.7)] for name in names}
        return {name: ((model.heads[experts[name]](features) - goals[name]) ** 2).mean() for name in names}

    return losses


def three_numbers() -> nn.Module:
    """Fewer parameters than four processes."""
    model = nn.Linear(3, 1, bias=False).double()
    model.weight.data = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    return model


def point_losses(model: nn.Module) -> Any:
    goals = torch.tensor([[1.0, 1, 1], [-1, -1, -3], [2, -2, 0]], dtype=torch.float64)

    def losses(batch: Tensor, names: Any) -> dict[str, Tensor]:
        return {name: ((model.weight - goals[list(TASKS).index(name)] - batch) ** 2).mean() for name in names}

    return losses


def some_of(every: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Any]:
    """Losses of the tasks alone that a batch has, by its first three numbers."""

    def build(model: nn.Module) -> Any:
        ask = every(model)

        def losses(batch: Tensor, names: Any) -> dict[str, Tensor]:
            there = [task for task, number in zip(TASKS, batch.flatten().tolist(), strict=False) if number > -0.4]
            return {name: value for name, value in ask(batch, names).items() if name in there}

        return losses

    return build


def vectors(size: int) -> Callable[[int], list[Tensor]]:
    def batches(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return list(torch.randn(K, 3, size, generator=generator, dtype=torch.float64))

    return batches


def gcond_window() -> Any:
    return Sequential(K), GCond(), EMA()


def perceptron(parts: Callable[[], tuple[Any, Any, Any]], **more: Any) -> Case:
    return Case(parts, Perceptron, perceptron_losses, vectors(6), **more)


TINY = {"losses": point_losses, "batches": vectors(3), "groups": lambda model: model.parameters()}
ROUTED = {"model": Perceptron, "losses": routed_losses, "batches": vectors(6)}
CASES = {
    "joint": Case(lambda: (Joint(K), Linear(), Raw())),
    "joint diagnosed": Case(lambda: (Joint(K), Linear(), Raw()), diagnose=True),
    "gcond": Case(gcond_window),
    "gcond clipped": Case(gcond_window, settings={"clip_norm": 0.05}),
    "gcond forward per task": Case(lambda: (Sequential(K, forward="per_task"), GCond(), Raw())),
    "gcond stochastic": Case(lambda: (Stochastic(K), GCond(), EMA())),
    "gcond lion": Case(lambda: (Stochastic(K), GCond(), LionLARS()), optimizer=torch.optim.SGD, lr=1e-3),
    "pcgrad": Case(lambda: (Sequential(K), PCGrad(), Raw())),
    "pcgrad micro-batch": Case(lambda: (Sequential(K, resolve_every="micro_batch"), PCGrad(), Raw())),
    "cagrad": Case(lambda: (Sequential(K), CAGrad(), Raw())),
    "gradnorm micro-batch": Case(lambda: (Sequential(K, resolve_every="micro_batch"), GradNorm(lr=0.1), Raw())),
    "graddrop": Case(lambda: (Sequential(K), GradDrop(), Raw())),
    "graddrop micro-batch": Case(lambda: (Sequential(K, resolve_every="micro_batch"), GradDrop(), Raw())),
    "sam-gs": Case(lambda: (Sequential(K), SAMGS(), Raw())),
    "uw": Case(lambda: (Joint(K), UW(), Raw())),
    "famo": Case(lambda: (Joint(K), FAMO(), Raw())),
    "upgrad": Case(lambda: (Sequential(K), TorchJD("UPGrad"), Raw())),
    "heads": perceptron(gcond_window),
    "experts": Case(gcond_window, **ROUTED),
    "experts micro-batch": Case(lambda: (Sequential(K, resolve_every="micro_batch"), PCGrad(), Raw()), **ROUTED),
    "uneven": Case(gcond_window, losses=some_of(three_losses)),
    "uneven stochastic": Case(lambda: (Stochastic(K), GCond(), EMA()), losses=some_of(three_losses)),
    "uneven micro-batch": Case(
        lambda: (Sequential(K, resolve_every="micro_batch"), PCGrad(), Raw()), losses=some_of(three_losses)
    ),
    "uneven graddrop": Case(lambda: (Sequential(K), GradDrop(), Raw()), losses=some_of(three_losses)),
    "fewer parameters than processes": Case(gcond_window, three_numbers, **TINY),
}
PER_RANK = ("gcond forward per task", "pcgrad micro-batch")
SAVED = ("gcond", "gcond stochastic", "pcgrad", "sam-gs", "gradnorm micro-batch")  # continued by other numbers


# One run of a case


class Run:
    """A case's model, conductor and optimizer in this process."""

    def __init__(self, case: Case, processes: Processes) -> None:
        self.case, self.processes = case, processes
        self.model = case.model()
        estimator, resolver, update = case.parts()
        self.conductor = GradientConductor(
            case.groups(self.model), TASKS, estimator, resolver, update, processes=processes, **case.settings
        )
        self.optimizer = case.optimizer(self.model.parameters(), lr=case.lr)

    def step(self, seed: int) -> dict[str, Any]:
        window = self.case.batches(seed)
        own = [window[index] for index in self.conductor.micro_batch_indices]
        with merged_batchnorm(self.model, self.processes):
            metrics = self.conductor.step(own, self.case.losses(self.model), self.case.diagnose)
        gradients = {
            name: None if p.grad is None else whole(p.grad).clone() for name, p in self.model.named_parameters()
        }
        self.optimizer.step()
        return {"metrics": metrics, "gradients": gradients, "resolved": self.conductor.resolved_gradient}

    def steps(self, first: int, last: int) -> list[dict[str, Any]]:
        return [self.step(seed) for seed in range(first, last)]

    def model_state(self) -> dict[str, Tensor]:
        return {name: whole(value).clone() for name, value in self.model.state_dict().items()}

    def state(self) -> dict[str, Any]:
        return {
            "conductor": self.conductor.state_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.conductor.load_state_dict(state["conductor"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def trained(case: Case, processes: Processes) -> dict[str, Any]:
    """All that a run of the case logs and leaves, and its state before the last step."""
    run = Run(case, processes)
    records = run.steps(0, STEPS - 1)
    counts = processes.counts.copy()
    state = deepcopy(run.state())
    processes.counts = counts  # what a checkpoint sends is left out
    records += run.steps(STEPS - 1, STEPS)
    return {"records": records, "state": state, "model": run.model_state(), "counts": dict(processes.counts)}


def continued_from(state: dict[str, Any], case: Case, processes: Processes) -> list[dict[str, Any]]:
    """What the last step logs."""
    run = Run(case, processes)
    run.restore(state)
    return run.steps(STEPS - 1, STEPS)


def message(call: Callable[[], Any]) -> str:
    """What `call` raises, with its type but for a ValueError; empty if it does not."""
    try:
        call()
    except Exception as error:
        return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
    return ""


# What all processes do


def arbitrated_once(folder: Path) -> dict[str, Any]:
    found = {name: trained(case, Replicated()) for name, case in CASES.items()}
    if dist.get_rank() == 0 and dist.get_world_size() == 2:
        torch.save({name: found[name]["state"] for name in SAVED}, folder / "saved by two.pt")
    return found


def continued(folder: Path) -> dict[str, Any]:
    """The runs that two processes have left, one step further."""
    states = torch.load(folder / "saved by two.pt", weights_only=True)
    return {name: continued_from(states[name], CASES[name], Replicated()) for name in SAVED}


def per_rank(folder: Path) -> dict[str, Any]:
    """As published: each process for itself, then the mean. The gradients of the same network at every step."""
    cases = {name: replace(CASES[name], lr=0.0, settings={"clip_norm": None}) for name in PER_RANK}
    return {name: trained(case, ReplicatedPerRank()) for name, case in cases.items()}


Said = list[tuple[str, str]]  # what was said, and the pattern that it has to match


def refused(folder: Path) -> Said:
    """Settings that cannot be."""
    model = ConvNet()
    size = dist.get_world_size()

    def conductor(*parts: Any, processes: Any = None) -> str:
        groups = model.parameter_groups()
        return message(lambda: GradientConductor(groups, TASKS, *parts, processes=processes and processes()))

    def too_many_batches() -> None:
        conductor = GradientConductor(model, TASKS, Joint(K), Linear(), Raw(), processes=Replicated())
        conductor.step([None] * K, three_losses(model))

    by_micro_batch = Sequential(K, resolve_every="micro_batch")
    odd = K * size + 1
    multiple = "`accumulation_steps`: expected a multiple of"
    return [
        (conductor(Joint(K), Linear(), Raw()), f"`processes`: found {size} processes in torch.distributed"),
        (conductor(Joint(odd), Linear(), Raw(), processes=Replicated), f"{multiple} {size}, "),
        (conductor(Sequential(odd), processes=ReplicatedPerRank), f"{multiple} {size}, "),
        (conductor(Stochastic(3 * size + 3), processes=Replicated), f"{multiple} {3 * size}, "),
        (conductor(by_micro_batch, GCond(), Raw(), processes=Replicated), "`resolve_every`: GCond remembers"),
        (conductor(by_micro_batch, SAMGS(), Raw(), processes=Replicated), "`resolve_every`: SAMGS remembers"),
        (conductor(Joint(K), Linear(), Raw(), processes=Sharded), "`processes`: Sharded.* expects parameters of fully"),
        (message(too_many_batches), f"`batches`: expected {K // size} micro-batches, this process's share of 12"),
    ]


def poisoned(model: nn.Module, rank: int, where: str) -> Any:
    """Losses that are finite, but for the last process in `where`: the loss, or the gradient of body.weight."""
    losses = three_losses(model)

    def ask(batch: Tensor, names: Any) -> dict[str, Tensor]:
        values = losses(batch, names)
        if rank == dist.get_world_size() - 1 and "ssim" in values:
            factor = float("nan") if where == "loss" else 1.0
            values["ssim"] = values["ssim"] * factor + (model.body.weight.sum() * 0).sqrt()  # 0, its slope 0 x inf
        return values

    return ask


def not_finite(folder: Path) -> dict[str, Any]:
    """One process meets what is not finite: by kind of processes, by what it meets, by `nonfinite` and scaler."""
    parts = {
        "gcond": lambda: (Sequential(4), GCond()),
        "pcgrad": lambda: (Sequential(4, resolve_every="micro_batch"), PCGrad()),
    }
    return {
        f"{kind.__name__}, {where}, {name}, {mode}": _meet(kind(), where, *parts[name](), mode)
        for kind in (Replicated, ReplicatedPerRank)
        for where in ("loss", "gradient")
        for name in parts
        for mode in ("raise", "skip", "scaler")
    }


def unsolved(folder: Path) -> dict[str, tuple[str, float]]:
    """The last process alone has a problem without a solution: what each says and counts, by `nonfinite`."""
    return {policy: _unsolved(policy) for policy in ("raise", "skip")}


def _unsolved(policy: str) -> tuple[str, float]:
    model, processes = ConvNet(), ReplicatedPerRank()
    parts = (Sequential(2, resolve_every="micro_batch"), TorchJD("FairGrad", alpha=1.0), Raw())
    conductor = GradientConductor(model, TASKS, *parts, nonfinite=policy, processes=processes)
    losses = three_losses(model)

    def ask(batch: Tensor, names: Any) -> dict[str, Tensor]:
        share = float(processes.rank + 1 < dist.get_world_size())
        return {name: value * (share if name == "ssim" else 1.0) for name, value in losses(batch, names).items()}

    metrics: dict[str, float] = {}
    said = message(lambda: metrics.update(conductor.step(image_batches(1, processes.rank), ask)))
    return said, metrics.get("unsolved", 0.0)


def _meet(processes: Processes, where: str, estimator: Any, resolver: Any, mode: str) -> dict[str, Any]:
    model = ConvNet().double()
    policy = "skip" if mode == "skip" else "raise"
    conductor = GradientConductor(model, TASKS, estimator, resolver, Raw(), nonfinite=policy, processes=processes)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=mode == "scaler")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    window = [batch.double() for batch in image_batches(4, 0, size=2)]
    own = [window[index] for index in conductor.micro_batch_indices]
    conductor.step(own, three_losses(model), scaler=scaler)
    before = conductor.state_dict()
    metrics: dict[str, float] = {}
    said = message(lambda: metrics.update(conductor.step(own, poisoned(model, processes.rank, where), scaler=scaler)))
    found = {
        "message": said,
        "skipped": metrics.get("skipped", 0.0),
        "state": [before, conductor.state_dict()],
        "gradients": [p.grad for p in model.parameters()],
    }
    if mode == "scaler" and not said:
        held = flat(model)
        scaler.step(optimizer)
        scaler.update()
        found |= {"scale": scaler.get_scale(), "moved": not torch.equal(flat(model), held)}
    dist.barrier()
    return found


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def unlike(folder: Path) -> Said:
    """The last process differs from the others."""
    last = dist.get_rank() == dist.get_world_size() - 1

    def started(k: int = K, tasks: Any = TASKS, parts: Any = None, kind: Any = Replicated) -> Any:
        model = ConvNet()
        conductor = GradientConductor(model, tasks, Sequential(k), *(parts or (PCGrad(), Raw())), processes=kind())
        window = image_batches(len(conductor.micro_batch_indices), 0, size=2)
        return model, conductor, lambda: conductor.step(window, three_losses(model))

    def changed(change: Callable[[nn.Module], Any], **settings: Any) -> str:
        model, _, step = started(**settings)
        if last:
            change(model)
        return message(step)

    def other(**settings: Any) -> str:
        return message(started(**settings if last else {})[2])

    def ahead() -> str:
        _, conductor, step = started()
        conductor.steps += last
        return message(step)

    def frozen_later() -> str:
        """All processes permute the weights after a step, and then only the last one has other numbers."""
        model, _, step = started(parts=(GCond(), EMA()))
        step()
        model.to(memory_format=torch.channels_last)
        step()
        model.head.bias.requires_grad_(False)
        if last:
            model.head.bias.data.add_(1)
        return message(step)

    def reweighted() -> str:
        _, conductor, step = started()
        step()
        conductor.set_weight("ssim", 0.25 if last else 0.5)
        return message(step)

    scaled = lambda model: model.body.weight.data[3, 7].mul_(1.001)  # noqa: E731
    permuted = lambda model: model.to(memory_format=torch.channels_last)  # noqa: E731
    swapped = dict(reversed(TASKS.items()))
    found = [
        (changed(scaled), r"value .* of body.weight \w+ in process 1, \w+ in process 0"),
        (changed(scaled, kind=ReplicatedPerRank), r"value .* of body.weight \w+ in process 1, \w+ in process 0"),
        (changed(permuted), "layout .* of encoder.0.weight .* in process 1, "),
        (other(k=2 * K), "accumulation_steps 24 in process 1, 12 in process 0"),
        (other(tasks=TASKS | {"l1": 0.6}), "lambdas .*'l1', 0.6.* in process 1, .*'l1', 0.5"),
        (other(tasks=swapped), r"lambdas \[\('classify', 0.2\), .* in process 1, \[\('l1', 0.5\), "),
        (other(parts=(CAGrad(), Raw())), r"strategy .*CAGrad.* in process 1, .*PCGrad.* in process 0"),
        (ahead(), "number of steps taken 1 in process 1, 0 in process 0"),
        (reweighted(), r"lambdas .*'ssim', 0.25.* in process 1, .*'ssim', 0.5"),
        (frozen_later(), r"value .* of head.bias \w+ in process 1, "),
    ]
    same = "`processes`: expected the same in every process, found "
    return [*((said, same + pattern) for said, pattern in found), (other(), "$")]


def permuted(folder: Path) -> dict[str, Any]:
    """GCond by several processes, channels_last from the second step on."""
    run = Run(CASES["gcond"], Replicated())
    records = run.steps(0, 1)
    run.model.to(memory_format=torch.channels_last)
    return {"records": records + run.steps(1, STEPS)}


def pushed(folder: Path) -> dict[str, Any]:
    """Windows that end early: of 2 x 2 micro-batches, of two resolvers, this process has the first, or both."""
    return {
        f"{kind}, {first} and {second}": pushed_by(Replicated(), parts, (first, second))
        for kind, parts in PUSHED.items()
        for first, second in ((1, 1), (1, 2))
    }


PUSHED = {
    "gcond": lambda: (Sequential(4), GCond(), Raw()),
    "graddrop": lambda: (Sequential(4), GradDrop(), Raw()),
    "joint": lambda: (Joint(4), Linear(), Raw()),
}


def pushed_by(processes: Processes, parts: Any, counts: tuple[int, int]) -> list[Tensor | None]:
    """Gradients after `flush`; one process takes the micro-batches of both."""
    model = Perceptron()
    conductor = GradientConductor(model.parameter_groups(), TASKS, *parts(), processes=processes)
    window, ask = vectors(6)(0), perceptron_losses(model)
    for rank in range(2) if processes.size == 1 else [processes.rank]:
        for batch in window[2 * rank : 2 * rank + counts[rank]]:
            with conductor.micro_batch():
                conductor.backward(ask(batch, list(TASKS)[rank if conductor.resolver.needs_task_gradients else 0 :]))
    assert conductor.flush()
    return [parameter.grad for parameter in model.parameters()]


# FSDP2


SHARDED = {
    "joint": perceptron(lambda: (Joint(K), Linear(), Raw()), optimizer=partial(torch.optim.AdamW, foreach=True)),
    "joint diagnosed": perceptron(lambda: (Joint(K), Linear(), Raw()), diagnose=True),
    "gcond": perceptron(gcond_window),
    "gcond forward per task": perceptron(lambda: (Sequential(K, forward="per_task"), GCond(), EMA())),
    "gcond stochastic": perceptron(lambda: (Stochastic(K), GCond(), EMA())),
    "gcond lion": perceptron(lambda: (Stochastic(K), GCond(), LionLARS()), optimizer=torch.optim.SGD, lr=1e-3),
    "uw": perceptron(lambda: (Joint(K), UW(), Raw())),
}


def sharded_model(case: Case, reshard: bool) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = case.model()
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for child in model.children():
            for part in child.values() if isinstance(child, nn.ModuleDict) else [child]:
                fully_shard(part, mesh=mesh, reshard_after_forward=reshard)
        return fully_shard(model, mesh=mesh, reshard_after_forward=reshard)

    return build


def sharded_case(case: Case, reshard: bool) -> Case:
    return replace(case, model=sharded_model(case, reshard))


def sharded(folder: Path) -> dict[str, Any]:
    """Also where parameters stay gathered from the forward to the backward pass, and for a run that is continued."""
    found = {name: trained(sharded_case(case, True), Sharded()) for name, case in SHARDED.items()}
    for name in ("gcond", "gcond stochastic"):
        found[f"{name}, kept"] = trained(sharded_case(SHARDED[name], False), Sharded())
    case = sharded_case(SHARDED["gcond"], True)
    found["gcond"]["continued"] = continued_from(found["gcond"]["state"], case, Sharded())
    return _without_states(found)


def sharded_gcond(folder: Path) -> dict[str, Any]:
    return _without_states({"gcond": trained(sharded_case(SHARDED["gcond"], True), Sharded())})


def _without_states(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A state of shards cannot be handed to another process."""
    return {name: {key: value for key, value in own.items() if key != "state"} for name, own in found.items()}


def sharded_refused(folder: Path) -> Said:
    model = sharded_model(SHARDED["joint"], True)()
    half = Perceptron()
    fully_shard(half.first, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))

    def conductor(*parts: Any, model: nn.Module = model, **more: Any) -> str:
        return message(lambda: GradientConductor(model.parameter_groups(), TASKS, *parts, **more))

    def lacking() -> None:
        ask = perceptron_losses(model)
        some = GradientConductor(model.parameter_groups(), TASKS, Sequential(K), PCGrad(), Raw())
        some.step(iter(vectors(6)(0)), lambda batch, names: ask(batch, list(names)[1:]))

    joint, by_micro_batch = (Joint(K), Linear(), Raw()), Sequential(K, resolve_every="micro_batch")
    return [
        (message(lacking), "`losses`: .*in every micro-batch, .*found none of ..l1"),
        (conductor(Sequential(K), GradDrop(), Raw()), "`processes`: GradDrop works on coordinates"),
        (conductor(by_micro_batch, PCGrad(), Raw()), '`resolve_every`: expected "window" with Sharded'),
        (conductor(*joint, processes=Replicated()), "`processes`: expected Sharded.*, found Replicated"),
        (conductor(*joint, processes=SingleProcess()), "`processes`: expected Sharded.*, found SingleProcess"),
        (conductor(*joint, model=half), r"`parameters`: .* all sharded .*, found trunk\[2\] not sharded"),
    ]


def sharded_not_finite(folder: Path) -> dict[str, str]:
    """One process's gradient is not finite."""
    model = sharded_model(SHARDED["joint"], True)()
    conductor = GradientConductor(model.named_parameters(), TASKS, Sequential(K), GCond(), Raw())
    ask = perceptron_losses(model)

    def losses(batch: Tensor, names: Any) -> dict[str, Tensor]:
        values = ask(batch, names)
        if dist.get_rank() == 1:
            values["ssim"] = values["ssim"] + (values["ssim"] * 0).sqrt()
        return values

    window = vectors(6)(0)
    return {
        "message": message(lambda: conductor.step([window[index] for index in conductor.micro_batch_indices], losses))
    }


# How they are started

WORK = {
    work.__name__: work
    for work in (
        arbitrated_once,
        continued,
        per_rank,
        refused,
        unlike,
        permuted,
        pushed,
        not_finite,
        unsolved,
        sharded,
        sharded_gcond,
        sharded_refused,
        sharded_not_finite,
    )
}


def started(size: int, names: list[str], folder: Path) -> list[dict[str, Any]]:
    """What each of `size` new processes found, by name of the work; an error in one of them ends all."""
    own = folder / f"{size}-{names[0]}"
    own.mkdir(parents=True, exist_ok=True)
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    mp.start_processes(_work, (size, names, folder, own), nprocs=size, start_method="forkserver")
    return [torch.load(own / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _work(rank: int, size: int, names: list[str], folder: Path, own: Path) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{own}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        found = {name: WORK[name](folder) for name in names}
        torch.save(found, own / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()

"""Where a GPU would have to be waited for: once a resolution, and exceptions that have a reason."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from strategy.far_device import CudaDevice, FarDevice
from strategy.problems import ConvNet, image_batches, opposed_losses
from strategy.test_configs import NAMES

from gcond.config import compose
from gcond.strategy import GCond, GradientConductor, PCGrad, Raw, Sequential
from gcond.strategy.processes import Replicated, ReplicatedPerRank
from gcond.strategy.resolve.famo import FAMO
from gcond.strategy.resolve.graddrop import GradDrop

K, WINDOWS = 2, 2
DEVICES = [FarDevice, pytest.param(CudaDevice, marks=pytest.mark.cuda)]


def on(device: Any) -> Any:
    if device is CudaDevice and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return device()


@cache
def config_of(name: str) -> DictConfig:
    return compose([f"strategy={name}", f"scale.accumulation_steps={K}"])


def conductor_of(name: str, model: ConvNet) -> GradientConductor:
    cfg = config_of(name)
    return instantiate(cfg.strategy.conductor)(model.parameter_groups(), OmegaConf.to_container(cfg.loss.tasks))


def run(build: Any, device: Any, diagnose: bool = False) -> tuple[GradientConductor, list[Any], list[Any]]:
    """A conductor's windows on a device, None for the host: their metrics and gradients, and the reads of each."""
    model, metrics, reads = ConvNet(), [], []
    if device is not None:
        device.put_module(model)
    with device or nullcontext():
        conductor = build(model)
        for seed in range(WINDOWS):
            batches = image_batches(K, seed)
            if device is not None:
                batches = [device.put(batch) for batch in batches]
                device.clear()
            metrics.append(conductor.step(batches, opposed_losses(model), diagnose))
            if device is not None:
                reads.append(dict(device.counts))
    gradients = [p.grad if device is None else device.held(p.grad) for p in model.parameters()]
    return conductor, [metrics, gradients], reads


def reads_of(conductor: GradientConductor) -> int:
    """Synchronisations of a window."""
    resolutions = K if conductor.estimator.resolves_micro_batches else 1
    reads = resolutions  # the inner products and the mean losses, together
    if resolutions > 1 or conductor.resolver.works_on_coordinates:
        reads += 1  # the norm of what inner products do not give: a mean of resolutions, or coordinates
    if isinstance(conductor.resolver, FAMO):
        reads += 1  # the smallest loss of the window's micro-batches, which must lie above its bound
    return reads


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_waits_once_a_resolution(name, device):
    device = on(device)
    conductor, found, counts = run(lambda model: conductor_of(name, model), device)
    for window in counts:
        assert window.get("synchronisations") == reads_of(conductor), device.log
        assert window.get("transfers", 0) == 0, device.log
    if isinstance(device, FarDevice):
        _, expected, _ = run(lambda model: conductor_of(name, model), None)
        assert repr(found[0]) == repr(expected[0])
        assert all(torch.equal(one, other) for one, other in zip(found[1], expected[1], strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_a_diagnosed_window_waits_no_longer(device):
    device = on(device)
    _, _, counts = run(lambda model: conductor_of("baseline", model), device, diagnose=True)
    assert [window["synchronisations"] for window in counts] == [1] * WINDOWS


# Several processes: they agree first on which task reaches which parameter


@pytest.mark.usefixtures("one_of_one")
@pytest.mark.parametrize(
    ("parts", "reads", "processes"),
    [
        (lambda: (Sequential(K), GCond(), Raw()), 2, Replicated),
        (lambda: (Sequential(K), GCond(), Raw()), 2, ReplicatedPerRank),
        (lambda: (Sequential(K), GradDrop(), Raw()), 2 + 1, Replicated),
        (lambda: (Sequential(K, resolve_every="micro_batch"), PCGrad(), Raw()), 2 * K + 1, Replicated),
    ],
    ids=["gcond", "gcond per rank", "graddrop", "pcgrad by micro-batch"],
)
def test_processes_wait_twice_a_resolution(parts, reads, processes):
    tasks = {"l1": 0.5, "ssim": 0.5}
    device = FarDevice()
    _, _, counts = run(
        lambda model: GradientConductor(model.parameter_groups(), tasks, *parts(), processes=processes()), device
    )
    for window in counts:
        assert window["synchronisations"] == reads, device.log
        assert window.get("transfers", 0) == 0, device.log


# The simulated device, held against CUDA's own rules


def scalar_of_host(far: Any, host: Any) -> Any:
    return far + torch.tensor(1.0)


def written_in_place(far: Any, host: Any) -> Any:
    far[1:].mul_(2)
    return far


def masked(far: Any, host: Any) -> Any:
    return far[far > 0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("operation", "reads", "transfers"),
    [
        (scalar_of_host, 0, 0),
        (written_in_place, 0, 0),
        (masked, 1, 0),
        (lambda far, host: far.sum().item(), 1, 0),
        (lambda far, host: bool((far > 0).any()), 1, 0),
        (lambda far, host: far.tolist(), 1, 0),
        (lambda far, host: far.cpu(), 1, 0),
        (lambda far, host: host.copy_(far), 1, 0),
        (lambda far, host: far.nonzero(), 1, 0),
        (lambda far, host: host.to(far), 0, 1),
        (lambda far, host: far.copy_(host), 0, 1),
        (lambda far, host: torch.tensor([1.0, 2.0], device=far.device), 0, 1),
        (lambda far, host: host.to(far, non_blocking=True), 0, 0),
        (lambda far, host: far.double(), 0, 0),
        (lambda far, host: torch.zeros(3, device=far.device) + far, 0, 0),
        (lambda far, host: torch._foreach_norm([far, far]), 0, 0),
        (lambda far, host: torch.mul(far, 2.0, out=far), 0, 0),
    ],
)
def test_what_waits(operation, reads, transfers, device):
    device = on(device)
    far, host = device.put(torch.tensor([-1.0, 2.0, 3.0])), torch.zeros(3)
    with device:
        device.clear()
        operation(far, host)
    if isinstance(device, FarDevice):
        assert (device.counts["synchronisations"], device.counts["transfers"]) == (reads, transfers)
    else:
        assert device.counts["synchronisations"] == reads + transfers  # PyTorch names both alike


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "operation",
    [
        lambda far, host: far + host,
        lambda far, host: host.add_(far.sum()),
        lambda far, host: torch.stack([far, host]),
        lambda far, host: torch.stack([far.sum(), host.sum()]),
        lambda far, host: far @ host,
        lambda far, host: torch.where(host > 0, far, far),
        lambda far, host: torch.mul(host, 2.0, out=far),
    ],
)
def test_operands_on_both_sides_are_refused(operation, device):
    device = on(device)
    far, host = device.put(torch.ones(3)), torch.ones(3)
    with device, pytest.raises(RuntimeError, match="device"):
        operation(far, host)


def test_gradients_accumulate_in_place_on_the_simulated_device():
    device = FarDevice()
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    module = torch.nn.Module()
    module.register_parameter("point", parameter)
    device.put_module(module)
    flat = device.put(torch.zeros(4))
    with device:
        module.point.grad = flat[1:3]
        for _ in range(2):
            (module.point * device.put(torch.tensor([3.0, 5.0]))).sum().backward()
    assert device.held(flat).tolist() == [0, 6, 10, 0]

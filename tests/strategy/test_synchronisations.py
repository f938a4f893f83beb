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

from gcond import FAMO, GCond, GradDrop, GradientConductor, PCGrad, Raw, Replicated, ReplicatedPerRank, Sequential
from gcond.config import compose

K, WINDOWS = 2, 2
DEVICES = [FarDevice, pytest.param(CudaDevice, marks=pytest.mark.cuda)]


def on(device: Any) -> Any:
    if device is CudaDevice and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return device()


@cache
def config_of(name: str) -> DictConfig:
    return compose([f"strategy={name}", f"scale.accumulation_steps={K}"])


def by_name(name: str) -> Any:
    cfg = config_of(name)
    tasks = OmegaConf.to_container(cfg.loss.tasks)
    return lambda model: instantiate(cfg.strategy.conductor)(model.parameter_groups(), tasks)


class Host(nullcontext):
    """In place of a device; nothing is counted."""

    counts: dict[str, int] = {}  # noqa: RUF012
    put = put_module = held = staticmethod(lambda same: same)
    clear = staticmethod(lambda: None)


def run(build: Any, device: Any, diagnose: bool = False) -> tuple[GradientConductor, list[Any], list[Any]]:
    """A conductor's windows on a device: their metrics and the last gradients, and what each window counted."""
    model, metrics, counts = device.put_module(ConvNet()), [], []
    with device:
        conductor = build(model)
        for seed in range(WINDOWS):
            batches = [device.put(batch) for batch in image_batches(K, seed)]
            device.clear()
            metrics.append(conductor.step(batches, opposed_losses(model), diagnose))
            counts.append(dict(device.counts))
    return conductor, [repr(metrics), *(device.held(p.grad) for p in model.parameters())], counts


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
    conductor, found, counts = run(by_name(name), device)
    for window in counts:
        assert window.get("synchronisations") == reads_of(conductor), device.log
        assert window.get("transfers", 0) == 0, device.log
    if isinstance(device, FarDevice):
        (metrics, *gradients), (expected, *others) = found, run(by_name(name), Host())[1]
        assert metrics == expected
        assert all(map(torch.equal, gradients, others))


@pytest.mark.parametrize("device", DEVICES)
def test_a_diagnosed_window_waits_no_longer(device):
    _, _, counts = run(by_name("baseline"), on(device), diagnose=True)
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
    device, tasks = FarDevice(), {"l1": 0.5, "ssim": 0.5}
    build = lambda model: GradientConductor(model.parameter_groups(), tasks, *parts(), processes=processes())  # noqa: E731
    for window in run(build, device)[2]:
        assert (window["synchronisations"], window.get("transfers", 0)) == (reads, 0), device.log

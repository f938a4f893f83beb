from __future__ import annotations

import torch
from engine.runs import config

from gcond.engine.trainer import optimizer_of
from gcond.model import MaskedAutoencoder


def stepped(*overrides: str) -> tuple[torch.optim.Optimizer, list[torch.Tensor]]:
    """The weights of a model after three steps along gradients of many magnitudes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MaskedAutoencoder("mobilenetv3_small_050", 64, 16, 3, width=32, depth=1)
        optimizer = optimizer_of(config(*overrides).optimizer.build, model.parameters(), 1e-3)
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter) * torch.logspace(-6, 0, parameter.numel()).view_as(
                    parameter
                )
            optimizer.step()
    return optimizer, [parameter.detach() for parameter in model.parameters()]


def test_the_fused_step_is_that_of_the_loop_but_for_rounding() -> None:
    (fused, quick), (loop, slow) = (
        stepped("strategy=baseline"),
        stepped("strategy=baseline", "+optimizer.build.fused=false"),
    )
    assert (fused.defaults["fused"], loop.defaults["fused"]) == (True, False)
    assert (fused.defaults["betas"], fused.defaults["weight_decay"], fused.defaults["lr"]) == ((0.9, 0.95), 0.05, 1e-3)
    gap = max(float((a - b).abs().max()) for a, b in zip(quick, slow, strict=True))
    assert 0 < gap < 5e-7  # weights are of the order of 1


def test_where_there_is_no_fused_kernel_and_for_other_optimizers_nothing_is_asked_for() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, device="meta"))
    assert not optimizer_of(config().optimizer.build, [weight], 1e-3).defaults["fused"]
    plain = optimizer_of(config("strategy=gcond_lion").optimizer.build, [torch.nn.Parameter(torch.zeros(2))], 1e-3)
    assert isinstance(plain, torch.optim.SGD)
    assert not plain.defaults["fused"]

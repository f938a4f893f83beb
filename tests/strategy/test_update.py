"""From the resolved gradient to `p.grad`, by hand and against the twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from strategy.problems import matrix
from strategy.reference import ReferenceMomentum, reference_lion_lars
from torch import nn

from gcond.strategy import EMA, LionLARS, Raw
from gcond.strategy.gradients import TaskGradients
from gcond.strategy.update import Update


def steps_of(update: Update, parameters: list[torch.Tensor], directions: torch.Tensor) -> list[torch.Tensor]:
    gradients = TaskGradients(parameters, 1)
    gradients.merge_reached(torch.ones(1, 1, len(parameters), dtype=torch.bool))
    written = []
    for direction in directions:
        out = direction.clone()
        update.apply(out, gradients)
        written.append(out)
    return written


def one_parameter(size: int = 1) -> nn.Parameter:
    return nn.Parameter(torch.ones(size, dtype=torch.float64))


def test_ema_by_hand():
    """m = .2, .18 + .4, ...; divided by 1 - .9^t."""
    found = steps_of(EMA(0.9), [one_parameter()], matrix([[2], [4], [-1]]))
    expected = [2.0, (0.9 * 0.2 + 0.4) / 0.19, (0.81 * 0.2 + 0.9 * 0.4 - 0.1) / 0.271]
    assert [float(value) for value in found] == pytest.approx(expected)


def test_ema_is_the_twin():
    directions = torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    twin = ReferenceMomentum(0.7)
    for found, direction in zip(steps_of(EMA(0.7), [one_parameter(5)], directions), directions, strict=True):
        np.testing.assert_allclose(found.numpy(), twin.step([direction.numpy()])[0], rtol=1e-12)


def test_ema_without_memory_is_raw():
    directions = torch.randn(4, 3, dtype=torch.float64)
    for update in (EMA(0.0), Raw()):
        assert torch.equal(torch.stack(steps_of(update, [one_parameter(3)], directions)), directions)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_lion_lars_is_the_twin(memory_format):
    """Per parameter tensor: a usual one, one whose ratio is clipped, one that is zero, one without gradient."""
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 2, 2, dtype=torch.float64).to(memory_format=memory_format)
    values = [weight, matrix([1e3, -1e3]), matrix([0.0, 0.0, 0.0]), matrix([5.0])]
    parameters = [nn.Parameter(value) for value in values]
    gradients = TaskGradients(parameters, 1)
    gradients.merge_reached(torch.ones(1, 1, len(parameters), dtype=torch.bool))
    momentum, update = ReferenceMomentum(0.9), LionLARS(0.9, clip=50.0, coefficient=0.3)
    for _ in range(3):
        parts = [torch.randn_like(value) for value in values]
        parts[-1].zero_()
        flat = torch.cat(
            [
                part.permute(0, 2, 3, 1).reshape(-1)
                if part.ndim == 4 and not weight.is_contiguous()
                else part.reshape(-1)
                for part in parts
            ]
        )
        update.apply(flat, gradients)
        expected = reference_lion_lars([v.numpy() for v in values], momentum.step([p.numpy() for p in parts]), 0.3)
        for found, wanted in zip(gradients.views(flat), expected, strict=True):
            np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)
    assert np.abs(expected[1]).max() == pytest.approx(50 * 0.3)


# What `baseline_integrated` changes, with nothing resolved


def adam_path(update: Update, beta1: float, directions: torch.Tensor) -> torch.Tensor:
    """The positions of one parameter under AdamW(beta1, .95), lr .1, after each direction went through `update`."""
    parameter = one_parameter(directions.shape[1])
    optimizer = torch.optim.AdamW([parameter], lr=0.1, betas=(beta1, 0.95), eps=1e-12, weight_decay=0.0)
    path = [parameter.detach().clone()]
    for written in steps_of(update, [parameter], directions):
        parameter.grad = written
        optimizer.step()
        path.append(parameter.detach().clone())
    return torch.stack(path)


def test_integrated_and_raw_agree_where_nothing_is_smoothed():
    constant = matrix([[2.0, -0.3]]).expand(10, 2)
    torch.testing.assert_close(adam_path(EMA(0.9), 0.0, constant), adam_path(Raw(), 0.9, constant))
    noise = torch.randn(10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adam_path(EMA(0.0), 0.9, noise), adam_path(Raw(), 0.9, noise))


def test_integrated_divides_the_same_average_by_a_smaller_root():
    """Adam's first moment with beta1 is the EMA; its second moment is then of the average instead of the gradient.

    Under pure noise the average is sqrt((1 - beta) / (1 + beta)) = .23 of the gradient, so steps are 4 times as long.
    """
    noise = torch.randn(400, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    raw, integrated = (adam_path(*way, noise).diff(dim=0) for way in ((Raw(), 0.9), (EMA(0.9), 0.0)))
    assert torch.equal(raw.sign(), integrated.sign())
    ratio = float(integrated[100:].square().mean().sqrt() / raw[100:].square().mean().sqrt())
    assert 3.5 < ratio < 5.0

    average, second, expected = torch.zeros(50), torch.zeros(50), []
    for t, direction in enumerate(noise, start=1):
        average = 0.9 * average + 0.1 * direction
        corrected = average / (1 - 0.9**t)
        second = 0.95 * second + 0.05 * corrected**2
        expected.append(-0.1 * corrected / (second / (1 - 0.95**t)).sqrt())
    torch.testing.assert_close(integrated, torch.stack(expected), rtol=1e-6, atol=1e-9)

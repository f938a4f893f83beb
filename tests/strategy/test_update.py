"""From the resolved gradient to `p.grad`, by hand and against the twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from strategy.problems import matrix
from strategy.reference import ReferenceMomentum, reference_lion_lars
from torch import nn

from gcond import EMA, LionLARS, Raw, Update
from gcond.strategy.gradients import TaskGradients


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


def test_ema_is_the_twin():
    directions = torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    twin = ReferenceMomentum(0.7)
    for found, direction in zip(steps_of(EMA(0.7), [one_parameter(5)], directions), directions, strict=True):
        np.testing.assert_allclose(found.numpy(), twin.step(direction.numpy()), rtol=1e-12)


def test_lion_lars_by_hand():
    """|p| = 5 over |m_hat| = 2; a ratio of 1000, clipped to 50; and |p| = 0, whose ratio is 1."""
    parameters = [nn.Parameter(matrix(values)) for values in ([3, 4], [1000], [0])]
    (update,) = steps_of(LionLARS(coefficient=0.1), parameters, matrix([[-2, 0, 1, 7]]))
    torch.testing.assert_close(update, matrix([-0.25, 0, 5, 0.1]))


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
    moments, update = [ReferenceMomentum(0.9) for _ in values], LionLARS(0.9, clip=50.0, coefficient=0.3)
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
        averages = [moment.step(part.numpy()) for moment, part in zip(moments, parts, strict=True)]
        expected = reference_lion_lars([v.numpy() for v in values], averages, 0.3)
        for found, wanted in zip(gradients.views(flat), expected, strict=True):
            np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)
    assert np.abs(expected[1]).max() == pytest.approx(50 * 0.3)

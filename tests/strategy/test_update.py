"""Lion/LARS against a twin of one parameter tensor; the moving average alone has golden numbers (test_gcond)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from strategy.problems import matrix
from torch import nn

from gcond import LionLARS
from gcond.strategy.gradients import TaskGradients


def averages(directions: np.ndarray, beta: float) -> list[np.ndarray]:
    """m_t = beta m + (1 - beta) g from 0, divided by 1 - beta^t."""
    found, average = [], 0.0
    for step, direction in enumerate(directions, 1):
        average = beta * average + (1 - beta) * direction
        found.append(average / (1 - beta**step))
    return found


def lion_lars(p: np.ndarray, m: np.ndarray, coefficient: float, clip: float = 50.0) -> np.ndarray:
    """sign(m_hat) * min(|p| / |m_hat|, clip) * coefficient; ratio 1 where |p| or |m_hat| is below 1e-8."""
    p_norm, m_norm = np.linalg.norm(p), np.linalg.norm(m)
    ratio = 1.0 if min(p_norm, m_norm) < 1e-8 else p_norm / m_norm
    return np.sign(m) * min(ratio, clip) * coefficient


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_lion_lars_is_the_twin(memory_format):
    """Per parameter tensor: a usual one, one whose ratio is clipped, one that is zero, one without gradient."""
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 2, 2, dtype=torch.float64).to(memory_format=memory_format)
    parameters = [nn.Parameter(value) for value in (weight, matrix([1e3, -1e3]), matrix([0.0] * 3), matrix([5.0]))]
    gradients = TaskGradients(parameters, 1)
    gradients.merge_reached(torch.ones(1, 1, len(parameters), dtype=torch.bool))
    views = gradients.views
    directions = torch.randn(3, 12 * 4 + 2 + 3 + 1, dtype=torch.float64)
    directions[:, -1] = 0
    steps = zip(*([v.numpy() for v in views(flat)] for flat in directions), strict=True)
    moments = [averages(np.stack(each), 0.9) for each in steps]
    update = LionLARS(0.9, clip=50.0, coefficient=0.3)
    for step, flat in enumerate(directions):
        update.apply(flat, gradients)
        for own, parameter, moment in zip(views(flat), parameters, moments, strict=True):
            expected = lion_lars(parameter.detach().numpy(), moment[step], 0.3)
            np.testing.assert_allclose(own.numpy(), expected, rtol=1e-12)
    assert directions[0][48:50].abs().tolist() == pytest.approx([50 * 0.3] * 2)

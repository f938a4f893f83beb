"""The two-dimensional problem as its authors wrote it (Cranial-XIX/CAGrad, toy.py), for autograd."""

import torch


def authors_losses(x: torch.Tensor) -> torch.Tensor:
    """(f_1, f_2) at x = (x_1, x_2)."""
    x1, x2 = x[0], x[1]
    f1 = torch.clamp((0.5 * (-x1 - 7) - torch.tanh(-x2)).abs(), min=5e-6).log() + 6
    f2 = torch.clamp((0.5 * (-x1 + 3) + torch.tanh(-x2) + 2).abs(), min=5e-6).log() + 6
    c1 = _clamp(torch.tanh(x2 * 0.5))
    c2 = _clamp(torch.tanh(-x2 * 0.5))
    q1 = ((-x1 + 7).pow(2) + 0.1 * (-x2 - 8).pow(2)) / 10 - 20
    q2 = ((-x1 - 7).pow(2) + 0.1 * (-x2 - 8).pow(2)) / 10 - 20
    return torch.stack([f1 * c1 + q1 * c2, f2 * c1 + q2 * c2])


def _clamp(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0) that passes its gradient on at 0, as `torch.clamp` did when the problem was published."""
    return x * (x >= 0)

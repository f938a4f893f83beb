"""Task gradients that a test prescribes, as the resolver and as the conductor meet them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gcond import Conflict, GradientConductor, Joint, Linear, Raw, Sequential, Stochastic
from gcond.strategy.estimate import Losses

TASKS = {"l1": 0.85, "ssim": 0.15}
ESTIMATORS = [
    Joint(2),
    Sequential(2),
    Sequential(2, "per_task"),
    Sequential(2, resolve_every="micro_batch"),
    Stochastic(2),
]


def assert_refused(message: str, call: Callable[..., Any], *arguments: Any, **settings: Any) -> None:
    """`call` raises a ValueError in which the pattern `message` is found."""
    with pytest.raises(ValueError, match=message):
        call(*arguments, **settings)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What is drawn from torch's global generator begins at `seed`, and leaves its state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def saved(state: Any) -> Any:
    """As it comes back from a file."""
    file = BytesIO()
    torch.save(state, file)
    return torch.load(BytesIO(file.getvalue()), weights_only=True)


def matrix(rows: object) -> Tensor:
    """`rows` as a float64 matrix [m, P]."""
    return torch.as_tensor(rows, dtype=torch.float64)


def conflict(
    rows: object,
    previous: object | None = None,
    losses: Sequence[float] | None = None,
    lambdas: Sequence[float] | None = None,
    group: object | None = None,
    seed: int = 0,
    step: int = 0,
) -> Conflict:
    """The conflict between the rows of a matrix [m, P]; `group` is their part in the group "head" (the first half)."""
    rows = matrix(rows)
    m = len(rows)
    head = rows[:, : (rows.shape[1] + 1) // 2] if group is None else matrix(group)
    return Conflict(
        tasks=task_names(m),
        gram=rows @ rows.T,
        cross=torch.zeros(m, m, dtype=torch.float64) if previous is None else rows @ matrix(previous).T,
        group_grams={"head": head @ head.T},
        losses=matrix([1.0] * m if losses is None else losses),
        lambdas=matrix([1.0] * m if lambdas is None else lambdas),
        step=step,
        generator=torch.Generator().manual_seed(seed),
    )


def resolved(resolver: Any, rows: object, **others: Any) -> Tensor:
    """The update [P] of a fresh conflict between `rows` [m, P]."""
    return resolver.resolve(conflict(rows, **others)).weights @ matrix(rows)


def random_rows(seed: int, m: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, size))


def assert_close(found: object, expected: object, tolerance: float = 1e-9) -> None:
    """Within `tolerance` of the largest expected entry."""
    expected = matrix(expected)
    torch.testing.assert_close(matrix(found), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def task_names(m: int) -> tuple[str, ...]:
    return tuple(f"t{i}" for i in range(m))


def prescribed(parameters: Sequence[Tensor], rows: object) -> Losses:
    """losses(batch, names) under which task "t<i>" has the gradient rows[i], flat in the order of `parameters`."""
    rows = matrix(rows)

    def losses(batch: object, names: Sequence[str]) -> dict[str, Tensor]:
        flat = torch.cat([p.reshape(-1) for p in parameters])
        return {name: flat @ rows[int(name[1:])].to(flat) for name in names}

    return losses


def flat_grad(of: nn.Module | Sequence[Tensor]) -> Tensor:
    """The gradients of all parameters, flat in logical (row-major) order; zero where there is none."""
    parameters = list(of.parameters()) if isinstance(of, nn.Module) else of
    return torch.cat([torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1) for p in parameters])


class ConvNet(nn.Module):
    """Small, with BatchNorm, a 1 x 1 and a depthwise convolution; input [B, 3, 8, 8], output [B, 2]."""

    @seeded(0)
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.SiLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Conv2d(8, 4, 1),
        )
        self.body, self.head = nn.Linear(4 * 64, 6), nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.encoder(images).flatten(1))))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {name: list(getattr(self, name).parameters()) for name in ("encoder", "body", "head")}


def opposed_losses(model: nn.Module) -> Losses:
    """Two tasks, "l1" and "ssim", that pull the same outputs to different places."""

    def losses(batch: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        outputs = model(batch)
        values = {"l1": (outputs - 1).abs().mean(), "ssim": ((outputs + 2) ** 2).mean()}
        return {name: values[name] for name in names}

    return losses


class Net(nn.Module):
    """Two layers, [B, 4] -> [B, 2]."""

    @seeded(0)
    def __init__(self) -> None:
        super().__init__()
        self.enc, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(torch.tanh(self.enc(batch)))


class TwoHeads(nn.Module):
    """[B, 4] -> a prediction for each of two tasks, from heads of their own, and one that no loss reads; float64."""

    @seeded(2)
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 4)
        self.heads = nn.ModuleDict({name: nn.Linear(4, 1) for name in ("l1", "ssim", "unread")})
        self.double()

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        features = torch.tanh(self.trunk(batch))
        return tuple(head(features) for head in self.heads.values())


def two_head_losses(called: Callable[[Tensor], tuple[Tensor, ...]]) -> Losses:
    def losses(batch: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        first, second, _ = called(batch.double())
        values = {"l1": (first - 1).square().mean(), "ssim": (second + first.detach() + 2).square().mean()}
        return {name: values[name] for name in names}

    return losses


def batch_of(seed: int, size: int = 8) -> Tensor:
    return torch.randn(size, 4, generator=torch.Generator().manual_seed(seed))


def image_batches(count: int, seed: int = 0, size: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, 8, 8, generator=generator) for _ in range(count)]


def linear(parameters: Any, estimator: Any = None, update: Any = None, **settings: Any) -> GradientConductor:
    """Nothing is resolved, smoothed or clipped."""
    return GradientConductor(
        parameters, TASKS, estimator or Sequential(1), Linear(), update or Raw(), clip_norm=None, **settings
    )


def plain_gradients(model: nn.Module, losses: Losses, *batches: Tensor) -> None:
    """Ordinary training: zero_grad, and a backward pass of the weighted sum for each batch."""
    model.zero_grad()
    for batch in batches:
        values = losses(batch, list(TASKS))
        (sum(weight * values[name] for name, weight in TASKS.items()) / len(batches)).backward()

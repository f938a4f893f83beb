"""GradDrop: Chen et al. 2020, Just Pick a Sign (https://arxiv.org/abs/2010.06808), Algorithm 1, lines 10 to 15."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gcond.strategy.arguments import expect
from gcond.strategy.conflict import Conflict, Resolution, Resolver


class GradDrop(Resolver):
    """At each coordinate, keep the task gradients of one sign, drawn by how much of the total has that sign.

    P = (1 + sum_i g_i / sum_i |g_i|) / 2; the positive ones stay if P > U, U uniform on [0, 1), otherwise the negative
    ones. The update is sum_i (leak_i + (1 - leak_i) M_i) g_i. Where signs agree it is the plain sum.

    The original masks the gradients of *activations* (times the activation's sign, summed over the batch). This masks
    those of parameters, as CAGrad's, FAMO's and TorchJD's versions do; the GCond paper does not say which it used.

    U is drawn in float32 on the CPU, so that it does not depend on the device, from a generator that each resolution
    seeds anew. One 32-bit word is drawn per coordinate, in order, so it does not depend on the cut into blocks either.

    Args:
        leak: share of the task gradients that is never dropped, in [0, 1]: one for all tasks or task name -> leak
            (0 where a task is not named).

    Raises:
        ValueError: a leak out of range, or for a task that does not exist.
    """

    works_on_coordinates = True

    def __init__(self, leak: float | Mapping[str, float] = 0.0) -> None:
        self.leak = dict(leak) if isinstance(leak, Mapping) else float(leak)
        values = self.leak.values() if isinstance(self.leak, dict) else [self.leak]
        expect(all(0 <= value <= 1 for value in values), "leak", "numbers in [0, 1]", leak)

    def check(self, tasks: dict[str, float], groups: tuple[str, ...]) -> None:
        unknown = sorted(set(self.leak) - set(tasks)) if isinstance(self.leak, dict) else []
        expect(not unknown, "leak", f"tasks among {list(tasks)}", unknown)

    def resolve(self, conflict: Conflict) -> Resolution:
        seed = int(torch.randint(2**62, (), generator=conflict.generator))
        generator = torch.Generator().manual_seed(seed)
        shares = self.leak if isinstance(self.leak, dict) else dict.fromkeys(conflict.tasks, self.leak)
        leak = torch.tensor([shares.get(task, 0.0) for task in conflict.tasks], dtype=torch.float64)

        def blockwise(rows: Tensor, start: int) -> Tensor:
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            chance = torch.rand(rows.shape[1], generator=generator, dtype=torch.float32).to(rows, non_blocking=True)
            positive, negative = rows.clamp(min=0), rows.clamp(max=0)
            up, down = positive.sum(0), negative.sum(0)
            # P = up / (up - down); multiplied out, as that is 0 / 0 where every gradient is zero
            upward = up > chance * (up - down)
            if not self.leak:
                return torch.where(upward, up, down)
            kept = torch.where(upward, positive, negative)
            return torch.lerp(kept, rows, leak.to(rows, non_blocking=True).unsqueeze(1)).sum(0)

        return Resolution(None, blockwise=blockwise)

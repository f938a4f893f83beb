"""No arbitration: the sum of the lambda-weighted task gradients (the paper's Baseline)."""

from __future__ import annotations

import torch

from gcond.strategy.conflict import Conflict, Resolution, Resolver


class Linear(Resolver):
    """g = sum_i lambda_i grad L_i; the lambdas are in the task gradients already."""

    needs_task_gradients = False

    def resolve(self, conflict: Conflict) -> Resolution:
        return Resolution(torch.eye(len(conflict.tasks), dtype=torch.float64))

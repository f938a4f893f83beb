"""PCGrad: Yu et al. 2020, Gradient Surgery for Multi-Task Learning, Algorithm 1 (https://arxiv.org/abs/2001.06782)."""

from __future__ import annotations

import torch

from gcond.strategy.conflict import Conflict, Resolution, Resolver


class PCGrad(Resolver):
    """Project each task gradient on the normal plane of every *original* gradient that it conflicts with.

    The others are visited in a random order, drawn from the resolver's generator. The result is the sum over tasks, as
    in the authors' code. A vanishing gradient conflicts with nothing.
    """

    def resolve(self, conflict: Conflict) -> Resolution:
        gram = conflict.gram
        m = len(gram)
        coefficients = torch.eye(m, dtype=torch.float64)
        projections = 0
        for i in range(m):
            for j in torch.randperm(m, generator=conflict.generator).tolist():
                dot = coefficients[i] @ gram[:, j]
                if i != j and dot < 0:
                    coefficients[i, j] -= dot / gram[j, j]
                    projections += 1
        return Resolution(coefficients, {"pcgrad/projections": float(projections)})

"""Descents against the conductor on the authors' losses, with torch's Adam; and where they end."""

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from toy.test_problem import authors_losses

from gcond.config import build
from gcond.strategy import GradientConductor, Linear
from gcond.strategy.conflict import Conflict, Resolution, Resolver
from gcond.study.methods import STUDY
from gcond.toy.descents import CONFIG, LEFT_OUT, LOWEST, TASKS, Descent, follow, lineup
from gcond.toy.problem import STARTS

METHODS = lineup()
REFERENCES = pd.read_csv(STUDY / "toy_references.csv").set_index(["method", "start"])


class Remembering(Resolver):
    """Weights that depend on everything in a Conflict that a descent has to keep up to date."""

    uses_history = True

    def resolve(self, conflict: Conflict) -> Resolution:
        ahead, behind = conflict.cross[0, 1].item(), conflict.cross[1, 0].item()
        drawn = torch.rand((), generator=conflict.generator, dtype=torch.float64).item()
        weights = [1 + math.tanh(ahead) + 0.1 * math.tanh(conflict.losses[0].item()), 1 + 2 * math.tanh(behind)]
        return Resolution(torch.diag(torch.tensor(weights, dtype=torch.float64)) * (1 + drawn + conflict.step % 2))


@pytest.mark.parametrize(
    ("name", "start"), [("remembering", 4), ("gcond_pure", 4), ("graddrop", 4), ("famo", 4), ("pcgrad", 1)]
)
def test_a_descent_is_what_the_conductor_does(name, start):
    """History, random numbers and all: the same steps through GradientConductor and autograd."""
    first, second = (Remembering() if name == "remembering" else build(METHODS[name].resolver) for _ in range(2))
    x = torch.tensor(STARTS[start], dtype=torch.float64, requires_grad=True)
    conductor = GradientConductor([x], dict.fromkeys(TASKS, 1.0), resolver=first, seed=0)
    adam = torch.optim.Adam([x], lr=1e-3)

    def losses(_, names):
        f1, f2 = authors_losses(x)
        lowest = LOWEST if first.weighs_losses else torch.zeros(2)
        return {"f1": 0.1 * f1 - lowest[0], "f2": f2 - lowest[1]}

    for _ in range(60):
        conductor.step([None], losses)
        adam.step()
    *_, (_, x1, x2) = follow(Descent(second), STARTS[start], 60)
    np.testing.assert_allclose((x1, x2), x.detach().numpy(), atol=1e-9)


def test_points_are_kept_by_distance_and_at_both_ends():
    kept = list(follow(Descent(Linear()), STARTS[1], 350))
    assert (kept[0], kept[-1][0]) == ((0, *STARTS[1]), 350)
    gaps = [max(abs(a[1] - b[1]), abs(a[2] - b[2])) for a, b in pairwise(kept[:-1])]
    assert gaps
    assert all(0.1 <= gap < 0.102 for gap in gaps)


def test_the_update_is_clipped():
    plain, clipped = Descent(Linear()), Descent(Linear(), clip_norm=0.1)
    full, short = plain.direction(9.0, 9.0), clipped.direction(9.0, 9.0)
    assert math.hypot(*short) == pytest.approx(0.1)
    np.testing.assert_allclose(np.divide(short, 0.1), np.divide(full, math.hypot(*full)))


def test_every_strategy_is_shown_or_left_out_for_a_reason():
    files = {path.stem for path in CONFIG.glob("*.yaml")}
    assert files == set(METHODS) - {"gcond_accumulated"} | set(LEFT_OUT)
    assert set(REFERENCES.index.get_level_values(0)) <= set(METHODS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "start"),
    [("pcgrad", 1), ("pcgrad", 4), ("gradops", 3), ("gcond_accumulated", 1), ("gcond_accumulated", 4), ("sam_gs", 0)],
)
def test_ends_where_the_reference_does(name, start):
    *_, (_, x1, x2) = follow(METHODS[name].descent(), STARTS[start], METHODS[name].steps)
    expected_x1, expected_x2, on_front = REFERENCES.loc[(name, start)]
    assert on_front
    assert math.hypot(x1 - expected_x1, x2 - expected_x2) <= 0.02

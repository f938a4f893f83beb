"""GCond on m x m statistics against the vector-space twin, on random, scaled, degenerate and correlated gradients.

Left out is only what rounding decides in either arithmetic, and all later steps of that example: see `WatchedGCond`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategy.problems import conflict
from strategy.reference import ReferenceGCond, cosine, zone_of

from gcond.strategy import GCond

GAP = 3e-10  # cosines or scores that lie closer are told apart by rounding only
CANCELLED = 1e-5  # share of a squared norm below which the rest of a projection is mostly rounding
TOLERANCE = 1e-9  # relative to a task's own (capped) norm


@dataclass
class WatchedGCond(ReferenceGCond):
    """The twin, noting whether one of its decisions lies within rounding.

    These are: the two smallest cosines, two scores, or a cosine and a threshold within GAP; a squared norm within 1e-6
    of the vanishing floor; a gradient of which a projection left less than CANCELLED, if it still counts; a stability
    against a gradient of the previous step that is such a rest. Nearly always it is a tie between cosines: of three
    tasks with one parameter, or of parallel rows.
    """

    doubtful: bool = field(default=False, init=False)
    rests: set[int] = field(default_factory=set, init=False)

    def step(self, task_gradients):
        capped = [self._capped(g) for g in task_gradients]
        self._capped_squares = [g @ g for g in capped]
        self._floor = self._vanishing_floor(capped)
        found = super().step(task_gradients)
        kept = found.resolved if self.stability_reference == "resolved" else capped
        self.rests = {i for i, g in enumerate(kept) if 0 < g @ g < CANCELLED * self._capped_squares[i]}
        return found

    def _worst_pair(self, gradients, floor):
        for g, before in zip(gradients, self._capped_squares, strict=True):
            self._doubt_square(g @ g, before)
        alive = [i for i, g in enumerate(gradients) if g @ g >= floor and g @ g > 0]
        cosines = sorted(cosine(gradients[i], gradients[j]) for i in alive for j in alive if i < j)
        critical, main, weak = self.conflict_thresholds
        boundary = weak - self.conflict_margin
        if cosines:
            self.doubtful |= abs(cosines[0] - boundary) < GAP
            if cosines[0] < boundary:
                self.doubtful |= min(abs(cosines[0] - critical), abs(cosines[0] - main)) < GAP
                self.doubtful |= len(cosines) > 1 and cosines[1] - cosines[0] < GAP
        return super()._worst_pair(gradients, floor)

    def _doubt_square(self, square: float, before: float) -> None:
        if 0 < square < CANCELLED * before:
            self.doubtful |= max(square, 1e-12 * before) > self._floor / 2
        elif square > 0:
            self.doubtful |= abs(square - self._floor) < 1e-6 * self._floor

    def _winner_loser(self, gradients, i, j, norm_ema):
        worst = cosine(gradients[i], gradients[j])
        if self.smooth or zone_of(worst, self.conflict_thresholds) != "weak":
            self.doubtful |= bool({i, j} & self.rests)
            self.doubtful |= abs(np.subtract(*self._scores(gradients, i, j, norm_ema))) < GAP
        return super()._winner_loser(gradients, i, j, norm_ema)

    def _scores(self, gradients, i, j, norm_ema):
        stability_weight, strength_weight = self.tie_breaking_weights
        ratios = [np.sqrt(gradients[t] @ gradients[t]) / norm_ema[t] for t in (i, j)]
        return [
            stability_weight * max(0.0, self._stability(gradients, t)) + strength_weight * ratio / sum(ratios)
            for t, ratio in zip((i, j), ratios, strict=True)
        ]


@st.composite
def sequences(draw):
    """Gradients of 1 to 5 steps, each [m, P]: tasks keep a direction of their own, so that stability counts."""
    m, size = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    exponents = np.array(draw(st.lists(st.integers(-6, 6) | st.just(0), min_size=m, max_size=m)))
    drift = draw(st.sampled_from([0.1, 0.5, 2.0]))
    base = random.standard_normal((m, size))
    if draw(st.booleans()):
        base[1:] -= draw(st.sampled_from([0.3, 0.7, 1.5])) * base[0]
    steps = []
    for _ in range(draw(st.integers(1, 5))):
        rows = (base + drift * random.standard_normal((m, size))) * 10.0 ** exponents[:, None]
        kind = draw(st.sampled_from(["plain"] * 6 + ["zero", "parallel", "anti-parallel", "nearly anti-parallel"]))
        i, j = draw(st.integers(0, m - 1)), draw(st.integers(0, m - 1))
        if kind == "zero":
            rows[i] = 0.0
        elif kind != "plain" and i != j:
            sign = 1.0 if kind == "parallel" else -1.0
            rows[i] = sign * 10.0 ** float(random.integers(-3, 4)) * rows[j]
            if kind == "nearly anti-parallel":
                rows[i] += 0.05 * np.linalg.norm(rows[i]) * random.standard_normal(size) / np.sqrt(size)
        steps.append(rows)
    return steps


OPTIONS = st.fixed_dictionaries(
    {
        "smooth": st.booleans(),
        "stability_reference": st.sampled_from(["resolved", "accumulated"]),
        "norm_ema_bias_correction": st.booleans(),
        "vanishing": st.sampled_from(["relative", "absolute"]),
        "dominance_window": st.sampled_from([0, 0, 1, 2, 3]),
        "norm_cap": st.sampled_from([None, None, 1.0, 30.0]),
        "projection_max_iters": st.sampled_from([1, 3, 10]),
        "remap_power": st.sampled_from([1.0, 2.0, 3.0]),
        "norm_ema_beta": st.sampled_from([0.3, 0.95]),
        "tie_breaking_weights": st.sampled_from([(0.8, 0.2), (0.2, 0.8), (0.0, 1.0), (0.95, 0.05)]),
        "conflict_margin": st.sampled_from([1e-9, 1e-9, 0.05]),
    }
)
THRESHOLDS = st.sampled_from([(-0.8, -0.5, 0.0), (-1.0, -0.4, 0.1), (-0.8, -0.5, -0.001), (-0.6, -0.2, 0.3)])


@pytest.mark.oracle(
    "gcond_stochastic gcond_sequential gcond_sequential_pure gcond_pure gcond_lion",
    "vector-space twin, generated gradients",
)
def test_coefficients_and_vectors_agree():
    seen = Counter()

    @settings(max_examples=250, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(steps=sequences(), options=OPTIONS, thresholds=THRESHOLDS)
    def compare(steps, options, thresholds):
        if len(steps[0]) == 1:
            options["norm_cap"] = None  # one task, capped: in test_resolvers.py
        if options["norm_ema_bias_correction"]:  # every first strength is then 1/2: an exact tie, left to rounding
            unlike = 1 + np.arange(len(steps[0]))[:, None]
            steps = [unlike * np.abs(steps[0]), *steps]
        twin = WatchedGCond(conflict_thresholds=thresholds, **options)
        fast = GCond(thresholds=thresholds, **options)
        previous = None
        for number, rows in enumerate(steps):
            expected = twin.step(rows)
            seen["steps"] += 1
            if twin.doubtful:
                seen["left out"] += len(steps) - number
                seen["steps"] += len(steps) - number - 1
                return
            resolution = fast.resolve(conflict(rows, previous))
            previous = rows
            check(rows, expected, resolution, options["norm_cap"])
            seen[f"{min(expected.iterations, 4)} iterations"] += 1
            seen.update(expected.zones)

    compare()
    assert seen["left out"] < 0.2 * seen["steps"]
    assert min(seen[zone] for zone in ("weak", "main", "critical")) > 20
    assert min(seen[f"{n} iterations"] for n in range(5)) > 3


def check(rows, expected, resolution, norm_cap):
    resolved = resolution.coefficients.numpy() @ rows
    norms = np.minimum(np.linalg.norm(rows, axis=1), norm_cap or np.inf)
    errors = np.linalg.norm(resolved - np.stack(expected.resolved), axis=1)
    assert (errors <= TOLERANCE * norms).all()
    assert np.linalg.norm(resolution.weights.numpy() @ rows - expected.total) <= TOLERANCE * norms.sum()

    winners = [winner for winner, _ in expected.winner_loser]
    assert [resolution.metrics[f"wins/t{i}"] for i in range(len(rows))] == [winners.count(i) for i in range(len(rows))]
    for zone in ("weak", "main", "critical"):
        assert resolution.metrics[f"zone/{zone}"] == expected.zones.count(zone)
    reported = resolution.metrics["gcond/min_cosine_as_published"]
    assert reported == pytest.approx(expected.min_cosine_reported, abs=1e-9)

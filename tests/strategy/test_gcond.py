"""GCond against the published arbitration, a twin in vector space and values by hand; and GCond-as-PCGrad.

What is compared with the published numbers: tests/golden/README.md.
"""

from __future__ import annotations

import json
from collections import Counter
from math import pi, sin
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategy.problems import assert_close, conflict, flat_grad, matrix, prescribed, resolved, task_names

from gcond import EMA, GCond, GCondAsPCGrad, GradientConductor, LionLARS, Raw, Sequential, Update

# The published arbitration

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "arbitration.json").read_text())
# Cases in which the published loop repeats on rounding noise, so that its later entries of `winner_loser` mean nothing.
PHANTOM_CASES = {"two_tasks_strong_conflict", "step_logic_zones", "nearly_anti_parallel"}
FLOAT32_PI = 1e-6  # the published angle is rounded
ALIKE = ("projection_max_iters", "remap_power", "tie_breaking_weights", "norm_ema_beta", "dominance_window", "norm_cap")


def resolver_of(config: dict) -> GCond:
    same = {name: config[name] for name in ALIKE}
    thresholds, smooth = config["conflict_thresholds"], config["use_smooth_logic"]
    return GCond(thresholds=thresholds, smooth=smooth, vanishing="absolute", **same)


def update_of(config: dict) -> Update:
    if config["return_raw_grad"]:
        return Raw()
    if config["use_lion"]:
        return LionLARS(config["momentum_beta"], config["trust_ratio_clip"], config["trust_ratio_coef"])
    return EMA(config["momentum_beta"])


@pytest.mark.oracle(
    "gcond_stochastic gcond_sequential gcond_sequential_pure gcond_pure gcond_lion", "published code, 14 golden cases"
)
@pytest.mark.parametrize("golden_case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_golden_case(golden_case: dict) -> None:
    config, m = golden_case["config"], golden_case["num_tasks"]
    parameters = [torch.nn.Parameter(matrix(values)) for values in golden_case["params"]]
    resolver = resolver_of(config)
    conductor = GradientConductor(
        parameters, dict.fromkeys(task_names(m), 1.0), Sequential(1), resolver, update_of(config), clip_norm=None
    )
    for step in golden_case["steps"]:
        rows = matrix(step["task_gradients"])
        metrics = conductor.step([None], prescribed(parameters, rows), diagnose=True)
        assert conductor.resolved_gradient is not None
        assert_close(conductor.resolved_gradient, step["resolved"], FLOAT32_PI)
        assert_close(flat_grad(parameters), step["written"], FLOAT32_PI)
        if m == 1:  # the published code tracks nothing then
            continue

        state = resolver.state_dict()
        assert_close(state["previous_coefficients"] @ rows, step["resolved_task_gradients"], FLOAT32_PI)
        assert_close(state["norm_ema"], step["norm_ema"], FLOAT32_PI)
        assert metrics["gcond/min_cosine_as_published"] == pytest.approx(step["min_cosine_reported"], abs=1e-6)
        winners = [winner for winner, _ in step["winner_loser"]]
        wins = [metrics[f"wins/t{i}"] for i in range(m)]
        assert all(wins[winner] > 0 for winner in winners[:1])
        if golden_case["name"] not in PHANTOM_CASES:
            assert wins == [winners.count(i) for i in range(m)]
            assert sum(metrics[f"zone/{zone}"] for zone in ("weak", "main", "critical")) == step["iterations"]


# The twin

GAP = 3e-10  # cosines or scores that lie closer are told apart by rounding only
CANCELLED = 1e-5  # share of a squared norm below which the rest of a projection is mostly rounding
TOLERANCE = 1e-9  # relative to a task's own (capped) norm
Gradient = np.ndarray  # [P]


def cosine(a: Gradient, b: Gradient) -> float:
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / length) if length > 0 else 0.0


def without(a: Gradient, b: Gradient, strength: float) -> Gradient:
    """a minus `strength` times its projection on b."""
    return a - strength * (a @ b) / (b @ b) * b


class Twin:
    """GCond's steps in vector space, as arXiv 2509.07252 says them (equations 1 to 10); settings as GCond's.

    `doubtful` once a decision lies within rounding: the two smallest cosines, two scores, or a cosine and a threshold
    within GAP; a squared norm within 1e-6 of the vanishing floor; a gradient of which a projection left less than
    CANCELLED, if it still counts, or a stability against such a rest. Nearly always it is a tie between cosines: of
    three tasks with one parameter, or of parallel rows.
    """

    def __init__(self, **options: Any) -> None:
        self.options = SimpleNamespace(**options)
        self.steps, self.winners, self.doubtful = 0, [], False
        self.average: Any = None
        self.history: list[Gradient] | None = None  # the step before's task gradients, resolved or as they came
        self.rests: set[int] = set()  # those of them that are mostly rounding

    def step(self, rows: np.ndarray) -> SimpleNamespace:
        """Gradients `resolved`, the `winners` and `zones` of iterations, the first's `cosine` (1 if there is none)."""
        o, gradients, first, winners, zones = self.options, list(rows), 1.0, [], []
        if len(rows) > 1:
            norms = np.linalg.norm(rows, axis=1)
            averages = self.averages(norms)
            cap = np.inf if o.norm_cap is None else o.norm_cap
            gradients = came = [g if norm <= cap else cap / norm * g for g, norm in zip(rows, norms, strict=True)]
            self.squares = [g @ g for g in came]
            self.floor = 1e-8 if o.vanishing == "absolute" else 1e-12 * max(self.squares)
            while len(zones) < o.projection_max_iters and (worst := self.worst_pair(gradients)):
                c, pair = worst
                first = first if zones else c
                zones.append(self.zone(c))
                if o.smooth or zones[-1] != "weak":
                    pair = self.arbitrate(gradients, pair, averages)
                    winners.append(pair[0])
                    self.winners.append(pair[0])
                gradients = self.project(gradients, *pair, c)
            self.history = gradients if o.stability_reference == "resolved" else came
            self.rests = {i for i, g in enumerate(self.history) if 0 < g @ g < CANCELLED * self.squares[i]}
        return SimpleNamespace(resolved=np.stack(gradients), winners=winners, zones=zones, cosine=first)

    def averages(self, norms: np.ndarray) -> np.ndarray:
        """Of the norms before they are capped, this step's included."""
        corrected, beta = self.options.norm_ema_bias_correction, self.options.norm_ema_beta
        if self.average is None:
            self.average = np.zeros_like(norms) if corrected else np.ones_like(norms)
        self.steps += 1
        self.average = beta * self.average + (1 - beta) * norms
        return self.average / (1 - beta**self.steps) if corrected else self.average

    def worst_pair(self, gradients: list[Gradient]) -> tuple[float, tuple[int, int]] | None:
        """The conflicting pair of smallest cosine, the first of equals."""
        alive = []
        for i, g in enumerate(gradients):
            square = g @ g
            if 0 < square < CANCELLED * self.squares[i]:
                self.doubtful |= max(square, 1e-12 * self.squares[i]) > self.floor / 2
            elif square > 0:
                self.doubtful |= abs(square - self.floor) < 1e-6 * self.floor
            if square >= self.floor and square > 0:
                alive.append(i)
        pairs = sorted((cosine(gradients[i], gradients[j]), (i, j)) for i in alive for j in alive if i < j)
        critical, main, weak = self.options.thresholds
        boundary = weak - self.options.conflict_margin
        if not pairs:
            return None
        smallest = pairs[0][0]
        self.doubtful |= abs(smallest - boundary) < GAP
        if smallest >= boundary:
            return None
        self.doubtful |= min(abs(smallest - critical), abs(smallest - main)) < GAP
        self.doubtful |= len(pairs) > 1 and pairs[1][0] - smallest < GAP
        return pairs[0]

    def arbitrate(self, gradients: list[Gradient], pair: tuple[int, int], averages: np.ndarray) -> tuple[int, int]:
        """(winner, loser), equations 5-7; a task that took the last `dominance_window` wins loses."""
        o = self.options
        relative = [np.linalg.norm(gradients[t]) / averages[t] for t in pair]
        scores = []
        for task, own in zip(pair, relative, strict=True):
            stability = 0.0 if self.history is None else cosine(gradients[task], self.history[task])
            stability_weight, strength_weight = o.tie_breaking_weights
            scores.append(stability_weight * max(0.0, stability) + strength_weight * own / sum(relative))
        self.doubtful |= bool(set(pair) & self.rests) or abs(scores[0] - scores[1]) < GAP
        winner, loser = pair if scores[0] >= scores[1] else pair[::-1]
        if o.dominance_window and self.winners[-o.dominance_window :] == [winner] * o.dominance_window:
            winner, loser = loser, winner
        return winner, loser

    def zone(self, c: float) -> str:
        """Critical is closed above, main and weak are closed below (Table 1)."""
        critical, main, _ = self.options.thresholds
        return "critical" if c <= critical else "main" if c < main else "weak"

    def project(self, gradients: list[Gradient], winner: int, loser: int, c: float) -> list[Gradient]:
        """Both sides from their values before this iteration (equations 4, 8 and 9)."""
        critical, main, weak = self.options.thresholds
        zone, g_w, g_l = self.zone(c), gradients[winner], gradients[loser]
        if self.options.smooth:
            depth = (c - main) / (critical - main)
            angle = {"critical": pi, "weak": pi / 2 * (1 - (c - main) / (weak - main))}.get(zone)
            angle = pi / 2 + pi / 2 * depth**self.options.remap_power if angle is None else angle
            new_w, new_l = without(g_w, g_l, sin(angle)), without(g_l, g_w, sin(min(angle, pi / 2)))
        else:  # step logic
            new_w = without(g_w, g_l, 1.0) if zone == "weak" else g_w
            new_l = 0.0 * g_l if zone == "critical" else without(g_l, g_w, 1.0)
        return [new_w if t == winner else new_l if t == loser else g for t, g in enumerate(gradients)]


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


THRESHOLDS = [(-0.8, -0.5, 0.0), (-1.0, -0.4, 0.1), (-0.8, -0.5, -0.001), (-0.6, -0.2, 0.3)]
OPTIONS = st.fixed_dictionaries(
    {
        "thresholds": st.sampled_from(THRESHOLDS),
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


@pytest.mark.oracle(
    "gcond_stochastic gcond_sequential gcond_sequential_pure gcond_pure gcond_lion",
    "vector-space twin, generated gradients",
)
def test_coefficients_and_vectors_agree():
    seen = Counter()

    @settings(max_examples=250, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(steps=sequences(), options=OPTIONS)
    def compare(steps, options):
        if len(steps[0]) == 1:
            options["norm_cap"] = None  # one task is not capped, as published: below
        if options["norm_ema_bias_correction"]:  # every first strength is then 1/2: an exact tie, left to rounding
            unlike = 1 + np.arange(len(steps[0]))[:, None]
            steps = [unlike * np.abs(steps[0]), *steps]
        twin, fast = Twin(**options), GCond(**options)
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
            seen[f"{min(len(expected.zones), 4)} iterations"] += 1
            seen.update(expected.zones)

    compare()
    assert seen["left out"] < 0.2 * seen["steps"]
    assert min(seen[zone] for zone in ("weak", "main", "critical")) > 20
    assert min(seen[f"{n} iterations"] for n in range(5)) > 3


def check(rows, expected, resolution, norm_cap):
    norms = np.minimum(np.linalg.norm(rows, axis=1), norm_cap or np.inf)
    errors = np.linalg.norm(resolution.coefficients.numpy() @ rows - expected.resolved, axis=1)
    assert (errors <= TOLERANCE * norms).all()
    assert np.linalg.norm(resolution.weights.numpy() @ rows - expected.resolved.sum(0)) <= TOLERANCE * norms.sum()
    wins = [resolution.metrics[f"wins/t{i}"] for i in range(len(rows))]
    assert wins == [expected.winners.count(i) for i in range(len(rows))]
    for zone in ("weak", "main", "critical"):
        assert resolution.metrics[f"zone/{zone}"] == expected.zones.count(zone)
    assert resolution.metrics["gcond/min_cosine_as_published"] == pytest.approx(expected.cosine, abs=1e-9)


# What the numbers do not settle, by hand


def test_zones_are_closed_as_in_table_1_and_angles_continuous_there():
    zones = {-0.8: "critical", -0.799: "main", -0.501: "main", -0.5: "weak", -1e-6: "weak"}
    assert {each: GCond().zone(each) for each in zones} == zones
    for threshold, angle in ((-0.8, pi), (-0.5, pi / 2), (0.0, 0.0)):
        for each in (threshold - 1e-9, min(threshold + 1e-9, 0.0)):
            assert GCond().effective_angle(each) == pytest.approx(angle, abs=1e-6)


def test_one_task_is_not_capped():
    assert_close(resolved(GCond(norm_cap=1.0), [[3.0, -4.0]]), [3, -4])


def test_first_task_wins_a_tie_of_scores_and_first_pair_a_tie_of_cosines():
    """By hand: equal norms; then cosines of -1 / sqrt(2) for tasks (0, 1) and (0, 2), of which the longer one wins."""
    assert GCond().resolve(conflict([[-3, 4], [3, -4]])).metrics["wins/t0"] == 1
    gcond = GCond(projection_max_iters=1)
    assert gcond.resolve(conflict([[1, 0, 0], [-1, 1, 0], [-1, 0, 1]])).metrics["wins/t1"] == 1


def test_gradients_too_small_to_take_part():
    for vanishing, length, iterations in (
        ("absolute", 1.1e-4, 1),
        ("absolute", 0.9e-4, 0),
        ("relative", 1.1e-6, 1),
        ("relative", 0.9e-6, 0),
    ):
        metrics = GCond(vanishing=vanishing).resolve(conflict([[1, 0], [-length, 0]])).metrics
        assert metrics["zone/critical"] == iterations, (vanishing, length)


def test_a_dominant_task_loses_its_next_conflict_also_after_a_restart():
    """By hand: task 1 is always the stronger one; the cosine is critical, so each step is one win."""
    wins, state = [], GCond().state_dict()
    for _ in range(7):
        gcond = GCond(dominance_window=2, tie_breaking_weights=(0.0, 1.0))
        gcond.load_state_dict(state)
        wins.append(gcond.resolve(conflict([[-4, 1, 1], [6, 1, 1]])).metrics["wins/t1"])
        state = gcond.state_dict()
    assert wins == [1, 1, 0, 1, 1, 0, 1]


# GCond-as-PCGrad


def by_vectors(rows, iterations):
    """Take the worst pair by cosine and project both fully, from their values before the iteration."""
    rows = list(np.array(rows, dtype=np.float64))
    for done in range(iterations):
        pairs = [(cosine(rows[i], rows[j]), i, j) for i in range(len(rows)) for j in range(i + 1, len(rows))]
        worst, i, j = min(pairs)
        if worst >= -1e-9:
            return rows, done
        rows[i], rows[j] = without(rows[i], rows[j], 1.0), without(rows[j], rows[i], 1.0)
    return rows, iterations


@pytest.mark.oracle("gcond_as_pcgrad", "vector-space twin")
@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
def test_more_tasks_are_the_loop_in_vector_space(iterations):
    """Whatever was resolved before: nothing is remembered."""
    for m in (3, 5):
        random, several = np.random.default_rng(m), 0
        resolver = GCondAsPCGrad(projection_max_iters=iterations)
        for _ in range(30):
            rows = random.standard_normal((m, 6))
            expected, done = by_vectors(rows, iterations)
            resolution = resolver.resolve(conflict(rows))
            np.testing.assert_allclose(resolution.coefficients.numpy() @ rows, expected, atol=1e-10)
            assert sum(value for key, value in resolution.metrics.items() if key.startswith("zone/")) == done
            several += done > 1
        assert several > 5 or iterations == 1


@pytest.mark.oracle("gcond_as_pcgrad", "three tasks by hand")
def test_three_tasks_by_hand():
    """Cosines: (0, 1) -.707, (1, 2) -.707, (0, 2) 0. The first pair of equals: g_0 -> (.5, .5), g_1 -> (0, 1). Then
    (1, 2), cosine -1: both vanish, up to rounding."""
    rows = [[1, 0], [-1, 1], [0, -1]]
    first = GCondAsPCGrad(projection_max_iters=1).resolve(conflict(rows)).coefficients @ matrix(rows)
    torch.testing.assert_close(first, matrix([[0.5, 0.5], [0, 1], [0, -1]]))
    rest = GCondAsPCGrad().resolve(conflict(rows)).coefficients @ matrix(rows)
    torch.testing.assert_close(rest, matrix([[0.5, 0.5], [0, 0], [0, 0]]))
    for agreeing in ([[3, -4]], np.zeros((3, 2)), [[1, 2], [2, 0.5], [0, 0]]):
        assert_close(GCondAsPCGrad().resolve(conflict(agreeing)).coefficients, np.eye(len(agreeing)))

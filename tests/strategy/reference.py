"""Slow twins of the strategies, for tests: the paper's equations in vector space, NumPy float64, no Gram matrix.

GCond: arXiv 2509.07252, equations 1-10. Every loop is written as the text says it, for comparing, not for speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import pi, sin

import numpy as np

Gradient = np.ndarray  # [P], of all parameter tensors


def cosine(a: Gradient, b: Gradient) -> float:
    """Cosine of the angle between two gradients; 0 if one of them is zero."""
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / length) if length > 0 else 0.0


def zone_of(c: float, thresholds: tuple[float, float, float]) -> str:
    """Zone of the cosine c: critical is closed above, main and weak are closed below (Table 1)."""
    critical, main, weak = thresholds
    if c <= critical:
        return "critical"
    if c < main:
        return "main"
    return "weak" if c < weak else "none"


def effective_angle(c: float, thresholds: tuple[float, float, float], power: float) -> float:
    """Angle alpha in radians that sets the strength of a smooth projection."""
    critical, main, weak = thresholds
    zone = zone_of(c, thresholds)
    if zone == "critical":
        return pi
    if zone == "main":
        return pi / 2 + pi / 2 * ((c - main) / (critical - main)) ** power
    return pi / 2 * (1 - (c - main) / (weak - main))


def without(a: Gradient, b: Gradient, strength: float) -> Gradient:
    """a minus `strength` times its projection on b."""
    return a - strength * (a @ b) / (b @ b) * b


@dataclass
class Resolution:
    """What one step gives: gradients, and what happened on the way.

    zones has one entry per iteration; so has winner_loser, but for the step logic's weak zone, which has no winner.
    min_cosine_reported is the cosine that the first iteration met, 1.0 where there was no conflict.
    """

    resolved: list[Gradient]
    total: Gradient
    iterations: int
    winner_loser: list[tuple[int, int]]
    zones: list[str]
    norm_ema: np.ndarray
    min_cosine_reported: float


@dataclass
class ReferenceGCond:
    """Arbitration of GCond over steps; defaults as published, but for `conflict_margin` and `vanishing`.

    norm_ema_bias_correction: False starts the average at 1; True starts it at 0 and divides by 1 - beta^t.
    stability_reference: the previous step's "resolved" (published) or, capped, "accumulated" task gradients.
    conflict_margin: a pair conflicts if its cosine is below theta_weak - conflict_margin (published: 0).
    vanishing: "relative" leaves out pairs whose smaller squared norm is below 1e-12 of the step's largest squared norm,
    "absolute" those below 1e-8 (published).
    smooth: False gives the step-logic zones: critical zeroes the loser, main projects the loser, weak projects both.
    """

    projection_max_iters: int = 3
    conflict_thresholds: tuple[float, float, float] = (-0.8, -0.5, 0.0)
    remap_power: float = 2.0
    smooth: bool = True
    dominance_window: int = 0
    norm_cap: float | None = None
    norm_ema_beta: float = 0.95
    norm_ema_bias_correction: bool = False
    tie_breaking_weights: tuple[float, float] = (0.8, 0.2)
    stability_reference: str = "resolved"
    conflict_margin: float = 1e-9
    vanishing: str = "relative"
    _average: np.ndarray | None = field(default=None, init=False)
    _steps: int = field(default=0, init=False)
    _history: list[Gradient] | None = field(default=None, init=False)
    _winners: list[int] = field(default_factory=list, init=False)

    def step(self, task_gradients: Sequence[Gradient]) -> Resolution:
        """Resolve the m task gradients of one step, the loss weights already applied."""
        gradients = [np.asarray(gradient, dtype=np.float64) for gradient in task_gradients]
        if len(gradients) == 1:
            return Resolution(gradients, np.sum(gradients, axis=0), 0, [], [], np.ones(1), 1.0)

        norm_ema = self._update_norm_ema(np.array([np.linalg.norm(g) for g in gradients]))
        gradients = [self._capped(g) for g in gradients]
        accumulated = gradients
        floor = self._vanishing_floor(gradients)

        pairs, zones, cosines = [], [], []
        for _ in range(self.projection_max_iters):
            worst = self._worst_pair(gradients, floor)
            if worst is None:
                break
            c, i, j = worst
            zone = zone_of(c, self.conflict_thresholds)
            cosines.append(c)
            zones.append(zone)
            winner, loser = self._winner_loser(gradients, i, j, norm_ema)
            if self.smooth or zone != "weak":
                pairs.append((winner, loser))
                self._winners.append(winner)
            gradients = self._project(gradients, winner, loser, c)

        self._history = gradients if self.stability_reference == "resolved" else accumulated
        reported = cosines[0] if cosines else 1.0
        return Resolution(gradients, np.sum(gradients, axis=0), len(zones), pairs, zones, norm_ema, reported)

    def _update_norm_ema(self, norms: np.ndarray) -> np.ndarray:
        """Average of the uncapped norms [m], this step's included."""
        if self._average is None:
            self._average = np.zeros_like(norms) if self.norm_ema_bias_correction else np.ones_like(norms)
        self._steps += 1
        beta = self.norm_ema_beta
        self._average = beta * self._average + (1 - beta) * norms
        return self._average / (1 - beta**self._steps) if self.norm_ema_bias_correction else self._average

    def _capped(self, gradient: Gradient) -> Gradient:
        length = np.linalg.norm(gradient)
        if self.norm_cap is None or length <= self.norm_cap:
            return gradient
        return self.norm_cap / length * gradient

    def _vanishing_floor(self, gradients: list[Gradient]) -> float:
        return 1e-8 if self.vanishing == "absolute" else 1e-12 * max(g @ g for g in gradients)

    def _worst_pair(self, gradients: list[Gradient], floor: float) -> tuple[float, int, int] | None:
        """Conflicting pair of smallest cosine (the first of equals), as (cosine, i, j) with i < j."""
        worst = None
        for i in range(len(gradients)):
            for j in range(i + 1, len(gradients)):
                smaller = min(gradients[i] @ gradients[i], gradients[j] @ gradients[j])
                if smaller < floor or smaller == 0:
                    continue
                c = cosine(gradients[i], gradients[j])
                if c < self.conflict_thresholds[2] - self.conflict_margin and (worst is None or c < worst[0]):
                    worst = (c, i, j)
        return worst

    def _winner_loser(self, gradients: list[Gradient], i: int, j: int, norm_ema: np.ndarray) -> tuple[int, int]:
        """Equations 5-7; a task that took the last `dominance_window` wins loses."""
        stability_weight, strength_weight = self.tie_breaking_weights
        stability = {t: self._stability(gradients, t) for t in (i, j)}
        relative = {t: np.linalg.norm(gradients[t]) / norm_ema[t] for t in (i, j)}
        strength = {t: relative[t] / (relative[i] + relative[j]) for t in (i, j)}
        score = {t: stability_weight * max(0.0, stability[t]) + strength_weight * strength[t] for t in (i, j)}
        winner, loser = (i, j) if score[i] >= score[j] else (j, i)
        window = self.dominance_window
        if window > 0 and len(self._winners) >= window and set(self._winners[-window:]) == {winner}:
            winner, loser = loser, winner
        return winner, loser

    def _stability(self, gradients: list[Gradient], task: int) -> float:
        return 0.0 if self._history is None else cosine(gradients[task], self._history[task])

    def _project(self, gradients: list[Gradient], winner: int, loser: int, c: float) -> list[Gradient]:
        """Both sides from their values before this iteration (equations 8-9)."""
        g_w, g_l = gradients[winner], gradients[loser]
        if self.smooth:
            angle = effective_angle(c, self.conflict_thresholds, self.remap_power)
            new_w = without(g_w, g_l, sin(angle))
            new_l = without(g_l, g_w, sin(min(angle, pi / 2)))
        else:
            zone = zone_of(c, self.conflict_thresholds)
            new_w = without(g_w, g_l, 1.0) if zone == "weak" else g_w
            new_l = 0.0 * g_l if zone == "critical" else without(g_l, g_w, 1.0)
        return [new_w if t == winner else new_l if t == loser else g for t, g in enumerate(gradients)]


class ReferenceMomentum:
    """Exponential moving average m of the resolved gradient; `step` gives m / (1 - beta^t)."""

    def __init__(self, beta: float = 0.9) -> None:
        self.beta = beta
        self.average: Gradient | float = 0.0
        self.steps = 0

    def step(self, gradient: Gradient) -> Gradient:
        """One more gradient; the bias-corrected average."""
        self.average = self.beta * self.average + (1 - self.beta) * gradient
        self.steps += 1
        return self.average / (1 - self.beta**self.steps)


def reference_lion_lars(
    params: Sequence[Gradient], momentum: Sequence[Gradient], coefficient: float, clip: float = 50.0
) -> list[Gradient]:
    """sign(m_hat) * min(|p| / |m_hat|, clip) * coefficient per tensor; ratio 1 where |p| or |m_hat| is below 1e-8."""
    update = []
    for p, m in zip(params, momentum, strict=True):
        p_norm, m_norm = np.linalg.norm(p), np.linalg.norm(m)
        ratio = 1.0 if min(p_norm, m_norm) < 1e-8 else p_norm / m_norm
        update.append(np.sign(m) * min(ratio, clip) * coefficient)
    return update


def reference_pcgrad(gradients: Sequence[Gradient], orders: Sequence[Sequence[int]]) -> Gradient:
    """PCGrad (Yu et al. 2020, algorithm 1), summed; orders[i] is the order in which task i meets the other tasks."""
    projected = []
    for i, gradient in enumerate(gradients):
        for j in orders[i]:
            if j != i and gradient @ gradients[j] < 0:
                gradient = without(gradient, gradients[j], 1.0)
        projected.append(gradient)
    return np.sum(projected, axis=0)


class ReferenceGradNorm:
    """GradNorm (Chen et al. 2018): weights w [m] from 1, Adam (0.9, 0.999, 1e-8), floor, then renormalised to sum m."""

    def __init__(self, num_tasks: int, alpha: float = 1.5, lr: float = 1e-3, floor: float = 1e-3) -> None:
        self.weights = np.ones(num_tasks)
        self.alpha, self.lr, self.floor = alpha, lr, floor
        self.initial_losses: np.ndarray | None = None
        self.first = np.zeros(num_tasks)
        self.second = np.zeros(num_tasks)
        self.steps = 0

    def step(self, losses: Sequence[float], gradients: Sequence[Gradient], shared: Sequence[Gradient]) -> Gradient:
        """Sum of w_i g_i with w as it stood before this step's update.

        gradients and shared are those of the unweighted losses: of all parameters, and of the shared layer W alone.
        """
        total = np.sum([w * g for w, g in zip(self.weights, gradients, strict=True)], axis=0)
        losses = np.asarray(losses, dtype=np.float64)
        if self.initial_losses is None:
            self.initial_losses = losses

        shared_norms = np.array([np.linalg.norm(g) for g in shared])
        weighted_norms = self.weights * shared_norms
        progress = losses / self.initial_losses
        target = weighted_norms.mean() * (progress / progress.mean()) ** self.alpha
        self._adam(np.sign(weighted_norms - target) * shared_norms)
        self.weights = np.maximum(self.weights, self.floor)
        self.weights = self.weights * len(self.weights) / self.weights.sum()
        return total

    def _adam(self, slope: np.ndarray) -> None:
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * slope
        self.second = 0.999 * self.second + 0.001 * slope**2
        first = self.first / (1 - 0.9**self.steps)
        second = self.second / (1 - 0.999**self.steps)
        self.weights = self.weights - self.lr * first / (np.sqrt(second) + 1e-8)

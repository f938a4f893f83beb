"""GCond's arbitration: arXiv 2509.07252, equations 4 to 9, run on coefficients instead of vectors.

Letters: m tasks, J [m, P] task gradients, C [m, m] with resolved g_i = sum_j C_ij g_j. Every projection is a linear
combination of task gradients, so the whole loop needs G = J J^T, X = J R^T (R: the previous J) and nothing of size P.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gcond.strategy.arguments import expect, expect_one_of
from gcond.strategy.conflict import Conflict, Resolution, Resolver, by_task

Matrix = NDArray[np.float64]
ZONES = ("weak", "main", "critical")


class GCond(Resolver):
    """Take the pair with the smallest cosine, choose a winner, project both, and repeat.

    Of pairs with the same cosine the first is taken, as published: of many parallel gradients, where all pairs have
    +-1, rounding and the order of the tasks decide.

    Args (defaults: Table 5 of the paper):
        thresholds: (critical, main, weak) cosines, -1 <= critical < main < weak <= 1.
        projection_max_iters: pairs that are arbitrated per step at most.
        remap_power: p of the effective angle between critical and main (equation 4).
        tie_breaking_weights: (stability, strength) in the winner's score (equation 7).
        norm_ema_beta: of the average of ||g_i|| that strength is measured against.
        dominance_window: a task that won this many times in a row, whatever the pair, loses the next conflict; 0 is
        off.
        norm_cap: clip each task gradient to this norm first; None is off, and so is a single task.
        smooth: False takes the step logic: critical, the loser vanishes; main, the loser is projected on the winner's
            orthogonal complement; weak, both are projected on each other's and nobody wins.
        stability_reference: stability is the cosine with the previous step's "resolved" gradients (what the published
            code does) or with its "accumulated" ones (what the text says).
        norm_ema_bias_correction: False starts the average at 1, as published; True starts at 0. (The
            correction itself is the same factor for all tasks and cancels in the score.)
        conflict_margin: a conflict needs c < weak - margin, so that a pair that was just made orthogonal is not
            arbitrated again on its rounding error; 0 as published.
        vanishing: gradients too small to take part: "relative", a squared norm below 1e-12 of the step's largest; or
            "absolute", below 1e-8, as published.

    Raises:
        ValueError: a setting out of range; the message names it.
    """

    uses_history = True
    reads_absent = True
    remembers = ("steps", "wins", "norm_ema", "previous_coefficients", "previous_gram")
    starts = MappingProxyType({"norm_ema": 1.0})

    def __init__(
        self,
        thresholds: tuple[float, float, float] = (-0.8, -0.5, 0.0),
        projection_max_iters: int = 3,
        remap_power: float = 2.0,
        tie_breaking_weights: tuple[float, float] = (0.8, 0.2),
        norm_ema_beta: float = 0.95,
        dominance_window: int = 0,
        norm_cap: float | None = None,
        smooth: bool = True,
        stability_reference: str = "resolved",
        norm_ema_bias_correction: bool = False,
        conflict_margin: float = 1e-9,
        vanishing: str = "relative",
    ) -> None:
        rising = len(thresholds) == 3 and -1 <= thresholds[0] < thresholds[1] < thresholds[2] <= 1
        expect(rising, "thresholds", "-1 <= critical < main < weak <= 1", list(thresholds))
        expect(projection_max_iters >= 1, "projection_max_iters", "an integer >= 1", projection_max_iters)
        expect(remap_power > 0, "remap_power", "a number > 0", remap_power)
        expect(
            len(tie_breaking_weights) == 2
            and min(tie_breaking_weights) >= 0
            and 0 < sum(tie_breaking_weights) < math.inf,
            "tie_breaking_weights",
            "(stability, strength), both >= 0 and not both 0",
            tie_breaking_weights,
        )
        expect(0 <= norm_ema_beta < 1, "norm_ema_beta", "a number in [0, 1)", norm_ema_beta)
        expect(dominance_window >= 0, "dominance_window", "an integer >= 0 (0 is off)", dominance_window)
        expect(norm_cap is None or norm_cap > 0, "norm_cap", "None or a number > 0", norm_cap)
        expect_one_of("stability_reference", stability_reference, "resolved", "accumulated")
        expect(conflict_margin >= 0, "conflict_margin", "a number >= 0", conflict_margin)
        expect_one_of("vanishing", vanishing, "relative", "absolute")
        self.critical, self.main, self.weak = thresholds
        self.projection_max_iters = projection_max_iters
        self.remap_power = remap_power
        self.stability_weight, self.strength_weight = tie_breaking_weights
        self.norm_ema_beta = norm_ema_beta
        self.norm_cap = norm_cap
        self.smooth = smooth
        self.stability_reference = stability_reference
        self.norm_ema_bias_correction = norm_ema_bias_correction
        self.needs_every_task = norm_ema_bias_correction  # the correction is one for all tasks
        self.conflict_margin = conflict_margin
        self.vanishing = vanishing
        self.dominance_window = dominance_window
        self._wins: list[int] = []  # the last winners, at most `dominance_window`
        self._steps = 0
        self._norm_ema: Tensor | None = None  # [m]
        self._previous_coefficients: Tensor | None = None  # C and G of the previous step
        self._previous_gram: Tensor | None = None

    def resolve(self, conflict: Conflict) -> Resolution:
        gram = conflict.gram.numpy()
        norms = np.sqrt(np.diag(gram))
        average_norms = self._average_norms(norms, conflict.present)
        reference, reference_norms = self._reference(conflict.cross.numpy())
        coefficients = np.eye(len(gram))
        if self.norm_cap is not None and len(conflict.present) > 1:
            np.fill_diagonal(coefficients, self.norm_cap / np.maximum(norms, self.norm_cap))
        current = coefficients @ gram @ coefficients.T
        floor = 1e-8 if self.vanishing == "absolute" else 1e-12 * float(np.diag(current).max())

        metrics = dict.fromkeys([f"zone/{zone}" for zone in ZONES], 0.0)
        metrics |= {f"wins/{task}": 0.0 for task in conflict.tasks}
        reported = 1.0
        for iteration in range(self.projection_max_iters):
            cosine, pair = _worst_pair(current, floor)
            if pair is None or cosine >= self.weak - self.conflict_margin:
                break
            reported = cosine if iteration == 0 else reported
            zone = self.zone(cosine)
            metrics[f"zone/{zone}"] += 1
            if self.smooth or zone != "weak":
                overlap = np.diag(coefficients @ reference)
                pair = self._arbitrate(pair, self._scores(pair, current, overlap, reference_norms, average_norms))
                metrics[f"wins/{conflict.tasks[pair[0]]}"] += 1
            coefficients = self._project(coefficients, current, *pair, cosine)
            current = coefficients @ gram @ coefficients.T
        metrics["gcond/min_cosine_as_published"] = reported
        self._previous_coefficients = torch.from_numpy(coefficients)
        self._previous_gram = conflict.gram.clone()
        return Resolution(torch.from_numpy(coefficients.copy()), metrics)

    def follow_tasks(self, before: Sequence[str], now: Sequence[str]) -> None:
        added = [task for task in now if task not in before]
        expected = f"False where tasks such as {added} come later, since the correction is one for all tasks"
        late = added and self.norm_ema_bias_correction and self._steps
        expect(not late, "norm_ema_bias_correction", expected, True)
        super().follow_tasks(before, now)
        for name in ("_previous_coefficients", "_previous_gram"):
            square = getattr(self, name)
            if square is not None:
                setattr(self, name, by_task(by_task(square, before, now, 0.0).T, before, now, 0.0).T)
        self._wins = [now.index(before[winner]) for winner in self._wins if before[winner] in now]

    def zone(self, cosine: float) -> str:
        """The name of a conflict's zone (Table 1)."""
        if cosine <= self.critical:
            return "critical"
        return "main" if cosine < self.main else "weak"

    def effective_angle(self, cosine: float) -> float:
        """The angle alpha, in radians, that a cosine below the weak threshold is remapped to (equation 4)."""
        if cosine <= self.critical:
            return math.pi
        if cosine < self.main:
            depth = (cosine - self.main) / (self.critical - self.main)
            return math.pi / 2 * (1 + math.pow(depth, self.remap_power))
        return math.pi / 2 * (1 - (cosine - self.main) / (self.weak - self.main))

    def _shares(self, cosine: float) -> tuple[float, float]:
        """How much of their projections on each other winner and loser lose."""
        if not self.smooth:
            return (1.0, 1.0) if self.zone(cosine) == "weak" else (0.0, 1.0)
        alpha = self.effective_angle(cosine)
        return math.sin(alpha), math.sin(min(alpha, math.pi / 2))

    def _project(self, coefficients: Matrix, current: Matrix, winner: int, loser: int, cosine: float) -> Matrix:
        """Both at once, each from the other's value before this iteration (equations 5 and 6)."""
        winner_share, loser_share = self._shares(cosine)
        dot = current[winner, loser]
        projected = coefficients.copy()
        projected[winner] -= winner_share * dot / current[loser, loser] * coefficients[loser]
        projected[loser] -= loser_share * dot / current[winner, winner] * coefficients[winner]
        if not self.smooth and self.zone(cosine) == "critical":
            projected[loser] = 0.0
        return projected

    def _average_norms(self, norms: Matrix, present: list[int]) -> Matrix:
        """The running average of ||g_i|| before capping [m], which this step's norms of those present enter first."""
        if self._norm_ema is None:
            before = np.zeros_like(norms) if self.norm_ema_bias_correction else np.ones_like(norms)
        else:
            before = self._norm_ema.numpy()
        self._steps += 1
        average = before.copy()
        average[present] = self.norm_ema_beta * before[present] + (1 - self.norm_ema_beta) * norms[present]
        self._norm_ema = torch.from_numpy(average)
        return average / (1 - self.norm_ema_beta**self._steps) if self.norm_ema_bias_correction else average

    def _reference(self, cross: Matrix) -> tuple[Matrix, Matrix]:
        """<g_i, r_j> [m, m] and ||r_j|| [m] for the reference gradients r of the previous step."""
        if self._previous_coefficients is None or self._previous_gram is None:
            return np.zeros_like(cross), np.zeros(len(cross))
        coefficients, gram = self._previous_coefficients.numpy(), self._previous_gram.numpy()
        if self.stability_reference == "accumulated":
            coefficients = np.eye(len(cross))
        squares = np.diag(coefficients @ gram @ coefficients.T)
        return cross @ coefficients.T, np.sqrt(np.maximum(squares, 0.0))

    def _scores(
        self,
        pair: tuple[int, int],
        current: Matrix,
        overlap: Matrix,
        reference_norms: Matrix,
        average_norms: Matrix,
    ) -> list[float]:
        """score = w_stability * max(0, S) + w_strength * N for both of the pair (equations 7 to 9)."""
        norms = [math.sqrt(current[i, i]) for i in pair]
        ratios = [norm / average_norms[i] for norm, i in zip(norms, pair, strict=True)]
        scores = []
        for i, norm, ratio in zip(pair, norms, ratios, strict=True):
            length = norm * reference_norms[i]
            stability = overlap[i] / length if length > 0 else 0.0
            scores.append(self.stability_weight * max(0.0, stability) + self.strength_weight * ratio / sum(ratios))
        return scores

    def _arbitrate(self, pair: tuple[int, int], scores: list[float]) -> tuple[int, int]:
        """(winner, loser); the first of the pair wins a tie, a dominant task loses."""
        winner, loser = pair if scores[0] >= scores[1] else pair[::-1]
        window = self.dominance_window
        if window and self._wins == [winner] * window:
            winner, loser = loser, winner
        self._wins = [*self._wins, winner][-window:] if window else []
        return winner, loser


def _worst_pair(gram: Matrix, floor: float) -> tuple[float, tuple[int, int] | None]:
    """The smallest cosine of a pair of gradients whose squared norms exceed `floor`, and the pair."""
    worst, pair = math.inf, None
    squares = np.diag(gram)
    for i in range(len(gram)):
        for j in range(i + 1, len(gram)):
            if squares[i] > floor and squares[j] > floor:
                cosine = gram[i, j] / math.sqrt(squares[i] * squares[j])
                if cosine < worst:
                    worst, pair = cosine, (i, j)
    return worst, pair

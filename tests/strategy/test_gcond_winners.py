"""Who wins a conflict under GCond, by hand, where only one rule of the score or of the dominance window decides."""

from __future__ import annotations

from strategy.problems import conflict

from gcond.strategy import GCond


def winners(gcond, *steps):
    """The tasks that won at each step, whose rows follow those of the step before."""
    found, previous = [], None
    for rows in steps:
        metrics = gcond.resolve(conflict(rows, previous)).metrics
        found.append([i for i in range(len(rows)) if metrics[f"wins/t{i}"]])
        previous = rows
    return found


def test_negative_stability_counts_as_zero():
    """Both turned round, cosines -.1 and -.95 with the step before; so the longer second task wins by its strength."""
    gcond = GCond(tie_breaking_weights=(0.99, 0.01), norm_ema_beta=0.999)
    assert winners(gcond, [[1, 0], [0, 1]], [[-0.1, 1], [-0.5, -1.5]]) == [[], [1]]


def test_dominance_counts_wins_over_any_task():
    """The longest first task beats the second, then the third; a third win in a row it must give away."""
    against_1, against_2 = [[3, 0, 0], [-1, 1, 0], [0, 0, 1]], [[3, 0, 0], [0, 0, 1], [-1, 1, 0]]
    gcond = GCond(dominance_window=2, tie_breaking_weights=(0.0, 1.0), norm_ema_beta=0.999)
    assert winners(gcond, against_1, against_2, against_1) == [[0], [0], [1]]


def test_corrected_norm_averages_start_at_the_first_norms():
    """Task 1 has grown, task 0 has not: the averages are (5, 1.13), the strengths 1 : 1.06, after a first tie.

    Averages that began at 1 would be (4, 1.1), the strengths 1.25 : 1.09.
    """
    gcond = GCond(norm_ema_bias_correction=True, norm_ema_beta=0.5, tie_breaking_weights=(0.0, 1.0))
    assert winners(gcond, [[5, 0], [-1, 0]], [[5, 0], [-1.2, 0]]) == [[0], [1]]

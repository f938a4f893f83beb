"""Records of single steps -> bins. Expected values by hand."""

import math

import pytest

from gcond.report.records import STEP_COLUMNS, frame
from gcond.report.steps import bin_steps


def step(number, **logged):
    return {"kind": "step", "step": number, **{name.replace("__", "/"): value for name, value in logged.items()}}


@pytest.mark.parametrize(
    ("steps", "bins", "width", "last"),
    [(1, 1, 1, 1), (50, 50, 1, 1), (51, 26, 2, 1), (96, 48, 2, 2), (500, 50, 10, 10)],
)
def test_bins_are_at_most_fifty_and_hold_as_many_steps_each(steps, bins, width, last):
    rows = bin_steps([step(number) for number in range(steps)])
    assert [row["bin"] for row in rows] == list(range(bins))
    counts = [row["last_step"] - row["first_step"] + 1 for row in rows]
    assert counts == [width] * (bins - 1) + [last]
    assert (rows[0]["first_step"], rows[-1]["last_step"]) == (0, steps - 1)


def test_numbers_are_means_and_cosines_also_minima_over_the_steps_that_have_them():
    records = [
        step(0, loss__l1=0.5, cosine__all=-0.5, cosine__encoder=0.25, cosine_resolved__all=0.0, zone__weak=2.0),
        step(1, loss__l1=0.7, cosine__all=0.3, cosine__encoder=0.75, cosine_resolved__all=0.3, zone__weak=0.0),
        step(2, loss__l1=0.9, cosine__all=None),
        {"kind": "validation", "epoch": 1, "step": 3, "val_l1": 9.0},
        {"kind": "probe", "epoch": 1, "step": 3, "cosine/all": -1.0},
        step(3, loss__l1=0.3, gcond__min_cosine_as_published=-0.25),
    ]
    (row,) = bin_steps(records, bins=1)
    assert row["loss_l1"] == pytest.approx(0.6)
    assert (row["cosine_min"], row["cosine_mean"], row["cosine_steps"]) == (-0.5, pytest.approx(-0.1), 2)
    assert row["conflicts"] == 0.5  # of the two steps that have a cosine
    assert (row["cosine_encoder"], row["cosine_resolved_min"]) == (0.5, 0.0)
    assert (row["zone_weak"], row["published_cosine"]) == (1.0, -0.25)
    assert (row["cosine_body"], row["weight_l1"], row["norm_jump"]) == (None, None, None)


def test_a_jump_of_the_norm_is_measured_across_the_border_of_two_bins():
    rows = bin_steps([step(number, resolved_norm=norm) for number, norm in enumerate((1.0, 2.0, 1.0, 8.0))], bins=2)
    assert rows[0]["norm_jump"] == pytest.approx(math.log(2))  # of its second step; before the first there is none
    assert rows[1]["norm_jump"] == pytest.approx((math.log(2) + math.log(8)) / 2)
    assert [row["resolved_norm"] for row in rows] == [1.5, 4.5]


def test_a_step_that_was_left_out_counts_in_no_number():
    records = [
        step(0, resolved_norm=2.0, loss__l1=1.0, cosine__all=0.5),
        step(1, skipped=1.0, loss__l1=None, loss__ssim=7.0),
        step(2, resolved_norm=0.0, loss__l1=2.0, cosine__all=0.5),
        step(3, resolved_norm=4.0, loss__l1=3.0),
    ]
    (row,) = bin_steps(records, bins=1)
    assert (row["first_step"], row["last_step"], row["loss_l1"], row["loss_ssim"]) == (0, 3, 2.0, None)
    assert row["norm_jump"] is None  # a norm is missing or zero on either side of each step
    assert row["cosine_steps"] == 2


def test_all_columns_are_filled_and_no_other():
    (row,) = bin_steps([step(0)])
    assert set(row) == set(STEP_COLUMNS) - {"dataset", "model", "strategy", "seed", "variant"}
    assert len(frame([row], STEP_COLUMNS)) == 1


def test_without_steps_there_are_no_bins():
    assert bin_steps([{"kind": "validation", "epoch": 1, "step": 3}]) == []

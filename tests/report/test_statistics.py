"""Paired statistics against SciPy and numbers by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gcond.report import statistics
from gcond.report.statistics import Effect, holm, paired, ratio, sign_flip, single, tost, verdict, within

NAN = math.nan


def by_seed(*values, first=1):
    return pd.Series(values, index=range(first, first + len(values)), dtype=float)


@pytest.mark.parametrize("n", [2, 3, 7, 10])
def test_interval_and_p_are_scipys(n):
    generator = np.random.default_rng(n)
    a, b = generator.normal(size=(2, n))
    effect = paired(by_seed(*a), by_seed(*b))
    test = stats.ttest_1samp(a - b, 0.0)
    interval = test.confidence_interval(0.95)
    assert effect.n == n
    assert (effect.mean, effect.low, effect.high) == pytest.approx((np.mean(a - b), interval.low, interval.high))
    assert effect.p_against(0.0) == pytest.approx(test.pvalue)
    flipped = stats.permutation_test(
        (a - b,), lambda x, axis: np.mean(x, axis=axis), permutation_type="samples", vectorized=True, n_resamples=np.inf
    )
    assert effect.p_sign_flip == pytest.approx(flipped.pvalue)


def test_interval_by_hand():
    # differences 1, 2, 3: mean 2, deviation 1, t(2) = 4.303, half width 4.303 / sqrt(3) = 2.484
    effect = paired(by_seed(2, 4, 6), by_seed(1, 2, 3))
    assert (effect.mean, effect.low, effect.high) == pytest.approx((2, -0.484, 4.484), abs=1e-3)
    assert effect.p_sign_flip == 2 / 2**3


def test_smallest_p_of_the_sign_flip():
    assert {n: sign_flip([1.0 + 0.1 * k for k in range(n)]) for n in (1, 3, 6, 10)} == {
        n: 2 / 2**n for n in (1, 3, 6, 10)
    }
    # |sums| of (3, -1): 2, 4, 4, 2 -> all are at least 2
    assert sign_flip([3.0, -1.0]) == 1.0
    assert sign_flip([0.1, 0.2, -0.3]) == 1.0  # a sum of zero, but for rounding
    assert math.isnan(sign_flip([]))


def test_beyond_24_seeds_drawn_patterns_stand_for_all_of_them(monkeypatch):
    draw = np.random.default_rng(3)
    for n in (6, 12):
        differences = draw.normal(0.4, 1, n)
        exact = sign_flip(differences)
        with monkeypatch.context() as patch:
            patch.setattr(statistics, "MOST", 0)
            drawn = sign_flip(differences)
            assert drawn == sign_flip(differences)  # seeded
        assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / statistics.DRAWS))
    seeds = range(30)
    certain = paired(pd.Series([1.0] * 30, index=seeds), pd.Series([0.0] * 30, index=seeds))
    assert certain.p_sign_flip == 1 / (statistics.DRAWS + 1)  # never zero: the observed pattern counts
    assert statistics.sign_flip_text(certain) == "0.000 (100,000 draws)"
    assert statistics.sign_flip_text(paired(pd.Series([1.0] * 6), pd.Series([0.0] * 6))) == "0.031"


def test_one_seed_has_a_mean_and_nothing_else():
    effect = paired(by_seed(3), by_seed(1))
    assert (effect.n, effect.mean, effect.p_sign_flip) == (1, 2.0, 1.0)
    assert math.isnan(effect.low)
    assert math.isnan(effect.high)
    assert verdict(effect, "higher") == "undecided"


def test_no_seed_in_common():
    effect = paired(by_seed(1, 2), by_seed(1, 2, first=5))
    assert (effect.n, effect.missing) == (0, (1, 2, 5, 6))
    assert math.isnan(effect.mean)
    assert verdict(effect, "lower") == "undecided"


def test_seeds_without_a_finite_partner_are_named():
    a = pd.Series({11: 1.0, 42: NAN, 7: 2.0, 3: math.inf, 2025: 5.0})
    b = pd.Series({2025: 4.0, 11: 0.5, 42: 1.0, 3: 1.0})
    effect = paired(a, b)
    assert (effect.n, effect.mean, effect.missing) == (2, 0.75, (3, 7, 42))


def test_two_runs_of_one_seed_are_refused():
    twice = pd.Series([1.0, 2.0, 3.0], index=[1, 2, 2])
    with pytest.raises(ValueError, match=r"one number a seed, found several of \[2\]"):
        paired(twice, by_seed(1.0, 2.0))


def test_equal_values():
    same = paired(by_seed(*[1.0] * 8), by_seed(*[1.0] * 8))
    assert (same.mean, same.low, same.high, same.p_sign_flip, same.p_against(0.0)) == (0, 0, 0, 1, 1)
    assert verdict(same, "lower") == verdict(same, "higher") == "undecided"
    shifted = paired(by_seed(*[1.0] * 8), by_seed(*[2.0] * 8))
    assert verdict(shifted, "lower") == "holds"
    assert shifted.p_against(0.0) == 0.0


@pytest.mark.parametrize(("n", "expected"), [(5, "undecided"), (6, "holds")])
def test_fewer_than_six_seeds_are_undecided(n, expected):
    ours = by_seed(*(1.0 + 0.01 * k for k in range(n)))
    assert verdict(paired(ours, 2 * ours), "lower") == expected
    assert verdict(paired(2 * ours, ours), "lower") == ("contradicted" if n == 6 else "undecided")
    assert tost([0.01 * k for k in range(n)], 2.0).verdict == expected


def test_unknown_direction_is_named():
    with pytest.raises(ValueError, match=r"`direction`.*found 'better'"):
        verdict(single(by_seed(1)), "better")


def test_within_bounds():
    def effect(low, high):
        return Effect(9, (low + high) / 2, low, high, NAN)

    assert within(effect(0.9, 1.1), 0.8, 1.2) == "holds"
    assert within(effect(0.7, 1.1), 0.8, 1.2) == "undecided"
    assert within(effect(1.3, 1.4), 0.8, 1.2) == "contradicted"
    assert within(effect(0.5, 0.6), 0.8, 1.2) == "contradicted"
    assert within(effect(NAN, NAN), 0.8, 1.2) == "undecided"


def test_p_of_an_interval_without_values_is_the_normal_s():
    effect = Effect(9, 1.96, 0.0, 2 * 1.959964, NAN)
    assert effect.p_against(0.0) == pytest.approx(0.05, abs=1e-4)
    assert math.isnan(Effect(1, 2.0, NAN, NAN, NAN).p_against(0.0))


def test_holm_by_hand():
    # sorted .01, .02, .03, .04 times 4, 3, 2, 1 = .04, .06, .06, .04 -> made monotone
    assert holm([0.04, 0.01, NAN, 0.03, 0.02])[:2] == pytest.approx([0.06, 0.04])
    assert holm([0.04, 0.01, NAN, 0.03, 0.02])[3:] == pytest.approx([0.06, 0.06])
    assert math.isnan(holm([0.04, NAN])[1])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_tost_is_two_one_sided_tests():
    values = np.random.default_rng(0).normal(0.3, 1.0, size=12)
    found = tost(values, 1.0)
    lower = stats.ttest_1samp(values, -1.0, alternative="greater").pvalue
    upper = stats.ttest_1samp(values, 1.0, alternative="less").pvalue
    assert found.p == pytest.approx(max(lower, upper))
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.90)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.verdict == "holds") == (found.p < 0.05)


def test_equivalence_is_not_a_missing_difference():
    wide = [-5.0, 5.0, -6.0, 6.0, -4.0, 4.0]
    assert tost(wide, 2.0).verdict == "undecided"
    assert tost([0.1, -0.1, 0.2, -0.2, 0.0, 0.1], 2.0).verdict == "holds"
    assert tost([3.1, 2.9, 3.2, 2.8, 3.0, 3.1], 2.0).verdict == "contradicted"
    assert tost([1.0], 2.0).verdict == "undecided"
    assert tost([0.0] * 6, 2.0).verdict == "holds"
    with pytest.raises(ValueError, match="`margin`"):
        tost([1.0, 2.0], 0.0)


def test_ratio_has_fieller_s_interval():
    # at its ends the t-test of mean(a - r b) = 0 has p = .05 exactly
    generator = np.random.default_rng(3)
    b = generator.normal(5.0, 1.0, size=9)
    a = 0.8 * b + generator.normal(0.0, 0.5, size=9)
    effect = ratio(by_seed(*a), by_seed(*b))
    assert effect.mean == pytest.approx(a.mean() / b.mean())
    for end in (effect.low, effect.high):
        assert stats.ttest_1samp(a - end * b, 0.0).pvalue == pytest.approx(0.05)
    unclear = ratio(by_seed(1, 2, 3), by_seed(-1, 0.5, 1))
    assert math.isnan(unclear.low)

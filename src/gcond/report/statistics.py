"""Statistics of the study: the seed is the unit, differences are paired by seed, a 95 % t-interval decides.

The sign-flip p stands beside the interval: exact up to `MOST` seeds, of `DRAWS` drawn patterns beyond. With n seeds it
is at least 2 / 2^n, so fewer than `FEWEST` seeds are always undecided. "Equal" needs an equivalence test (TOST) with a
stated margin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

FEWEST = 6  # seeds: 2 / 2^6 = .031
LEVEL = 0.95
MOST = 24  # seeds whose 2^n sign flips are all counted
DRAWS = 100_000  # sign patterns that stand for all of them where there are more

HOLDS, CONTRADICTED, UNDECIDED, NOT_RUN = "holds", "contradicted", "undecided", "not run"


@dataclass(frozen=True)
class Effect:
    """A mean over seeds with its 95 % interval; nan where n does not allow one.

    `values` are the seeds' own numbers; empty where the interval was computed elsewhere.
    """

    n: int
    mean: float
    low: float
    high: float
    p_sign_flip: float  # two-sided, of "the mean is zero" (`sign_flip`); nan where that is not the question
    missing: tuple[int, ...] = ()  # seeds with a number on one side only
    values: tuple[float, ...] = ()

    def times(self, factor: float) -> "Effect":
        low, high = sorted((factor * self.low, factor * self.high))
        scaled = tuple(factor * value for value in self.values)
        return replace(self, mean=factor * self.mean, low=low, high=high, values=scaled)

    def p_against(self, bound: float) -> float:
        """Two-sided p of the t-test of "the mean is `bound`"; without values, of the normal that has the interval."""
        if self.n < 2 or math.isnan(self.low):
            return math.nan
        if not self.values:
            error = (self.high - self.low) / (2 * stats.norm.ppf((1 + LEVEL) / 2))
            return float(2 * stats.norm.sf(abs(self.mean - bound) / error)) if error else float(self.mean == bound)
        error = np.std(self.values, ddof=1) / math.sqrt(self.n)
        distance = abs(float(np.mean(self.values)) - bound)
        if error == 0:
            return 1.0 if distance == 0 else 0.0
        return float(2 * stats.t.sf(distance / error, self.n - 1))


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests at 5 % each, which is a 90 % interval within +-margin."""

    margin: float
    low: float
    high: float
    p: float
    verdict: str


def paired(a: pd.Series, b: pd.Series) -> Effect:
    """a - b by seed (the index). A seed without a finite number on both sides takes no part and is named."""
    ours, theirs, missing = _whole(a, b)
    differences = ours - theirs
    return replace(_effect(differences), p_sign_flip=sign_flip(differences), missing=missing)


def _whole(a: pd.Series, b: pd.Series) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Both numbers of each seed that has two finite ones, in the order of seeds; and the other seeds."""
    ours, theirs = _finite(a), _finite(b)
    seeds = sorted(ours.keys() & theirs.keys())
    missing = tuple(sorted({int(seed) for seed in (*a.index, *b.index)}.difference(seeds)))
    return np.array([ours[seed] for seed in seeds]), np.array([theirs[seed] for seed in seeds]), missing


def _finite(values: pd.Series) -> dict[int, float]:
    """By seed. Raises ValueError where a seed has two numbers."""
    if not values.index.is_unique:
        twice = sorted(set(values.index[values.index.duplicated()]))
        raise ValueError(f"expected one number a seed, found several of {twice}: compare one run a seed")
    numbers = zip(values.index, values.to_numpy(dtype=float, na_value=math.nan), strict=True)
    return {int(seed): float(number) for seed, number in numbers if math.isfinite(number)}


def single(values: pd.Series) -> Effect:
    """The mean of one number a seed, zero being no hypothesis."""
    numbers = values.astype(float)
    finite = numbers[np.isfinite(numbers)].sort_index()
    missing = tuple(sorted(int(seed) for seed in numbers.index.difference(finite.index)))
    return replace(_effect(finite.to_numpy()), missing=missing)


def _effect(values: np.ndarray) -> Effect:
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    half = math.nan
    if n > 1:
        half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Effect(n, mean, mean - half, mean + half, math.nan, values=tuple(float(value) for value in values))


def sign_flip(differences: Sequence[float] | np.ndarray) -> float:
    """Share of all 2^n sign patterns whose |sum| is at least the observed one; nan without differences.

    Beyond MOST differences of DRAWS patterns from a fixed seed, the observed one among them, so that the test keeps its
    level (Phipson and Smyth 2010); the standard error of a p of .05 is then .0007.
    """
    n = len(differences)
    if not n:
        return math.nan
    observed = abs(float(np.sum(differences)))
    rounding = 1e-12 * float(np.sum(np.abs(differences)))
    sums = np.abs(_all_sums(differences) if n <= MOST else _drawn_sums(differences))
    as_far = int(np.count_nonzero(sums >= observed - rounding))
    return as_far / len(sums) if n <= MOST else (as_far + 1) / (len(sums) + 1)


def sign_flip_text(effect: Effect) -> str:
    """For a table: "0.031", with the number of drawn patterns where it is not exact; "" where there is none."""
    if math.isnan(effect.p_sign_flip):
        return ""
    return f"{effect.p_sign_flip:.3f}" + (f" ({DRAWS:,} draws)" if effect.n > MOST else "")


def _all_sums(differences: Sequence[float] | np.ndarray) -> np.ndarray:
    sums = np.zeros(1)
    for difference in differences[1:]:  # the first keeps its sign: |sum| is that of the opposite pattern
        sums = np.concatenate([sums + difference, sums - difference])
    return sums + differences[0]


def _drawn_sums(differences: Sequence[float] | np.ndarray) -> np.ndarray:
    draw = np.random.default_rng(0)
    sums = np.zeros(DRAWS)
    for difference in differences:
        sums += difference * (1 - 2 * draw.integers(2, size=DRAWS))
    return sums


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values in the order given; nan (nothing tested) stays nan and does not count."""
    tested = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[place] = largest
    return adjusted


def tost(values: Sequence[float], margin: float) -> Equivalence:
    """Is the mean of `values` within +-`margin`? Contradicted if the 95 % interval lies wholly outside."""
    if not margin > 0:
        raise ValueError(f"`margin`: expected a number above 0, found {margin}")
    effect = _effect(np.asarray(values, dtype=float))
    if effect.n < 2:
        return Equivalence(margin, math.nan, math.nan, math.nan, UNDECIDED)
    error = float(np.std(effect.values, ddof=1)) / math.sqrt(effect.n)
    half = float(stats.t.ppf(LEVEL, effect.n - 1)) * error
    nearest = margin - abs(effect.mean)
    if error > 0:
        p = float(stats.t.sf(nearest / error, effect.n - 1))
    else:
        p = 0.0 if nearest > 0 else 1.0
    low, high = effect.mean - half, effect.mean + half
    found = UNDECIDED
    if effect.n >= FEWEST:
        if -margin < low and high < margin:
            found = HOLDS
        elif effect.low > margin or effect.high < -margin:
            found = CONTRADICTED
    return Equivalence(margin, low, high, p, found)


def ratio(a: pd.Series, b: pd.Series) -> Effect:
    """mean(a) / mean(b) by seed, with Fieller's 95 % interval; nan bounds where mean(b) may be zero."""
    ours, theirs, missing = _whole(a, b)
    n = len(ours)
    if n < 2:
        value = float(ours[0] / theirs[0]) if n and theirs[0] else math.nan
        return Effect(n, value, math.nan, math.nan, math.nan, missing)
    over, under = float(ours.mean()), float(theirs.mean())
    covariance = np.cov(ours, theirs, ddof=1) / n
    square = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) ** 2
    # (over - r under)^2 <= t^2 var(a - r b): a parabola in r, open upwards where `under` is clearly not zero
    x = under**2 - square * covariance[1, 1]
    y = over * under - square * covariance[0, 1]
    z = over**2 - square * covariance[0, 0]
    low = high = math.nan
    if x > 0:
        root = math.sqrt(max(0.0, y * y - x * z))
        low, high = (y - root) / x, (y + root) / x
    return Effect(n, over / under if under else math.nan, low, high, math.nan, missing)


def within(effect: Effect, lowest: float, highest: float) -> str:
    """Does the interval lie between the two bounds (holds), wholly outside (contradicted), or neither?"""
    if effect.n < FEWEST or math.isnan(effect.low) or math.isnan(effect.high):
        return UNDECIDED
    if lowest < effect.low and effect.high < highest:
        return HOLDS
    return CONTRADICTED if effect.low > highest or effect.high < lowest else UNDECIDED


def verdict(effect: Effect, direction: str) -> str:
    """Of the claim that the mean is "lower" or "higher" than zero."""
    if direction not in REGIONS:
        raise ValueError(f"`direction`: expected one of {', '.join(REGIONS)}, found {direction!r}")
    return within(effect, *REGIONS[direction])


REGIONS = {"lower": (-math.inf, 0.0), "higher": (0.0, math.inf)}

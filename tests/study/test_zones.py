"""Table 1: what the resolver does against the paper's equations, written here by hand, and the page made of it."""

import csv
import math
from pathlib import Path

import pytest

from gcond.study import pages, zones

ROOT = Path(__file__).parents[2]
CRITICAL, MAIN, WEAK = -0.8, -0.5, 0.0


def zone(c):
    return "critical" if c <= CRITICAL else "main" if c < MAIN else "weak" if c < WEAK else "none"


def angle(c, power):
    """Equation 4 of arXiv 2509.07252."""
    if c <= CRITICAL:
        return math.pi
    if c < MAIN:
        return math.pi / 2 + math.pi / 2 * ((c - MAIN) / (CRITICAL - MAIN)) ** power
    return math.pi / 2 * (1 - (c - MAIN) / (WEAK - MAIN))


def factors(c, power):
    """(s_w, s_l, what the loser keeps of itself): equations 5 and 6; without a power the step logic of the journal
    edition's appendix."""
    if c >= WEAK:
        return 0, 0, 1
    if power is not None:
        return math.sin(angle(c, power)), math.sin(min(angle(c, power), math.pi / 2)), 1
    return {"critical": (0, None, 0), "main": (0, 1, 1), "weak": (1, 1, 1)}[zone(c)]


def cosine_after(c, s_w, s_l):
    """Two unit vectors (1, 0) and (c, sqrt(1 - c^2)), projected in coordinates."""
    height = math.sqrt(1 - c * c)
    winner, loser = (1 - s_w * c * c, -s_w * c * height), (c - s_l * c, height)
    return (winner[0] * loser[0] + winner[1] * loser[1]) / (math.hypot(*winner) * math.hypot(*loser))


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "table1"
    zones.write(folder)
    return folder


def test_every_sample_is_the_papers(sampled):
    rows = [row for name in ("zones", "thresholds") for row in csv.DictReader((sampled / f"{name}.csv").open())]
    assert {(row["logic"], row["remap_power"]) for row in rows} == {
        ("smooth", "1.0"), ("smooth", "2.0"), ("smooth", "3.0"), ("step", "")}  # fmt: skip
    for row in rows:
        c, power = float(row["cosine"]), float(row["remap_power"] or "nan")
        smooth = row["logic"] == "smooth"
        s_w, s_l, kept = factors(c, power if smooth else None)
        numbers = ("angle", "s_w", "s_l", "loser_kept", "cosine_after")
        found = {name: float(row[name]) if row[name] else None for name in numbers}
        assert row["zone"] == zone(c)
        assert found["angle"] == (pytest.approx(angle(c, power), abs=1e-6) if smooth and c < WEAK else None)
        assert (found["s_w"], found["loser_kept"]) == pytest.approx((s_w, kept), abs=1e-6)
        assert found["s_l"] == (None if s_l is None else pytest.approx(s_l, abs=1e-6))
        if kept and c > -1:
            assert found["cosine_after"] == pytest.approx(cosine_after(c, s_w, s_l), abs=1e-6)


def test_the_committed_samples_and_page_are_the_codes(sampled):
    pages.make("table1", sampled.parent)
    for name in ("zones.csv", "thresholds.csv", "table1.md"):
        assert (sampled / name).read_text() == (ROOT / "results" / "table1" / name).read_text(), f"make {name} again"


def test_without_samples_the_command_is_named(tmp_path):
    with pytest.raises(ValueError, match="study run table1"):
        pages.make("table1", tmp_path)

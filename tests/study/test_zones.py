"""Table 1: what the resolver does against the paper's equations, written here by hand, and the page made of it."""

import csv
import math
from pathlib import Path

import pandas as pd
import pytest

from gcond.study import pages, zones

ROOT = Path(__file__).parents[2]
CRITICAL, MAIN, WEAK = -0.8, -0.5, 0.0


def angle(c, power):
    """Equation 4 of arXiv 2509.07252."""
    if c <= CRITICAL:
        return math.pi
    if c < MAIN:
        return math.pi / 2 + math.pi / 2 * ((c - MAIN) / (CRITICAL - MAIN)) ** power
    return math.pi / 2 * (1 - (c - MAIN) / (WEAK - MAIN))


def factors(c, power):
    """(s_w, s_l): equations 5 and 6."""
    return math.sin(angle(c, power)), math.sin(min(angle(c, power), math.pi / 2))


def step_factors(c):
    """(s_w, s_l, what the loser keeps of itself); the step logic of the journal edition's appendix."""
    if c <= CRITICAL:
        return 0.0, None, 0.0
    return (0.0, 1.0, 1.0) if c < MAIN else (1.0, 1.0, 1.0)


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "table1"
    zones.write(folder)
    return folder


def test_every_sample_is_the_papers(sampled):
    rows = read(sampled / "zones.csv") + read(sampled / "thresholds.csv")
    assert {(row["logic"], row["remap_power"]) for row in rows} == {
        ("smooth", "1.0"), ("smooth", "2.0"), ("smooth", "3.0"), ("step", "")}  # fmt: skip
    for row in rows:
        c = float(row["cosine"])
        found = [float(row[name]) for name in ("s_w", "loser_kept")]
        if c >= WEAK:
            assert (row["zone"], row["angle"], found, float(row["s_l"])) == ("none", "", [0, 1], 0)
        elif row["logic"] == "smooth":
            power = float(row["remap_power"])
            assert float(row["angle"]) == pytest.approx(angle(c, power), abs=1e-6)
            s_w, s_l = factors(c, power)
            assert found == pytest.approx([s_w, 1], abs=1e-6)
            assert float(row["s_l"]) == pytest.approx(s_l, abs=1e-6)
        else:
            s_w, s_l, kept = step_factors(c)
            assert found == pytest.approx([s_w, kept], abs=1e-9)
            assert row["angle"] == ""
            assert row["s_l"] == "" if s_l is None else float(row["s_l"]) == pytest.approx(s_l)


def test_zones_have_the_papers_names_and_ranges(sampled):
    for row in read(sampled / "zones.csv"):
        c = float(row["cosine"])
        expected = "critical" if c <= CRITICAL else "main" if c < MAIN else "weak" if c < WEAK else "none"
        assert row["zone"] == expected


def test_the_cosine_afterwards_is_the_plane_geometry_s(sampled):
    """Two unit vectors (1, 0) and (c, sqrt(1 - c^2)), projected in coordinates."""
    for row in read(sampled / "zones.csv")[::7]:
        c = float(row["cosine"])
        if row["cosine_after"] == "" or c >= WEAK:
            continue
        s_w, s_l = float(row["s_w"]), float(row["s_l"])
        height = math.sqrt(1 - c * c)
        winner = (1 - s_w * c * c, -s_w * c * height)
        loser = (c - s_l * c, height)
        expected = (winner[0] * loser[0] + winner[1] * loser[1]) / (math.hypot(*winner) * math.hypot(*loser))
        assert float(row["cosine_after"]) == pytest.approx(expected, abs=1e-6)


def test_the_smooth_logic_has_no_jump(sampled):
    """The step logic jumps by 1 where winner or loser change their part; by hand, from its definition."""
    table = pd.read_csv(sampled / "thresholds.csv").fillna({"remap_power": 2})
    ends = table[table.remap_power == 2].pivot(index=["logic", "threshold"], columns="side")
    jumps = {name: (ends[name].above - ends[name].below).round(4) for name in ("s_w", "s_l", "loser_kept")}
    assert all((jump.loc["smooth"] == 0).all() for jump in jumps.values())
    assert jumps["s_w"].loc["step"].tolist() == [0, 1, -1]
    assert jumps["loser_kept"].loc["step"].tolist() == [1, 0, 0]


def test_the_committed_samples_and_page_are_the_codes(sampled):
    pages.make("table1", sampled.parent)
    for name in ("zones.csv", "thresholds.csv", "table1.md"):
        assert (sampled / name).read_text() == (ROOT / "results" / "table1" / name).read_text(), f"make {name} again"


def test_without_samples_the_command_is_named(tmp_path):
    with pytest.raises(ValueError, match="make reproduce-table1"):
        pages.make("table1", tmp_path)

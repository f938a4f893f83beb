"""Table 1: what the resolver does against the paper's equations, written here by hand, and the page made of it."""

import csv
import math
from pathlib import Path

import pytest
import script_files

from gcond.report.__main__ import main

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
    script_files.load("zones").main(["--out", str(folder)])
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


def test_the_page_tabulates_ends_and_jumps(sampled, capsys):
    assert main(["table1", "--results", str(sampled.parent)]) == 0
    page = (sampled / "table1.md").read_text()
    assert page in capsys.readouterr().out
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    by_hand = [
        ["critical", "c <= -0.8", "180 deg", "0", "1", "winner unchanged, loser projected fully", "none to 0"],
        ["critical", "c <= -0.8", "none", "0", "none: it vanishes", "winner unchanged, loser becomes zero", "none"],
        ["smooth", "-0.5", "90, continuous", "1, continuous", "1, continuous", "1, continuous", "winner 0, loser 0"],
        # a loser of length 1 becomes zero, or what is left beside -0.8 of its partner: sqrt(1 - 0.64) long
        ["step", "-0.8", "none", "0, continuous", "none / none / 1", "0 / 0 / 1, jump 1", "winner 0, loser 0.6"],
        # a winner is left alone, or projected fully: half of its partner is the difference
        ["step", "-0.5", "none", "0 / 1 / 1, jump 1", "1, continuous", "1, continuous", "winner 0.5, loser 0"],
    ]
    for row in by_hand:
        assert row in cells
    assert [row for row in cells if row[0] == "smooth" and "jump" in "".join(row)] == []
    for name in ("zones.png", "zones.pdf", "zones.md"):
        assert (sampled / "figures" / name).stat().st_size > 200


def test_a_jump_of_the_smooth_logic_would_be_seen(sampled, tmp_path):
    """A resolver whose winner jumped at the main threshold is no longer called continuous."""
    folder = tmp_path / "table1"
    folder.mkdir()
    (folder / "zones.csv").write_text((sampled / "zones.csv").read_text())
    lines = (sampled / "thresholds.csv").read_text().splitlines()
    index = next(i for i, line in enumerate(lines) if line.startswith("smooth,2.0") and ",-0.5,above," in line)
    cells = lines[index].split(",")
    cells[lines[0].split(",").index("s_w")] = "0.75"
    (folder / "thresholds.csv").write_text("\n".join([*lines[:index], ",".join(cells), *lines[index + 1 :]]) + "\n")
    assert main(["table1", "--results", str(tmp_path)]) == 0
    assert "1 / 1 / 0.75, jump -0.25" in (folder / "table1.md").read_text()
    assert "1 jumps at the thresholds" in (folder / "figures" / "zones.md").read_text()


def test_the_committed_samples_and_pages_are_the_codes(sampled):
    assert main(["table1", "--results", str(sampled.parent)]) == 0
    for name in ("zones.csv", "thresholds.csv", "table1.md", "table1.csv", "figures/zones.md"):
        assert (sampled / name).read_text() == (ROOT / "results" / "table1" / name).read_text(), f"make {name} again"


def test_without_samples_the_command_is_named(tmp_path, capsys):
    assert main(["table1", "--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "`make reproduce-table1` makes it" in error
    assert error.count("\n") == 1

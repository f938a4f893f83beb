"""The commands: what is kept, what is repeated, what is said; and the regressions that GradOPS trades off."""

import csv
from dataclasses import replace

import pandas as pd
import pytest

from gcond.strategy import Linear
from gcond.study import computed_plots, pages, toy_page
from gcond.toy import descents, noise, tradeoff
from gcond.toy.descents import descend, follow, lineup, record
from gcond.toy.problem import STARTS


@pytest.fixture(scope="module")
def short():
    """Two methods of 5 steps."""
    return [replace(lineup()[name], steps=5) for name in ("baseline", "pcgrad")]


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_finished_descent_is_not_repeated_unless_its_settings_change(short, tmp_path, monkeypatch):
    first, failures = descend(short, tmp_path, 1)
    assert failures == []
    assert {name: len(found) for name, found in first.items()} == {method.settings: len(STARTS) for method in short}
    begun = []
    monkeypatch.setattr(descents, "follow", lambda *arguments: begun.append(arguments) or iter([(0, 1.0, 2.0)]))
    again, _ = descend(short, tmp_path, 1)
    pd.testing.assert_frame_equal(again[short[0].settings][3], first[short[0].settings][3])
    assert not begun
    descend([replace(short[0], clip_norm=1.0)], tmp_path, 1)
    assert len(begun) == len(STARTS)
    assert short[0].settings == replace(short[0], label="another").settings


def test_a_failure_is_reported_and_the_rest_is_done(short, tmp_path):
    broken = replace(short[0], resolver={"_target_": "gcond.strategy.CAGrad", "c": -1.0})
    found, failures = descend([broken, short[1]], tmp_path, 1)
    assert len(failures) == len(STARTS)
    assert all("`c`" in line for line in failures)
    assert len(found[short[1].settings]) == len(STARTS)


class GivesUp(Linear):
    def resolve(self, conflict):
        if conflict.step == 3:
            raise RuntimeError("no weights; Gram matrix [[1.0]]")
        return super().resolve(conflict)


def test_a_solver_that_gives_up_ends_its_descent_and_is_named(short, tmp_path, monkeypatch):
    """After 3 steps of 5; compared with the plain sum's own 3 steps."""
    monkeypatch.setattr(descents, "build", lambda resolver: GivesUp())
    record(short[:1], descend(short[:1], tmp_path / "cache", 1)[0], tmp_path)
    row = read(tmp_path / "endpoints.csv")[0]
    assert row["stopped"] == "step 3: no weights"
    *_, (_, x1, x2) = follow(descents.Descent(Linear()), STARTS[0], 3)
    assert (float(row["x1"]), float(row["x2"])) == pytest.approx((x1, x2), abs=1e-5)


def test_recorded_methods_stay_until_their_settings_change(short, tmp_path):
    found, _ = descend(short, tmp_path / "cache", 1)
    record(short, found, tmp_path)
    before = read(tmp_path / "endpoints.csv")
    assert [row["method"] for row in before] == ["baseline"] * 5 + ["pcgrad"] * 5
    record(short, {}, tmp_path)
    assert read(tmp_path / "endpoints.csv") == before
    record([replace(short[0], steps=6), short[1]], {}, tmp_path)
    assert {row["method"] for row in read(tmp_path / "endpoints.csv")} == {"pcgrad"}


def test_the_plain_sum_gives_up_the_shortest_target():
    """By hand: two features explain the two longest of three orthogonal targets, and sum to the front's 1."""
    shares = tradeoff.train(Linear(), 150, seed=0)
    assert shares == pytest.approx([0, 0, 1], abs=0.05)


def test_gradops_follows_alpha():
    """Over alpha the best and the worst served task change, and no point is below the front."""
    resolvers = [tradeoff.GradOPS("unverified_r_alpha", alpha) for alpha in (-3.0, 3.0)]
    low, high = (tradeoff.train(resolver, 100, seed=0) for resolver in resolvers)
    assert min(sum(low), sum(high)) >= 1 - 1e-6
    assert max(abs(a - b) for a, b in zip(low, high, strict=True)) > 0.05


def test_the_page_needs_the_recorded_files_alone(short, tmp_path):
    out = tmp_path / "toy"
    record(short, descend(short, tmp_path / "cache", 1)[0], out)
    descents.write_csv(out / "noise.csv", noise.measure(20, (8, 24, 64)))
    about = {"problem": "regressions", "run": 0, "steps": 1, "value": 0.3}
    shares = [about | {"alpha": alpha, "task": task} for alpha in (-1.0, 0.0) for task in tradeoff.TASKS]
    descents.write_csv(out / "tradeoff.csv", shares)
    pages.make("toy", tmp_path)
    assert "| PCGrad" in (out / "toy.md").read_text()

    rows = read(out / "endpoints.csv")
    descents.write_csv(out / "endpoints.csv", rows[:-1])
    with pytest.raises(ValueError, match="pcgrad"):
        pages.make("toy", tmp_path)
    (out / "noise.csv").unlink()
    with pytest.raises(ValueError, match=r"noise\.csv"):
        pages.make("toy", tmp_path)


def test_end_points_against_references():
    """PCGrad's references lie on the front but from (9, 9); the descent from (-8.5, 7.5) ends .07 away."""
    places = [(-4.309, -8.387, 0), (-3.349, -8.374, 0), (5.0, -8.4, 0), (-3.817, -8.38, 0), (5.038, -8.398, 0)]
    ends = pd.DataFrame([("pcgrad", start, *place) for start, place in enumerate(places)],
                        columns=["method", "start", "x1", "x2", "to_front"])  # fmt: skip
    found = toy_page.against_references(ends)
    assert found.distance.tolist() == pytest.approx([0.07, 0, float("nan"), 0, 0], nan_ok=True)
    assert found.alike.tolist() == [True, True, False, True, True]
    assert toy_page.against_references(ends.assign(method="uw")).alike.isna().all()


def test_every_kind_of_the_noise_study_has_a_look():
    assert set(computed_plots.KINDS) == set(noise.KINDS)

"""Splits: stable, in the right shares, and never between linked patients."""

import pytest
from archive import split

PATIENTS = [f"ich-{i:05}" for i in range(20_000)]


def test_shares_are_what_was_asked_for():
    drawn = [split.draw(0, patient) for patient in PATIENTS]
    for name, share in zip(("train", "validation", "test"), split.DEFAULT_SHARES, strict=True):
        standard_error = (share * (1 - share) / len(PATIENTS)) ** 0.5
        assert drawn.count(name) / len(PATIENTS) == pytest.approx(share, abs=4 * standard_error)


def test_a_patient_stays_where_it_is_whoever_else_comes():
    few, _ = split.assign(PATIENTS[:10], {}, 0, split.DEFAULT_SHARES)
    all_of_them, _ = split.assign(PATIENTS, {}, 0, split.DEFAULT_SHARES)
    assert few == {patient: all_of_them[patient] for patient in few}
    assert split.assign(PATIENTS, {}, 1, split.DEFAULT_SHARES)[0] != all_of_them


def test_a_larger_share_keeps_who_is_in_it():
    small = {p for p in PATIENTS if split.draw(0, p, (0.5, 0.25, 0.25)) == "train"}
    large = {p for p in PATIENTS if split.draw(0, p, (0.9, 0.05, 0.05)) == "train"}
    assert small < large


def test_links_join_patients_by_what_they_share_and_empty_keys_join_nobody():
    keys, patients = ["x", "x", "y", "y", "", "", "z"], ["b", "a", "b", "c", "d", "e", "f"]
    assert split.links(keys, patients) == [("a", "b"), ("b", "c")]
    assert split.components([("b", "c"), ("a", "b"), ("x", "y")]) == {"a": "a", "b": "a", "c": "a", "x": "x", "y": "x"}


def test_linked_patients_go_to_one_side_and_those_who_moved_are_named():
    alone = {patient: split.draw(0, patient) for patient in PATIENTS}
    first = next(p for p in PATIENTS if alone[p] == "test")
    later = [p for p in PATIENTS if p > first]
    stays, moves = next(p for p in later if alone[p] == "test"), next(p for p in later if alone[p] == "train")
    linked = split.components([(moves, stays), (first, stays)])
    splits, moved = split.assign(PATIENTS, linked, 0, split.DEFAULT_SHARES)
    assert {splits[p] for p in (first, stays, moves)} == {"test"}
    assert moved == [moves]
    assert {p: s for p, s in splits.items() if p != moves} == {p: s for p, s in alone.items() if p != moves}


@pytest.mark.parametrize("shares", [(0.8, 0.1), (0.9, 0.2, -0.1), (0.5, 0.25, 0.2)])
def test_shares_that_cannot_be_meant(shares):
    with pytest.raises(ValueError, match="`--shares`: expected 3 positive numbers that sum to 1"):
        split.check_shares(shares)

"""Which patients are one, and on which side of the split each is."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping

from gcond.data.store import SPLITS

DEFAULT_SHARES = (0.84, 0.08, 0.08)


def check_shares(shares: tuple[float, ...]) -> None:
    if len(shares) != len(SPLITS) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"`--shares`: expected {len(SPLITS)} positive numbers that sum to 1, found {shares}")


def draw(seed: int, patient: str, shares: tuple[float, ...] = DEFAULT_SHARES) -> str:
    """The split of a patient alone: a hash, so that no other patient and no missing file can move it."""
    place = int.from_bytes(hashlib.sha256(f"{seed}:{patient}".encode()).digest()[:8]) / 2**64
    for split, share in zip(SPLITS, shares, strict=True):
        if place < share:
            return split
        place -= share
    return SPLITS[-1]


def components(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Patient -> the first, by name, of all patients that are linked with it; those without a link are left out."""
    parent: dict[str, str] = {}

    def root(patient: str) -> str:
        while parent.setdefault(patient, patient) != patient:
            parent[patient] = parent[parent[patient]]
            patient = parent[patient]
        return patient

    for one, other in pairs:
        first, second = sorted((root(one), root(other)))
        parent[second] = first
    return {patient: root(patient) for patient in parent}


def links(keys: Iterable[str], patients: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of patients that share a key (a picture's fingerprint, a study); empty keys link nobody."""
    owners: dict[str, set[str]] = defaultdict(set)
    for key, patient in zip(keys, patients, strict=True):
        if key:
            owners[key].add(patient)
    pairs = set()
    for shared in owners.values():
        first, *others = sorted(shared)
        pairs.update((first, other) for other in others)
    return sorted(pairs)


def assign(
    patients: Iterable[str], linked: Mapping[str, str], seed: int, shares: tuple[float, ...]
) -> tuple[dict[str, str], list[str]]:
    """Patient -> split, and the patients that a link has moved from the side that their own hash gives."""
    names = sorted(set(patients))
    splits = {patient: draw(seed, linked.get(patient, patient), shares) for patient in names}
    return splits, [patient for patient in names if splits[patient] != draw(seed, patient, shares)]

"""Which files are copies, which patients are one, and on which side of the split each is.

Copies go by their pixels; an identifier counts only where it can be trusted.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gcond.data.store import SPLITS

DEFAULT_SHARES = (0.84, 0.08, 0.08)
COPY, RENAMED, MOVED = "copy", "copy under another SOPInstanceUID", "copy at another position"
SHARED_SOP, SOP_OF_ANOTHER = "shared SOP UID", "SOP instance of another patient"
CONSTANT = "nearly constant"
MOST_OWNERS, MOST_OWNERS_SHARE, MOST_OWNERS_EVER = 3, 0.05, 20
"""More patients than the first two, or than the last, that share a study or a picture are not one person under several
names: it is an anonymiser's constant, or a test pattern."""
MOST_MOVED_SHARE = 0.05
"""Of the pictures of a collection; more copies at another position are no padding of a scan, but a damaged export."""
MOST_STUDIES, MOST_STUDIES_SHARE = 10, 0.2
"""More studies than both cannot be one patient's."""


class Shared(NamedTuple):
    """An identifier that stands for more than one thing; `row` is the index of its first file."""

    tag: str
    pseudonym: str
    owners: int  # patients, or, of a patient, studies
    slices: int
    row: int


# Copies


def mark_copies(files: pd.DataFrame) -> None:
    """Of the stored pictures of a patient that are equal pixel by pixel the first by name stays, the others become
    duplicates. Nearly constant pictures are copies only under one SOPInstanceUID."""
    images = files[files.status == "stored"].sort_values(["source", "path", "member"])
    constant = has_flag(images, CONSTANT)
    name = pd.Series("", index=images.index)
    name[constant] = images.sop[constant].fillna(images.index[constant].to_series().astype(str))
    equal = images.groupby([images.patient, images.fingerprint, name], sort=False)
    again = images.index[equal.cumcount() > 0]
    first = images.index.to_series().groupby(equal.ngroup()).transform("first")[again]
    files.loc[again, "reason"] = [
        _kind_of_copy(files.sop[one] == files.sop[other], files.position[one], files.position[other])
        for one, other in zip(again, first, strict=True)
    ]
    files.loc[again, "status"] = "duplicate"


def _kind_of_copy(same_sop: bool, position: Sequence[float] | None, of_first: Sequence[float] | None) -> str:
    if position is not None and of_first is not None and list(position) != list(of_first):
        return MOVED
    return COPY if same_sop else RENAMED


def mark_pictures_of_many(files: pd.DataFrame) -> None:
    """Reject the pictures that too many patients have for it to be chance or a second name."""
    stored = files[(files.status == "stored") & ~has_flag(files, CONSTANT)]
    owners = stored.groupby("fingerprint").patient.nunique()
    bad = stored.index[stored.fingerprint.isin(owners.index[owners > most_owners(stored.patient.nunique())])]
    files.loc[bad, ["status", "reason"]] = ["rejected", "picture of many patients"]


# Identifiers


def most_owners(patients: int) -> float:
    return min(MOST_OWNERS_EVER, max(MOST_OWNERS, MOST_OWNERS_SHARE * patients))


def shared_sops(kept: pd.DataFrame) -> pd.DataFrame:
    """The slices whose SOPInstanceUID names another picture as well: `strangers` says whether another patient's."""
    groups = kept[kept.sop.notna()].groupby(["source", "sop"])
    several = groups.fingerprint.transform("nunique") > 1
    shared = kept.loc[several.index[several]]
    return shared.assign(strangers=groups.patient.transform("nunique")[shared.index] > 1)


def constants(kept: pd.DataFrame) -> list[Shared]:
    """Studies and series that too many patients have, and patients that have too many studies, by source."""
    found = []
    for _, own in kept.groupby("source"):
        most = most_owners(own.patient.nunique())
        for tag, column, owner, limit in (
            ("StudyInstanceUID", "study", "patient", most),
            ("SeriesInstanceUID", "series", "patient", most),
            ("PatientID", "patient", "study", max(MOST_STUDIES, MOST_STUDIES_SHARE * own.study.nunique())),
        ):
            owners = own.groupby(column)[owner].nunique()
            for name, count in owners[owners > limit].items():
                of_it = own.index[own[column] == name]
                found.append(Shared(tag, name, int(count), len(of_it), int(of_it[0])))
    return found


def has_flag(files: pd.DataFrame, flag: str) -> pd.Series:
    return ("," + files["flags"] + ",").str.contains(f",{flag},", regex=False)


def add_flag(files: pd.DataFrame, rows: pd.Series, flag: str) -> None:
    """Set a flag of the rows that the mask `rows` names, in the order of their names."""
    files.loc[rows, "flags"] = [",".join(sorted({*old.split(","), flag} - {""})) for old in files.loc[rows, "flags"]]


# Splits


def linked_patients(kept: pd.DataFrame, untrusted: Sequence[str]) -> dict[str, str]:
    """Patient -> the first, by name, of all who are linked by a picture or a study that they share; those without a
    link are left out. No study of `untrusted` links, and no picture that is nearly constant."""
    pictures = kept.fingerprint.where(~has_flag(kept, CONSTANT))
    studies = kept.study.where(~kept.study.isin(untrusted))
    return linked(pd.concat([pictures, studies]), pd.concat([kept.patient, kept.patient]))


def linked(keys: pd.Series, patients: pd.Series) -> dict[str, str]:
    """The same, of patients that have the same key; a key that is null links nobody."""
    pairs = pd.DataFrame({"key": keys, "patient": patients}).dropna().drop_duplicates()
    key_of, _ = pd.factorize(pairs.key)
    patient_of, names = pd.factorize(pairs.patient, sort=True)
    nodes = len(names) + len(pairs)
    graph = coo_array((np.ones(len(pairs)), (patient_of, len(names) + key_of)), shape=(nodes, nodes))
    group = connected_components(graph, directed=False)[1][: len(names)]
    found = pd.DataFrame({"patient": names, "group": group}).groupby("group").patient
    first, size = found.transform("first"), found.transform("size")
    return {patient: one for patient, one, n in zip(names, first, size, strict=True) if n > 1}


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


def assign(
    patients: Iterable[str], linked: Mapping[str, str], seed: int, shares: tuple[float, ...]
) -> tuple[dict[str, str], list[str]]:
    """Patient -> split, and the patients that a link has moved from the side that their own hash gives."""
    names = sorted(set(patients))
    splits = {patient: draw(seed, linked.get(patient, patient), shares) for patient in names}
    return splits, [patient for patient in names if splits[patient] != draw(seed, patient, shares)]

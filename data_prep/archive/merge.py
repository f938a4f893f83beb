"""All shards -> index, manifest, facts: copies, splits, the place of a slice in its series, labels, statistics."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from archive import identity, labels
from archive.header import SCHEMA
from archive.listing import SOURCES
from archive.report import EXPECTED, REJECTED_CSV, TITLES, write_rejected
from archive.run import Job, building
from write_store import finish

from gcond.data import store, windows
from gcond.files import sha256, write_atomically

TERMS = {
    "ich": "RSNA, non-commercial research and education (Kaggle's competition rules)",
    "cspine": "RSNA, non-commercial research and education (Kaggle's competition rules)",
    "radcure": "NIH controlled access (TCIA)",
}
MANIFEST = pa.schema(
    [*(field for field in SCHEMA if not field.name.endswith("_uid")), ("shard", pa.int32()), ("row", pa.int32())]
)
FLAGS = ("gap", "mixed series", "same position", identity.SHARED_SOP)
MOST_WARNINGS = 5  # of identifiers that cannot be trusted
SAME_POSITION_MM = 0.01
GAP = 1.5  # of the series' median distance between slices
MIXED = {"rows": 0, "cols": 0, "spacing_xy_mm": 0.01} | dict.fromkeys(range(6), 0.02)
"""What the slices of a series have in common, and by how much it may differ; 0 to 5 are those of the orientation."""


class Unusable(Exception):
    """No store can be made of it; `facts` say what was found."""

    def __init__(self, words: str, facts: dict) -> None:
        super().__init__(words)
        self.facts = facts


class Choices(NamedTuple):
    """What decides about splits and about when to give up; recorded in the facts."""

    seed: int = 0
    shares: tuple[float, ...] = identity.DEFAULT_SHARES
    max_bad_share: float = 0.001


def missing(jobs: Sequence[Job]) -> list[Job]:
    return [job for job in jobs if not job.pictures.exists() or not job.arrow.exists()]


def merge(out: Path, jobs: Sequence[Job], choices: Choices, say: Callable[[str], object] = print) -> dict:
    """Write index, manifest and, last, the facts of the store `out`; returns the facts.

    `say` is told of identifiers that cannot be trusted. Raises ValueError where a shard is missing or no label fits,
    Unusable where a split comes out empty or more than `choices.max_bad_share` of what should be images are bad; no
    facts are written then, but rejected.csv.
    """
    if absent := missing(jobs):
        raise ValueError(f"{len(absent)} of {len(jobs)} shards are not done yet, the first is {absent[0].shard}")
    files, shards = _read(jobs)

    # Copies, and identifiers that cannot be trusted.
    identity.mark_copies(files)
    identity.mark_pictures_of_many(files)
    kept = files[files.status == "stored"].copy()
    untrusted = identity.constants(kept)
    shared = identity.shared_sops(kept)
    strangers = shared[shared.strangers]
    identity.add_flag(kept, kept.index.isin(shared.index), identity.SHARED_SOP)
    files.loc[strangers.index, "reason"] = identity.SOP_OF_ANOTHER
    write_rejected(out, files)
    for line in _warnings(jobs, files, untrusted, shared):
        say(line)

    # Splits.
    linked = identity.linked_patients(kept, [one.pseudonym for one in untrusted if one.tag == "StudyInstanceUID"])
    for group, size in Counter(linked.values()).items():
        if size > identity.most_owners(kept.patient.nunique()):
            say(f"warning: {size} patients are one by the pictures and studies that they share; the first is {group}")
    splits, moved = identity.assign(kept.patient, linked, choices.seed, choices.shares)
    kept["split"] = kept.patient.map(splits)

    # What a row of the index says beyond what its file does.
    _order_series(kept)
    labelled = _attach_labels(kept, building(out) / "labels.parquet", shared.index)
    files.loc[kept.index, "flags"] = kept["flags"]
    index = pa.Table.from_pandas(kept[store.INDEX.names], schema=store.INDEX, preserve_index=False)

    # Facts.
    about = _about(files, kept, choices) | labelled
    size = jobs[0].size
    about |= {"size": size, "linked_patients": len(linked), "patients_moved_by_links": moved}
    about["constants"] = [{"tag": one.tag, "pseudonym": one.pseudonym, "of": one.owners} for one in untrusted]
    _refuse(out, about, kept, choices, _plain(jobs, _widest(strangers), "SOPInstanceUID") if len(strangers) else "")
    manifest = pa.Table.from_pandas(files[MANIFEST.names], schema=MANIFEST, preserve_index=False)
    write_atomically(out / "manifest.parquet", lambda path: pq.write_table(manifest, path, compression="zstd"))
    about["manifest_sha256"] = sha256(out / "manifest.parquet")
    for leftover in out.rglob(".*.arrow"):  # of a process that was killed
        leftover.unlink()
    facts = finish(out, index, shards, _statistics(kept[kept.split == "train"], size), about)
    shutil.rmtree(building(out))
    return facts


def _refuse(out: Path, about: dict, kept: pd.DataFrame, choices: Choices, shared_uid: str) -> None:
    """Raises Unusable where no store is to be made of it; `shared_uid`: a SOPInstanceUID of several patients, or ""."""
    share = about["bad_share"]
    if kept.empty:
        raise Unusable("no file can be stored: the table says why", about)
    if share > choices.max_bad_share:
        of_several = f"; SOPInstanceUID {shared_uid} names pictures of several patients" if shared_uid else ""
        raise Unusable(
            f"{share:.2%} of the images are bad, more than {choices.max_bad_share:.2%}{of_several}. No store was made: "
            f"{out / REJECTED_CSV} names file, cause and remedy; mend the archive and start anew, or accept them with "
            f"--max-bad-share {min(1.0, share * 1.01):.4f} (nothing is decoded again)",
            about,
        )
    if empty := [name for name in store.SPLITS if not about["by_split"][name]]:
        patients, studies = kept.patient.nunique(), kept.study.nunique()
        anonymised = patients < len(store.SPLITS) <= studies
        constant = "; is PatientID (0010,0020) an anonymiser's constant?" if anonymised else ""
        raise Unusable(
            f"no patient falls to {' and '.join(empty)} among {patients} (of {studies} studies); expected at least "
            f"one: choose other `--shares` or another `--seed` (nothing is decoded again){constant}",
            about,
        )


def _warnings(
    jobs: Sequence[Job], files: pd.DataFrame, untrusted: list[identity.Shared], shared: pd.DataFrame
) -> Iterator[str]:
    """What identifiers are said to stand for and cannot."""
    consequence = {
        "StudyInstanceUID": "an anonymiser's constant, so it links nobody",
        "SeriesInstanceUID": "an anonymiser's constant, so slices are ordered within each patient alone",
    }
    for one in untrusted[:MOST_WARNINGS]:
        row = files.loc[one.row]
        if one.tag == "PatientID":
            yield (
                f"warning: the PatientID of {row.source} {row.path} stands for {one.owners} studies, {one.slices} "
                "slices: if it is an anonymiser's constant, the split by patient says nothing"
            )
        else:
            yield (
                f"warning: {one.tag} {_plain(jobs, row, one.tag)} is that of {one.owners} patients, {one.slices} "
                f"slices: {consequence[one.tag]}"
            )
    if (more := len(untrusted) - MOST_WARNINGS) > 0:
        yield f"warning: there are {more} further identifiers of that kind"
    for source, own in files[files.fingerprint.notna()].groupby("source"):
        moved = own[own.reason == identity.MOVED]
        if len(moved) > identity.MOST_MOVED_SHARE * len(own):
            yield (
                f"warning: {len(moved)} of {len(own)} pictures of {source} are equal to one of the same patient at "
                f"another position, such as {moved.path.iloc[0]}, and are dropped: was the archive exported rightly?"
            )
    for strangers, own in shared.groupby("strangers"):
        widest = _widest(own)
        of_it = own[(own.source == widest.source) & (own.sop == widest.sop)]
        yield (
            f"warning: SOPInstanceUID {_plain(jobs, widest, 'SOPInstanceUID')} names {len(of_it)} different pictures "
            f"of {of_it.patient.nunique()} patient{'s' if strangers else ''}; there are {own.sop.nunique()} such UIDs, "
            f"{len(own)} slices: no copies, so none is dropped; flagged `{identity.SHARED_SOP}`, without labels"
        )


def _widest(shared: pd.DataFrame) -> pd.Series:
    """A slice of the SOPInstanceUID that names most pictures."""
    return shared.loc[shared.groupby(["source", "sop"]).patient.transform("size").idxmax()]


def _plain(jobs: Sequence[Job], row: pd.Series, tag: str) -> str:
    """The UID of a file as it is in the file, which neither index nor manifest holds; or its pseudonym."""
    column = {"StudyInstanceUID": "study", "SeriesInstanceUID": "series", "SOPInstanceUID": "sop"}[tag]
    (job,) = (job for job in jobs if job.shard == row.shard)
    place = [(name, "=", row[name]) for name in ("source", "path", "member")]
    (found,) = pq.read_table(job.headers, columns=[f"{column}_uid"], filters=place).column(0).to_pylist()
    return found or row[column]


def verify_manifest(root: Path, facts: Mapping) -> None:
    """Raises ValueError where the manifest is damaged or does not account for every stored slice."""
    path = root / "manifest.parquet"
    if not path.is_file() or sha256(path) != facts["manifest_sha256"]:
        raise ValueError(f"`root`: {path} does not match its checksum in facts.json; remove {root} and make it anew")
    stored = pq.read_table(path, columns=["status"]).column("status").to_pylist().count("stored")
    if stored != sum(facts["counts"].values()):
        raise ValueError(f"`root`: {path} names {stored} stored slices, facts.json {sum(facts['counts'].values())}")


def _read(jobs: Sequence[Job]) -> tuple[pd.DataFrame, list[dict]]:
    """Every file, in the order of shards and rows, and the facts' lines on the shards."""
    parts, shards = [], []
    for job in jobs:
        headers = pq.read_table(job.headers, columns=[n for n in SCHEMA.names if n in MANIFEST.names]).to_pandas()
        table = pq.read_table(job.pictures)
        shards.append(json.loads(table.schema.metadata[b"shard"]))
        pictures = table.to_pandas(types_mapper={pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype()}.get)
        keys = ["source", "path", "member"]
        both = headers.merge(pictures, how="left", on=keys, suffixes=("", "_of_picture"), validate="1:1")
        decoded = both.status == "image"
        for column in ("status", "reason", "flags"):
            both.loc[decoded, column] = both.pop(f"{column}_of_picture")[decoded]
        both["shard"] = job.shard
        parts.append(both)
    files = pd.concat(parts, ignore_index=True)
    files["flags"] = files["flags"].where(files.status == "stored").fillna("")
    return files, shards


def _order_series(kept: pd.DataFrame) -> None:
    """`z` and `spacing_z_mm` from the position along the normal, null where a file of the series names none; and the
    flags of a series. A series is one of a patient, whatever its UID."""
    normal = np.full(len(kept), np.nan)
    orientation = np.full((len(kept), 6), np.nan)
    oriented = (kept.orientation.notna() & kept.series.notna()).to_numpy()
    placed = (kept.position.notna()).to_numpy() & oriented
    if oriented.any():
        orientation[oriented] = np.stack(kept.orientation[oriented].to_list())
    if placed.any():
        position = np.stack(kept.position[placed].to_list())
        normal[placed] = (position * np.cross(orientation[placed, :3], orientation[placed, 3:])).sum(1)
    table = pd.DataFrame({"height": normal}, index=kept.index)
    table["series"] = kept.groupby(["patient", "series"], sort=False).ngroup().where(kept.series.notna())
    heights = table.groupby("series", sort=False).height
    size = heights.transform("size")
    whole = heights.transform("count") == size
    kept["z"] = (heights.rank("first") - 1).where(whole).astype("Int32")
    gaps = table.sort_values("height").groupby("series", sort=False).height.diff().reindex(kept.index)
    usual = gaps.groupby(table.series).transform("median").where(whole)
    kept["spacing_z_mm"] = usual.astype("float32")

    # Flags.
    common = pd.concat([kept[["rows", "cols", "spacing_xy_mm"]], pd.DataFrame(orientation, kept.index)], axis=1)
    by_series = common.astype("float64").groupby(table.series, sort=False)
    spread = by_series.transform("max") - by_series.transform("min")
    identity.add_flag(kept, spread.gt(pd.Series(MIXED)).any(axis=1), "mixed series")
    identity.add_flag(kept, gaps < SAME_POSITION_MM, "same position")
    identity.add_flag(kept, (gaps > GAP * usual) & (size > 3), "gap")


def _attach_labels(kept: pd.DataFrame, path: Path, unsure: pd.Index) -> dict:
    """The columns of LABELS, null where there is no label and where the rows `unsure` have them; returns what the facts
    say of them."""
    if not path.exists():
        for label in store.LABELS:
            kept[label] = pd.array([None] * len(kept), dtype="Int8")
        return {}
    table = pq.read_table(path)
    labels.check_fit(table, kept.sop[kept.source == "ich"].dropna())
    known = table.to_pandas(types_mapper={pa.int8(): pd.Int8Dtype()}.get).set_index("sop")
    for label in store.LABELS:
        kept[label] = known[label].reindex(kept.sop).array
    kept.loc[unsure, list(store.LABELS)] = pd.NA
    counts = {
        "labelled_slices": int(kept["any"].notna().sum()),
        "labels_without_slice": int((~known.index.isin(kept.sop)).sum()),
        "positive": {label: int((kept[label] == 1).sum()) for label in store.LABELS},
    }
    return {"labels": counts | json.loads(table.schema.metadata[b"counts"])}


def _statistics(train: pd.DataFrame, size: int) -> dict[str, tuple[float, float]]:
    pixels = len(train) * size**2
    return {
        name: windows.of_sums(pixels, int(train[f"sum_{name}"].sum()), int(train[f"squares_{name}"].sum()), *window)
        for name, window in windows.PRESETS.items()
    }


def _about(files: pd.DataFrame, kept: pd.DataFrame, choices: Choices) -> dict:
    """What the facts say of files, patients and choices."""
    sources = {source: files[files.source == source] for source in SOURCES if (files.source == source).any()}
    images = {status: (files.status == status).sum() for status in ("stored", "duplicate", "rejected")}
    bad = int(images["rejected"] + (files.reason == identity.SOP_OF_ANOTHER).sum())
    reasons = files[files.reason != ""].groupby(["source", "status", "reason"]).size()
    flags = kept["flags"][kept["flags"] != ""].str.split(",").explode().value_counts().sort_index()
    return {
        "title": f"CT ({', '.join(TITLES[source] for source in sources)}; {kept.patient.nunique()} patients)",
        "terms": {source: TERMS[source] for source in sources},
        "missing_packages": [],
        "seed": choices.seed,
        "shares": list(choices.shares),
        "sources": {source: _of_source(own, source) for source, own in sources.items()},
        "by_split": {
            name: {
                source: {"slices": len(own), "patients": int(own.patient.nunique())}
                for source, own in kept[kept.split == name].groupby("source")
            }
            for name in store.SPLITS
        },
        "reasons": [
            {"source": source, "status": status, "reason": reason, "files": int(count)}
            for (source, status, reason), count in reasons.items()
        ],
        "bad_share": bad / max(1, int(sum(images.values()))),
        "flags": {flag: int(count) for flag, count in flags.items()},
        "pixels_that_mends_place_differently": int(kept.ambiguous_pixels.fillna(0).sum()),
        "made_with": {name: version(name) for name in ("pydicom", "python-gdcm", "pillow", "numpy", "pyarrow")},
    }


def _of_source(own: pd.DataFrame, source: str) -> dict:
    counts = {status: int((own.status == status).sum()) for status in ("stored", "duplicate", "rejected", "other")}
    patients = int(own[own.status == "stored"].patient.nunique())
    return {"files": len(own), **counts, "patients": patients, "images_of_the_whole": EXPECTED[source]}

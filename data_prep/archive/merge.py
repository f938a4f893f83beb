"""All shards -> index, manifest, facts: duplicates, splits, the place of a slice in its series, labels, statistics."""

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from write_store import finish

from archive import split
from archive.header import SCHEMA
from archive.listing import SOURCES
from archive.shard import Job, building
from gcond.data import store, windows
from gcond.data.store import STORED_SIZE
from gcond.files import write_atomically

TITLES = {"ich": "RSNA ICH", "cspine": "RSNA cervical spine", "radcure": "RADCURE"}
EXPECTED = {"ich": 874_035, "cspine": 711_601, "radcure": 613_808}
"""Images of the whole collections: ICH from its authors; the others add up to the paper's count (docs/data.md)."""
PAPER_FILES = 2_199_444
TERMS = {
    "ich": "RSNA, non-commercial research and education (Kaggle's competition rules)",
    "cspine": "RSNA, non-commercial research and education (Kaggle's competition rules)",
    "radcure": "NIH controlled access (TCIA)",
}
AGAIN, CHANGED = "SOP instance again", "SOP instance again, other pixels"
MANIFEST = pa.schema([*SCHEMA, ("flags", pa.string()), ("shard", pa.int32()), ("row", pa.int32())])


class Unusable(Exception):
    """Too many files are bad; `facts` say which."""

    def __init__(self, share: float, threshold: float, facts: dict) -> None:
        super().__init__(f"{share:.2%} of the images are bad, more than {threshold:.2%}")
        self.facts = facts


class Choices(NamedTuple):
    """What decides about splits and about when to give up; recorded in the facts."""

    seed: int = 0
    shares: tuple[float, ...] = split.DEFAULT_SHARES
    max_bad_share: float = 0.001


def missing(jobs: Sequence[Job]) -> list[Job]:
    return [job for job in jobs if not job.pictures.exists() or not job.arrow.exists()]


def merge(out: Path, jobs: Sequence[Job], choices: Choices) -> dict:
    """Write index, manifest and, last, the facts of the store `out`; returns the facts.

    Raises ValueError where a shard is missing or a split comes out empty, Unusable where more than
    `choices.max_bad_share` of what should be images are rejected; no facts are written then.
    """
    if absent := missing(jobs):
        raise ValueError(f"{len(absent)} of {len(jobs)} shards are not done yet, the first is {absent[0].shard}")
    files, shards = _read(jobs)
    _mark_repeated(files)
    kept = files[files.status == "stored"].copy()

    # Splits.
    linked = split.components(
        [*split.links(kept.fingerprint, kept.patient), *split.links(kept.study.fillna(""), kept.patient)]
    )
    splits, moved = split.assign(kept.patient, linked, choices.seed, choices.shares)
    kept["split"] = kept.patient.map(splits)

    # What a row of the index says beyond what its file does.
    _order_series(kept)
    labelled = _attach_labels(kept, building(out) / "labels.parquet")
    index = pa.Table.from_pandas(kept[store.INDEX.names], schema=store.INDEX, preserve_index=False)

    # Facts.
    about = _about(files, kept, choices) | labelled
    about |= {"linked_patients": len(linked), "patients_moved_by_links": moved}
    share = about["bad_share"]
    if share > choices.max_bad_share:
        raise Unusable(share, choices.max_bad_share, about)
    if empty := [name for name in store.SPLITS if not about["by_split"][name]]:
        raise ValueError(
            f"no patient falls to {' and '.join(empty)} among {kept.patient.nunique()}; expected at least one: choose "
            "other `--shares` or another `--seed` (nothing is decoded again)"
        )
    manifest = pa.Table.from_pandas(files[MANIFEST.names], schema=MANIFEST, preserve_index=False)
    write_atomically(out / "manifest.parquet", lambda path: pq.write_table(manifest, path, compression="zstd"))
    about["manifest_sha256"] = store.sha256(out / "manifest.parquet")
    for leftover in out.rglob(".*.arrow"):  # of a process that was killed
        leftover.unlink()
    facts = finish(out, index, shards, _statistics(kept[kept.split == "train"]), about)
    shutil.rmtree(building(out))
    return facts


def verify_manifest(root: Path, facts: Mapping) -> None:
    """Raises ValueError where the manifest is damaged or does not account for every stored slice."""
    path = root / "manifest.parquet"
    if not path.is_file() or store.sha256(path) != facts["manifest_sha256"]:
        raise ValueError(f"`root`: {path} does not match its checksum in facts.json; remove {root} and make it anew")
    stored = pq.read_table(path, columns=["status"]).column("status").to_pylist().count("stored")
    if stored != sum(facts["counts"].values()):
        raise ValueError(f"`root`: {path} names {stored} stored slices, facts.json {sum(facts['counts'].values())}")


def _read(jobs: Sequence[Job]) -> tuple[pd.DataFrame, list[dict]]:
    """Every file, in the order of shards and rows, and the facts' lines on the shards."""
    parts, shards = [], []
    for job in jobs:
        headers = pq.read_table(job.headers).to_pandas()
        table = pq.read_table(job.pictures)
        shards.append(json.loads(table.schema.metadata[b"shard"]))
        pictures = table.to_pandas(types_mapper={pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype()}.get)
        keys = ["source", "path", "member"]
        both = headers.merge(pictures, how="left", on=keys, suffixes=("", "_of_picture"), validate="1:1")
        decoded = both.status == "image"
        both.loc[decoded, "status"] = both.status_of_picture[decoded]
        both.loc[decoded, "reason"] = both.reason_of_picture[decoded]
        both["shard"] = job.shard
        parts.append(both.drop(columns=["status_of_picture", "reason_of_picture"]))
    files = pd.concat(parts, ignore_index=True)
    files["flags"] = files["flags"].fillna("")
    return files, shards


def _mark_repeated(files: pd.DataFrame) -> None:
    """Of the images with one SOPInstanceUID of one source, the first by name stays; the others are duplicates."""
    images = files[(files.status == "stored") & files.sop.notna()].sort_values(["source", "path", "member"])
    again = images[images.duplicated(["source", "sop"])]
    if again.empty:
        return
    first = images.drop_duplicates(["source", "sop"]).set_index(["source", "sop"]).fingerprint
    same = again.fingerprint.to_numpy() == first.loc[list(zip(again.source, again.sop, strict=True))].to_numpy()
    files.loc[again.index, "status"] = "duplicate"
    files.loc[again.index, "reason"] = np.where(same, AGAIN, CHANGED)


def _order_series(kept: pd.DataFrame) -> None:
    """`z` and `spacing_z_mm` from the position along the normal; null where a file of the series names none."""
    height = np.full(len(kept), np.nan)
    placed = (kept.position.notna() & kept.orientation.notna() & kept.series.notna()).to_numpy()
    if placed.any():
        position = np.stack(kept.position[placed].to_list())
        orientation = np.stack(kept.orientation[placed].to_list())
        height[placed] = (position * np.cross(orientation[:, :3], orientation[:, 3:])).sum(1)
    series = kept.assign(height=height).groupby("series", sort=False, dropna=True).height
    whole = series.transform("count") == series.transform("size")
    kept["z"] = (series.rank("first") - 1).where(whole).astype("Int32")
    gaps = kept.assign(height=height).sort_values("height").groupby("series", sort=False).height.diff()
    kept["spacing_z_mm"] = gaps.groupby(kept.series).transform("median").where(whole).astype("float32")


def _attach_labels(kept: pd.DataFrame, path: Path) -> dict:
    """The columns of LABELS, null where there is no label; returns what the facts say of them."""
    if not path.exists():
        for label in store.LABELS:
            kept[label] = pd.array([None] * len(kept), dtype="Int8")
        return {}
    table = pq.read_table(path)
    labels = table.to_pandas(types_mapper={pa.int8(): pd.Int8Dtype()}.get).set_index("sop")
    for label in store.LABELS:
        kept[label] = labels[label].reindex(kept.sop).array
    counts = {
        "labelled_slices": int(kept["any"].notna().sum()),
        "labels_without_slice": int((~labels.index.isin(kept.sop)).sum()),
        "positive": {label: int((kept[label] == 1).sum()) for label in store.LABELS},
    }
    return {"labels": counts | json.loads(table.schema.metadata[b"counts"])}


def _statistics(train: pd.DataFrame) -> dict[str, tuple[float, float]]:
    pixels = len(train) * STORED_SIZE**2
    if not pixels:
        return {}
    totals = {name: [int(train[f"{kind}_{name}"].sum()) for kind in ("sum", "squares")] for name in windows.PRESETS}
    return {name: windows.statistics_of_sums(name, pixels, *sums) for name, sums in totals.items()}


def _about(files: pd.DataFrame, kept: pd.DataFrame, choices: Choices) -> dict:
    sources = [source for source in SOURCES if (files.source == source).any()]
    rejected = int((files.status == "rejected").sum())
    images = int(files.status.isin(["stored", "duplicate"]).sum()) + rejected
    return {
        "title": f"CT ({', '.join(TITLES[source] for source in sources)}; {kept.patient.nunique()} patients)",
        "terms": {source: TERMS[source] for source in sources},
        "missing_packages": [],
        "seed": choices.seed,
        "shares": list(choices.shares),
        "sources": {source: _of_source(files[files.source == source], source) for source in sources},
        "by_split": _by_split(kept),
        "reasons": _reasons(files),
        "bad_share": rejected / images if images else 0.0,
        "flags": _flags(kept),
        "pixels_that_mends_place_differently": int(kept.ambiguous_pixels.fillna(0).sum()),
        "made_with": {name: version(name) for name in ("pydicom", "python-gdcm", "pillow", "numpy", "pyarrow")},
    }


def _of_source(own: pd.DataFrame, source: str) -> dict:
    counts = own.status.value_counts()
    statuses = {status: int(counts.get(status, 0)) for status in ("stored", "duplicate", "rejected", "other")}
    patients = int(own[own.status == "stored"].patient.nunique())
    return {"files": len(own), **statuses, "patients": patients, "images_of_the_whole": EXPECTED[source]}


def _by_split(kept: pd.DataFrame) -> dict:
    return {
        name: {
            source: {"slices": len(own), "patients": int(own.patient.nunique())}
            for source, own in kept[kept.split == name].groupby("source")
        }
        for name in store.SPLITS
    }


def _reasons(files: pd.DataFrame) -> list[dict]:
    unusual = files[files.status != "stored"]
    counted = unusual.groupby(["source", "status", "reason"]).size()
    return [
        {"source": source, "status": status, "reason": reason, "files": int(count)}
        for (source, status, reason), count in counted.items()
    ]


def _flags(kept: pd.DataFrame) -> Mapping[str, int]:
    each = kept["flags"][kept["flags"] != ""].str.split(",").explode()
    return {flag: int(count) for flag, count in each.value_counts().sort_index().items()}

"""Copies, links and identifiers that cannot be trusted, on whole archives: what is dropped, kept, refused and said."""

import csv
import re
import zipfile

import ct
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from archive import identity
from prepare.synthetic import coded, head, slice_bytes

from gcond.data import store

PATIENTS, SLICES = 12, 3
SHARES = ("--shares", ".4,.3,.3", "--shard-files", "25")
pytestmark = pytest.mark.usefixtures("in_this_process")


def write(root, p, name, hu, source="radcure", **tags):
    """A file of patient `p`; the tags replace those of its only series."""
    stored, own = coded(hu)
    patient = {"radcure": f"RADCURE-{p:04}", "ich": f"ID_{p:08x}", "cspine": f"{p}"}[source]
    own |= {"PatientID": patient, "StudyInstanceUID": f"1.2.{p}", "SeriesInstanceUID": f"1.2.{p}.1"}
    path = root / f"{p:02}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(slice_bytes(stored, **own | {"PixelSpacing": [4, 4]} | tags))


def write_patients(root, source="radcure", **tags):
    """Three slices of each of twelve patients; a tag is a value, or made from patient and slice."""
    for p, z in np.ndindex(PATIENTS, SLICES):
        own = {"SOPInstanceUID": f"1.2.{p}.1.{z}" if source != "ich" else f"ID_{p:04x}{z:05x}"}
        own |= {"ImagePositionPatient": [0, 0, 2 * z]}
        own |= {tag: value(p, z) if callable(value) else value for tag, value in tags.items()}
        write(root, p, f"{z}.dcm", head(p, z), source, **own)


def prepare(tmp_path, capsys, *more, source="radcure"):
    """Exit status, what was printed, the error."""
    status = ct.main([f"--{source}", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *SHARES, *more])
    told = capsys.readouterr()
    return status, told.out, [line for line in told.err.splitlines() if line.startswith("error")]


def index_of(tmp_path):
    return store.read_index(tmp_path / "out", store.read_facts(tmp_path / "out"), store.INDEX.names)


def manifest_of(tmp_path):
    return pq.read_table(tmp_path / "out" / "manifest.parquet").to_pandas().set_index("path")


def rejected_of(tmp_path):
    with (tmp_path / "out" / "rejected.csv").open(newline="", encoding="utf-8") as file:
        return [(row["file"], row["member"], row["cause"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("tag", "value", "words", "flags", "linked"),
    [
        ("SOPInstanceUID", lambda p, z: f"1.2.{p}.9", "names 3 different pictures of 1 patient; there are 12 such UIDs",
         "shared SOP UID,upsampled", 0),
        ("StudyInstanceUID", "1.2.3.77", "1.2.3.77 is that of 12 patients, 36 slices: an anonymiser's constant",
         "upsampled", 0),
        ("StudyInstanceUID", lambda p, z: f"1.2.{max(p, 1)}", "2 patients share a picture or a study", "upsampled", 2),
        ("StudyInstanceUID", lambda p, z: f"1.2.{(p + (z == 0)) if p < 6 else 100 + p}",
         "warning: 6 patients are one by the pictures and studies that they share", "upsampled", 6),
        ("SeriesInstanceUID", "1.2.3.77", "1.2.3.77 is that of 12 patients", "upsampled", 0),
    ],
)  # fmt: skip
def test_an_identifier_of_many_is_said_and_drops_nothing(tmp_path, capsys, tag, value, words, flags, linked):
    write_patients(tmp_path / "in", **{tag: value})
    status, told, _ = prepare(tmp_path, capsys)
    assert (status, words in told) == (0, True)
    index = index_of(tmp_path)
    assert set(index["flags"]) == {flags}
    assert len(index) == PATIENTS * SLICES
    assert all(sorted(own.z) == [0, 1, 2] for _, own in index.groupby("patient"))
    assert store.read_facts(tmp_path / "out")["linked_patients"] == linked
    assert "1.2.3.77" not in (tmp_path / "out" / "facts.json").read_text()


@pytest.mark.parametrize(
    ("source", "tags", "error", "table"),
    [
        ("radcure", {"SOPInstanceUID": "1.2.3.77"}, r"SOPInstanceUID 1\.2\.3\.77 names pictures of several patients",
         r"SOPInstanceUID 1\.2\.3\.77 names 36 different pictures of 12 patients"),
        ("cspine", {"PatientID": "ANONYMOUS"}, r"among 1 \(of 12 studies\).*an anonymiser's constant\?",
         "the PatientID of cspine .* stands for 12 studies, 36 slices"),
        ("radcure", {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "no file can be stored: the table says why",
         "other not axial +36"),
    ],
)  # fmt: skip
def test_what_makes_no_store_is_said_with_the_reasons(tmp_path, capsys, source, tags, error, table):
    write_patients(tmp_path / "in", source, **tags)
    status, told, (found,) = prepare(tmp_path, capsys, source=source)
    assert status == 1
    assert re.search(error, found)
    assert re.search(table, told)
    assert not (tmp_path / "out" / "facts.json").exists()


def test_slices_of_one_sop_uid_are_stored_where_that_is_accepted(tmp_path, capsys):
    write_patients(tmp_path / "in", SOPInstanceUID="1.2.3.77")
    assert prepare(tmp_path, capsys)[0] == 1
    causes = rejected_of(tmp_path)
    assert (causes[0], len(causes)) == (("00/0.dcm", "", "SOP instance of another patient"), PATIENTS * SLICES)
    assert prepare(tmp_path, capsys, "--max-bad-share", "1")[0] == 0
    assert len(index_of(tmp_path)) == PATIENTS * SLICES
    assert not list((tmp_path / "out").glob(".building"))


def test_copies_go_by_their_pixels_and_nearly_constant_ones_by_their_sop_uid_too(tmp_path, capsys):
    root = tmp_path / "in"
    write_patients(root)
    (root / "00" / "9.dcm").write_bytes((root / "00" / "0.dcm").read_bytes())
    for name, height in (("8", 7), ("9", 2)):
        write(root, 1, f"{name}.dcm", head(1, 1), SOPInstanceUID=f"9.{name}", ImagePositionPatient=[0, 0, height])
    for p in range(PATIENTS):
        for name, sop in (("a", 1), ("b", 2), ("c", 2), ("d", None)):
            tags = {"SOPInstanceUID": sop and f"1.2.{p}.2.{sop}", "SeriesInstanceUID": f"1.2.{p}.2"}
            write(root, p, f"{name}.dcm", np.full((64, 64), -1000), **tags)
    status, told, _ = prepare(tmp_path, capsys)
    assert (status, "warning" in told, "share a picture or a study" in told) == (0, False, False)
    manifest = manifest_of(tmp_path)
    found = {path: (row.status, row.reason) for path, row in manifest.iterrows() if row.status != "stored"}
    assert found == {
        "00/9.dcm": ("duplicate", "copy"),
        "01/8.dcm": ("duplicate", "copy at another position"),
        "01/9.dcm": ("duplicate", "copy under another SOPInstanceUID"),
        **{f"{p:02}/c.dcm": ("duplicate", "copy") for p in range(PATIENTS)},
    }
    assert not (tmp_path / "out" / "rejected.csv").exists()


def test_a_picture_of_many_patients_is_rejected(tmp_path, capsys):
    root = tmp_path / "in"
    write_patients(root)
    for p in range(5):
        write(root, p, "pattern.dcm", head(99), SOPInstanceUID=f"1.2.{p}.7", SeriesInstanceUID=None)
    status, told, (error,) = prepare(tmp_path, capsys)
    assert status == 1
    assert "12.20% of the images are bad" in error
    assert "picture of many patients: radcure 00/pattern.dcm, radcure 01/pattern.dcm" in told
    status, told, _ = prepare(tmp_path, capsys, "--max-bad-share", ".2")
    assert status == 0
    assert "share a picture" not in told


def test_labels_are_left_empty_where_several_pictures_have_one_uid(tmp_path, capsys):
    root = tmp_path / "in"
    write_patients(root, "ich", SOPInstanceUID=lambda p, z: f"ID_{p:04x}{max(z, 1):05x}")
    names = [f"ID_{p:04x}{z:05x}" for p in range(PATIENTS) for z in (1, 2)]
    rows = "".join(f"{name}_{label},1\n" for name in names for label in store.LABELS)
    (root / "stage_2_train.csv").write_text(f"ID,Label\n{rows}")
    status, told, _ = prepare(tmp_path, capsys, source="ich")
    assert status == 0
    index = index_of(tmp_path)
    shared = index["flags"].str.contains("shared SOP UID")
    assert shared.sum() == 2 * PATIENTS
    assert index["any"][shared].isna().all()
    assert (index["any"][~shared] == 1).all()
    assert f"labels of ICH: labelled slices {PATIENTS}" in told


@pytest.mark.parametrize("parts", [False, True])
def test_labels_of_which_nothing_fits_end_it(tmp_path, capsys, parts):
    write_patients(tmp_path / "in", "ich")
    (tmp_path / "in" / "stage_2_train.csv").write_text("ID,Label\nID_fffffffff_any,1\n")
    if parts:
        assert prepare(tmp_path, capsys, "--part", "0", "--parts", "1", source="ich")[0] == 0
        assert ct.main(["merge", str(tmp_path / "out"), *SHARES[:2]]) == 1
        error = capsys.readouterr().err
    else:
        status, _, (error,) = prepare(tmp_path, capsys, source="ich")
        assert status == 1
        assert not list((tmp_path / "out").rglob("*.arrow"))  # before the first picture
    assert "labels of 1 slices were read, and none is of the 36 slices found" in error


def test_geometry_of_a_series_is_flagged(tmp_path, capsys):
    heights = {0: [0, 0, 2], 1: [0, 2, 4]}
    orientation = {2: [1, 0, 0, 0, 0.94, -0.34]}
    write_patients(
        tmp_path / "in",
        ImagePositionPatient=lambda p, z: [0, 0, heights.get(p, [0, 2, 4])[z]],
        ImageOrientationPatient=lambda p, z: orientation.get(p, [1, 0, 0, 0, 1, 0]) if z else [1, 0, 0, 0, 1, 0],
        PixelSpacing=lambda p, z: [4, 4] if p != 3 or z else [3, 3],
    )
    for z, height in ((3, 6), (4, 12), (5, 14)):  # of patient 1: nothing at 8 and 10
        place = {"SOPInstanceUID": f"1.2.1.1.{z}", "ImagePositionPatient": [0, 0, height]}
        write(tmp_path / "in", 1, f"{z}.dcm", head(50 + z), **place)
    status, told, _ = prepare(tmp_path, capsys)
    assert status == 0
    own = manifest_of(tmp_path)["flags"].str.replace("upsampled", "").str.strip(",")
    flagged = {path: flags for path, flags in own.items() if flags}
    both = {f"{p:02}/{z}.dcm": "mixed series" for p in (2, 3) for z in range(3)}
    same = {path for path in ("00/0.dcm", "00/1.dcm") if flagged.pop(path, "") == "same position"}
    assert len(same) == 1
    assert flagged == both | {"01/4.dcm": "gap"}
    assert "same position 1" in told


def test_a_refused_store_names_the_files_and_what_to_do(tmp_path, capsys):
    root = tmp_path / "in"
    write_patients(root)
    for name in ("=1+1.dcm", "a.dcm", "b.dcm", "c\nd.dcm", "ü ß.dcm"):
        (root / "03" / name).write_bytes(b"x" * 400)
    (root / "more.7z").write_bytes(b"7z\xbc\xaf\x27\x1c")
    with zipfile.ZipFile(root / "z.zip", "w") as archive:
        archive.writestr("inner.zip", b"PK\x03\x04")
    status, told, (error,) = prepare(tmp_path, capsys)
    assert status == 1
    assert f"{tmp_path / 'out' / 'rejected.csv'} names file, cause and remedy" in error
    assert "not DICOM: radcure 03/=1+1.dcm, radcure 03/a.dcm, radcure 03/b.dcm and 2 more\n    remedy: " in told
    assert "zip inside a zip: radcure z.zip!inner.zip\n    remedy: unpack the outer zip" in told
    assert rejected_of(tmp_path) == [
        *((f"03/{name}", "", "not DICOM") for name in ("=1+1.dcm", "a.dcm", "b.dcm", "c\nd.dcm", "ü ß.dcm")),
        ("more.7z", "", "side file: archive"),
        ("z.zip", "inner.zip", "zip inside a zip"),
    ]


# Splits

NAMES = [f"ich-{i:05}" for i in range(20_000)]


def test_a_patient_stays_where_it_is_whoever_else_comes():
    few, _ = identity.assign(NAMES[:10], {}, 0, identity.DEFAULT_SHARES)
    all_of_them, _ = identity.assign(NAMES, {}, 0, identity.DEFAULT_SHARES)
    drawn = list(all_of_them.values())
    for name, share in zip(store.SPLITS, identity.DEFAULT_SHARES, strict=True):
        standard_error = (share * (1 - share) / len(NAMES)) ** 0.5
        assert drawn.count(name) / len(NAMES) == pytest.approx(share, abs=4 * standard_error)
    assert few == {patient: all_of_them[patient] for patient in few}
    assert identity.assign(NAMES, {}, 1, identity.DEFAULT_SHARES)[0] != all_of_them


def test_links_join_patients_by_what_they_share_and_empty_keys_join_nobody():
    keys, patients = ["x", "x", "y", "y", None, None, "z", "w", "w"], ["b", "a", "b", "c", "d", "e", "f", "g", "h"]
    found = identity.linked(pd.Series(keys), pd.Series(patients))
    assert found == {"a": "a", "b": "a", "c": "a", "g": "g", "h": "g"}


def test_linked_patients_go_to_one_side_and_those_who_moved_are_named():
    alone = {patient: identity.draw(0, patient) for patient in NAMES}
    first = next(p for p in NAMES if alone[p] == "test")
    later = [p for p in NAMES if p > first]
    stays, moves = next(p for p in later if alone[p] == "test"), next(p for p in later if alone[p] == "train")
    linked = dict.fromkeys((first, stays, moves), first)
    splits, moved = identity.assign(NAMES, linked, 0, identity.DEFAULT_SHARES)
    assert {splits[p] for p in (first, stays, moves)} == {"test"}
    assert moved == [moves]
    assert {p: s for p, s in splits.items() if p != moves} == {p: s for p, s in alone.items() if p != moves}

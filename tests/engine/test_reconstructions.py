"""The pictures: which images, what stands in each column, and that drawing changes nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from engine import tiny
from PIL import Image
from torch import Tensor, nn

from gcond.data.images import TensorImages
from gcond.data.intensity import Intensity
from gcond.data.splits import Splits
from gcond.engine.evaluate import EvaluationSet
from gcond.engine.reconstructions import GAP, Reconstructions
from gcond.model.patches import hidden_mask

CPU = torch.device("cpu")
PATCH, SIZE = 16, 64
DATA = tiny.load(SIZE)
SPLIT = EvaluationSet.of(DATA, "val", 4, (SIZE // PATCH) ** 2, 0.75)


class Constant(nn.Module):
    """Predicts `values` [C], in z-space, everywhere."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        assert not self.training
        return self.values.view(1, 1, -1, 1, 1).expand(len(images), hidden.shape[1], -1, PATCH, PATCH)


def pictures(
    folder: Path, data: Splits = DATA, split: EvaluationSet = SPLIT, images: int = 3, patients: bool = False
) -> Reconstructions:
    return Reconstructions(folder, data, split, images, patients)


def cells(path: Path) -> np.ndarray:
    """The picture taken apart: [n, 4, S, S, 3], uint8."""
    sheet = np.asarray(Image.open(path))
    pitch = SIZE + GAP
    rows, columns = (sheet.shape[0] + GAP) // pitch, (sheet.shape[1] + GAP) // pitch
    assert sheet.shape == (rows * pitch - GAP, columns * pitch - GAP, 3)
    assert (sheet[SIZE : SIZE + GAP] == 255).all()
    assert (sheet[:, SIZE : SIZE + GAP] == 255).all()
    return np.stack(
        [[sheet[row * pitch :, column * pitch :][:SIZE, :SIZE] for column in range(columns)] for row in range(rows)]
    )


def test_the_four_columns_by_hand_and_what_is_kept_of_them(tmp_path: Path) -> None:
    """Photographs are uint8, so `original` is the raw image itself; a unit value v is the pixel round(255 v)."""
    unit = torch.tensor([0.2, 1.7, -0.3])  # the last two lie outside [0, 1]
    model = Constant((unit - torch.tensor(DATA.intensity.mean)) / torch.tensor(DATA.intensity.std))
    drawn = pictures(tmp_path / "r")
    path = drawn.draw(model, CPU, step=7)
    assert path == tmp_path / "r" / "00000007.png"
    found = cells(path)
    assert found.shape[:2] == (3, 4)
    for row in range(3):
        image = SPLIT.images[row].permute(1, 2, 0).numpy()
        grid = hidden_mask(SPLIT.hidden[row : row + 1], 16).view(4, 4).numpy()
        hidden = np.kron(grid, np.ones((PATCH, PATCH), dtype=bool))[..., None]
        grey, predicted = np.array([128] * 3), np.array([51, 255, 0])
        expected = [
            image,
            np.where(hidden, grey, image),
            np.where(hidden, predicted, grey),
            np.where(hidden, predicted, image),
        ]
        for column in range(4):
            np.testing.assert_array_equal(found[row, column], expected[column])

    drawn.keep(model, CPU, tmp_path / "kept.npz", PATCH)
    with np.load(tmp_path / "kept.npz") as kept:
        assert set(kept) == {"original", "masked", "pasted", "hidden", "patch_size"}
        for place, name in ((0, "original"), (1, "masked"), (3, "pasted")):
            assert kept[name].dtype == np.uint8
            np.testing.assert_array_equal(np.moveaxis(kept[name], 1, -1), found[:, place])
        np.testing.assert_array_equal(kept["hidden"], SPLIT.hidden[:3].numpy())
        assert int(kept["patch_size"]) == PATCH


def test_ct_is_drawn_on_request_only_and_in_grey(tmp_path: Path) -> None:
    """HU + 1024 of int16; the window -1000..1000 HU maps HU 0 to one half."""
    data = dataclasses.replace(
        DATA,
        val=TensorImages(torch.full((4, 1, SIZE, SIZE), 1024, dtype=torch.int16)),
        intensity=Intensity.of_hu_window(-1000, 1000, 0.1, 0.2),
        shows_patients=True,
    )
    split = EvaluationSet.of(data, "val", 4, (SIZE // PATCH) ** 2, 0.75)
    model = Constant(torch.tensor([(1.0 - 0.1) / 0.2]))
    assert pictures(tmp_path / "no", data, split).draw(model, CPU, 1) is None
    assert not (tmp_path / "no").exists()
    path = pictures(tmp_path / "yes", data, split, patients=True).draw(model, CPU, 1)
    assert path is not None
    original, _, _, pasted = cells(path)[0]
    assert np.unique(original).tolist() == [128]
    assert np.unique(pasted).tolist() == [128, 255]


def test_no_more_images_than_there_are_and_none_for_zero(tmp_path: Path) -> None:
    model = Constant(torch.zeros(3))
    path = pictures(tmp_path / "all", images=99).draw(model, CPU, 1)
    assert path is not None
    assert len(cells(path)) == 4
    assert pictures(tmp_path / "none", images=0).draw(model, CPU, 1) is None

"""What the model makes of a few validation images, as a picture.

n images, C channels, S image size, H hidden patches.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.utils import make_grid

from gcond.data.intensity import Intensity
from gcond.data.splits import Splits
from gcond.engine.evaluate import EvaluationSet
from gcond.files import write_atomically
from gcond.model.patches import paste, patchify, select

COLUMNS = ("original", "masked", "raw prediction", "pasted")
GREY = 0.5  # of what is not shown, in [0, 1]
GAP = 2  # white pixels between cells


class Reconstructions:
    """Draws the first `images` images of a split under their fixed masks to `folder`/<step>.png, one row each.

    `masked` has the hidden patches grey; `raw prediction` shows the hidden patches only, as the model predicts them,
    grey elsewhere (it predicts nothing for visible patches); `pasted` is the original with those predictions in it. A
    predicted patch is brought back to [0, 1] with the data set's mean and standard deviation, never with the target's
    own, which would leak the answer; values outside [0, 1] are clamped for the picture only.

    Data that show patients are drawn only if `patients` is true.
    """

    def __init__(self, folder: Path, data: Splits, split: EvaluationSet, images: int, patients: bool) -> None:
        count = 0 if data.shows_patients and not patients else min(images, len(split.images))
        self._folder, self._intensity = folder, data.intensity
        self._raw: list[Tensor] = [split.images[index] for index in range(count)]
        self._hidden = split.hidden[:count]

    def draw(self, model: nn.Module, device: torch.device, step: int) -> Path | None:
        """Write the picture after `step` optimizer steps; None if none is wanted.

        Leaves the model in eval mode, and draws no random number.
        """
        if not self._raw:
            return None
        path = self._folder / f"{step:08}.png"
        write_sheet(path, self._cells(model, device))
        return path

    def keep(self, model: nn.Module, device: torch.device, path: Path, patch_size: int) -> None:
        """Write what `draw` would draw as numbers, an .npz file; nothing if no picture is wanted.

        original, masked, pasted: uint8 [n, C, S, S]. hidden: [n, H], the places of patches of `patch_size`, row-major.
        """
        if not self._raw:
            return
        original, masked, _, pasted = _pixels(self._cells(model, device)).unbind(1)
        arrays = {"original": original.numpy(), "masked": masked.numpy(), "pasted": pasted.numpy()}
        arrays |= {"hidden": self._hidden.numpy(), "patch_size": np.array(patch_size)}
        write_atomically(path, lambda temporary: np.savez_compressed(temporary, **arrays))

    def _cells(self, model: nn.Module, device: torch.device) -> Tensor:
        return cells(model, torch.stack(self._raw), self._hidden, self._intensity, device)


@torch.no_grad()
def cells(model: nn.Module, raw: Tensor, hidden: Tensor, intensity: Intensity, device: torch.device) -> Tensor:
    """COLUMNS of raw images [n, C, S, S] under the masks `hidden` [n, H]: [n, 4, C, S, S] in [0, 1], on the CPU."""
    model.eval()
    z, hidden = intensity.normalise(raw.to(device)), hidden.to(device)
    predictions = intensity.to_unit(model(z, hidden))
    original = intensity.to_unit(z)
    grey = torch.full_like(original, GREY)
    masked = paste(original, hidden, select(patchify(grey, predictions.shape[-1]), hidden))
    columns = (original, masked, paste(grey, hidden, predictions), paste(original, hidden, predictions))
    return torch.stack(columns, dim=1).clamp(0, 1).cpu()


def write_sheet(path: Path, cells: Tensor) -> None:
    """[n, 4, C, S, S] in [0, 1] -> a PNG, a row an image, white between the cells; one channel becomes grey."""
    grid = make_grid(cells.flatten(0, 1), nrow=cells.shape[1], padding=GAP, pad_value=1.0)
    picture = _pixels(grid[:, GAP:-GAP, GAP:-GAP]).movedim(0, -1).numpy()
    write_atomically(path, lambda temporary: Image.fromarray(picture).save(temporary, "PNG"))


def _pixels(cells: Tensor) -> Tensor:
    return (cells * 255).round().to(torch.uint8)

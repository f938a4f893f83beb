"""A data set that is read in no time: `gcond-train dataset=photos dataset._target_=engine.tiny.load scale=smoke`."""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gcond.data.images import TensorImages
from gcond.data.intensity import Intensity
from gcond.data.splits import Splits
from gcond.loss import ReconstructionLoss


def load(image_size: int, train: int = 12, val: int = 6, test: int = 6) -> Splits:
    """Tilted colour gratings, every image another one; shaped and named as `gcond.data.photos` does it."""
    counts = {"train": train, "val": val, "test": test}
    images = gratings(train + val + test, image_size)
    splits = dict(zip(counts, images.split(list(counts.values())), strict=True))
    return Splits(
        **{split: TensorImages(raw) for split, raw in splits.items()},
        intensity=Intensity.of_photographs(),
        title="gratings",
        checksum={split: hashlib.sha256(raw.numpy().tobytes()).hexdigest() for split, raw in splits.items()},
    )


def gratings(count: int, image_size: int) -> Tensor:
    """uint8 [count, 3, S, S]."""
    draw = torch.Generator().manual_seed(7)
    place = torch.linspace(0, 1, image_size)
    tilt, phase = 30 * torch.rand(count, 2, 1, 1, 1, generator=draw), 6 * torch.rand(count, 3, 1, 1, generator=draw)
    waves = torch.sin(tilt[:, 0] * place[:, None] + tilt[:, 1] * place + phase)
    return (127.5 * (1 + waves)).to(torch.uint8)


def never(**settings: object) -> Splits:
    raise AssertionError("data was read")


class BreakingLoss(ReconstructionLoss):
    """The SSIM loss is not finite from the fifth micro-batch of the training on."""

    task, factor, trained = "ssim", math.nan, 0

    def __call__(self, predictions: Tensor, images: Tensor, hidden: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        values = super().__call__(predictions, images, hidden, tasks)
        self.trained += predictions.requires_grad
        if predictions.requires_grad and self.task in values and self.breaks(hidden):
            values[self.task] = values[self.task] * self.factor
        return values

    def breaks(self, hidden: Tensor) -> bool:
        return self.trained >= 5


class BreaksSometimes(BreakingLoss):
    """In micro-batches whose hidden patches sum up to a multiple of five."""

    def breaks(self, hidden: Tensor) -> bool:
        return int(hidden.sum()) % 5 == 0


class BreaksAlways(BreakingLoss):
    """The L1 loss is infinite."""

    task, factor = "l1", math.inf

    def breaks(self, hidden: Tensor) -> bool:
        return True

"""Raw integer images -> [0, 1] -> z, and back. Letters: B batch, C channels, S image size."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from gcond.data.windows import HU_OFFSET

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Intensity:
    """unit = clip((raw - raw_min) / (raw_max - raw_min), 0, 1); z = (unit - mean) / std, per channel.

    Raw images are integers and z is floating point, so a second normalisation is impossible by construction.
    """

    raw_min: float
    raw_max: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.raw_min < self.raw_max:
            raise ValueError(f"`raw_min` must lie below `raw_max`, found {self.raw_min} and {self.raw_max}")
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"`mean` and `std` need one number per channel, found {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise ValueError(f"`std` must be positive, found {self.std}")

    @classmethod
    def of_hu_window(cls, hu_min: float, hu_max: float, mean: float, std: float) -> "Intensity":
        """CT stored as HU + 1024, windowed linearly from [hu_min, hu_max] to [0, 1]."""
        return cls(hu_min + HU_OFFSET, hu_max + HU_OFFSET, (mean,), (std,))

    @classmethod
    def of_photographs(cls) -> "Intensity":
        """8-bit RGB with the ImageNet mean and standard deviation (the paper, section on settings)."""
        return cls(0, 255, IMAGENET_MEAN, IMAGENET_STD)

    @property
    def channels(self) -> int:
        return len(self.mean)

    def normalise(self, raw: Tensor) -> Tensor:
        """Integer [B, C, S, S] -> z, float32 [B, C, S, S], on the device of `raw`.

        Raises TypeError for anything but integers: floating point values have been normalised before.
        """
        if raw.is_floating_point() or raw.is_complex() or raw.dtype == torch.bool:
            raise TypeError(f"`raw` must hold integers, found {raw.dtype}: it has been normalised already")
        if raw.ndim < 3 or raw.shape[-3] != self.channels:
            raise ValueError(f"`raw` must be [B, {self.channels}, S, S], found {list(raw.shape)}")
        unit = ((raw.float() - self.raw_min) / (self.raw_max - self.raw_min)).clamp_(0, 1)
        return (unit - _per_channel(self.mean, unit)) / _per_channel(self.std, unit)

    def to_unit(self, z: Tensor) -> Tensor:
        """z [..., C, h, w] -> the [0, 1] space, not clamped: predictions may lie outside."""
        return z * _per_channel(self.std, z) + _per_channel(self.mean, z)


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    """[C, 1, 1], never below float32: bfloat16 would round the mean."""
    return _on_device(values, torch.promote_types(like.dtype, torch.float32), like.device)


@functools.cache  # each copy to a GPU would wait for everything that is queued there
@torch.inference_mode(False)  # made during a validation, it must still serve the training
def _on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1)

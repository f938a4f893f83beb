"""The losses: the paper's L1 and 1 - SSIM, and one that contradicts L1. All on hidden patches only.

B batch, H hidden patches, C channels, p patch size, v = p - window + 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gcond.model.patches import patchify, select

if TYPE_CHECKING:
    from gcond.data.intensity import Intensity

TASKS = ("l1", "ssim")  # always measured, trained or not
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # Wang et al. 2004, for values in [0, 1]


class ReconstructionLoss:
    """Predictions of hidden patches -> one scalar per task.

    "l1": mean absolute error in z-space, over all pixels of the hidden patches.

    "ssim": 1 - SSIM (Wang et al. 2004) in the [0, 1] space, of each hidden patch and channel by itself, averaged over
    patches, channels and SSIM map. The paper gives no window; ours is the original one, a Gaussian of 11 pixels and
    sigma 1.5, on the v x v positions where it lies wholly inside the patch. So only hidden pixels count, neighbouring
    patches do not matter, and a patch's value equals scikit-image's with `gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1`. Other windows move the value by 0.02 to 0.1: never set it beside
    an SSIM of unknown window.

    "flipped": L1 to (1 - 2 s) times the target, for s = `flip_strength` in [0, 1]; without it there is no such task.
    0 is L1 itself, 0.5 wants the data set's mean, 1 the inverted image. Where a pixel's prediction lies between the two
    targets its gradients of "l1" and "flipped" are exactly opposed, elsewhere equal: so the cosine of the two gradients
    in the predictions is 1 - 2 x the share of pixels in between.

    Predictions are not clamped to [0, 1]: a clamp has no gradient (`outside_unit_share` tells how often they leave).
    All is computed in float32 (float64 stays float64), under autocast too: in bfloat16 or with TF32 matrix products the
    SSIM of CT patches is wrong by its own size.
    """

    classifies = False  # whether it needs logits and labels besides

    def __init__(
        self,
        patch_size: int,
        intensity: Intensity,
        ssim_window: int = 11,
        ssim_sigma: float = 1.5,
        flip_strength: float | None = None,
    ):
        if not 1 <= ssim_window <= patch_size or ssim_window % 2 == 0:
            raise ValueError(f"`ssim_window` must be odd and at most the patch size {patch_size}, found {ssim_window}")
        if ssim_sigma <= 0:
            raise ValueError(f"`ssim_sigma` must be positive, found {ssim_sigma}")
        if flip_strength is not None and not 0 <= flip_strength <= 1:
            raise ValueError(f"`flip_strength` must be null or a number from 0 to 1, found {flip_strength}")
        self.patch_size = patch_size
        self.intensity = intensity
        self.ssim_window = ssim_window
        self.ssim_sigma = ssim_sigma
        self._losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": self._l1, "ssim": self._ssim}
        if flip_strength is not None:
            self._losses["flipped"] = functools.partial(self._flipped, 1 - 2 * flip_strength)

    @property
    def pixel_tasks(self) -> tuple[str, ...]:
        """Those that need the predictions alone."""
        return tuple(self._losses)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those that can be trained, and are measured."""
        return self.pixel_tasks

    def __call__(self, predictions: Tensor, images: Tensor, hidden: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Predictions [B, H, C, p, p] and images [B, C, S, S], both in z-space; indices `hidden` [B, H] (row-major).

        Computes the tasks asked for, no others. ValueError for an unknown task and for shapes that do not match.
        """
        if unknown := sorted(set(tasks) - set(self.tasks)):
            raise ValueError(f"`tasks` may hold {', '.join(self.tasks)}; found {', '.join(unknown)}")
        targets = select(patchify(images, self.patch_size), hidden)
        if predictions.shape != targets.shape:
            raise ValueError(
                f"`predictions` must have the shape of the hidden patches {list(targets.shape)} (B, H, C, p, p), "
                f"found {list(predictions.shape)}"
            )
        with torch.autocast(images.device.type, enabled=False):
            predictions, targets = _at_least_float32(predictions), _at_least_float32(targets)
            return {task: self._losses[task](predictions, targets) for task in tasks}

    def _l1(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return (predictions - targets).abs().mean()

    def _flipped(self, factor: float, predictions: Tensor, targets: Tensor) -> Tensor:
        return self._l1(predictions, factor * targets)

    def _ssim(self, predictions: Tensor, targets: Tensor) -> Tensor:
        x, y = self.intensity.to_unit(predictions), self.intensity.to_unit(targets)
        band = _gaussian_band(self.patch_size, self.ssim_window, self.ssim_sigma, x.device, x.dtype)
        return 1 - ssim_map(x, y, band).mean()


def ssim_map(x: Tensor, y: Tensor, band: Tensor) -> Tensor:
    """SSIM of patches [..., p, p] in [0, 1] at all positions of the window: [..., v, v].

    Wang et al. 2004, eq. 13, with population moments. The variances enter as their sum only, so four filtered maps are
    enough. A separable Gaussian without padding is two products with a banded matrix [v, p], several times as fast as a
    convolution on patches this small. Rounding may leave a variance at -1e-7; C2 is 9e-4, so nothing is clamped.
    """
    maps = torch.stack([x, y, x * x + y * y, x * y])
    mean_x, mean_y, square, product = (band @ maps @ band.mT).unbind()
    mean_product = mean_x * mean_y
    mean_square = mean_x * mean_x + mean_y * mean_y
    covariance = product - mean_product
    variances = square - mean_square
    return ((2 * mean_product + SSIM_C1) * (2 * covariance + SSIM_C2)) / (
        (mean_square + SSIM_C1) * (variances + SSIM_C2)
    )


def outside_unit_share(predictions: Tensor, intensity: Intensity) -> Tensor:
    """Share of the predicted values [..., C, p, p] (z-space) that lie outside [0, 1]: a scalar, still on its device."""
    unit = intensity.to_unit(_at_least_float32(predictions.detach()))
    return ((unit < 0) | (unit > 1)).float().mean()


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


@functools.cache
@torch.inference_mode(False)  # made during a validation, it must still serve the training
def _gaussian_band(size: int, window: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[v, p]: row i holds the normalised Gaussian at columns i .. i + window - 1."""
    offsets = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    rows = size - window + 1
    band = torch.zeros(rows, size, dtype=torch.float64)
    for i in range(rows):
        band[i, i : i + window] = weights
    return band.to(device, dtype)

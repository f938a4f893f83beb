"""Made heads: ellipses of scalp, skull, brain and ventricles in air, with noise. No patient is behind them.

Letters: R rows, C columns, n slices of a head; z counts them from the skull's base to the vertex.
"""

from functools import cache

import numpy as np

AIR_HU, SCALP_HU, CSF_HU, COUCH_HU = -1000, -20, 6, -250
NOISE_HU = 7.0  # standard deviation
NOISE_SAMPLES = 1 << 22


class Head:
    """One patient's head, different for every `rng`. `share`: how much of the field of view it fills."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int], slices: int, share=1.0, couch=False):
        self.shape, self.slices, self.couch = shape, slices, couch
        side = min(shape) * share
        self._centre = np.array(shape) / 2 + rng.uniform(-0.03, 0.03, 2) * side
        self._radii = np.array([rng.uniform(0.38, 0.43), rng.uniform(0.30, 0.35)]) * side
        self._angle = rng.uniform(-0.2, 0.2)
        self._inside = rng.uniform(0.84, 0.90)  # the skull's inner radius over its outer one
        self._skull_hu = int(rng.integers(900, 1450))
        self._brain_hu = int(rng.integers(20, 41))
        self._bleed_hu = int(rng.integers(55, 80))
        self._bleed = rng.uniform(-0.4, 0.4, 2)
        self._noise_starts = rng.integers(0, NOISE_SAMPLES - shape[0] * shape[1], slices)

    def hu(self, z: int) -> np.ndarray:
        """Slice `z` [R, C], HU as int16."""
        height = z / max(self.slices - 1, 1)
        radii = self._radii * np.sqrt(1 - (0.97 * height) ** 2)
        hu = np.full(self.shape, AIR_HU, np.int16)
        if self.couch:
            top = int(self._centre[0] + 1.06 * self._radii[0])
            hu[top : top + max(self.shape[0] // 64, 1), self.shape[1] // 8 : -self.shape[1] // 8] = COUCH_HU
        self._paint(hu, (0, 0), radii * 1.05, SCALP_HU)
        self._paint(hu, (0, 0), radii, self._skull_hu)
        self._paint(hu, (0, 0), radii * self._inside, self._brain_hu)
        if 0.3 < height < 0.8:
            for side in (-1, 1):
                self._paint(hu, (0, 0.16 * side) * radii, radii * (0.32, 0.09), CSF_HU)
            self._paint(hu, self._bleed * radii, radii * 0.12, self._bleed_hu)
        if height < 0.2:
            self._paint(hu, (-0.7, 0) * radii, radii * (0.12, 0.2), AIR_HU)  # a sinus
        start = self._noise_starts[z]
        hu += _noise()[start : start + hu.size].reshape(self.shape)
        return hu

    def _paint(self, hu: np.ndarray, offset, radii, value: int) -> None:
        """Fill an ellipse, `offset` from the head's centre, inside its bounding box."""
        turn = np.array([[np.cos(self._angle), -np.sin(self._angle)], [np.sin(self._angle), np.cos(self._angle)]])
        centre = self._centre + turn @ np.asarray(offset, float)
        reach = np.sqrt(((turn * radii) ** 2).sum(1))
        low = np.maximum(np.floor(centre - reach), 0).astype(int)
        high = np.minimum(np.ceil(centre + reach) + 1, self.shape).astype(int)
        if (low >= high).any():
            return
        y = np.arange(low[0], high[0], dtype=np.float32)[:, None] - np.float32(centre[0])
        x = np.arange(low[1], high[1], dtype=np.float32) - np.float32(centre[1])
        along, across = (turn.T / np.asarray(radii)[:, None]).astype(np.float32)
        inside = (along[0] * y + along[1] * x) ** 2 + (across[0] * y + across[1] * x) ** 2 < 1
        hu[low[0] : high[0], low[1] : high[1]][inside] = value


@cache
def _noise() -> np.ndarray:
    """One pool for all slices, each of which starts elsewhere in it: drawing anew would be half of the work."""
    noise = np.random.default_rng(0).standard_normal(NOISE_SAMPLES, dtype=np.float32) * NOISE_HU
    return np.rint(noise).astype(np.int16)

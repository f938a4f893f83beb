"""One CT slice in HU -> the stored picture."""

import numpy as np
from PIL import Image

from gcond.data.store import DTYPE, HU_OFFSET, STORED_SIZE
from gcond.data.windows import HU_MAX, HU_MIN

BODY_HU = -500
BODY_SHARE = 0.05
BODY_RULE = f"a slice is kept where at least {BODY_SHARE:.0%} of its stored picture lies above {BODY_HU} HU"


def to_stored(hu: np.ndarray) -> np.ndarray:
    """HU [R, C] float32 -> HU + 1024 [256, 256] uint16.

    Clip to [-1024, 3071] HU first, so that padding (-2000 and the like) does not bleed into the body; then crop the
    centre to the short side, resize antialiased in float32, round. Raises ValueError where a value is not finite.
    """
    if not np.isfinite(hu).all():
        raise ValueError("a slice holds values that are not finite")
    clipped = np.clip(hu, HU_MIN, HU_MAX).astype(np.float32)
    side = min(clipped.shape)
    top, left = (clipped.shape[0] - side) // 2, (clipped.shape[1] - side) // 2
    square = np.ascontiguousarray(clipped[top : top + side, left : left + side])
    resized = Image.fromarray(square).resize((STORED_SIZE, STORED_SIZE), Image.Resampling.BILINEAR)
    return np.rint(np.asarray(resized) + HU_OFFSET).astype(DTYPE)


def has_body(stored: np.ndarray) -> bool:
    """BODY_RULE, on a stored picture."""
    return bool((stored > BODY_HU + HU_OFFSET).mean() >= BODY_SHARE)

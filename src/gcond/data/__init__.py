"""Dataset in, raw integer images out: the CT store, ImageNet-256, and photographs that need no download."""

from gcond.data.intensity import Intensity
from gcond.data.splits import ImageSet, Splits

__all__ = ["ImageSet", "Intensity", "Splits"]

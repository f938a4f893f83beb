"""Dataset in, raw integer images out: the CT store, ImageNet-256, and photographs that need no download."""

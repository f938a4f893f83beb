"""Images as grids of square patches.

B batch, C channels, S image size, p patch size, N = (S / p)^2 patches in row-major order, H hidden patches.
"""

import torch
from torch import Tensor


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """[B, C, S, S] -> [B, N, C, p, p]."""
    batch, channels, size, _ = images.shape
    grid = size // patch_size
    cells = images.reshape(batch, channels, grid, patch_size, grid, patch_size)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, grid * grid, channels, patch_size, patch_size)


def unpatchify(patches: Tensor) -> Tensor:
    """[B, N, C, p, p] -> [B, C, S, S], the inverse of `patchify`."""
    batch, count, channels, patch_size, _ = patches.shape
    grid = round(count**0.5)
    cells = patches.reshape(batch, grid, grid, channels, patch_size, patch_size)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, grid * patch_size, grid * patch_size)


def select(items: Tensor, indices: Tensor) -> Tensor:
    """The items [B, N, ...] at `indices` [B, H] -> [B, H, ...]; no boolean mask, so nothing waits for the GPU."""
    rows = torch.arange(len(items), device=items.device)
    return items[rows[:, None], indices]


def paste(images: Tensor, hidden: Tensor, patches: Tensor) -> Tensor:
    """A copy of the images [B, C, S, S] with `patches` [B, H, C, p, p] at the places `hidden` [B, H] (row-major)."""
    cells = patchify(images, patches.shape[-1]).clone()
    rows = torch.arange(len(hidden), device=hidden.device)
    cells[rows[:, None], hidden] = patches
    return unpatchify(cells)


def hidden_mask(hidden: Tensor, patches: int) -> Tensor:
    """Indices [B, H] of the hidden patches -> bool [B, N], True = hidden."""
    mask = torch.zeros(len(hidden), patches, dtype=torch.bool, device=hidden.device)
    return mask.scatter_(1, hidden, True)


def blank(images: Tensor, mask: Tensor, patch_size: int) -> Tensor:
    """Images [B, C, S, S] with the patches where `mask` [B, N] is True set to 0."""
    batch, channels, size, _ = images.shape
    grid = size // patch_size
    cells = images.reshape(batch, channels, grid, patch_size, grid, patch_size)
    return cells.masked_fill(mask.view(batch, 1, grid, 1, grid, 1), 0).view_as(images)

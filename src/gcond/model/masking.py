"""Which patches are hidden. The engine draws them, from its own generators; the model never does.

B batch, N patches, H = round(ratio * N) hidden patches.
"""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def draw_hidden(batch: int, patches: int, ratio: float, generator: torch.Generator) -> Tensor:
    """H of N patches for each image, uniformly without replacement: long [B, H], sorted, on the generator's device.

    Raises ValueError unless at least one patch is hidden and at least one is visible.
    """
    count = hidden_count(patches, ratio)
    noise = torch.rand(batch, patches, generator=generator, device=generator.device)
    return noise.argsort(dim=1)[:, :count].sort(dim=1).values


def fixed_hidden(indices: Iterable[int], patches: int, ratio: float, seed: int) -> Tensor:
    """Masks for validation, [n, H]: that of an image depends on `seed` and its index only.

    Neither the batch size nor the order of evaluation can change them, so one number of a run can be set beside
    another's.
    """
    generator = torch.Generator()
    rows = [draw_hidden(1, patches, ratio, generator.manual_seed(_stable_seed(seed, int(i)))) for i in indices]
    return torch.cat(rows) if rows else torch.empty(0, hidden_count(patches, ratio), dtype=torch.long)


def hidden_count(patches: int, ratio: float) -> int:
    """H = round(ratio * N); ValueError unless 1 <= H <= N - 1."""
    count = round(ratio * patches)
    if not 1 <= count < patches:
        raise ValueError(
            f"`ratio` = {ratio} hides {count} of {patches} patches; at least one must be hidden and one visible"
        )
    return count


def _stable_seed(seed: int, index: int) -> int:
    """A seed that is the same on every machine, unlike hash(), and unrelated between neighbouring indices."""
    digest = hashlib.blake2b(f"mask/{seed}/{index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")

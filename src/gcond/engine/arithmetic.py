"""How this machine rounds: processors of one name may differ in the last bits, and training amplifies these."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def fingerprint(device: torch.device) -> str:
    """Eight hexadecimal digits of the weights of a small network after three steps of AdamW on made images.

    The network has the kinds of layers that the models have (convolutions of both kinds, BatchNorm, attention). Runs
    of one config, seed and number of threads give the same numbers to the bit where fingerprints are equal, and
    differ as seeds do where they are not.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Hardswish()),
            *(nn.Conv2d(16, 16, 5, 2, 2, groups=16), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 64, 1), nn.Flatten(2), nn.Linear(64, 64)),
            nn.TransformerEncoderLayer(64, 4, 256, 0.0, batch_first=True),
            nn.Linear(64, 256),
        ).to(device)
        images, targets = torch.randn(16, 3, 32, 32).to(device), torch.randn(16, 64, 256).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (network(images) - targets).abs().mean().backward()
        optimizer.step()
    weights = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    return hashlib.sha256(weights.cpu().numpy().tobytes()).hexdigest()[:8]

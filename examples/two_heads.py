"""What the examples train: one body with two heads, and a loss for each."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

TASKS = {"kind": 0.7, "value": 0.3}  # name -> weight of its loss


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.Tanh())
        self.kind, self.value = nn.Linear(16, 3), nn.Linear(16, 1)

    def forward(self, x):
        features = self.body(x)
        return self.kind(features), self.value(features).squeeze(1)


def losses_of(outputs, batch):
    kind, value = outputs
    return {"kind": F.cross_entropy(kind.float(), batch[1]), "value": F.mse_loss(value.float(), batch[2])}


def dataset():
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=numbers)
    return TensorDataset(x, x[:, :3].argmax(1), x[:, 3:].sum(1))

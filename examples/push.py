"""Plain PyTorch, push style: the loop stays yours, the conductor replaces `loss.backward()`."""

import torch
from torch.utils.data import DataLoader
from two_heads import TASKS, TwoHeads, dataset, losses_of

from gcond import GradientConductor


def train(resolver, epochs=2):
    model, loader = TwoHeads(), DataLoader(dataset(), batch_size=8)
    conductor = GradientConductor(model, TASKS, resolver=resolver, accumulate=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(epochs):
        for batch in loader:
            with conductor.micro_batch():
                conductor.backward(losses_of(model(batch[0]), batch))  # any of the tasks
            if conductor.ready:
                conductor.resolve()
                optimizer.step()
        if conductor.flush():  # 32 micro-batches: the last window of an epoch has two
            optimizer.step()
    return model


if __name__ == "__main__":
    train("pcgrad")

"""Plain PyTorch, the whole window in one call: `step` asks for losses and fills `p.grad`."""

import torch
from torch.utils.data import DataLoader
from two_heads import TASKS, TwoHeads, dataset, losses_of

from gcond import GradientConductor


def train(resolver, epochs=2):
    model, loader = TwoHeads(), DataLoader(dataset(), batch_size=8)
    conductor = GradientConductor(model, TASKS, resolver=resolver, accumulate=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def losses(batch, tasks):
        every = losses_of(model(batch[0]), batch)
        return {task: every[task] for task in tasks}

    for _ in range(epochs):
        batches = iter(loader)
        for _ in range(len(loader) // 4):
            metrics = conductor.step(batches, losses)  # takes four micro-batches
            optimizer.step()
        print({name: round(value, 3) for name, value in metrics.items() if name.startswith(("loss", "cosine"))})
    return model


if __name__ == "__main__":
    train("pcgrad")

"""Optimizers: any that reads `p.grad`. Clipping comes after `resolve` and before the optimizer's step."""

import torch
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from two_heads import TASKS, TwoHeads, dataset, losses_of

from gcond import GradientConductor


def adamw(model):
    """Two groups: biases do not decay."""
    weights, biases = ([p for p in model.parameters() if (p.ndim > 1) == large] for large in (True, False))
    return [torch.optim.AdamW([{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}])]


def muon(model):
    """Matrices by Muon, the rest by AdamW."""
    weights, biases = ([p for p in model.parameters() if (p.ndim > 1) == large] for large in (True, False))
    return [torch.optim.Muon(weights, lr=1e-2), torch.optim.AdamW(biases, lr=1e-2)]


def schedule_free(model):
    import schedulefree

    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=1e-2)
    optimizer.train()  # optimizer.eval() before validation
    return [optimizer]


def train(make, resolver, epochs=2):
    model, loader = TwoHeads(), DataLoader(dataset(), batch_size=8)
    # clip_norm=1.0 would clip the same gradient, but before an update such as EMA
    conductor = GradientConductor(model, TASKS, resolver=resolver, accumulate=4)
    optimizers = make(model)
    for _ in range(epochs):
        for batch in loader:
            with conductor.micro_batch():
                conductor.backward(losses_of(model(batch[0]), batch))
            if conductor.ready:
                conductor.resolve()
                clip_grad_norm_(model.parameters(), 1.0)
                for optimizer in optimizers:
                    optimizer.step()
    return model


if __name__ == "__main__":
    train(adamw, "pcgrad")

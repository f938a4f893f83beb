"""TorchJD both ways: its aggregators as resolvers here, resolvers from here in its loop."""

import torch
from torch.utils.data import DataLoader
from torchjd.aggregation import UPGrad
from torchjd.autojac import jac_to_grad, mtl_backward
from two_heads import TASKS, TwoHeads, dataset, losses_of

from gcond import GCond, GradientConductor, TorchJD, as_torchjd


def here(resolver, steps=16):
    """TorchJD's aggregator, with what the conductor has: accumulation, GradScaler, processes."""
    model, loader = TwoHeads(), DataLoader(dataset(), batch_size=8)
    conductor = GradientConductor(model, dict.fromkeys(TASKS, 1.0), resolver=resolver)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _, batch in zip(range(steps), loader, strict=False):
        with conductor.micro_batch():
            conductor.backward(losses_of(model(batch[0]), batch))
        conductor.resolve()
        optimizer.step()
    return model


def there(aggregator, steps=16):
    """A resolver in TorchJD's loop."""
    model, loader = TwoHeads(), DataLoader(dataset(), batch_size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _, batch in zip(range(steps), loader, strict=False):
        features = model.body(batch[0])
        outputs = model.kind(features), model.value(features).squeeze(1)
        mtl_backward(list(losses_of(outputs, batch).values()), features=features)
        jac_to_grad(model.body.parameters(), aggregator)
        optimizer.step()
        optimizer.zero_grad()
    return model


if __name__ == "__main__":
    here(TorchJD(UPGrad()))  # or "upgrad"
    there(as_torchjd(GCond()))

"""Accelerate, for one process and for several: `torchrun --nproc-per-node 2 with_accelerate.py`."""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from two_heads import TASKS, TwoHeads, dataset, losses_of

from gcond import GradientConductor, Replicated


def train(resolver, epochs=2):
    accelerator = Accelerator(cpu=True)  # mixed_precision="bf16" or "fp16"
    model = TwoHeads().to(accelerator.device)  # not prepared: DistributedDataParallel would add the tasks up
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader, optimizer = accelerator.prepare(DataLoader(dataset(), batch_size=8), optimizer)
    processes = Replicated() if accelerator.num_processes > 1 else None
    conductor = GradientConductor(model, TASKS, resolver=resolver, accumulate=6, processes=processes)
    for _ in range(epochs):
        for batch in loader:
            with conductor.micro_batch(accelerator.scaler):  # None but for fp16
                with accelerator.autocast():
                    outputs = model(batch[0])
                conductor.backward(losses_of(outputs, batch))  # in place of accelerator.backward
            if conductor.ready:
                conductor.resolve()
                optimizer.step()
        if conductor.flush():
            optimizer.step()
    accelerator.end_training()
    return model


if __name__ == "__main__":
    train("pcgrad")

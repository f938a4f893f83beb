"""`torchrun --nproc-per-node 2 several_processes.py`; with `--shard` the model is sharded (FSDP2)."""

import argparse

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, DistributedSampler
from two_heads import TASKS, TwoHeads, dataset, losses_of

from gcond import GradientConductor, Replicated


def train(resolver, shard=False, epochs=2):
    model, data = TwoHeads(), dataset()
    if shard:  # rows, history and momentum are sharded, too
        fully_shard(model.body)
        fully_shard(model)
    processes = None if shard else Replicated()  # sharded parameters are recognised
    conductor = GradientConductor(model, TASKS, resolver=resolver, accumulate=4, processes=processes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sampler = DistributedSampler(data, shuffle=False)
    for _ in range(epochs):
        for batch in DataLoader(data, batch_size=8, sampler=sampler):  # each process has its own share
            with conductor.micro_batch():
                conductor.backward(losses_of(model(batch[0]), batch))
            if conductor.ready:  # 4 micro-batches over all processes
                conductor.resolve()
                optimizer.step()
    return {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in model.state_dict().items()}


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--shard", action="store_true")
    options.add_argument("--resolver", default="pcgrad")
    options.add_argument("--save")
    chosen = options.parse_args()
    dist.init_process_group("gloo")  # "nccl" on GPUs
    weights = train(chosen.resolver, chosen.shard)
    if chosen.save and dist.get_rank() == 0:
        torch.save(weights, chosen.save)
    dist.destroy_process_group()

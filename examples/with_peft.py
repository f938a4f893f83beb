"""LoRA with peft: conflicts are resolved between adapters and heads alone, frozen weights cost no memory."""

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from two_heads import TASKS, TwoHeads, dataset, losses_of

from gcond import GradientConductor


def adapted():
    heads = ["kind", "value"]
    return get_peft_model(TwoHeads(), LoraConfig(r=4, target_modules=["body.0"], modules_to_save=heads))


def train(resolver, epochs=2):
    model, loader = adapted(), DataLoader(dataset(), batch_size=8)
    conductor = GradientConductor(model, TASKS, resolver=resolver, accumulate=4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(epochs):
        for batch in loader:
            with conductor.micro_batch():
                conductor.backward(losses_of(model(batch[0]), batch))
            if conductor.ready:
                conductor.resolve()
                optimizer.step()
    return model


if __name__ == "__main__":
    train("pcgrad")

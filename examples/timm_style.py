"""As timm's train.py: float16 autocast, GradScaler, gradient clipping, an average of the weights (EMA)."""

import timm
import torch
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import nn
from torch.nn import functional as F

from gcond import GradientConductor

TASKS = {"kind": 0.7, "value": 0.3}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        size = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3}
        self.body = timm.create_model("vit_tiny_patch16_224", num_classes=0, **size)
        self.kind, self.value = nn.Linear(48, 5), nn.Linear(48, 1)

    def losses(self, images, kind, value):
        with torch.autocast(DEVICE, torch.float16):
            features = self.body(images)
            logits, found = self.kind(features), self.value(features).squeeze(1)
        return {"kind": F.cross_entropy(logits.float(), kind), "value": F.mse_loss(found.float(), value)}


def batches():
    torch.manual_seed(1)
    for _ in range(12):
        yield (torch.randn(4, 3, 32, 32), torch.randint(0, 5, (4,)), torch.randn(4))


def train(resolver):
    model = TwoHeads().to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler, average = torch.amp.GradScaler(DEVICE), ModelEmaV3(model, decay=0.9)
    conductor = GradientConductor(model, TASKS, resolver=resolver, accumulate=2)
    for batch in batches():
        with conductor.micro_batch(scaler):  # task gradients are unscaled before they are resolved
            conductor.backward(model.losses(*(each.to(DEVICE) for each in batch)))
        if conductor.ready:
            conductor.resolve()  # in place of timm's NativeScaler, which calls backward itself
            scaler.unscale_(optimizer)
            dispatch_clip_grad(model.parameters(), 1.0, mode="norm")
            scaler.step(optimizer)
            scaler.update()
            average.update(model)
    return model, average


if __name__ == "__main__":
    train("pcgrad")

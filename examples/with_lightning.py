"""Lightning, with manual optimization; on several devices task gradients are resolved once for all."""

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader
from two_heads import TASKS, TwoHeads, dataset, losses_of

from gcond import GradientConductor, Replicated


class Unwrapped(DDPStrategy):
    def configure_ddp(self):
        """The conductor reduces; DistributedDataParallel would add the tasks up."""


class MultiTask(lightning.LightningModule):
    def __init__(self, resolver):
        super().__init__()
        self.model = TwoHeads()
        self.automatic_optimization = False
        self.resolver, self.restored = resolver, None

    def on_fit_start(self):  # here the parameters are on their device, and processes have met
        processes = Replicated() if self.trainer.world_size > 1 else None
        self.conductor = GradientConductor(self.model, TASKS, resolver=self.resolver, accumulate=6, processes=processes)
        if self.restored:
            self.conductor.load_state_dict(self.restored)
            self.restored = None  # a second fit goes on from here

    def training_step(self, batch, _):
        with self.conductor.micro_batch(getattr(self.trainer.precision_plugin, "scaler", None)):  # of "16-mixed"
            self.conductor.backward(losses_of(self.model(batch[0]), batch))
        if self.conductor.ready:
            self.log_dict(self.conductor.resolve())
            self.optimizers().step()

    def on_train_epoch_end(self):
        if self.conductor.flush():
            self.optimizers().step()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["conductor"] = self.conductor.state_dict()

    def on_load_checkpoint(self, checkpoint):  # comes before on_fit_start
        self.restored = checkpoint["conductor"]


def train(resolver, epochs=2, resume=None, **settings):
    module = MultiTask(resolver)
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=epochs, logger=False, **settings)
    trainer.fit(module, DataLoader(dataset(), batch_size=8), ckpt_path=resume)
    return module.model


if __name__ == "__main__":
    train("pcgrad", devices=1)  # or devices=2, strategy=Unwrapped()

"""Trainer of Hugging Face: `training_step` hands the losses over, the rest of the Trainer stays as it is."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, Trainer, TrainingArguments

from gcond import GradientConductor

TASKS = {"kind": 0.7, "value": 0.3}
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        self.bert = BertModel(BertConfig(vocab_size=100, **SIZE, **still))
        self.kind, self.value = nn.Linear(32, 2), nn.Linear(32, 1)

    def forward(self, input_ids, labels, target):
        features = self.bert(input_ids).pooler_output
        value = F.mse_loss(self.value(features).squeeze(1), target)
        losses = {"kind": F.cross_entropy(self.kind(features), labels), "value": value}
        return {"loss": sum(TASKS[task] * loss for task, loss in losses.items()), **losses}


class MultiTaskTrainer(Trainer):
    resolver = "pcgrad"

    def create_optimizer(self, *arguments, **settings):
        steps = self.args.gradient_accumulation_steps
        self.conductor = GradientConductor(self.model, TASKS, resolver=self.resolver, accumulate=steps)
        return super().create_optimizer(*arguments, **settings)

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        with self.conductor.micro_batch(self.accelerator.scaler):
            with self.compute_loss_context_manager():
                found = model(**self._prepare_inputs(inputs))
            self.conductor.backward({task: found[task] for task in TASKS})
        if self.accelerator.sync_gradients:  # a full window, or the epoch's last
            self.conductor.flush()  # the Trainer clips (max_grad_norm) and takes the step
        return found["loss"].detach() / self.current_gradient_accumulation_steps


def train(trainer=MultiTaskTrainer, **settings):
    torch.manual_seed(1)
    rows = [(torch.randint(0, 100, (12,)), torch.randint(0, 2, ()), torch.randn(())) for _ in range(60)]
    data = [dict(zip(("input_ids", "labels", "target"), row, strict=True)) for row in rows]
    chosen = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "num_train_epochs": 2, "seed": 1}
    arguments = TrainingArguments(report_to=[], save_strategy="no", learning_rate=1e-3, **chosen, **settings)
    model = TwoHeads()
    trainer(model=model, args=arguments, train_dataset=data).train()
    return model


if __name__ == "__main__":
    train()

"""What a run is judged by at its end: the whole of validation and test, at its best and at its last epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from gcond.engine.evaluate import EvaluationSet
from gcond.engine.selection import weighted_loss
from gcond.scores import Scores, by_group, means


class Best:
    """The weights after the best epoch so far, kept on the CPU; part of a checkpoint.

    Args:
        weights: of the validation losses that choose it (`gcond.engine.selection`).
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, float]) -> None:
        self._model, self._weights = model, weights
        self.epoch, self.step = 0, 0
        self._loss = math.inf
        self._kept: dict[str, Any] = {}

    def consider(self, epoch: int, step: int, scores: Mapping[str, float]) -> None:
        """Keep the model's weights if it is better than all before; a loss that is not a number is the worst."""
        loss = weighted_loss(scores, self._weights)
        if not self._kept or loss < self._loss:
            self.epoch, self.step = epoch, step
            self._loss = math.inf if math.isnan(loss) else loss
            self._kept = _copied(self._model)

    @contextmanager
    def in_the_model(self) -> Iterator[None]:
        """Inside, the model has the best weights; afterwards its own again."""
        own = _copied(self._model)
        self._model.load_state_dict(self._kept)
        try:
            yield
        finally:
            self._model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "step": self.step, "loss": self._loss, "model": self._kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.step, self._loss, self._kept = (state[key] for key in ("epoch", "step", "loss", "model"))


def final_records(
    best: Best, epoch: int, step: int, sets: Mapping[str, EvaluationSet], measure: Callable[[EvaluationSet], Scores]
) -> Iterator[dict[str, Any]]:
    """Records of kind "final", one for `at` = "best" and "last" each, and of kind "groups" for each of the `sets`.

    `epoch` and `step` are those of the last epoch, whose weights the model has. A "final" record has the means over all
    images ("val_l1", "test_l1", …, "val_images"), a "groups" record those of each patient or class; there is none
    where a set does not know them.
    """
    last = {split: measure(images) for split, images in sets.items()}
    chosen = last
    if best.step != step:
        with best.in_the_model():
            chosen = {split: measure(images) for split, images in sets.items()}
    for at, when, found in (
        ("best", {"epoch": best.epoch, "step": best.step}, chosen),
        ("last", {"epoch": epoch, "step": step}, last),
    ):
        record: dict[str, Any] = {"kind": "final", "at": at, **when}
        for split, scores in found.items():
            record[f"{split}_images"] = len(sets[split].images)
            record |= {f"{split}_{name}": value for name, value in means(scores).items()}
        yield record
        for split, scores in found.items():
            groups = sets[split].groups
            if groups is not None:
                yield {"kind": "groups", "at": at, **when, "split": split, "groups": by_group(scores, groups)}


def _copied(model: nn.Module) -> dict[str, Any]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}

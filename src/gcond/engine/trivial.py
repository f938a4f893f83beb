"""The trivial predictors' scores, computed once per data set and scale and kept beside the runs."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from gcond.data.splits import Splits
from gcond.engine.evaluate import EvaluationSet
from gcond.engine.labels import Labelling
from gcond.files import write_json
from gcond.loss import ReconstructionLoss
from gcond.trivial import score_trivial

Scores = dict[str, dict[str, float]]
VERSION = 2  # of what is measured


def trivial_scores(
    cfg: DictConfig,
    data: Splits,
    sets: Mapping[str, EvaluationSet],
    loss: ReconstructionLoss,
    labelling: Labelling | None = None,
) -> Scores:
    """predictor -> {"val_l1", …, "test_l1", …}, for all tasks of `loss`; classes are guessed, each equally likely.

    Of CT also "val_body_l1" and "test_body_l1".
    """
    key = [VERSION, *(OmegaConf.to_container(cfg[part], resolve=True) for part in ("dataset", "loss", "scale"))]
    digest = hashlib.sha256(json.dumps([*key, data.facts["checksum"]], sort_keys=True).encode()).hexdigest()[:10]
    path = Path(cfg.runs) / cfg.scale.name / f"trivial-{cfg.dataset.name}-{digest}.json"
    tasks = [*loss.pixel_tasks, *(("class", "top1") if labelling else ())]
    if path.exists():
        if kept := _kept(path, {f"{split}_{task}" for split in sets for task in tasks}):
            return kept
        print(f"{path}: damaged, so it is computed again", file=sys.stderr)
    scores: Scores = {}
    for split, evaluation in sets.items():
        for name, values in score_trivial(
            data.train,
            evaluation.images,  # type: ignore[arg-type]
            evaluation.hidden,
            loss,
            data.intensity,
            body_above=evaluation.body_above,
        ).items():
            values.pop("body_images", None)
            scores.setdefault(name, {}).update({f"{split}_{task}": value for task, value in values.items()})
    if labelling is not None:  # by chance
        for own in scores.values():
            for split in sets:
                own |= {f"{split}_class": math.log(labelling.classes), f"{split}_top1": 1 / labelling.classes}
    write_json(path, scores)
    return scores


def _kept(path: Path, needed: set[str]) -> Scores | None:
    """The scores in `path`; None unless every predictor has finite numbers, those that are `needed` among them."""
    try:
        scores = json.loads(path.read_bytes())
        sound = scores and all(
            needed <= own.keys() and all(type(value) is float and math.isfinite(value) for value in own.values())
            for own in scores.values()
        )
    except (ValueError, AttributeError):  # neither JSON nor tables of numbers
        return None
    return scores if sound else None

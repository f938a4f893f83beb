from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from engine import tiny
from engine.runs import run, tiny_config
from torch import Tensor

from gcond.engine.evaluate import EvaluationSet
from gcond.engine.metrics_log import MetricsLog, read
from gcond.engine.probes import IMAGES, QUANTILES, Activations, spread
from gcond.model import MaskedAutoencoder
from gcond.model.patches import blank, hidden_mask

CPU = torch.device("cpu")


def test_by_hand() -> None:
    found = spread(torch.tensor([0.0, 4.0, 0.0, -2.0, 8.0]))
    assert (found["mean"], found["zero_share"]) == (2.0, 0.4)
    assert found["std"] == pytest.approx(math.sqrt((4 + 4 + 4 + 16 + 36) / 5))
    quantiles = found["quantiles"]
    assert [quantiles[share] for share in ("0", "0.25", "0.5", "0.75", "1")] == [-2.0, 0.0, 0.0, 4.0, 8.0]
    assert quantiles["0.95"] == pytest.approx(4 + 0.8 * 4)
    assert tuple(quantiles) == QUANTILES


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    for wrong in (math.nan, math.inf):
        with MetricsLog(tmp_path / "metrics.jsonl") as book:
            book.write({"kind": "activations", **spread(torch.tensor([1.0, wrong]))})
        (record,) = read(tmp_path / "metrics.jsonl")
        assert record["mean"] is record["std"] is record["quantiles"]["1"] is None


def test_of_the_encoder_s_map_of_masked_images() -> None:
    """Of 70 images the first 64, in evaluation mode; the model is not changed."""
    data = tiny.load(64, val=70)
    split = EvaluationSet.of(data, "val", None, 16, 0.75)
    torch.manual_seed(0)
    model = MaskedAutoencoder("mobilenetv3_small_050", 64, 16, 3, width=32, depth=1).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = Activations(split, data.intensity, CPU).measure(model)
    assert not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    maps: list[Tensor] = []
    with torch.no_grad():
        for place in range(IMAGES):
            image = data.intensity.normalise(data.val[place][None])
            hidden = hidden_mask(split.hidden[place : place + 1], 16)
            maps.append(model.encoder(blank(image, hidden, 16)))
    values = torch.cat(maps).double().numpy()
    assert found["mean"] == pytest.approx(values.mean(), rel=1e-4, abs=1e-7)
    assert found["std"] == pytest.approx(values.std(), rel=1e-5)
    assert found["quantiles"]["0.99"] == pytest.approx(np.quantile(values, 0.99), rel=1e-4)
    assert found["std"] > 0


def test_a_run_notes_them_after_each_epoch(tmp_path: Path) -> None:
    records = [r for r in read(run(tiny_config(tmp_path)).metrics) if r["kind"] == "activations"]
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 2), (2, 4)]
    for record in records:
        values = list(record["quantiles"].values())
        assert values == sorted(values)
        assert values[0] < record["mean"] < values[-1]

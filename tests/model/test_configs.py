from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf

import gcond.model

SLOW = {"convnextv2_base": [pytest.mark.slow]}
CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem, marks=SLOW.get(p.stem, ())) for p in CONFIGS])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_model_config_builds(path: Path, channels: int) -> None:
    cfg = OmegaConf.create({"scale": {"image_size": 64, "patch_size": 16}, "model": OmegaConf.load(path)})
    assert cfg.model.pop("name") == path.stem  # for people; the model does not know it
    assert OmegaConf.is_missing(cfg.model, "channels")  # the data set says it
    with torch.device("meta"):  # shapes without memory
        model = hydra.utils.instantiate(cfg.model, channels=channels)
    assert isinstance(model, gcond.model.MaskedAutoencoder)
    assert model.head.out_features == channels * 16 * 16

"""Everything in conf/ composes and is valid (strategies and Table 5: strategy/test_configs.py)."""

from __future__ import annotations

import itertools

import pytest
from engine.runs import CONFIG, config
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import zeros
from torch.nn import Parameter

from gcond.engine.settings import Settings

GROUPS = ("dataset", "loss", "model", "optimizer", "strategy")  # beside scale and experiment


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG / group).glob("*.yaml"))


def test_every_option_is_called_what_its_file_is_called() -> None:
    found = {path.name for path in CONFIG.iterdir() if path.is_dir()}
    assert found == {*GROUPS, "scale", "experiment", "logger", "hydra"}
    for group in ("dataset", "model", "scale", "strategy"):
        for option in options(group):
            content = OmegaConf.load(CONFIG / group / f"{option}.yaml")
            assert content.get("strategy", content).name == option


@pytest.mark.parametrize("turn", range(max(len(options(group)) for group in GROUPS if group != "strategy")))
@pytest.mark.parametrize("scale", options("scale"))
def test_every_option_of_every_group_composes_with_every_scale(scale: str, turn: int) -> None:
    """Strategies take turns, since strategy/test_configs.py tries all of them."""
    choice = {group: options(group)[turn % len(options(group))] for group in GROUPS}
    cfg = config(f"scale={scale}", *(f"{group}={option}" for group, option in choice.items()))
    assert (cfg.scale.name, cfg.dataset.name, cfg.model.name) == (scale, choice["dataset"], choice["model"])
    OmegaConf.to_container(cfg, resolve=True)  # every interpolation has something to point at
    assert cfg.optimizer.lr == cfg.scale.lr
    assert cfg.model.image_size == cfg.dataset.image_size == cfg.scale.image_size
    Settings(cfg)


@pytest.mark.parametrize("optimizer", options("optimizer"))
def test_every_optimizer_builds_without_knowing_a_strategy(optimizer: str) -> None:
    """On the command line an optimizer wins over the one that a strategy chooses."""
    for strategy in ("baseline", "gcond_lion"):
        cfg = config(f"optimizer={optimizer}", f"strategy={strategy}")
        built = instantiate(cfg.optimizer.build)([Parameter(zeros(1))], lr=0.5)
        assert type(built).__name__.lower() == optimizer
        assert built.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("scale", options("scale"))
@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_run_of_an_experiment_is_valid(scale: str, experiment: str) -> None:
    """All combinations at the paper's scale, where a mistake costs days, seeds and rates aside; one elsewhere."""
    params = OmegaConf.load(CONFIG / "experiment" / f"{experiment}.yaml").hydra.sweeper.params
    swept = {key: str(values).split(",") for key, values in params.items()}
    once = ("seed", "optimizer.lr")
    swept = {key: values if scale == "paper" and key not in once else values[:1] for key, values in swept.items()}
    for values in itertools.product(*swept.values()):
        choice = [f"{key}={value}" for key, value in zip(swept, values, strict=True)]
        Settings(config(f"experiment={experiment}", f"scale={scale}", *choice))


@pytest.mark.parametrize("experiment", options("experiment"))
def test_an_experiment_opens_with_its_command_its_hardware_and_what_to_expect(experiment: str) -> None:
    head = (CONFIG / "experiment" / f"{experiment}.yaml").read_text().split("hydra:")[0]
    for words in (f"gcond-train --multirun experiment={experiment}", "Hardware and duration", "Expected"):
        assert words in head


def test_the_papers_scale() -> None:
    """By hand from the supplementary of arXiv 2509.07252; the last three are ours."""
    scale = OmegaConf.load(CONFIG / "scale" / "paper.yaml")
    assert scale == {
        "name": "paper",
        "image_size": 256,
        "patch_size": 32,
        "mask_ratio": 0.75,
        "micro_batch": 256,
        "accumulation_steps": 24,
        "epochs": 15,
        "steps_per_epoch": None,
        "warmup_epochs": 2,
        "lr": 2e-4,
        "final_lr": 1e-6,
        "eval_images": None,
        "diagnose_every": 50,
        "probe_micro_batches": 24,
        "workers": 8,
    }
    assert scale.micro_batch * scale.accumulation_steps == 6144
    cfg = config("scale=paper")
    assert cfg.loss.tasks == {"l1": 0.85, "ssim": 0.15}
    assert (cfg.model.encoder, cfg.model.width, cfg.model.depth) == ("mobilenetv3_small_100", 256, 2)

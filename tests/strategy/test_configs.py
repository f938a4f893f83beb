"""The contract of every file in conf/strategy; tests/study/test_settings.py compares them with Table 5."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from strategy.problems import ConvNet

from gcond.config import CONFIG, compose
from gcond.strategy import EMA, GradientConductor, Stochastic

NAMES = sorted(path.stem for path in (CONFIG / "strategy").glob("*.yaml"))
SCALES = sorted(path.stem for path in (CONFIG / "scale").glob("*.yaml"))


@pytest.fixture(scope="module")
def composed():
    """Config of each strategy at the paper's scale."""
    return {name: compose([f"strategy={name}", "scale=paper"]) for name in NAMES}


@cache
def scale_of(name):
    return compose([f"scale={name}"]).scale


def at(cfg, scale):
    """The same at another scale, which is a part of the config that no other depends on but by interpolation."""
    cfg = cfg.copy()
    cfg.scale = scale_of(scale)
    return cfg


def plain(config):
    return OmegaConf.to_container(config, resolve=True)


def test_every_strategy_composes_at_every_scale(composed):
    assert at(composed["pcgrad"], "mini") == compose(["strategy=pcgrad", "scale=mini"])
    model = ConvNet()
    for place, name in enumerate(NAMES):
        for scale in {"paper", "smoke", SCALES[place % len(SCALES)]}:
            cfg = at(composed[name], scale)
            assert cfg.strategy.name == name
            assert cfg.strategy.label
            assert cfg.strategy.model_mode in ("train", "eval")
            conductor = instantiate(cfg.strategy.conductor)(model.parameter_groups(), plain(cfg.loss.tasks))
            assert conductor.estimator.accumulation_steps == cfg.scale.accumulation_steps
            instantiate(cfg.optimizer.build)(model.parameters(), lr=cfg.optimizer.lr * cfg.strategy.lr_scale)


def test_the_defaults_are_those_of_gcond_stochastic(composed):
    point, tasks = [torch.nn.Parameter(torch.zeros(1))], {"l1": 0.85, "ssim": 0.15}
    default = GradientConductor(point, tasks, Stochastic(24), update=EMA(), clip_norm=50.0)
    named = instantiate(composed["gcond_stochastic"].strategy.conductor)(point, tasks)
    assert (default.estimator, default.clip_norm) == (named.estimator, named.clip_norm)
    for one, other in ((default.resolver, named.resolver), (default.update, named.update)):
        assert repr(vars(one)) == repr(vars(other))


def test_settings_of_the_peers(composed):
    """Table 5 for GradNorm; the authors' NYUv2 code for CAGrad. All resolve every micro-batch, on a shared graph."""
    resolvers = {
        "pcgrad": {"_target_": "gcond.strategy.PCGrad"},
        "cagrad": {"_target_": "gcond.strategy.CAGrad", "c": 0.4, "rescale": 1, "average": "mean"},
        "gradnorm": {"_target_": "gcond.strategy.GradNorm", "alpha": 1.5, "lr": 1e-3, "group": "head"},
    }
    for name, resolver in resolvers.items():
        conductor = composed[name].strategy.conductor
        assert plain(conductor.resolver) == resolver
        assert conductor.estimator._target_ == "gcond.strategy.Sequential"
        assert (conductor.estimator.forward, conductor.estimator.resolve_every) == ("shared", "micro_batch")


def test_controls_differ_from_their_models_in_what_they_control(composed):
    """Baseline with GCond's update and outer optimizer; GCond sequential with those of GCond pure."""
    control, baseline, gcond = (composed[name] for name in ("baseline_integrated", "baseline", "gcond_stochastic"))
    assert control.optimizer == gcond.optimizer
    assert control.strategy.conductor["update"] == gcond.strategy.conductor["update"]
    for part in ("resolver", "estimator", "clip_norm"):
        assert control.strategy.conductor[part] == baseline.strategy.conductor[part]
    own, sequential, pure = (
        plain(composed[name]) for name in ("gcond_sequential_pure", "gcond_sequential", "gcond_pure")
    )
    assert own["optimizer"] == pure["optimizer"] == plain(baseline.optimizer)
    updates = [each["strategy"]["conductor"].pop("update") for each in (own, pure, sequential)]
    assert updates[0] == updates[1] == {"_target_": "gcond.strategy.Raw"}
    assert own["strategy"]["conductor"] == sequential["strategy"]["conductor"]
    assert own["strategy"]["model_mode"] == "train"
    summed, resolved = (
        plain(composed[name].strategy.conductor) for name in ("stochastic_integrated", "gcond_stochastic")
    )
    assert summed | {"resolver": resolved["resolver"]} == resolved
    assert summed["resolver"] == {"_target_": "gcond.strategy.Linear"}

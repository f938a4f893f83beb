"""The contract of every file in conf/strategy, and Table 5 of the paper."""

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


# Table 5 of arXiv 2509.07252, copied by hand: optimizer, learning rate, weight decay, betas, estimator, momentum beta
# inside (None: the resolved gradient is written as it is).
TABLE_5 = {
    "baseline": ("AdamW", 2e-4, 0.05, (0.9, 0.95), "Joint", None),
    "pcgrad": ("AdamW", 2e-4, 0.05, (0.9, 0.95), "Sequential", None),
    "cagrad": ("AdamW", 2e-4, 0.05, (0.9, 0.95), "Sequential", None),
    "gradnorm": ("AdamW", 2e-4, 0.05, (0.9, 0.95), "Sequential", None),
    "gcond_pure": ("AdamW", 2e-4, 0.05, (0.9, 0.95), "Stochastic", None),
    "gcond_stochastic": ("AdamW", 2e-4, 0.05, (0.0, 0.95), "Stochastic", 0.9),
    "gcond_sequential": ("AdamW", 2e-4, 0.05, (0.0, 0.95), "Sequential", 0.9),
    "gcond_lion": ("SGD", 1e-5, 0.0, None, "Stochastic", 0.9),
}
GCOND = {
    "thresholds": [-0.8, -0.5, 0.0],
    "projection_max_iters": 3,
    "remap_power": 2.0,
    "tie_breaking_weights": [0.8, 0.2],
    "norm_ema_beta": 0.95,
    "dominance_window": 0,
    "norm_cap": None,
    "smooth": True,
}


@pytest.mark.parametrize("name", TABLE_5)
def test_strategies_are_table_5_s(composed, name):
    optimizer, lr, weight_decay, betas, estimator, beta = TABLE_5[name]
    cfg, point = composed[name], torch.nn.Parameter(torch.zeros(1))
    outer = instantiate(cfg.optimizer.build)([point], lr=cfg.optimizer.lr * cfg.strategy.lr_scale)
    expected = {"lr": pytest.approx(lr), "weight_decay": weight_decay}
    expected |= {"betas": betas} if betas else {"momentum": 0}
    assert type(outer).__name__ == optimizer
    assert {key: outer.defaults[key] for key in expected} == expected
    conductor = plain(cfg.strategy.conductor)
    assert conductor["estimator"]["_target_"] == f"gcond.strategy.{estimator}"
    assert conductor["estimator"]["accumulation_steps"] == 24
    update = {None: "Raw", 0.9: "LionLARS" if optimizer == "SGD" else "EMA"}[beta]
    assert (conductor["update"]["_target_"], conductor["update"].get("beta")) == (f"gcond.strategy.{update}", beta)
    assert conductor["clip_norm"] == 50
    assert cfg.loss.tasks == {"l1": 0.85, "ssim": 0.15}
    if name.startswith("gcond"):
        resolver = conductor["resolver"]
        assert {key: resolver[key] for key in ("_target_", *GCOND)} == {"_target_": "gcond.strategy.GCond"} | GCOND


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

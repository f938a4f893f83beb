"""The contract of every file in conf/strategy, and Table 5 of the paper."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from strategy.problems import ConvNet, image_batches, opposed_losses, prescribed, three_losses

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "strategy").glob("*.yaml"))
SCALES = sorted(path.stem for path in (CONF / "scale").glob("*.yaml"))


@pytest.fixture(scope="module")
def composed():
    """Config of a strategy at a scale; composed once each."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return {
            (name, scale): compose("train", overrides=[f"strategy={name}", f"scale={scale}"])
            for name in NAMES
            for scale in SCALES
        }


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_composes_at_every_scale(composed, name):
    for scale in SCALES:
        cfg = composed[name, scale]
        assert cfg.strategy.name == name
        assert cfg.strategy.label
        assert cfg.strategy.model_mode in ("train", "eval")
        conductor = instantiate(cfg.strategy.conductor)(
            ConvNet().parameter_groups(), OmegaConf.to_container(cfg.loss.tasks)
        )
        assert conductor.estimator.accumulation_steps == cfg.scale.accumulation_steps
        instantiate(cfg.optimizer.build)(ConvNet().parameters(), lr=cfg.optimizer.lr * cfg.strategy.lr_scale)


@pytest.mark.parametrize("tasks", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_resumes_bit_identically(composed, name, tasks):
    cfg = composed[name, "smoke"]
    lambdas = OmegaConf.to_container(cfg.loss.tasks) | ({"classify": 0.3} if tasks == 3 else {})
    losses = three_losses if tasks == 3 else opposed_losses
    overrides = {"estimator": {"accumulation_steps": 3}} if tasks == 3 else {}  # stochastic: a micro-batch for each

    def start(seed):
        model = ConvNet(seed)
        conductor = instantiate(cfg.strategy.conductor, **overrides)(model.parameter_groups(), lambdas)
        optimizer = instantiate(cfg.optimizer.build)(model.parameters(), lr=1e-2 * cfg.strategy.lr_scale)
        return model, conductor, optimizer

    def train(parts, steps):
        model, conductor, optimizer = parts
        logged = []
        for step in steps:
            batches = image_batches(conductor.estimator.accumulation_steps, seed=step)
            logged.append(conductor.step(batches, losses(model), diagnose=step % 3 == 0))
            optimizer.step()
        return repr(logged)  # nan equals nan

    whole = start(seed=0)
    train(whole, range(3))
    checkpoint = BytesIO()
    torch.save([part.state_dict() for part in whole], checkpoint)
    rest = train(whole, range(3, 7))

    continued = start(seed=1)
    for part, state in zip(continued, torch.load(BytesIO(checkpoint.getvalue()), weights_only=True), strict=True):
        part.load_state_dict(state)
    assert train(continued, range(3, 7)) == rest
    for found, expected in zip(continued[0].parameters(), whole[0].parameters(), strict=True):
        assert torch.equal(found, expected)


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
def test_strategy_is_table_5_s(composed, name):
    optimizer, lr, weight_decay, betas, estimator, beta = TABLE_5[name]
    cfg = composed[name, "paper"]
    conductor = OmegaConf.to_container(cfg.strategy.conductor, resolve=True)
    outer = instantiate(cfg.optimizer.build)(
        [torch.nn.Parameter(torch.zeros(1))], lr=cfg.optimizer.lr * cfg.strategy.lr_scale
    )

    settings = outer.defaults
    assert type(outer).__name__ == optimizer
    assert settings["lr"] == pytest.approx(lr)
    assert settings["weight_decay"] == weight_decay
    assert settings.get("betas") == betas
    assert settings.get("momentum", 0) == 0
    assert conductor["estimator"]["_target_"] == f"gcond.strategy.{estimator}"
    assert conductor["estimator"]["accumulation_steps"] == 24
    update = {None: "Raw", 0.9: "LionLARS" if optimizer == "SGD" else "EMA"}[beta]
    assert conductor["update"]["_target_"] == f"gcond.strategy.{update}"
    assert conductor["update"].get("beta") == beta
    assert conductor["clip_norm"] == 50
    assert OmegaConf.to_container(cfg.loss.tasks) == {"l1": 0.85, "ssim": 0.15}


@pytest.mark.parametrize("name", [name for name in TABLE_5 if name.startswith("gcond")])
def test_every_gcond_has_the_settings_of_table_5(composed, name):
    resolver = OmegaConf.to_container(composed[name, "paper"].strategy.conductor.resolver)
    assert resolver.pop("_target_") == "gcond.strategy.GCond"
    assert {key: resolver[key] for key in GCOND} == GCOND


def test_settings_of_the_peers(composed):
    """Table 5 for GradNorm; the authors' NYUv2 code for CAGrad. All resolve every micro-batch, on a shared graph."""
    resolvers = {
        "pcgrad": {"_target_": "gcond.strategy.PCGrad"},
        "cagrad": {"_target_": "gcond.strategy.CAGrad", "c": 0.4, "rescale": 1, "average": "mean"},
        "gradnorm": {"_target_": "gcond.strategy.GradNorm", "alpha": 1.5, "lr": 1e-3, "group": "head"},
    }
    for name, resolver in resolvers.items():
        conductor = composed[name, "paper"].strategy.conductor
        assert OmegaConf.to_container(conductor.resolver) == resolver
        assert (conductor.estimator.forward, conductor.estimator.resolve_every) == ("shared", "micro_batch")


def test_control_is_baseline_with_gcond_s_update_and_outer_optimizer(composed):
    control, baseline, gcond = (composed[n, "paper"] for n in ("baseline_integrated", "baseline", "gcond_stochastic"))
    assert control.optimizer == gcond.optimizer
    assert control.strategy.conductor["update"] == gcond.strategy.conductor["update"]
    for part in ("resolver", "estimator", "clip_norm"):
        assert control.strategy.conductor[part] == baseline.strategy.conductor[part]


@pytest.mark.parametrize(("between", "conflicts"), [(0.2, False), (-0.2, True)])
def test_stochastic_integrated_is_gcond_stochastic_where_nothing_conflicts(composed, between, conflicts):
    """By hand: without a conflict the sum of the task gradients, lambda-weighted; with one GCond takes another."""
    written = {}
    for name in ("stochastic_integrated", "gcond_stochastic"):
        weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        conductor = instantiate(composed[name, "paper"].strategy.conductor)([weight], {"t0": 0.85, "t1": 0.15})
        window = [None] * composed[name, "paper"].scale.accumulation_steps
        conductor.step(window, prescribed([weight], [[1.0, 0.0], [between, 1.0]]))
        written[name] = weight.grad.clone()
    assert torch.allclose(written["stochastic_integrated"], torch.tensor([0.85 + 0.15 * between, 0.15]).double())
    assert torch.equal(*written.values()) != conflicts


def test_sequential_pure_is_sequential_with_the_update_and_the_outer_optimizer_of_pure(composed):
    own, sequential, pure = (
        OmegaConf.to_container(composed[name, "paper"], resolve=True)
        for name in ("gcond_sequential_pure", "gcond_sequential", "gcond_pure")
    )
    assert (
        own["optimizer"]
        == pure["optimizer"]
        == OmegaConf.to_container(composed["baseline", "paper"].optimizer, resolve=True)
    )
    conductor = own["strategy"]["conductor"]
    assert conductor.pop("update") == pure["strategy"]["conductor"].pop("update") == {"_target_": "gcond.strategy.Raw"}
    sequential["strategy"]["conductor"].pop("update")
    assert conductor == sequential["strategy"]["conductor"]
    assert own["strategy"]["model_mode"] == "train"

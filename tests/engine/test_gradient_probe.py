"""The probe: the right gradients, of the same images for every strategy, and the training goes on as if without it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import tiny
from engine.attempts import same
from engine.runs import TINY, config, parts, run, tiny_config
from hydra.utils import instantiate
from torch import Tensor, nn

from gcond.engine.gradient_noise import describe
from gcond.engine.memory import Planner
from gcond.engine.metrics_log import read
from gcond.engine.passes import LiveBytes, state_of
from gcond.engine.probes import GradientProbe, GradientSums, buffers_put_back, rows_held
from gcond.engine.trainer import Objective
from gcond.model import MaskedAutoencoder
from gcond.strategy.flat import FlatParameters

CPU = torch.device("cpu")
KEYS = {
    *(f"{kind}/{group}" for kind in ("cosine", "cosine_disjoint") for group in ("all", "encoder", "body", "head")),
    *(f"self_cosine/{task}/{group}" for task in ("l1", "ssim") for group in ("all", "encoder", "body", "head")),
    *("norm/l1", "norm/ssim", "noise/l1/1", "noise/ssim/1", "sign_agreement/1"),
}


def records(runs: Path, *overrides: str) -> list[dict[str, Any]]:
    return [record for record in read(run(tiny_config(runs, *overrides)).metrics) if record["kind"] == "probe"]


class Probed:
    """A probe of a small model, and all that its losses were asked for."""

    def __init__(self, tasks: dict[str, float] | None = None, count: int = 4, size: int = 3, **changes: Any) -> None:
        data = tiny.load(64)
        torch.manual_seed(0)
        self.model = MaskedAutoencoder("mobilenetv3_small_050", 64, 16, 3, width=32, depth=1)
        loss = instantiate(config(*TINY).loss.reconstruction)(patch_size=16, intensity=data.intensity)
        objective = Objective(self.model, loss, data.intensity)
        self.batches: list[Any] = []

        def losses(batch: Any, names: Sequence[str]) -> dict[str, Tensor]:
            self.batches.append(batch)
            return objective(batch, names)

        self.losses, self.images = objective, data.train.images
        settings: dict[str, Any] = {"seed": 42, "training": True, "scaler": torch.amp.GradScaler("cpu", enabled=False)}
        self.probe = GradientProbe(
            self.model,
            losses,
            tasks or {"l1": 0.85, "ssim": 0.15},
            data.train,
            data.intensity,
            count,
            size,
            16,
            0.75,
            device=CPU,
            workers=0,
            **settings | changes,
        )


# What it measures


def test_the_sums_are_those_of_the_gradients() -> None:
    """Twelve micro-batches of gradients of every kind: a strided weight, a bias, a parameter that one task misses."""
    layers = nn.ModuleList([nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last), nn.Linear(4, 5)])
    groups = {"encoder": list(layers[0].parameters()), "head": list(layers[1].parameters())}
    flat = FlatParameters(groups)
    n, m = 12, 2
    random = torch.Generator().manual_seed(0)
    sums = GradientSums(flat, m, n)
    vectors = np.zeros((n, m, flat.size))
    for number in range(n):
        taken = []
        for task in range(m):
            gradient = [torch.randn(p.shape, generator=random) for p in flat.parameters]
            missed = task == 1
            vectors[number, task] = np.concatenate([g.flatten().numpy() * (not missed or g.ndim > 1) for g in gradient])
            taken.append([None if missed and g.ndim == 1 else g for g in gradient])
        sums.add(taken)
    halves, windows = sums.grams()
    edge = sum(p.numel() for p in groups["encoder"])
    pairs = vectors.reshape(2, n // 2, m, -1).sum(1).reshape(2 * m, -1)
    for group, part in (("encoder", slice(0, edge)), ("head", slice(edge, None))):
        np.testing.assert_allclose(halves[group], pairs[:, part] @ pairs[:, part].T, rtol=1e-5, atol=1e-4)
    assert sorted(windows) == [1, 2, 4]
    for size, grams in windows.items():
        summed = vectors.reshape(n // size, size, m, -1).sum(1)
        np.testing.assert_allclose(grams, summed @ summed.transpose(0, 2, 1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("n", [2, 4, 6, 8, 24])
def test_it_holds_the_rows_that_it_says(n: int) -> None:
    flat = FlatParameters([nn.Parameter(torch.zeros(10))])
    with LiveBytes() as live:
        sums = GradientSums(flat, 2, n)
    assert live.now == rows_held(n, 2) * 10 * 4
    del sums
    assert rows_held(24, 2) == 12  # of 48 gradients


def test_a_record_is_that_of_plain_backward_passes() -> None:
    probed = Probed()
    found = probed.probe.measure(epoch=1)
    parameters = [parameter for group in probed.model.parameter_groups().values() for _, parameter in group]
    sizes = [sum(p.numel() for _, p in group) for group in probed.model.parameter_groups().values()]
    vectors = np.zeros((4, 2, sum(sizes)))
    for number, batch in enumerate(probed.batches):
        for place, (task, weight) in enumerate({"l1": 0.85, "ssim": 0.15}.items()):
            probed.model.zero_grad()
            (weight * probed.losses(batch, [task])[task]).backward()
            vectors[number, place] = np.concatenate([p.grad.flatten().numpy() for p in parameters])
    edges = np.cumsum([0, *sizes])
    groups = {name: slice(*edges[place : place + 2]) for place, name in enumerate(probed.model.parameter_groups())}
    pairs = vectors.reshape(2, 2, 2, -1).sum(1).reshape(4, -1)
    halves = {name: torch.from_numpy(pairs[:, part] @ pairs[:, part].T) for name, part in groups.items()}
    windows = {}
    for size in (1, 2):
        summed = vectors.reshape(4 // size, size, 2, -1).sum(1)
        windows[size] = torch.from_numpy(summed @ summed.transpose(0, 2, 1))
    expected = describe(["l1", "ssim"], 4, halves, windows)
    assert found.pop("micro_batches") == 4
    assert found.pop("batch_size") == 3
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_one_task_has_no_cosine_and_one_of_weight_zero_is_none() -> None:
    found = Probed({"l1": 0.0, "ssim": 0.15}).probe.measure(1)
    assert {key.split("/")[0] for key in found} - {"micro_batches", "batch_size"} == {"self_cosine", "norm", "noise"}
    assert not [key for key in found if "l1" in key]
    assert found == Probed({"ssim": 0.15}).probe.measure(1)


def test_lambdas_count() -> None:
    once, twice = Probed({"l1": 0.5, "ssim": 0.5}).probe.measure(1), Probed({"l1": 1.0, "ssim": 0.5}).probe.measure(1)
    assert twice["norm/l1"] == pytest.approx(2 * once["norm/l1"])
    assert twice["norm/ssim"] == once["norm/ssim"]


def test_a_scale_on_losses_changes_nothing() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    assert Probed(scaler=scaler).probe.measure(1) == pytest.approx(Probed().probe.measure(1), rel=1e-5, abs=1e-6)


def test_the_mode_of_the_model_is_the_training_s() -> None:
    assert Probed(training=True).probe.measure(1) != Probed(training=False).probe.measure(1)


# Which images


def test_images_and_masks_depend_on_seed_and_epoch_alone() -> None:
    probed, other = Probed(), Probed(training=False)
    probed.probe.measure(3)
    torch.manual_seed(5)
    other.probe.measure(3)
    assert same([vars(batch) for batch in probed.batches], [vars(batch) for batch in other.batches])
    images = torch.cat([batch.images for batch in probed.batches])
    assert len(images.unique(dim=0)) == 12  # none twice: halves are disjoint
    for another in (Probed(seed=11), Probed()):
        another.probe.measure(3 if another.probe._seed == 11 else 4)
        assert not torch.equal(torch.cat([batch.images for batch in another.batches]), images)
        hidden = torch.cat([batch.hidden for batch in another.batches])
        assert not torch.equal(hidden, torch.cat([batch.hidden for batch in probed.batches]))


def test_more_images_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`scale\.probe_micro_batches`: expected at most 4, .* 12 training.* found 6"):
        Probed(count=6)


# The training does not notice


def test_nothing_is_left_behind() -> None:
    probed = Probed()
    for parameter in probed.model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    kept = [parameter.grad for parameter in probed.model.parameters()]
    before = {key: value.clone() for key, value in probed.model.state_dict().items()}
    random = torch.get_rng_state()
    probed.probe.measure(1)
    assert same(dict(probed.model.state_dict()), before)
    assert torch.equal(torch.get_rng_state(), random)
    for parameter, gradient in zip(probed.model.parameters(), kept, strict=True):
        assert parameter.grad is gradient
        assert bool((gradient == 7).all())


def test_buffers_are_put_back_after_an_error_too() -> None:
    model = nn.BatchNorm1d(2)

    def broken() -> None:
        with buffers_put_back(model):
            model(torch.randn(8, 2))
            assert bool(model.running_mean.any())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert not bool(model.running_mean.any())
    assert int(model.num_batches_tracked) == 0


@pytest.mark.parametrize("strategy", ["baseline", "gcond_stochastic", "pcgrad"])
def test_a_run_ends_bit_identical_with_and_without(strategy: str, tmp_path: Path) -> None:
    choices = [f"strategy={strategy}", "strategy.model_mode=train"]
    probed = run(tiny_config(tmp_path / "on", *choices))
    plain = run(tiny_config(tmp_path / "off", *choices, "scale.probe_micro_batches=0"))
    assert same(parts(probed), parts(plain))
    found = read(probed.metrics)
    kinds = [record["kind"] for record in found]
    assert kinds == [*2 * ["step", "step", "validation", "probe", "activations"], "final", "final"]
    assert [record for record in found if record["kind"] not in ("probe", "activations")] == read(plain.metrics)
    for number, record in enumerate(record for record in found if record["kind"] == "probe"):
        assert (record["epoch"], record["step"]) == (number + 1, 2 * (number + 1))
        assert (record["micro_batches"], record["batch_size"]) == (2, 2)
        assert set(record) == KEYS | {"kind", "epoch", "step", "micro_batches", "batch_size"}
        assert None not in record.values()


def test_a_run_in_eval_mode_is_probed_in_eval_mode(tmp_path: Path) -> None:
    """At a learning rate of nearly zero both runs have the same weights."""
    still = ["strategy=baseline", "optimizer.lr=1e-12", "scale.final_lr=1e-13"]
    train, evaluated = (records(tmp_path, *still, f"strategy.model_mode={mode}")[0] for mode in ("train", "eval"))
    assert train["norm/l1"] != pytest.approx(evaluated["norm/l1"], rel=0.01)


@pytest.mark.parametrize("number", [3, -2, 1.5, "true"])
def test_a_number_of_micro_batches_has_two_halves(number: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`scale\.probe_micro_batches`: expected an even integer"):
        run(tiny_config(tmp_path, f"scale.probe_micro_batches={number}"))


# Memory


def test_the_plan_counts_it() -> None:
    probed = Probed(size=2)
    known = [*state_of(probed.model), probed.images]
    probed.probe._losses = probed.losses  # which keep no batch
    with LiveBytes(known) as live:
        probed.probe.measure(1)
    cfg = config(*TINY, "strategy=gcond_sequential", "scale.probe_micro_batches=4")
    plan = Planner(cfg, probed.model, CPU).plan(2, 2)
    assert plan.phases["gradient probe"] == pytest.approx(live.peak, rel=0.05)
    assert (
        "gradient probe"
        not in Planner(config(*TINY, "scale.probe_micro_batches=0"), probed.model, CPU).plan(2, 2).phases
    )

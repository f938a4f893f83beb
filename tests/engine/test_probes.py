"""The probe: the right gradients, of the same images for every strategy, and the training goes on as if without it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from engine import tiny
from engine.attempts import same
from engine.runs import TINY, config, parts, run, tiny_config
from hydra.utils import instantiate
from torch import Tensor, nn

from gcond.engine.batches import TrainingImages
from gcond.engine.evaluate import EvaluationSet
from gcond.engine.gradient_noise import GradientRows, GradientSums, describe, estimates, rows_held, statistics
from gcond.engine.memory import LiveBytes, Planner, state_of
from gcond.engine.metrics_log import MetricsLog, read
from gcond.engine.probes import IMAGES, QUANTILES, GradientProbe, WindowProbe, activations, spread
from gcond.engine.trainer import Objective
from gcond.load_run import LoadedRun
from gcond.model import MaskedAutoencoder
from gcond.model.patches import blank, hidden_mask
from gcond.strategy.flat import FlatParameters
from gcond.study import tables, window_noise

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
        source = TrainingImages(data.train, data.intensity, size, 16, 0.75, changes.pop("seed", 42), CPU)
        settings: dict[str, Any] = {"training": True, "scaler": torch.amp.GradScaler("cpu", enabled=False)}
        tasks = tasks or {"l1": 0.85, "ssim": 0.15}
        self.probe = GradientProbe(self.model, losses, tasks, source, count, **settings | changes)


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
        another.probe.measure(3 if another.probe.source.seed == 11 else 4)
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
    with pytest.raises(ValueError, match=r"`scale\.probe_micro_batches`: expected "):
        run(tiny_config(tmp_path, f"scale.probe_micro_batches={number}"))


# Memory


def test_the_plan_counts_it() -> None:
    probed = Probed(size=2)
    known = [*state_of(probed.model), probed.images]
    probed.probe.losses = probed.losses  # which keep no batch
    with LiveBytes(known) as live:
        probed.probe.measure(1)
    cfg = config(*TINY, "strategy=gcond_sequential", "scale.probe_micro_batches=4")
    plan = Planner(cfg, CPU).plan(2, 2)
    assert plan.phases["gradient probe"] == pytest.approx(live.peak, rel=0.05)
    assert "gradient probe" not in Planner(config(*TINY, "scale.probe_micro_batches=0"), CPU).plan(2, 2).phases


TASKS = ["a", "b"]


def gram(vectors: np.ndarray) -> Tensor:
    """Of [n, m, P]."""
    return torch.from_numpy(np.einsum("amp,bkp->ambk", vectors, vectors))


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def slowly(vectors: np.ndarray, sizes: tuple[int, ...]) -> dict[str, float]:
    """The same statistics from the vectors [n, m, P] themselves."""
    n, m, _ = vectors.shape
    mean, halves = vectors.mean(0), (vectors[: n // 2].mean(0), vectors[n // 2 :].mean(0))
    found = {
        "cosine": cosine(mean[0], mean[1]),
        "cosine_disjoint": (cosine(halves[0][0], halves[1][1]) + cosine(halves[1][0], halves[0][1])) / 2,
    }
    for place, task in enumerate(TASKS):
        found[f"self_cosine/{task}"] = cosine(halves[0][place], halves[1][place])
        found[f"norm/{task}"] = float(np.linalg.norm(mean[place]))
    for size in sizes:
        windows = vectors.reshape(n // size, size, m, -1).mean(1)
        for place, task in enumerate(TASKS):
            variance = windows[:, place].var(axis=0, ddof=1).sum()
            found[f"noise/{task}/{size}"] = float(variance / np.linalg.norm(mean[place]) ** 2)
            if size > 1:
                found[f"scaled_noise/{task}/{size}"] = size * variance / vectors[:, place].var(axis=0, ddof=1).sum()
        signs = [math.copysign(1, cosine(*window)) == math.copysign(1, found["cosine"]) for window in windows]
        found[f"sign_agreement/{size}"] = float(np.mean(signs))
        signs = [
            math.copysign(1, cosine(windows[i, 0], windows[j, 1])) == math.copysign(1, found["cosine_disjoint"])
            for i, j in itertools.permutations(range(len(windows)), 2)
        ]
        found[f"sign_agreement_disjoint/{size}"] = float(np.mean(signs))
    return found


def noisy(n: int, size: int, seed: int = 0, strength: float = 1.5) -> np.ndarray:
    """[n, 2, size]: two means in conflict, noise of each task and noise that both share."""
    random = np.random.default_rng(seed)
    means = random.standard_normal((2, size))
    means[1] -= 0.4 * means[0]
    shared = random.standard_normal((n, 1, size))
    return means + strength * (random.standard_normal((n, 2, size)) + shared)


@pytest.mark.parametrize("seed", range(3))
def test_statistics_and_their_errors_are_those_of_the_vectors(seed: int) -> None:
    vectors, sizes = noisy(12, 9, seed), (1, 2, 4)
    found = estimates(TASKS, gram(vectors), sizes)
    expected = slowly(vectors, sizes)
    assert {name: value for name, (value, _) in found.items()} == pytest.approx(expected)
    left_out = [slowly(np.delete(vectors, slice(start, start + 4), axis=0), sizes) for start in (0, 4, 8)]
    for name, (_, error) in found.items():
        assert error == pytest.approx(math.sqrt(2) * np.std([each[name] for each in left_out]), abs=1e-9), name


def test_one_task_has_no_signs_and_a_gradient_that_vanishes_no_number() -> None:
    found = statistics(["a"], gram(noisy(4, 5)[:, :1]), (1, 2))
    assert not [name for name in found if "sign" in name or name.startswith("cosine")]
    vectors = noisy(4, 5)
    vectors[:, 1] = 0
    found = statistics(TASKS, gram(vectors), (1, 2))
    assert math.isnan(found["scaled_noise/b/2"])
    assert math.isnan(found["sign_agreement_disjoint/1"])
    assert found["scaled_noise/a/2"] > 0


def test_rows_are_the_gradients_in_groups() -> None:
    """A strided weight, a bias that one task misses, losses enlarged by 4."""
    layers = nn.ModuleList([nn.Conv2d(8, 9, 3).to(memory_format=torch.channels_last), nn.Linear(40, 1000)])
    groups = {"encoder": list(layers[0].parameters()), "head": list(layers[1].parameters())}
    flat = FlatParameters(groups)
    rows, random = GradientRows(flat, 2, 6), torch.Generator().manual_seed(0)
    vectors = np.zeros((6, 2, flat.size))
    for number in range(6):
        taken = []
        for task in range(2):
            gradient = [torch.randn(p.shape, generator=random) for p in flat.parameters]
            kept = [task == 0 or g.ndim > 1 for g in gradient]
            vectors[number, task] = np.concatenate([g.flatten() * k for g, k in zip(gradient, kept, strict=True)])
            taken.append([4 * g if k else None for g, k in zip(gradient, kept, strict=True)])
        rows.add(taken, 1 / 4)
    edge = sum(p.numel() for p in groups["encoder"])
    found = rows.grams()
    assert list(found) == ["all", "encoder", "head"]
    for group, part in (("all", slice(None)), ("encoder", slice(0, edge)), ("head", slice(edge, None))):
        expected = gram(vectors[..., part])
        norms = expected.reshape(12, 12).diagonal().max()
        assert float((found[group] - expected).abs().max()) < 1e-6 * float(norms)


# On a model


class Few(WindowProbe):
    sizes = (1, 2)


def probe(probed: Probed, count: int = 6, kind: type[WindowProbe] = Few, training: bool = True) -> WindowProbe:
    own = probed.probe
    return kind(own.model, own.losses, own.tasks, own.source, count, training, own.scaler)


def test_a_measurement_is_that_of_plain_backward_passes_and_leaves_nothing_behind() -> None:
    probed = Probed()
    before = {key: value.clone() for key, value in probed.model.state_dict().items()}
    random = torch.get_rng_state()
    found = probe(probed).measure()
    assert same(dict(probed.model.state_dict()), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert list(found) == ["all", *probed.model.parameter_groups()]
    parameters = [p for group in probed.model.parameter_groups().values() for _, p in group]
    assert all(p.grad is None for p in parameters)
    vectors = np.zeros((6, 2, sum(p.numel() for p in parameters)))
    for number, batch in enumerate(probed.batches):
        for place, (task, weight) in enumerate({"l1": 0.85, "ssim": 0.15}.items()):
            probed.model.zero_grad()
            (weight * probed.losses(batch, [task])[task]).backward()
            vectors[number, place] = np.concatenate([p.grad.flatten().numpy() for p in parameters])
    expected = slowly(vectors, (1, 2))
    for name, (value, _) in found["all"].items():
        assert value == pytest.approx(expected[name.replace("l1", "a").replace("ssim", "b")], rel=1e-3, abs=1e-4), name


def test_micro_batches_are_drawn_independently_by_the_seed_alone() -> None:
    """Six of three images of the twelve: some come again, none twice in a micro-batch."""
    probed = Probed()
    probe(probed).measure()
    torch.manual_seed(5)
    probe(probed, training=False).measure()
    first, second = probed.batches[:6], probed.batches[6:]
    assert same([vars(batch) for batch in first], [vars(batch) for batch in second])
    assert all(len(batch.images.unique(dim=0)) == 3 for batch in first)
    assert len(torch.cat([batch.images for batch in first]).unique(dim=0)) < 12


def test_numbers_that_do_not_fit_are_refused() -> None:
    for count in (48, 80, 0):
        with pytest.raises(ValueError, match=r"`micro_batches`: expected a multiple of 24, at least 72.* found"):
            probe(Probed(), count, kind=WindowProbe)


# Of a run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for strategy in ("baseline", "gcond_stochastic"):
        run(tiny_config(folder, f"strategy={strategy}"))
    run(tiny_config(folder, "strategy=baseline", "optimizer.lr=0.1", "name=other"))
    return folder


def one(runs: Path, strategy: str) -> Path:
    (path,) = (runs / "smoke").glob(f"*{strategy}-seed*")
    return path


def test_a_run_is_read_back_as_it_began_and_ended(runs: Path, tmp_path: Path) -> None:
    path = one(runs, "baseline")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    back = LoadedRun(path, {}, ["engine"])
    data = back.data()
    last, step = back.model("last", data)
    folder = run(tiny_config(tmp_path, "strategy=baseline"))  # again: the same to the bit
    assert same(dict(last.state_dict()), parts(folder)["model"])
    assert step == 4
    initial, step = back.model("initial", data)
    still = run(tiny_config(tmp_path, "strategy=baseline", "optimizer.lr=1e-30", "scale.final_lr=1e-31"))
    weights = parts(still)["model"]
    for name, parameter in initial.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name], rtol=0, atol=1e-28)
    assert step == 0
    assert (back.tasks, back.patches) == ({"l1": 0.85, "ssim": 0.15}, 16)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_a_run_that_cannot_be_read_back_is_refused(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected a finished run"):
        LoadedRun(tmp_path, {})
    back = LoadedRun(one(runs, "baseline"), {}, ["engine"])
    with pytest.raises(ValueError, match=r"expected the folder of its data \(--photos DIR\), found none"):
        LoadedRun(back.path, {"photos": None})
    with pytest.raises(ValueError, match="`state`: expected one of initial, last, found 'best'"):
        back.model("best", back.data())
    data = back.data()
    back.path = tmp_path
    with pytest.raises(ValueError, match="expected the run's last checkpoint, found none"):
        back.model("last", data)
    back.report["data_checksum"] = "others"
    with pytest.raises(ValueError, match="trained on data with the checksum others, found"):
        back.data()


def test_the_script_records_each_measurement_once(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs at two states in one mode; the common beginning is measured once, a run at another rate not at all."""
    script = window_noise
    monkeypatch.setattr(WindowProbe, "sizes", (1, 2))
    measured = []
    plain = script.measure
    monkeypatch.setattr(script, "measure", lambda run, *rest: measured.append(run.path.name) or plain(run, *rest))
    words = ["--scale", "smoke", "--runs", str(runs), "--results", str(tmp_path), "--micro-batches", "6"]
    words += ["--trust", "engine", "--lr", "1e-3"]
    results = tmp_path / "smoke"
    tables.collect(runs / "smoke", results)
    assert script.main([*words, "--modes", "train", "--device", "cpu"]) == 0
    assert len(measured) == 3
    recorded = tables.runs(results)
    table = pd.concat([tables.log(results, run.log, "window").assign(strategy=run.strategy)
                       for run in recorded[recorded.lr == 1e-3].itertuples()])  # fmt: skip
    assert set(zip(table.strategy, table.state, table.step, strict=True)) == {
        (strategy, *state) for strategy in ("baseline", "gcond_stochastic") for state in (("initial", 0), ("last", 4))
    }
    assert set(table["group"]) == {"all", "encoder", "body", "head"}
    numbers = table[table.state == "initial"].drop(columns="state").set_index("strategy").select_dtypes("number")
    np.testing.assert_array_equal(numbers.loc["baseline"], numbers.loc["gcond_stochastic"])
    before = {path: path.read_bytes() for path in (results / "logs").iterdir()}
    assert script.main([*words, "--modes", "train", "--device", "cpu"]) == 0
    assert len(measured) == 3
    assert before == {path: path.read_bytes() for path in (results / "logs").iterdir()}
    assert script.main([*words, "--strategies", "pcgrad"]) == 2


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
            book.write({"kind": "activations", "step": 1, **spread(torch.tensor([1.0, wrong]))})
        (record,) = read(tmp_path / "metrics.jsonl")
        assert record["mean"] is record["std"] is record["quantiles"]["1"] is None


def test_of_the_encoder_s_map_of_masked_images() -> None:
    """Of 70 images the first 64, in evaluation mode; the model is not changed."""
    data = tiny.load(64, val=70)
    split = EvaluationSet.of(data, "val", None, 16, 0.75)
    torch.manual_seed(0)
    model = MaskedAutoencoder("mobilenetv3_small_050", 64, 16, 3, width=32, depth=1).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = activations(model, split, data.intensity, CPU)
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

"""Noise and signs of windows: against the whole vectors, by hand, and of a run that is read back."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine.attempts import same
from engine.runs import parts, run, tiny_config
from engine.test_gradient_probe import Probed
from script_files import load
from torch import Tensor, nn

from gcond.engine import probes
from gcond.engine.gradient_noise import estimates, statistics
from gcond.engine.probes import GradientRows, WindowProbe
from gcond.load_run import LoadedRun
from gcond.report.records import WINDOW_COLUMNS, WINDOW_KEY, read_csv
from gcond.strategy.flat import FlatParameters

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


def test_noise_that_windows_share_does_not_fall() -> None:
    """Independent: 1. Micro-batches equal in pairs: the mean over 2 varies as one, that over 4 as two."""
    alone = noisy(400, 50)
    found = statistics(TASKS, gram(alone), (1, 2, 4))
    assert [found[f"scaled_noise/a/{size}"] for size in (2, 4)] == pytest.approx([1, 1], abs=0.1)
    found = statistics(TASKS, gram(np.repeat(alone[:200], 2, axis=0)), (1, 2, 4))
    assert [found[f"scaled_noise/a/{size}"] for size in (2, 4)] == pytest.approx([2, 2], abs=0.2)


def test_noise_that_tasks_share_makes_the_sign_wrong_on_the_same_samples_only() -> None:
    """Opposed means under noise that both share: one micro-batch shows agreement where there is conflict."""
    random = np.random.default_rng(0)
    direction = np.ones(300) / 300**0.5
    vectors = 5 * random.standard_normal((48, 1, 300)) + 20 * np.stack([direction, -direction])
    found = statistics(TASKS, gram(vectors), (1, 12))
    assert found["cosine"] < -0.2
    assert found["cosine_disjoint"] < -0.4
    assert found["sign_agreement_disjoint/12"] == 1
    assert found["sign_agreement/1"] < 0.1


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
    """A strided weight, a bias that one task misses, losses enlarged by 4; more numbers than a chunk."""
    layers = nn.ModuleList([nn.Conv2d(8, 9, 3).to(memory_format=torch.channels_last), nn.Linear(40, 1000)])
    groups = {"encoder": list(layers[0].parameters()), "head": list(layers[1].parameters())}
    flat = FlatParameters(groups)
    assert flat.size > probes.CHUNK
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


def probe(probed: Probed, count: int = 6, size: int = 3, kind: type[WindowProbe] = Few, **changes: Any) -> WindowProbe:
    own = probed.probe
    return kind(
        own._model,
        own._losses,
        own._tasks,
        own._images,
        own._intensity,
        count,
        size,
        own._patches,
        own._mask_ratio,
        **{"seed": 42, "training": True, "device": own._device, "workers": 0, "scaler": own._scaler} | changes,
    )


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
    with pytest.raises(ValueError, match=r"`micro_batch`: expected at most the 12 training images, found 13"):
        probe(Probed(), size=13)


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
    with pytest.raises(ValueError, match=r"expected the folder of its data \(photos DIR\), found none"):
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
    """Two runs at two states in one mode; the common beginning is measured once, runs with overrides not at all."""
    script = load("window_noise")
    monkeypatch.setattr(WindowProbe, "sizes", (1, 2))
    measured = []
    plain = script.measure
    monkeypatch.setattr(script, "measure", lambda run, *rest: measured.append(run.path.name) or plain(run, *rest))
    words = ["--scale", "smoke", "--runs", str(runs), "--results", str(tmp_path), "--micro-batches", "6"]
    words += ["--trust", "engine"]
    assert script.main([*words, "--modes", "train", "--device", "cpu"]) == 0
    assert len(measured) == 3
    out = tmp_path / "smoke" / "windows.csv"
    table = read_csv(out, WINDOW_COLUMNS, WINDOW_KEY)
    assert set(zip(table.strategy, table.state, table.step, strict=True)) == {
        (strategy, *state) for strategy in ("baseline", "gcond_stochastic") for state in (("initial", 0), ("last", 4))
    }
    assert set(table["group"]) == {"all", "encoder", "body", "head"}
    first = table[(table.state == "initial") & (table.strategy == "baseline")].value.to_numpy()
    other = table[(table.state == "initial") & (table.strategy != "baseline")].value.to_numpy()
    np.testing.assert_array_equal(first, other)
    before = out.read_bytes()
    assert script.main([*words, "--modes", "train", "--device", "cpu"]) == 0
    assert len(measured) == 3
    assert out.read_bytes() == before
    assert script.main([*words, "--strategies", "pcgrad"]) == 2

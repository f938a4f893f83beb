"""Probes: the right gradients, of the same images for every strategy, and training as if without; `gcond profile`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from engine import tiny
from engine.attempts import contents, same
from engine.runs import TINY, config, parts, run, tiny_config
from strategy.test_gradient_noise import described, stated
from torch import Tensor

from gcond import cli, profile_run
from gcond.engine.batches import TrainingImages
from gcond.engine.evaluate import EvaluationSet
from gcond.engine.memory import LiveBytes, Planner, state_of
from gcond.engine.metrics_log import read
from gcond.engine.probes import IMAGES, QUANTILES, GradientProbe, ProbeGradients, WindowProbe, activations, spread
from gcond.engine.trainer import Objective
from gcond.load_run import LoadedRun
from gcond.loss import ReconstructionLoss
from gcond.model import MaskedAutoencoder
from gcond.model.patches import blank, hidden_mask
from gcond.strategy import Profile
from gcond.study import tables, window_noise

CPU = torch.device("cpu")
LAMBDAS = {"l1": 0.85, "ssim": 0.15}
KEYS = {
    *(f"{kind}/{group}" for kind in ("cosine", "cosine_disjoint") for group in ("all", "encoder", "body", "head")),
    *(f"self_cosine/{task}/{group}" for task in ("l1", "ssim") for group in ("all", "encoder", "body", "head")),
    *("norm/l1", "norm/ssim", "noise/l1/1", "noise/ssim/1", "sign_agreement/1"),
}


class Few(WindowProbe):
    sizes = (1, 2)


class Probed:
    """A probe of a small model, and all that its losses were asked for."""

    def __init__(self, count=4, tasks=LAMBDAS, kind=GradientProbe, seed=42, training=True, scaler=None):
        data = tiny.load(64)
        torch.manual_seed(0)
        self.model = MaskedAutoencoder("mobilenetv3_small_050", 64, 16, 3, width=32, depth=1)
        self.objective = Objective(self.model, ReconstructionLoss(16, data.intensity))
        self.batches: list[Any] = []

        def losses(batch: Any, names: Sequence[str]) -> dict[str, Tensor]:
            self.batches.append(batch)
            return self.objective(batch, names)

        source = TrainingImages(data.train, data.intensity, 3, 16, 0.75, seed, CPU)
        scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
        self.probe = kind(self.model, losses, tasks, source, count, training, scaler)

    def measure(self, *epoch: int) -> Any:
        """Of a probe that leaves nothing behind."""
        for parameter in self.model.parameters():
            parameter.grad = torch.full_like(parameter, 7.0)
        kept = [parameter.grad for parameter in self.model.parameters()]
        before = {key: value.clone() for key, value in self.model.state_dict().items()}
        random = torch.get_rng_state()
        found = self.probe.measure(*epoch)
        assert same(dict(self.model.state_dict()), before)
        assert torch.equal(torch.get_rng_state(), random)
        for parameter, gradient in zip(self.model.parameters(), kept, strict=True):
            assert parameter.grad is gradient
            assert bool((gradient == 7).all())
        return found

    def vectors(self) -> tuple[np.ndarray, dict[str, slice]]:
        """Gradients [n, 2, P] by plain backward passes on the batches that were asked for, and the groups in P."""
        groups = self.model.parameter_groups()
        parameters = [parameter for group in groups.values() for _, parameter in group]
        edges = np.cumsum([0, *(sum(p.numel() for _, p in group) for group in groups.values())])
        vectors = np.zeros((len(self.batches), 2, edges[-1]))
        for number, batch in enumerate(self.batches):
            for place, (task, weight) in enumerate(LAMBDAS.items()):
                self.model.zero_grad()
                (weight * self.objective(batch, [task])[task]).backward()
                vectors[number, place] = np.concatenate([p.grad.flatten().numpy() for p in parameters])
        return vectors, {name: slice(*edges[place : place + 2]) for place, name in enumerate(groups)}


def test_a_record_is_that_of_plain_backward_passes():
    probed = Probed()
    found = probed.measure(1)
    vectors, groups = probed.vectors()
    expected = described(vectors, ["l1", "ssim"], groups, (1, 2)) | {"micro_batches": 4, "batch_size": 3}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_windows_are_those_of_plain_backward_passes():
    probed = Probed(6, kind=Few)
    found = probed.measure()
    assert list(found) == ["all", *probed.model.parameter_groups()]
    expected = stated(probed.vectors()[0], (1, 2))
    for name, (value, _) in found["all"].items():
        assert value == pytest.approx(expected[name.replace("l1", "a").replace("ssim", "b")], rel=1e-3, abs=1e-4), name


def test_one_task_has_no_cosine_and_one_of_weight_zero_is_none():
    found = Probed(tasks={"l1": 0.0, "ssim": 0.15}).measure(1)
    assert {key.split("/")[0] for key in found} - {"micro_batches", "batch_size"} == {"self_cosine", "norm", "noise"}
    assert not [key for key in found if "l1" in key]
    assert found == Probed(tasks={"ssim": 0.15}).measure(1)


def test_the_mode_counts_and_a_scale_on_losses_does_not():
    found, scaler = Probed().measure(1), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    assert Probed(scaler=scaler).measure(1) == pytest.approx(found, rel=1e-5, abs=1e-6)
    assert Probed(training=False).measure(1) != found


def images_of(batches: list[Any]) -> Tensor:
    return torch.cat([batch.images for batch in batches])


def test_images_and_masks_depend_on_seed_and_epoch_alone():
    probed, other = Probed(), Probed(training=False)
    probed.measure(3)
    torch.manual_seed(5)
    other.measure(3)
    assert same([vars(batch) for batch in probed.batches], [vars(batch) for batch in other.batches])
    assert len(images_of(probed.batches).unique(dim=0)) == 12  # none twice: halves are disjoint
    for another, epoch in ((Probed(seed=11), 3), (Probed(), 4)):
        another.measure(epoch)
        assert not torch.equal(images_of(another.batches), images_of(probed.batches))
        hidden = torch.cat([batch.hidden for batch in another.batches])
        assert not torch.equal(hidden, torch.cat([batch.hidden for batch in probed.batches]))


def test_micro_batches_of_windows_are_drawn_independently_by_the_seed_alone():
    """Six of three images of the twelve: some come again, none twice in a micro-batch."""
    first, second = Probed(6, kind=Few), Probed(6, kind=Few, training=False)
    first.measure()
    torch.manual_seed(5)
    second.measure()
    assert same([vars(batch) for batch in first.batches], [vars(batch) for batch in second.batches])
    assert all(len(batch.images.unique(dim=0)) == 3 for batch in first.batches)
    assert len(images_of(first.batches).unique(dim=0)) < 12


def test_numbers_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`scale\.probe_micro_batches`: expected at most 4, .* 12 training.* found 6"):
        Probed(6)
    for count in (48, 80, 0):
        with pytest.raises(ValueError, match=r"`micro_batches`: expected a multiple of 24, at least 72.* found"):
            Probed(count, kind=WindowProbe)
    with pytest.raises(ValueError, match=r"`scale\.probe_micro_batches`"):
        run(tiny_config(tmp_path, "scale.probe_micro_batches=3"))


@pytest.mark.parametrize("strategy", ["baseline", "gcond_stochastic", "pcgrad"])
def test_a_run_ends_bit_identical_with_and_without(strategy, tmp_path):
    choices = [f"strategy={strategy}", "strategy.model_mode=train"]
    probed = run(tiny_config(tmp_path / "on", *choices))
    plain = run(tiny_config(tmp_path / "off", *choices, "scale.probe_micro_batches=0", "reconstructions.images=0"))
    assert not plain.reconstructions.exists()
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
    for number, record in enumerate(record for record in found if record["kind"] == "activations"):
        assert (record["epoch"], record["step"]) == (number + 1, 2 * (number + 1))
        values = list(record["quantiles"].values())
        assert values == sorted(values)
        assert values[0] < record["mean"] < values[-1]


def test_a_run_in_eval_mode_is_probed_in_eval_mode(tmp_path):
    """At a learning rate of nearly zero both runs have the same weights."""
    still = ["strategy=baseline", "optimizer.lr=1e-12", "scale.final_lr=1e-13"]
    norms = [
        next(record["norm/l1"] for record in read(folder.metrics) if record["kind"] == "probe")
        for folder in (run(tiny_config(tmp_path, *still, f"strategy.model_mode={mode}")) for mode in ("train", "eval"))
    ]
    assert norms[0] != pytest.approx(norms[1], rel=0.01)


def test_the_memory_plan_counts_it():
    probed = Probed()
    probed.probe.losses = probed.objective  # which keeps no batch
    with LiveBytes([*state_of(probed.model), probed.probe.source.images.images]) as live:
        probed.probe.measure(1)
    cfg = config(*TINY, "strategy=gcond_sequential", "scale.probe_micro_batches=4")
    assert Planner(cfg, CPU).plan(3, 2).phases["gradient probe"] == pytest.approx(live.peak, rel=0.05)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for strategy in ("baseline", "gcond_stochastic"):
        run(tiny_config(folder, f"strategy={strategy}"))
    run(tiny_config(folder, "strategy=baseline", "optimizer.lr=0.1", "name=other"))
    return folder


def one(runs: Path, strategy: str) -> Path:
    (path,) = (runs / "smoke").glob(f"*{strategy}-seed*")
    return path


def test_a_run_is_read_back_as_it_began_and_ended(runs, tmp_path):
    path = one(runs, "baseline")
    before = contents(path)
    back = LoadedRun(path, {}, ["engine"])
    last, step = back.model("last", 3)
    folder = run(tiny_config(tmp_path, "strategy=baseline"))  # again: the same to the bit
    assert same(dict(last.state_dict()), parts(folder)["model"])
    assert step == 4
    initial, step = back.model("initial", 3)
    still = run(tiny_config(tmp_path, "strategy=baseline", "optimizer.lr=1e-30", "scale.final_lr=1e-31"))
    weights = parts(still)["model"]
    for name, parameter in initial.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name], rtol=0, atol=1e-28)
    assert step == 0
    assert (back.tasks, back.patches) == ({"l1": 0.85, "ssim": 0.15}, 16)
    assert contents(path) == before


def test_a_run_that_cannot_be_read_back_is_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="expected a finished run"):
        LoadedRun(tmp_path, {})
    back = LoadedRun(one(runs, "baseline"), {}, ["engine"])
    with pytest.raises(ValueError, match="expected the folder of its photos"):
        LoadedRun(back.path, {"photos": None}).data()
    with pytest.raises(ValueError, match="`state`: expected one of initial, last, best, found 'first'"):
        back.model("first", 3)
    back.path = tmp_path
    with pytest.raises(ValueError, match="expected the run's last checkpoint, found none"):
        back.model("last", 3)
    back.report["data_checksum"] = "others"
    with pytest.raises(ValueError, match="trained on data with the checksum others, found"):
        back.data()


def test_the_script_records_each_measurement_once(runs, tmp_path, monkeypatch):
    """Two runs at two states; the common beginning is measured once, a run at another rate not at all."""
    script = window_noise
    monkeypatch.setattr(WindowProbe, "sizes", (1, 2))
    measured = []
    plain = script.measure
    monkeypatch.setattr(script, "measure", lambda run, *rest: measured.append(run.path.name) or plain(run, *rest))
    words = ["--scale", "smoke", "--runs", str(runs), "--results", str(tmp_path), "--micro-batches", "6"]
    words += ["--trust", "engine", "--lr", "1e-3"]
    results = tmp_path / "smoke"
    tables.collect(runs / "smoke", results)
    assert script.main([*words, "--device", "cpu"]) == 0
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
    assert script.main([*words, "--device", "cpu"]) == 0
    assert len(measured) == 3
    assert before == {path: path.read_bytes() for path in (results / "logs").iterdir()}
    assert script.main([*words, "--strategies", "pcgrad"]) == 2


def test_the_spread_of_activations_by_hand():
    found = spread(torch.tensor([0.0, 4.0, 0.0, -2.0, 8.0]))
    assert (found["mean"], found["zero_share"]) == (2.0, 0.4)
    assert found["std"] == pytest.approx(math.sqrt((4 + 4 + 4 + 16 + 36) / 5))
    quantiles = found["quantiles"]
    assert [quantiles[share] for share in ("0", "0.25", "0.5", "0.75", "1")] == [-2.0, 0.0, 0.0, 4.0, 8.0]
    assert quantiles["0.95"] == pytest.approx(4 + 0.8 * 4)
    assert tuple(quantiles) == QUANTILES
    for wrong in (math.nan, math.inf):  # null in metrics.jsonl
        found = spread(torch.tensor([1.0, wrong]))
        assert not any(map(math.isfinite, (found["mean"], found["std"], found["quantiles"]["1"])))


def test_of_the_encoder_s_map_of_masked_images():
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


# gcond profile: of a finished run and of a config, with its own weights, data, lambdas and losses


@pytest.fixture
def reports(monkeypatch):
    found: list[Profile] = []
    plain = profile_run.profile
    monkeypatch.setattr(profile_run, "profile", lambda *a, **k: found.append(plain(*a, **k)) or found[-1])
    return found


def test_a_run_and_a_config(tmp_path, reports, capsys):
    """The run's initial weights are the config's; its last ones have the gradients of plain backward passes."""
    choices = [*TINY, "strategy=baseline", "loss.tasks.ssim=0.5"]
    folder = run(tiny_config(tmp_path, *choices[len(TINY) :]))
    before = contents(folder.path)
    words = ["--micro-batches", "32", "--out", str(tmp_path / "page.html"), "--device", "cpu"]
    trust = ["--trust", "engine"]
    assert cli.main(["profile", *choices, *words]) == 0
    assert cli.main(["profile", str(folder.path), "--state", "initial", *trust, *words]) == 0
    assert cli.main(["profile", str(folder.path), *trust, *words]) == 0
    config, initial, last = reports
    assert config == initial
    assert {row["group"] for row in last.pairs} == {"all", "encoder", "body", "head"}
    printed = capsys.readouterr().out
    assert all(str(report) in printed for report in reports)
    assert "step 0, micro-batches of 2" in printed
    assert "step 4, micro-batches of 2" in printed
    assert "<svg" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert cli.main(["profile", str(folder.path), "strategy=pcgrad", *trust, *words]) == 2
    assert "found strategy=pcgrad" in capsys.readouterr().err
    assert before == contents(folder.path)

    back = LoadedRun(folder.path, {}, ["engine"])
    data, cpu = back.data(), torch.device("cpu")
    model, _ = back.model("last", 3)
    losses, rows = back.objective(model.train(), data), []
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    source = ProbeGradients(model, losses, back.tasks, back.images(data, cpu), 32, True, scaler)
    for batch in source.independent():
        rows.append([])
        for task, weight in {"l1": 0.85, "ssim": 0.5}.items():
            model.zero_grad()
            (weight * losses(batch, [task])[task]).backward()
            rows[-1].append(np.concatenate([p.grad.flatten().numpy() for p in model.parameters()]))
    vectors = np.asarray(rows, dtype=np.float64)
    sums = vectors.sum(0)
    products = (sums @ sums.T - np.einsum("nip,njp->ij", vectors, vectors)) / (32 * 31)
    expected = products[0, 1] / np.sqrt(products[0, 0] * products[1, 1])
    assert last.pairs[0]["cosine"] == pytest.approx(expected, abs=1e-3)
    assert [row["norm"] for row in last.tasks] == pytest.approx(np.sqrt(np.diag(products)), rel=1e-3)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dataset=photos", "loss.tasks.ssim=0"], "`tasks`"),
        (["--micro-batches", "40"], "`micro_batches`"),
        (["--state", "last"], "`state`"),
        (["datset=photos"], "datset"),
        (["--data", "nowhere"], "root"),  # which photos do not have
    ],
)
def test_refusals(words, told, capsys, tmp_path):
    assert cli.main(["profile", *TINY, *words, "--out", str(tmp_path / "page.html")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()

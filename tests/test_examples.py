"""The examples of docs/recipes.md: where nothing is resolved, each trains what its framework's plain loop trains."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

from gcond import UW, GCond, GradientConductor, GradNorm, GradOPS, Linear, PCGrad, as_torchjd

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NOTHING = "linear"
LAMBDAS = {"kind": 0.7, "value": 0.3}


@pytest.fixture(autouse=True)
def _folder(monkeypatch, tmp_path):
    """Examples import each other, and run where they may leave files."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        yield


def example(name: str, *frameworks: str) -> ModuleType:
    for framework in frameworks:
        pytest.importorskip(framework, reason=f"{framework} is not installed: pip install '.[examples]'")
    return importlib.import_module(name)


def plainly(model, optimizers, steps, clip=None):
    """The weighted sum of the losses, by PyTorch alone: windows of `steps` micro-batches, two epochs."""
    heads = example("two_heads")
    batches = [*DataLoader(heads.dataset(), batch_size=8)]
    for _ in range(2):
        for start in range(0, len(batches), steps):
            window = batches[start : start + steps]
            model.zero_grad()
            for batch in window:
                losses = heads.losses_of(model(batch[0]), batch)
                (sum(LAMBDAS[task] * loss for task, loss in losses.items()) / len(window)).backward()
            if clip is not None:
                clip_grad_norm_(model.parameters(), clip)
            for optimizer in optimizers:
                optimizer.step()
    return model


def by_adamw(steps: int = 4) -> nn.Module:
    model = example("two_heads").TwoHeads()
    return plainly(model, [torch.optim.AdamW(model.parameters(), lr=1e-2)], steps)


def apart(one: nn.Module, other: nn.Module) -> float:
    """The largest difference of two models' weights."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def test_plain():
    plain = example("plain")
    assert apart(plain.train(NOTHING), by_adamw()) == 0
    assert apart(plain.train("pcgrad"), by_adamw()) > 1e-3


def test_push_with_an_incomplete_window_in_each_epoch():
    push = example("push")
    assert apart(push.train(NOTHING), by_adamw(5)) < 1e-6
    assert apart(push.train("pcgrad"), by_adamw(5)) > 1e-3


def test_timm_with_float16_scaler_clipping_and_average(monkeypatch):
    timm_style = example("timm_style", "timm")
    monkeypatch.setattr(timm_style, "DEVICE", "cpu")
    found, average = timm_style.train(NOTHING)
    model = timm_style.TwoHeads()
    optimizer, scaler = torch.optim.AdamW(model.parameters(), lr=1e-3), torch.amp.GradScaler("cpu")
    expected_average = timm_style.ModelEmaV3(model, decay=0.9)
    for place, batch in enumerate(timm_style.batches()):
        losses = model.losses(*batch)
        scaler.scale(sum(LAMBDAS[task] * loss for task, loss in losses.items()) / 2).backward()
        if place % 2:
            scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            expected_average.update(model)
    assert apart(found, model) == 0
    assert apart(average.module, expected_average.module) == 0
    assert apart(found, average.module) > 1e-4


def test_lightning_with_incomplete_windows_and_a_run_that_is_resumed(tmp_path):
    with_lightning = example("with_lightning", "lightning")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "devices": 1}
    assert apart(with_lightning.train(NOTHING, **quiet), by_adamw(6)) < 1e-6
    whole = with_lightning.train("gcond", **quiet, default_root_dir=tmp_path / "whole")
    with_lightning.train("gcond", epochs=1, **quiet, default_root_dir=tmp_path / "part")
    (kept,) = (tmp_path / "part").rglob("*.ckpt")
    assert apart(with_lightning.train("gcond", resume=kept, **quiet), whole) == 0


def test_accelerate_with_incomplete_windows():
    assert apart(example("with_accelerate", "accelerate").train(NOTHING), by_adamw(6)) < 1e-6


def test_trainer_of_hugging_face_with_an_incomplete_window_in_each_epoch():
    with_transformers = example("with_transformers", "transformers", "accelerate")

    class Summed(with_transformers.MultiTaskTrainer):  # type: ignore[name-defined, misc]
        resolver = NOTHING

    quiet = {"use_cpu": True, "disable_tqdm": True}
    plain = with_transformers.train(with_transformers.Trainer, **quiet)
    assert apart(with_transformers.train(Summed, **quiet), plain) < 1e-6
    assert apart(with_transformers.train(**quiet), plain) > 1e-4


def test_peft_trains_adapters_and_heads_alone():
    with_peft = example("with_peft", "peft")
    expected = with_peft.adapted()
    frozen = {name for name, p in expected.named_parameters() if not p.requires_grad}
    trained = [p for p in expected.parameters() if p.requires_grad]
    plainly(expected, [torch.optim.AdamW(trained, lr=1e-2)], 4)
    found = with_peft.train(NOTHING)
    assert apart(found, expected) == 0
    assert all(torch.equal(p, with_peft.adapted().get_parameter(n)) for n, p in found.named_parameters() if n in frozen)


@pytest.mark.parametrize("make", ["adamw", "muon", "schedule_free"])
def test_optimizers_and_clipping_after_the_resolution(make):
    optimizers = example("optimizers", *["schedulefree"] * (make == "schedule_free"))
    make = getattr(optimizers, make)
    model = example("two_heads").TwoHeads()
    assert apart(optimizers.train(make, NOTHING), plainly(model, make(model), 4, clip=1.0)) == 0


@pytest.mark.parametrize(
    "shard", [[], pytest.param(["--shard"], marks=pytest.mark.slow)], ids=["replicated", "sharded"]
)
def test_two_processes_train_what_one_trains(shard, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    saved = tmp_path / "weights.pt"
    command = [*torchrun, EXAMPLES / "several_processes.py", "--resolver", NOTHING, "--save", saved, *shard]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = by_adamw().state_dict()  # 2 processes x 2 micro-batches are a window of 4: means over equal parts
    found = torch.load(saved, weights_only=True)
    assert max(float((found[name] - p).abs().max()) for name, p in expected.items()) < 1e-6


@pytest.mark.parametrize("resolver", [PCGrad, GCond, GradOPS, Linear])
def test_a_resolver_in_the_loop_of_torchjd_trains_what_the_conductor_trains(resolver):
    with_torchjd, heads = example("with_torchjd", "torchjd"), example("two_heads")
    there = with_torchjd.there(as_torchjd(resolver()))
    model, heads = with_torchjd.TwoHeads(), example("two_heads")
    conductor = GradientConductor(model, dict.fromkeys(LAMBDAS, 1.0), "sequential", resolver())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _, batch in zip(range(16), DataLoader(heads.dataset(), batch_size=8), strict=False):
        conductor.step([batch], lambda batch, _: heads.losses_of(model(batch[0]), batch))
        optimizer.step()
    assert apart(there, model) == 0


def test_an_aggregator_goes_on_from_its_state(tmp_path):
    """GCond looks back at the previous gradients; a state may be loaded before and after the first call."""
    example("with_torchjd", "torchjd")
    matrices = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(4))
    whole, fresh, used = (as_torchjd(GCond()) for _ in range(3))
    for matrix in matrices[:3]:
        whole(matrix)
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    used(matrices[5])
    for aggregator in (fresh, used):
        aggregator.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    expected = [whole(matrix).tolist() for matrix in matrices[3:]]
    assert [[each(matrix).tolist() for matrix in matrices[3:]] for each in (fresh, used)] == [expected] * 2
    forgetful = as_torchjd(GCond())
    assert [forgetful(matrix).tolist() for matrix in matrices[3:]] != expected


def test_what_torchjd_cannot_serve_is_refused():
    example("with_torchjd", "torchjd")
    for resolver in (UW(), GradNorm()):
        with pytest.raises(ValueError, match="resolver"):
            as_torchjd(resolver)
    aggregator = as_torchjd(PCGrad(), tasks={"kind": 2.0, "value": 0.5})
    assert aggregator(torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, 4.0]])).tolist() == [2.0, 1.0, 4.0]
    for matrix in (torch.ones(2, 4), torch.ones(3, 3)):
        with pytest.raises(ValueError, match="matrix"):
            aggregator(matrix)


def test_an_aggregator_of_torchjd_here_trains_what_its_own_loop_trains():
    with_torchjd = example("with_torchjd", "torchjd")
    assert apart(with_torchjd.here("upgrad"), with_torchjd.there(with_torchjd.UPGrad())) < 1e-6


def test_the_page_links_every_example_and_each_is_short():
    page = (EXAMPLES.parent / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\[examples/(\w+\.py)\]", page, re.MULTILINE)) == sorted(
        path.name for path in EXAMPLES.glob("*.py")
    )
    assert [path.name for path in EXAMPLES.glob("*.py") if path.read_text(encoding="utf-8").count("\n") > 60] == []

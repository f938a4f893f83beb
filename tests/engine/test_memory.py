import copy
import gc
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from engine import tiny
from engine.runs import config
from torch._subclasses.fake_tensor import FakeTensorMode

from gcond.config import compose
from gcond.data import photos
from gcond.data.intensity import Intensity
from gcond.engine import memory
from gcond.engine.batches import planned_shape
from gcond.engine.evaluate import EvaluationSet, evaluate
from gcond.engine.memory import GRAPHS, CudaCasts, LiveBytes, Passes, Planner, bytes_of, on_a_line, state_of
from gcond.loss import TASKS, ReconstructionLoss
from gcond.model import MaskedAutoencoder
from gcond.model.masking import draw_hidden
from gcond.strategy import Sequential
from gcond.synthetic_run import SyntheticRun

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SIZE, HIDDEN = 64, 12
SMALL = (
    "scale=smoke",
    "dataset=photos",
    "model=mobilenetv3_small_050",
    "model.width=32",
    "model.depth=1",
    "device=cpu",
    "scale.probe_micro_batches=0",
)
SLOW = pytest.mark.slow
LOSS = ReconstructionLoss(16, Intensity.of_photographs())
BFLOAT16 = "+strategy.conductor.buffer_dtype=bfloat16"


def small(*overrides: str) -> Any:
    return config(*SMALL, *overrides)


@pytest.mark.parametrize(
    ("choices", "rows"),  # rows of P float32: task gradients, reference, mean, momentum, moments, diagnosis
    [
        (["strategy=baseline"], 1 + 0 + 0 + 0 + 2 + 1),
        (["strategy=pcgrad"], 2 + 0 + 1 + 0 + 2 + 1),
        (["strategy=pcgrad", "scale.accumulation_steps=1"], 2 + 0 + 0 + 0 + 2 + 1),
        (["strategy=gcond_stochastic"], 2 + 2 + 0 + 1 + 2 + 1),
        (["strategy=gcond_lion"], 2 + 2 + 0 + 1 + 0 + 1),
        (["strategy=gcond_sequential", "loss=l1_ssim_flipped"], 3 + 3 + 0 + 1 + 2 + 1),
        (["strategy=gcond_sequential", BFLOAT16], (2 + 2 + 0 + 1) / 2 + 2 + 1 / 2),
        (["strategy=gcond_stochastic", "+strategy.conductor.reference_dtype=bfloat16"], 2 + 2 / 2 + 0 + 1 + 2 + 1),
    ],
)
def test_what_is_held_by_hand(choices, rows):
    """That a step really holds it is shown by its peak, below."""
    cfg = small(*choices)
    model = SyntheticRun(cfg, CPU).model
    parts = Planner(cfg, CPU)._held(2, cfg.scale.accumulation_steps)
    assert parts.pop("weights") == sum(tensor.numel() * tensor.element_size() for tensor in state_of(model))
    parameters = sum(p.numel() for p in model.parameters())
    counters = 4 * len(list(model.parameters()))  # AdamW's step of each parameter
    assert sum(parts.values()) == pytest.approx(4 * parameters * rows, abs=counters)


def test_a_gpu_holds_the_next_micro_batch_as_raw_integers():
    """By hand: uint8 photographs, int64 places of hidden patches; CT is one channel of int16."""
    for dataset, pixels in (("photos", 3 * SIZE**2), ("ct", SIZE**2 * 2), ("ich", SIZE**2 * 2)):
        for device, bytes_of_one in ((CUDA, pixels + HIDDEN * 8), (CPU, 0)):
            parts = Planner(small(f"dataset={dataset}", "strategy=baseline"), device)._held(5, 2)
            assert parts["next micro-batch on its way"] == 5 * bytes_of_one


@pytest.mark.parametrize(
    "choices",
    [
        ["strategy=baseline", "scale.micro_batch=2"],
        ["strategy=baseline", "scale.micro_batch=4", "scale.diagnose_every=1"],
        ["strategy=gcond_sequential", BFLOAT16, "scale.micro_batch=4"],
        ["strategy=gcond_sequential", "strategy.conductor.estimator.forward=per_task"],
        pytest.param(["strategy=pcgrad", "scale.micro_batch=16"], marks=SLOW),
        pytest.param(["strategy=gcond_stochastic", "scale.micro_batch=1"], marks=SLOW),
        pytest.param(["strategy=gcond_lion", "scale.micro_batch=32", "strategy.model_mode=eval"], marks=SLOW),
    ],
)
def test_the_planned_peak_is_the_peak_of_real_steps(choices):
    cfg = small(*choices)
    with LiveBytes() as live:
        run = SyntheticRun(cfg, CPU, diagnose_every=min(2, cfg.scale.diagnose_every))
        for _ in range(2):
            run.step()
        live.peak = live.now  # of what comes: not of building the model
        for _ in range(2):
            run.step()
    plan = Planner(cfg, CPU).plan(cfg.scale.micro_batch, cfg.scale.accumulation_steps)
    steps = max(size for name, size in plan.phases.items() if not name.startswith("validation"))
    images = cfg.scale.micro_batch * 3 * SIZE**2 * 4  # here there all the time
    assert 0.99 * (live.peak - images) <= sum(plan.held.values()) + steps <= 1.01 * live.peak


def test_validation_is_counted_as_it_runs():
    cfg = small("strategy=baseline")
    model = SyntheticRun(cfg, CPU).model
    data = EvaluationSet.of(tiny.load(SIZE, val=32), "val", None, 16, 0.75)
    with LiveBytes() as live:
        evaluate(model, LOSS, data, TASKS, CPU)
    planned = Planner(cfg, CPU).plan(2, 2).phases["validation, 32 images"]
    assert planned == pytest.approx(live.peak, rel=0.05)


@pytest.mark.parametrize("graph", ["kept", pytest.param("kept until the next", marks=SLOW)])
def test_a_graph_that_is_kept_is_counted_as_in_a_loop_that_keeps_it(graph):
    """Against the loop that people write, on real tensors: what it holds at most, its images and gradients left out."""
    cfg = small("strategy=pcgrad")
    model, loss = SyntheticRun(cfg, CPU).model.train(), LOSS
    images = torch.randn(8, 3, SIZE, SIZE)
    hidden = draw_hidden(8, 16, 0.75, torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    with LiveBytes([*state_of(model), *gradients, images, hidden]) as live:
        for _ in range(3):
            if graph == "kept":
                losses = None
            losses = loss(model(images, hidden), images, hidden, TASKS)
            for task in TASKS:
                losses[task].backward(retain_graph=True)
    passes = Passes(cfg, CPU)
    counted = {name: passes.training(TASKS, Sequential(), 8, graph=name) for name in GRAPHS}
    assert counted[graph] == pytest.approx(live.peak, rel=0.01)
    assert counted["freed"] <= counted["kept"] < 0.7 * counted["kept until the next"]


@contextmanager
def autocast_of_cuda() -> Iterator[None]:
    """CUDA's own, without a GPU: `torch.autocast("cuda")` turns itself off where there is none."""
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()


@pytest.mark.skipif(torch.version.cuda is None, reason="needs a PyTorch that is built for CUDA")
@pytest.mark.parametrize(
    ("encoder", "tolerance"),
    [
        ("mobilenetv3_small_050", 0.06),
        pytest.param("convnextv2_atto", 0.02, marks=SLOW),
        pytest.param("convnext_tiny", 0.01, marks=SLOW),
    ],
)
@pytest.mark.parametrize("low", [False, True])
def test_a_forward_pass_holds_what_it_would_on_cuda(encoder, tolerance, low):
    """Against fake tensors on CUDA, with CUDA's kernels and autocast; its backward pass needs a GPU."""
    with torch.device("meta"):
        model = MaskedAutoencoder(encoder, 256, 32, 1)
    peaks = {}
    for device in ("cpu", "cuda"):
        copied = copy.deepcopy(model)
        with FakeTensorMode(allow_non_fake_inputs=True), ExitStack() as stack:
            copied.to_empty(device=device)
            images = torch.empty(16, 1, 256, 256, device=device)
            hidden = torch.zeros(16, 48, dtype=torch.long, device=device)
            live = stack.enter_context(LiveBytes([*state_of(copied), images, hidden]))
            if low and device == "cpu":
                stack.enter_context(torch.autocast("cpu", torch.bfloat16))
                stack.enter_context(CudaCasts())
            elif low:
                stack.enter_context(autocast_of_cuda())
            predictions = copied(images, hidden)
            peaks[device] = live.peak
            del predictions
    assert peaks["cpu"] == pytest.approx(peaks["cuda"], rel=tolerance)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("baseline", [1, 2, 3, 4, 6, 12]), ("gcond_stochastic", [1, 2, 3, 6])],  # of the latter K is even
)
def test_choices_keep_the_effective_batch(strategy, expected):
    cfg = small(f"strategy={strategy}", "scale.micro_batch=6", "scale.accumulation_steps=2")
    found = Planner(cfg, CPU).choices()
    assert [size for size, _ in found] == expected
    assert all(size * steps == 12 for size, steps in found)


@pytest.mark.slow
def test_the_largest_that_fits_is_the_largest():
    plans = Planner(small("strategy=gcond_stochastic", "scale.micro_batch=8", "scale.accumulation_steps=2"), CPU)
    peaks = {size: plans.plan(size, steps).peak for size, steps in plans.choices()}
    largest = plans.largest(1.45 * peaks[4])
    assert largest is not None
    assert largest.micro_batch == max(size for size, peak in peaks.items() if 1.35 * peak <= 1.45 * peaks[4]) >= 4
    assert plans.largest(peaks[1]) is None  # it would fit, but for the margin
    assert plans.largest_of(2, plans.plan(1, 2).peak) is None  # likewise

    room = 3.3 * plans.plan(8, 2).peak
    found = plans.largest_of(2, room)
    assert found is not None
    assert found.accumulation_steps == 2
    assert found.fits(room)
    assert not plans.plan(found.micro_batch + 1, 2).fits(room)
    step = plans.largest_of(2, room, step_only=True)
    assert step is not None
    assert step.step_peak <= room < plans.plan(step.micro_batch + 1, 2).step_peak


def test_few_counts_tell_the_others(monkeypatch):
    assert on_a_line({1: 9, 8: 16, 16: 32, 32: 64}, 20) == 40
    assert on_a_line({8: 16, 16: 32, 32: 64}, 64) is None  # outside
    assert on_a_line({8: 16, 16: 33, 32: 64}, 20) is None  # not straight
    assert on_a_line({8: 16, 32: 64}, 20) is None  # nothing tells
    cfg = small("strategy=pcgrad")
    drawn, counted = Passes(cfg, CPU), Passes(cfg, CPU)
    found = [drawn.training(TASKS, Sequential(), size) for size in (8, 16, 64, 21)]
    expected = [counted.training(TASKS, Sequential(), size) for size in (8, 16, 64, 21, 33)]
    monkeypatch.setattr(memory, "FakeTensorMode", None)  # nothing more can be counted
    assert [*found, drawn.training(TASKS, Sequential(), 33)] == expected


@pytest.mark.cuda
@pytest.mark.parametrize("strategy", ["baseline", "pcgrad", "gcond_stochastic", "gcond_sequential"])
def test_the_planned_peak_is_that_of_a_gpu(strategy):
    """Within 10 %: the margin that plans for CUDA get. Steps are not diagnosed."""
    words = ["scale=paper", "model=mobilenetv3_small", "dataset=ct", "scale.steps_per_epoch=1000"]
    words += [f"strategy={strategy}", "scale.accumulation_steps=2"]
    SyntheticRun(compose([*words, "scale.micro_batch=2"]), CUDA).step()  # what libraries allocate once
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(CUDA)
    cfg = compose([*words, "scale.micro_batch=128"])
    run = SyntheticRun(cfg, CUDA)
    run.step()  # history, momentum and moments are there from now on
    torch.cuda.reset_peak_memory_stats(CUDA)
    for _ in range(2):
        run.step()
    measured = torch.cuda.max_memory_allocated(CUDA) - before
    plan = Planner(cfg, CUDA).plan(128, 2)
    planned = plan.step_peak - plan.held["next micro-batch on its way"]  # a rehearsal shows one again and again
    assert planned == pytest.approx(measured, rel=0.1)


def test_live_bytes_by_hand():
    x = torch.zeros(1000, requires_grad=True)
    with LiveBytes([x]) as live:
        y = x * 2  # 4000
        z = y.view(10, 100)
        assert live.now == 4000
        w = torch.cat([z, z])  # 8000
        assert (live.now, live.peak) == (12000, 12000)
        del y, z
        assert live.now == 8000  # neither the product with a number nor the view is saved
        w += 1
        assert (live.now, live.peak) == (8000, 12000)
        del w
        assert (live.now, live.peak) == (0, 12000)


def test_the_command_says_what_fits_without_data(capsys, monkeypatch):
    words = ["dataset=imagenet256", "scale=smoke", "model=mobilenetv3_small_050", "strategy=gcond_stochastic"]
    assert memory.main([*words, "batch=2", "--budget", "0.2GB"]) == 0
    text = capsys.readouterr().out
    assert "micro-batch 2, 2 of them a step" in text
    assert "\nfits into 0.2GB with a margin of 10%\n" in text
    assert "effective batch kept at 4: scale.micro_batch=2 scale.accumulation_steps=2 " in text
    free = next(line for line in text.splitlines() if "largest micro-batch with 2 of them a step" in line)
    assert int(re.search(r"scale.micro_batch=(\d+) scale.accumulation_steps=2", free)[1]) > 20  # type: ignore[index]
    text = memory.report(config(*words), "0.001GB")
    assert "\ndoes not fit into 0.001GB with a margin of 10%\n" in text
    assert text.count("none fits") == 2

    asked: list[list[str]] = []
    monkeypatch.setattr(memory, "compose", asked.append)
    monkeypatch.setattr(memory, "report", lambda *_: "")
    memory.main(["model=a", "batch=7"])
    assert asked == [["scale=paper", "model=a", "scale.micro_batch=7"]]


def test_sizes_are_told_apart():
    assert bytes_of("16GB", "--budget") == 16_000_000_000
    assert bytes_of("1.5GiB", "--budget") == 1_610_612_736
    for wrong in ("16", "16 GB", "16gb", "0GB", "-1GB", "16MB"):
        with pytest.raises(ValueError, match=r"`--budget`"):
            bytes_of(wrong, "--budget")


def test_the_shape_of_a_model_is_known_before_its_data():
    assert planned_shape(config("dataset=photos"))["channels"] == photos.load(64).intensity.channels
    assert planned_shape(config("dataset=ct"))["channels"] == Intensity.of_hu_window(0, 1, 0, 1).channels
    assert planned_shape(config("dataset=photos", "loss=l1_ssim_class")) == {"channels": 3, "classes": 4}
    with pytest.raises(ValueError, match=r"`dataset`"):
        planned_shape(config("dataset=photos", "dataset.name=others"))
    with pytest.raises(ValueError, match=r"`loss\.labels`"):
        planned_shape(config("dataset=photos", "loss=l1_ssim_class", "loss.labels=dataset"))

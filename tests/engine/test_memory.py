from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from engine import tiny
from engine.runs import config
from hydra.utils import instantiate
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gcond.config import compose
from gcond.data.intensity import Intensity
from gcond.engine import plan_memory
from gcond.engine.batches import Batch
from gcond.engine.evaluate import EvaluationSet, evaluate
from gcond.engine.memory import Planner, bytes_of
from gcond.engine.passes import GRAPHS, CudaCasts, LiveBytes, Passes, copy_to, state_of
from gcond.engine.settings import Settings
from gcond.engine.trainer import StepProbe, optimizer_of
from gcond.loss import TASKS
from gcond.model import MaskedAutoencoder
from gcond.model.masking import draw_hidden
from gcond.strategy import Joint
from gcond.synthetic_run import SyntheticRun, channels_of

CHANNELS, SIZE, HIDDEN = 3, 64, 12
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
BFLOAT16 = "+strategy.conductor.buffer_dtype=bfloat16"


def small(*overrides: str) -> tuple[Any, MaskedAutoencoder]:
    cfg = config(*SMALL, *overrides)
    model = MaskedAutoencoder("mobilenetv3_small_050", SIZE, 16, CHANNELS, width=32, depth=1)
    return cfg, model


def planner(*overrides: str) -> Planner:
    cfg, model = small(*overrides)
    return Planner(cfg, model, torch.device("cpu"))


class Run:
    """Real steps on the CPU, as the loop takes them."""

    def __init__(self, *overrides: str) -> None:
        self.cfg, self.model = small(*overrides)
        settings, scale = Settings(self.cfg), self.cfg.scale
        intensity = Intensity.of_photographs()
        self.loss = loss = instantiate(self.cfg.loss.reconstruction)(patch_size=scale.patch_size, intensity=intensity)
        self.conductor = settings.conductor(self.model.parameter_groups(), seed=0)
        self.optimizer = optimizer_of(self.cfg.optimizer.build, self.model.parameters(), 1e-3)
        generator = torch.Generator().manual_seed(0)

        def batches() -> Iterator[Batch]:
            while True:
                images = torch.randn(scale.micro_batch, CHANNELS, SIZE, SIZE, generator=generator)
                yield Batch(images, draw_hidden(scale.micro_batch, 16, 0.75, generator))

        def losses(batch: Batch, tasks: Sequence[str]) -> dict[str, Tensor]:
            return loss(self.model(batch.images, batch.hidden), batch.images, batch.hidden, tasks)

        self._batches, self._losses = batches, losses

    def step(self, diagnose: bool) -> None:
        self.conductor.step(self._batches(), self._losses, diagnose)
        probe = StepProbe(self.conductor) if diagnose else None
        self.optimizer.step()
        if probe is not None:
            probe.measure(1e-3)


def held(*roots: object, but: Sequence[Tensor]) -> int:
    """Bytes of all tensors in float32 and bfloat16 that can be reached from `roots`, those of `but` left out."""
    storages: dict[int, int] = {}
    seen = {id(tensor) for tensor in but}

    def visit(value: Any) -> None:
        if id(value) in seen or isinstance(value, (str, int, float, type, torch.dtype, torch.Generator)):
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            if value.dtype in (torch.float32, torch.bfloat16):
                storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict):
            for member in [*value.keys(), *value.values()]:
                visit(member)
        elif isinstance(value, (list, tuple, set)):
            for member in value:
                visit(member)
        elif type(value).__module__.startswith(("gcond", "torch.optim")):
            visit(vars(value))

    for root in roots:
        visit(root)
    return sum(storages.values())


@pytest.mark.parametrize(
    ("choices", "rows"),  # rows of P float32: task gradients, reference, mean, momentum, moments, diagnosis
    [
        (["strategy=baseline"], 1 + 0 + 0 + 0 + 2 + 1),
        (["strategy=baseline_integrated"], 1 + 0 + 0 + 1 + 2 + 1),
        (["strategy=pcgrad"], 2 + 0 + 1 + 0 + 2 + 1),
        (["strategy=pcgrad", "scale.accumulation_steps=1"], 2 + 0 + 0 + 0 + 2 + 1),
        (["strategy=gcond_stochastic"], 2 + 2 + 0 + 1 + 2 + 1),
        (["strategy=gcond_pure"], 2 + 2 + 0 + 0 + 2 + 1),
        (["strategy=gcond_lion"], 2 + 2 + 0 + 1 + 0 + 1),
        (["strategy=uw"], 1 + 0 + 0 + 0 + 2 + 1),
        (["strategy=gcond_sequential", BFLOAT16], (2 + 2 + 0 + 1) / 2 + 2 + 1 / 2),
        (["strategy=gcond_stochastic", "+strategy.conductor.reference_dtype=bfloat16"], 2 + 2 / 2 + 0 + 1 + 2 + 1),
    ],
)
def test_what_is_held_by_hand_and_as_really_held(choices: list[str], rows: float) -> None:
    run = Run(*choices)
    weights = state_of(run.model)
    parameters = sum(p.numel() for p in run.model.parameters())
    for _ in range(2):
        run.step(diagnose=True)

    parts = Planner(run.cfg, run.model, torch.device("cpu")).held(2, run.cfg.scale.accumulation_steps)
    assert parts.pop("weights") == sum(tensor.numel() * tensor.element_size() for tensor in weights)
    planned = sum(parts.values())
    counters = 4 * len(list(run.model.parameters()))  # AdamW's step of each parameter
    assert planned == pytest.approx(4 * parameters * rows, abs=counters)
    assert planned == pytest.approx(held(run.conductor, run.optimizer, but=weights), abs=counters)


def test_a_gpu_holds_the_next_micro_batch_as_raw_integers() -> None:
    """By hand: uint8 photographs, int64 places of hidden patches."""
    cfg, model = small("strategy=baseline")
    name = "next micro-batch on its way"
    assert Planner(cfg, model, torch.device("cuda")).held(5, 2)[name] == 5 * (CHANNELS * SIZE**2 + HIDDEN * 8)
    assert Planner(cfg, model, torch.device("cpu")).held(5, 2)[name] == 0
    cfg.dataset.name = "ct"  # int16
    assert Planner(cfg, model, torch.device("cuda")).held(5, 2)[name] == 5 * (CHANNELS * SIZE**2 * 2 + HIDDEN * 8)


@pytest.mark.parametrize(
    "choices",
    [
        ["strategy=baseline", "scale.micro_batch=2"],
        pytest.param(["strategy=pcgrad", "scale.micro_batch=16"], marks=SLOW),
        ["strategy=gcond_sequential", "strategy.conductor.estimator.forward=per_task"],
        pytest.param(["strategy=gcond_stochastic", "scale.micro_batch=1"], marks=SLOW),
        pytest.param(["strategy=gcond_sequential", BFLOAT16, "scale.micro_batch=4"], marks=SLOW),
        pytest.param(
            ["strategy=gcond_lion", "scale.micro_batch=32", "strategy.model_mode=eval"], marks=pytest.mark.slow
        ),
    ],
)
def test_the_planned_peak_is_the_peak_of_real_steps(choices: list[str]) -> None:
    with LiveBytes() as live:
        run = Run(*choices)
        run.step(diagnose=True)
        live.peak = live.now  # of what comes: not of building the model
        run.step(diagnose=False)
        run.step(diagnose=True)
    scale = run.cfg.scale
    plan = Planner(run.cfg, run.model, torch.device("cpu")).plan(scale.micro_batch, scale.accumulation_steps)
    validation = next(name for name in plan.phases if name.startswith("validation"))
    steps = max(size for name, size in plan.phases.items() if name != validation)
    assert sum(plan.held.values()) + steps == pytest.approx(live.peak, rel=0.01)


def test_validation_is_counted_as_it_runs() -> None:
    run = Run("strategy=baseline")
    data = EvaluationSet.of(tiny.load(SIZE, val=32), "val", None, 16, 0.75)
    with LiveBytes() as live:
        evaluate(run.model, run.loss, Intensity.of_photographs(), data, TASKS, torch.device("cpu"))
    planned = planner("strategy=baseline").plan(2, 2).phases["validation, 32 images"]
    assert planned == pytest.approx(live.peak, rel=0.05)


@pytest.mark.parametrize("graph", ["kept", pytest.param("kept until the next", marks=SLOW)])
def test_a_graph_that_is_kept_is_counted_as_in_a_loop_that_keeps_it(graph: str) -> None:
    """Against the loop that people write, on real tensors: what it holds at most, its images and gradients left out."""
    run = Run("strategy=pcgrad")
    images = torch.randn(8, CHANNELS, SIZE, SIZE)
    hidden = draw_hidden(8, 16, 0.75, torch.Generator().manual_seed(0))
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in run.model.parameters() if parameter.grad is not None]
    with LiveBytes([*state_of(run.model), *gradients, images, hidden]) as live:
        for _ in range(3):
            if graph == "kept":
                losses = None
            losses = run.loss(run.model(images, hidden), images, hidden, TASKS)
            for task in TASKS:
                losses[task].backward(retain_graph=True)
    passes = Passes(run.cfg, run.model, torch.device("cpu"))
    counted = {name: passes.training(TASKS, run.conductor.estimator, 8, graph=name) for name in GRAPHS}
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
def test_a_forward_pass_holds_what_it_would_on_cuda(encoder: str, tolerance: float, low: bool) -> None:
    """Against fake tensors on CUDA, with CUDA's kernels and autocast; its backward pass needs a GPU."""
    with torch.device("meta"):
        model = MaskedAutoencoder(encoder, 256, 32, 1)
    held = {}
    for device in ("cpu", "cuda"):
        with FakeTensorMode(allow_non_fake_inputs=True), ExitStack() as stack:
            copied = copy_to(model, device)
            images, hidden = (
                torch.empty(16, 1, 256, 256, device=device),
                torch.zeros(16, 48, dtype=torch.long, device=device),
            )
            live = stack.enter_context(LiveBytes([*state_of(copied), images, hidden]))
            if low and device == "cpu":
                stack.enter_context(torch.autocast("cpu", torch.bfloat16))
                stack.enter_context(CudaCasts())
            elif low:
                stack.enter_context(autocast_of_cuda())
            predictions = copied(images, hidden)
            held[device] = live.peak
            del predictions
    assert held["cpu"] == pytest.approx(held["cuda"], rel=tolerance)


def test_planning_leaves_the_run_as_it_was() -> None:
    """What it counts with, fakes without content, stays out of the model and of the loss's cache."""
    run = Run("strategy=gcond_sequential")
    before = [tensor.clone() for tensor in state_of(run.model)]
    Planner(run.cfg, run.model, torch.device("cpu")).plan(4, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(run.model), strict=True))
    run.step(diagnose=True)


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        (["strategy=baseline", "scale.micro_batch=6", "scale.accumulation_steps=2"], [1, 2, 3, 4, 6, 12]),
        (["strategy=gcond_stochastic", "scale.micro_batch=6", "scale.accumulation_steps=2"], [1, 2, 3, 6]),  # K even
    ],
)
def test_choices_keep_the_effective_batch(choices: list[str], expected: list[int]) -> None:
    found = planner(*choices).choices()
    assert [size for size, _ in found] == expected
    assert all(size * steps == 12 for size, steps in found)


@pytest.mark.slow
def test_the_largest_that_fits_is_the_largest() -> None:
    plans = planner("strategy=gcond_stochastic", "scale.micro_batch=8", "scale.accumulation_steps=2")
    peaks = {size: plans.plan(size, steps).peak for size, steps in plans.choices()}
    room = 1.45 * peaks[4]
    largest = plans.largest(room)
    assert largest is not None
    assert largest.micro_batch == max(size for size, peak in peaks.items() if 1.35 * peak <= room) >= 4
    below = plans.largest(room, below=largest.micro_batch)
    assert below is not None
    assert below.micro_batch == largest.micro_batch // 2
    assert plans.largest(peaks[1]) is None  # it would fit, but for the margin


@pytest.mark.slow
def test_the_largest_of_a_fixed_window_fits_and_the_next_does_not() -> None:
    plans = planner("strategy=gcond_stochastic")
    room = 3.3 * plans.plan(8, 2).peak
    made = len(plans._plans)
    found = plans.largest_of(2, room)
    assert found is not None
    assert found.accumulation_steps == 2
    assert found.fits(room)
    assert not plans.plan(found.micro_batch + 1, 2).fits(room)
    assert len(plans._plans) - made <= 8  # not a search by halves
    step = plans.largest_of(2, room, step_only=True)
    assert step is not None
    assert step.step_peak <= room < plans.plan(step.micro_batch + 1, 2).step_peak
    assert plans.largest_of(2, plans.plan(1, 2).peak) is None  # it would fit, but for the margin


@pytest.mark.parametrize("strategy", ["pcgrad", pytest.param("gcond_stochastic", marks=SLOW)])
def test_a_line_through_few_counts_is_what_counting_finds(strategy: str) -> None:
    cfg, model = small(f"strategy={strategy}")
    device = torch.device("cpu")
    estimator = planner(f"strategy={strategy}").conductor.estimator
    drawn, counted = (Passes(cfg, model, device, lines=on) for on in (True, False))
    for size in (5, 21, 192):
        assert drawn.training(TASKS, estimator, size) == counted.training(TASKS, estimator, size)
    sizes = {key[-4] for key in drawn._counted}
    assert sizes == {5, 8, 16, 192}  # 21 was not counted


def test_what_does_not_lie_on_a_line_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, model = small("strategy=baseline")
    passes = Passes(cfg, model, torch.device("cpu"), lines=True)
    monkeypatch.setattr(passes, "_count", lambda groups, shared, stale, size, *rest: size**2)
    assert passes.training(TASKS, Joint(), 50) == 2500
    monkeypatch.setattr(passes, "_counted", {})
    monkeypatch.setattr(passes, "_count", lambda groups, shared, stale, size, *rest: 7 * size + (size == 50))
    assert passes.training(TASKS, Joint(), 50) == 350


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("strategy", ["baseline", "pcgrad", "gcond_stochastic", "gcond_sequential"])
def test_the_planned_peak_is_that_of_a_gpu(strategy: str) -> None:
    """Within 10 %: the margin that plans for CUDA get. Steps are not diagnosed."""
    device = torch.device("cuda")
    words = ["scale=paper", "model=mobilenetv3_small", "dataset=ct", "scale.steps_per_epoch=1000"]
    words += [f"strategy={strategy}", "scale.accumulation_steps=2"]
    SyntheticRun(compose([*words, "scale.micro_batch=2"]), device).step()  # what libraries allocate once
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    cfg = compose([*words, "scale.micro_batch=128"])
    run = SyntheticRun(cfg, device)
    run.step()  # history, momentum and moments are there from now on
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):
        run.step()
    measured = torch.cuda.max_memory_allocated(device) - before
    plan = Planner(cfg, run.model, device).plan(128, 2)
    planned = plan.step_peak - plan.held["next micro-batch on its way"]  # a rehearsal shows one again and again
    assert planned == pytest.approx(measured, rel=0.1)


def test_live_bytes_by_hand() -> None:
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


def test_the_script_says_what_fits_without_data() -> None:
    small = ("dataset=imagenet256", "scale=smoke", "model=mobilenetv3_small_050", "strategy=gcond_stochastic")
    text = plan_memory.report(config(*small), "0.2GB")
    assert "micro-batch 2, 2 of them a step" in text
    assert "\nfits into 0.2GB with a margin of 10%\n" in text
    kept = next(line for line in text.splitlines() if "effective batch kept at 4" in line)
    assert "scale.micro_batch=2 scale.accumulation_steps=2 " in kept
    free = next(line for line in text.splitlines() if "largest micro-batch with 2 of them a step" in line)
    assert int(re.search(r"scale.micro_batch=(\d+) scale.accumulation_steps=2", free)[1]) > 20  # type: ignore[index]
    text = plan_memory.report(config(*small), "0.001GB")
    assert "\ndoes not fit into 0.001GB with a margin of 10%\n" in text
    assert text.count("none fits") == 2


def test_sizes_are_told_apart() -> None:
    assert bytes_of("16GB", "--budget") == 16_000_000_000
    assert bytes_of("1.5GiB", "--budget") == 1_610_612_736
    for wrong in ("16", "16 GB", "16gb", "0GB", "-1GB", "16MB"):
        with pytest.raises(ValueError, match=r"`--budget`: expected a size such as 16GB"):
            plan_memory.report(config(*SMALL), wrong)


def test_the_script_spells_out_the_batch_and_takes_the_papers_scale() -> None:
    assert plan_memory.overrides_of(["model=a", "batch=7"], "paper") == [
        "scale=paper",
        "model=a",
        "scale.micro_batch=7",
    ]
    assert plan_memory.overrides_of(["scale=mini"], "paper") == ["scale=mini"]


def test_channels_of_data_are_known_without_reading_it() -> None:
    from gcond.data import photos

    assert channels_of(config("dataset=photos")) == photos.load(64).intensity.channels
    assert channels_of(config("dataset=ct")) == Intensity.of_hu_window(0, 1, 0, 1).channels
    with pytest.raises(ValueError, match=r"`dataset`: expected one of ct, .*photos, imagenet256"):
        channels_of(config("dataset=photos", "dataset.name=others"))

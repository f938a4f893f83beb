"""scripts/bench_throughput.py: what it measures, under which cap, and that it does not measure twice."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from script_files import SCRIPTS, load

from gcond.config import compose
from gcond.report.records import read_csv
from gcond.report.throughput import COLUMNS, KEY, METHODS, OWN_BATCHES
from gcond.synthetic_run import SyntheticRun

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TINY = ["model=mobilenetv3_small_050", "model.width=32", "model.depth=1", "scale.image_size=64"]
TINY += ["scale.accumulation_steps=2", "scale.micro_batch=2"]
GB = 10**9


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A file of scripts/ by its name; the files find each other."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return load


@pytest.fixture
def bench(scripts: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with plans that cost no time."""
    module = scripts("bench_throughput")
    monkeypatch.setattr(module, "planned", lambda case, method, device: {"planned_micro_batch": 7, "planned_mb": 70.0})
    return module


def test_cases_on_the_cpu_are_those_of_the_experiments(scripts):
    cases = scripts("throughput_cases").cases
    table3 = cases("table3", CPU, "16GB", [])
    assert [(case.dataset, case.precision, case.own) for case in table3] == [
        ("imagenet256", "fp32", False),
        ("ct", "fp32", False),
    ]
    (table4,) = cases("table4", CPU, "16GB", [])
    for case, model, size in ((table3[1], "mobilenetv3_small", 256), (table4, "convnext_tiny", 128)):
        assert case.methods == tuple(METHODS)
        cfg = case.config("pcgrad")
        found = (cfg.dataset.name, cfg.model.name, cfg.strategy.name)
        assert found == ("ct", model, "pcgrad")
        assert (cfg.scale.image_size, cfg.scale.patch_size) == (size, 32)
        assert (cfg.scale.micro_batch, cfg.scale.accumulation_steps) == (1, 24)
        assert case.config("plain").strategy.name == "baseline"
        assert case.config("gcond_sequential").strategy.conductor.estimator.forward == "shared"
        assert case.config("gcond_sequential_per_task").strategy.conductor.estimator.forward == "per_task"
        assert case.paper_config("pcgrad").scale.image_size == 256
    assert table3[0].paper_config("pcgrad").scale.micro_batch == 256
    assert table4.paper_config("pcgrad").scale.micro_batch == 96


def test_cases_on_cuda_have_the_papers_shapes_and_both_precisions(scripts):
    cases = scripts("throughput_cases").cases
    found = [(case.precision, case.own) for case in cases("table4", GPU, "16GB", [])]
    assert found == [("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True)]
    table3 = cases("table3", GPU, "16GB", ["dataset=ct"])
    assert [(case.precision, case.config("baseline").precision) for case in table3] == [("fp32",) * 2, ("bf16",) * 2]
    assert {case.config("baseline").scale.micro_batch for case in table3} == {256}


def test_what_is_typed_replaces_what_the_experiment_and_the_cpu_say(scripts):
    typed = ["dataset=ct", "strategy=pcgrad,baseline", "precision=bf16", "scale.micro_batch=3", "model=convnext_tiny"]
    (case,) = scripts("throughput_cases").cases("table4", CPU, "16GB", [*typed, "scale.image_size=64"])
    assert case.methods == ("plain", "baseline", "pcgrad")
    cfg = case.config("baseline")
    assert (cfg.precision, cfg.scale.micro_batch, cfg.scale.image_size) == ("bf16", 3, 64)
    assert case.paper_config("baseline").scale.image_size == 256


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("strategy=pcgrad", "`strategy`: expected baseline, to which every ratio is, and others of .*; found pcgrad"),
        ("strategy=baseline,sgd", "`strategy`: expected baseline.*; found baseline,sgd"),
        ("dataset=photos", "`dataset` of table3: expected one of imagenet256, ct, found 'photos'"),
    ],
)
def test_choices_that_make_no_table_are_refused(scripts, typed, message):
    with pytest.raises(ValueError, match=message):
        scripts("throughput_cases").cases("table3", CPU, "16GB", [typed])


def test_the_control_moves_the_weights_as_baseline_does(scripts):
    """So what it leaves out is the conductor, and nothing of the training. SGD, which forgives no factor."""
    cfg = compose(["scale=paper", "dataset=ct", "strategy=baseline", "scale.warmup_epochs=0", "optimizer=sgd", *TINY])
    rehearsal, plain = SyntheticRun(cfg, CPU), scripts("throughput_cases").PlainLoop(cfg, CPU)
    start = [parameter.detach().clone() for parameter in plain.model.parameters()]
    for _ in range(3):
        rehearsal.step()
        plain.step()
    ours = torch.cat([parameter.detach().flatten() for parameter in rehearsal.model.parameters()])
    theirs = torch.cat([parameter.detach().flatten() for parameter in plain.model.parameters()])
    moved = theirs - torch.cat([values.flatten() for values in start])
    assert (ours - theirs).norm() < 1e-3 * moved.norm()


def test_the_largest_that_fits_wherever_the_search_starts(scripts):
    largest = scripts("throughput_memory").largest
    for limit in range(40):
        for start in (1, 2, 7, 8, 30, 39, 170):
            tried: list[int] = []
            assert largest(lambda n: tried.append(n) or n <= limit, start) == (limit or None)  # noqa: B023
            assert min(tried) >= 1
            assert len(set(tried)) == len(tried) <= 17


class Device:
    """A CUDA device of 20 GB for `_measured`: `limits` says how many images fit, by micro-batches of a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, memory: ModuleType, limits: dict[int, int]) -> None:
        self.fraction, self.tried = 0.0, []
        properties = type("Properties", (), {"total_memory": 20 * GB})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", self._set)
        monkeypatch.setattr(memory, "peak_mb", self._peak)
        self._limits = limits

    def _set(self, fraction: float, device: int | None) -> None:
        assert device is None or isinstance(device, int)  # PyTorch refuses torch.device("cuda"), which has no number
        self.fraction = fraction

    def _peak(self, case: object, method: str, device: torch.device, *more: str) -> float | None:
        size, steps = (int(text.split("=")[1]) for text in more)
        self.tried.append((size, steps))
        return 10.0 * size if size <= self._limits[steps] else None


def test_trials_under_the_cap(scripts, monkeypatch):
    memory = scripts("throughput_memory")
    same, own = scripts("throughput_cases").cases("table4", GPU, "16GB", ["precision=fp32"])
    device = Device(monkeypatch, memory, {2: 50, 24: 48})  # the whole step needs a little more
    assert memory._measured(own, "pcgrad", "cuda", start=96) == (48, 480.0)
    assert device.fraction == 0.8
    assert device.tried[-3:] == [(50, 24), (49, 24), (48, 24)]
    assert memory._measured(same, "pcgrad", "cuda", start=48) == (48, 480.0)
    assert memory._measured(same, "pcgrad", "cuda", start=49) is None
    Device(monkeypatch, memory, {2: 0, 24: 0})
    assert memory._measured(own, "pcgrad", "cuda", start=96) is None


def test_out_of_memory_in_a_trial_is_an_answer_and_other_errors_are_not(scripts, monkeypatch):
    memory = scripts("throughput_memory")
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)

    def fail(error: Exception) -> None:
        raise error

    monkeypatch.setattr(memory, "work_of", lambda *_: lambda: fail(torch.OutOfMemoryError("full")))
    assert memory.peak_mb(None, "pcgrad", GPU) is None
    monkeypatch.setattr(memory, "work_of", lambda *_: lambda: None)
    assert memory.peak_mb(None, "pcgrad", GPU) == 3.0
    monkeypatch.setattr(memory, "work_of", lambda *_: lambda: fail(KeyError("a mistake")))
    with pytest.raises(KeyError, match="a mistake"):
        memory.peak_mb(None, "pcgrad", GPU)


def test_ratios_of_own_batches_are_per_image(bench, scripts, monkeypatch):
    """By hand: 2 s for 8 images against 3 s for 4 is three times as long an image; PCGrad fits at no batch."""
    cases = scripts("throughput_cases")
    monkeypatch.setattr(cases, "describe", lambda device: "a GPU")
    monkeypatch.setattr(bench, "describe", lambda device: "a GPU")
    sizes = {"plain": 8, "baseline": 8, "gradnorm": 4, "pcgrad": None}
    found = {method: None if size is None else (size, 11.0) for method, size in sizes.items()}
    monkeypatch.setattr(bench, "measured", lambda case, method, device, start: found[method])
    seconds = {"plain": 1.0, "baseline": 2.0, "gradnorm": 3.0}

    def take(case: object, device: torch.device, sizes: dict[str, int], rounds: int) -> dict[str, np.ndarray]:
        assert sizes == {"plain": 8, "baseline": 8, "gradnorm": 4}
        return {method: np.full(rounds, value) for method, value in seconds.items()}

    monkeypatch.setattr(bench, "_taken_together", take)
    typed = ["precision=fp32", "strategy=baseline,gradnorm,pcgrad"]
    own = cases.cases("table4", GPU, "16GB", typed)[1]
    rows = {row["method"]: row for row in bench.measure(own, GPU, rounds=3)}
    assert [rows[name]["ratio"] for name in ("plain", "baseline", "gradnorm")] == [0.5, 1.0, 3.0]
    assert (rows["gradnorm"]["micro_batch"], rows["gradnorm"]["measured_mb"]) == (4, 11.0)
    assert rows["gradnorm"]["batches"] == OWN_BATCHES
    assert not {"ratio", "micro_batch", "measured_mb"} & set(rows["pcgrad"])


def test_no_room_for_all_together_says_what_to_do(bench, monkeypatch):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(bench, "work_of", full)
    with pytest.raises(ValueError, match=r"expected room for 2 methods side by side.*strategy=baseline,pcgrad"):
        bench._taken_together(None, CPU, {"baseline": 1, "pcgrad": 1}, 1)


@pytest.fixture
def run(bench, tmp_path):
    """The script on the CPU at a tiny size: its exit code."""

    def run(*arguments: str) -> int:
        words = ["--table", "3", "--device", "cpu", "--rounds", "2", "--results", str(tmp_path), *arguments]
        return bench.main([*words, "dataset=ct", "strategy=baseline,pcgrad", *TINY])

    return run


def test_a_case_is_measured_once_and_the_page_written(run, bench, tmp_path, monkeypatch, capsys):
    assert run() == 1  # the other methods are missing
    csv = tmp_path / "bench" / "table3.csv"
    rows = read_csv(csv, COLUMNS, KEY)
    assert set(rows.method) == {"plain", "baseline", "pcgrad"}
    assert set(rows.against) == {"baseline"}
    assert (rows.ratio_low <= rows.ratio).all()
    assert (rows.step_seconds > 0).all()
    assert set(rows.batches) == {"2"}
    assert csv.with_suffix(".md").read_text() in capsys.readouterr().out

    cases: list[object] = []
    first = rows.to_dict("records")
    monkeypatch.setattr(bench, "measure", lambda case, *_: cases.append(case) or [first[0] | {"ratio": 9.0}])
    assert run() == 1
    assert not cases
    assert "--anew measures it again" in capsys.readouterr().out
    run("--anew")
    assert len(cases) == 1
    again = read_csv(csv, COLUMNS, KEY)
    assert len(again) == 3
    assert set(again[again.method == first[0]["method"]].ratio) == {9.0}
    run("scale.patch_size=16")  # another setting, not recorded yet
    assert len(cases) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cap", "16"], "`--cap`: expected a size such as 16GB"),
        (["scale.bogus=1"], "scale.bogus"),
        (["--device", "cuda:99"], "`device`: found 'cuda:99'"),
    ],
)
def test_bad_input_ends_with_what_is_wrong(run, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_all_methods_of_table_4_take_their_steps(scripts, tmp_path):
    typed = ["scale.image_size=64", "scale.accumulation_steps=2"]
    words = ["--table", "4", "--device", "cpu", "--rounds", "2", "--results", str(tmp_path), "--cap", "2GB", *typed]
    assert scripts("bench_throughput").main(words) == 0
    rows = read_csv(tmp_path / "bench" / "table4.csv", COLUMNS, KEY).set_index(["method", "against"])
    assert len(rows) == len(METHODS) + 2
    batches = rows.planned_micro_batch.xs("baseline", level="against")
    assert batches["baseline"] >= batches["gcond_stochastic"] >= batches["gcond_sequential"] >= 1
    assert (rows.planned_mb.dropna() <= 2 * GB / 2**20).all()
    assert json.loads(rows.to_json())  # nothing in it that is no number


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_largest_batch_on_a_gpu_holds_no_more_than_the_cap(scripts):
    sizes = [text for text in TINY if "micro_batch" not in text]
    own = scripts("throughput_cases").cases("table4", GPU, "1GB", ["precision=fp32", *sizes])[1]
    memory = importlib.import_module("throughput_memory")  # by the name by which a new process finds it
    size, peak = memory.measured(own, "gcond_stochastic", GPU, start=64)
    assert size > 64
    assert 0.8 * GB < peak * 2**20 <= GB

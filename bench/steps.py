"""What a training step costs, against Baseline: cases whose works take turns in one process.

    python bench/steps.py CASE... [--device auto|cpu|cuda] [--rounds N] [--cap 16GB] [--anew] [--results DIR]
        [HYDRA_OVERRIDES, e.g. dataset=ct strategy=baseline,pcgrad precision=bf16 scale.micro_batch=4]

table3, table4   Tables 3 and 4 of the paper, at scale=paper; data sets and strategies of conf/experiment/CASE.yaml
step             every strategy on MobileNetV3-Small; convnext_tiny, convnextv2_base: some on these encoders
resolve          the arbitration alone, in copies of the task gradients J [m, P] (all of it holds COPIES times J)

Steps are real optimizer steps on made images (`SyntheticRun`). CPU: processor time of one thread at small shapes, so
ratios only. CUDA: the paper's shapes, fp32 and bf16; the peak memory of each method, alone in a process of its own that
may use --cap; Table 4 also with each method at its largest micro-batch under the cap, found by trial. Rows go to
bench.csv in --results, case by case; what is recorded there for this device is not measured again without --anew.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from gcond.config import CONFIG, compose
from gcond.engine.device import describe, is_out_of_memory, pick
from gcond.engine.memory import bytes_of
from gcond.files import OWN
from gcond.output import at_least_one, status_of
from gcond.strategy import (
    EMA,
    CAGrad,
    GCond,
    GradientConductor,
    PCGrad,
    Raw,
    Sequential,
)
from gcond.strategy.resolve.graddrop import GradDrop
from gcond.study import bench, pages
from gcond.synthetic_run import SyntheticRun
from gcond.timing import Ratio, interleaved, stamp

MIB = 2**20
Row = dict[str, object]

# Training steps

STRATEGIES = sorted(path.stem for path in (CONFIG / "strategy").glob("*.yaml"))
PEERS = "baseline_integrated,pcgrad,cagrad,gradnorm,graddrop"
PER_TASK = ["strategy=gcond_sequential", "strategy.conductor.estimator.forward=per_task"]
FORMS = {  # methods that are no option of conf/strategy
    **{name: ["strategy=baseline"] for name in ("plain", "forward", "forward and backward")},
    "gcond_sequential_per_task": PER_TASK,  # as published
}
SEQUENTIAL = ("gcond_sequential", "gcond_sequential_per_task")
TRIAL_STEPS = 2  # the second has history, momentum and optimizer state


@dataclass(frozen=True)
class Case:
    """Overrides of a bench: everywhere, on the CPU and on CUDA; comma lists of data sets, precisions, strategies."""

    shared: Mapping[str, str]
    cpu: Mapping[str, str]
    rounds: int
    cuda: Mapping[str, str] = field(default_factory=dict)


def experiment(name: str) -> dict[str, str]:
    params = OmegaConf.load(CONFIG / "experiment" / f"{name}.yaml").hydra.sweeper.params
    return {str(key): str(value) for key, value in params.items()}


def encoder(model: str, strategies: str) -> dict[str, str]:
    return {"dataset": "ct", "precision": "fp32", "model": model, "strategy": f"baseline,{strategies}"}


ONE, BOTH = {"scale.micro_batch": "1"}, {"precision": "fp32,bf16"}
CASES = {
    "table3": Case(experiment("table3"), ONE, 15, BOTH),
    "table4": Case(experiment("table4"), ONE | {"scale.image_size": "128"}, 7, BOTH),
    "step": Case(
        encoder("mobilenetv3_small", ",".join(name for name in STRATEGIES if name != "baseline")),
        {"scale.micro_batch": "2"},
        10,
        {"scale.micro_batch": "96"},
    ),
    "convnext_tiny": Case(
        encoder("convnext_tiny", f"gcond_stochastic,gcond_pure,gcond_lion,gcond_sequential,{PEERS}"),
        ONE | {"scale.image_size": "128"},
        6,
        {"scale.micro_batch": "32"},
    ),
    "convnextv2_base": Case(
        encoder("convnextv2_base", "gcond_stochastic,gcond_sequential"),
        ONE | {"scale.image_size": "64"},
        7,
        {"scale.micro_batch": "16"},
    ),
}


@dataclass(frozen=True)
class Setting:
    """What is measured together, in the same rounds; `own`: each method at its largest micro-batch under the cap."""

    bench: str
    overrides: tuple[str, ...]
    methods: tuple[str, ...]
    cap: str
    own: bool

    def config(self, method: str, *more: str) -> DictConfig:
        return compose([*self.overrides, *FORMS.get(method, [f"strategy={method}"]), *more])

    def about(self, device: torch.device) -> Row:
        """What its rows have in common."""
        cfg = self.config("baseline")
        shapes = {"image_size": cfg.scale.image_size, "accumulation_steps": cfg.scale.accumulation_steps}
        return {
            "bench": self.bench,
            "case": f"each its largest in {self.cap}" if self.own else "",
            "device": describe(device),
            "model": cfg.model.name,
            "dataset": cfg.dataset.name,
            "precision": cfg.precision,
            "micro_batch": None if self.own else cfg.scale.micro_batch,
            **shapes,
        }


def settings(name: str, device: torch.device, cap: str, typed: Sequence[str]) -> list[Setting]:
    """Of a case; `typed` overrides replace its own. Raises ValueError for strategies without Baseline or unknown."""
    case, on_cpu = CASES[name], device.type == "cpu"
    own = dict(text.partition("=")[::2] for text in typed)
    chosen = {"scale": "paper", "scale.steps_per_epoch": "1000", "precision": "fp32"} | dict(case.shared)
    chosen |= (case.cpu if on_cpu else case.cuda) | own
    strategies = chosen.pop("strategy").split(",")
    if "baseline" not in strategies or not set(strategies) <= set(STRATEGIES):
        raise ValueError(
            f"`strategy`: expected baseline, to which every ratio is, and others of {', '.join(STRATEGIES)}; found "
            f"{','.join(strategies)}"
        )
    forms = [form for form in FORMS if form != SEQUENTIAL[1] or SEQUENTIAL[0] in strategies]
    lists = [chosen.pop(key).split(",") for key in ("precision", "dataset")]
    bench_of = "step" if name in ("convnext_tiny", "convnextv2_base") else name
    largest = (False, True) if name == "table4" and not on_cpu else (False,)
    return [
        Setting(bench_of, tuple(f"{key}={value}" for key, value in one.items()), (*forms, *strategies), cap, largest_of)
        for precision, dataset, largest_of in itertools.product(*lists, largest)
        for one in [chosen | {"precision": precision, "dataset": dataset}]
    ]


class Plain:
    """The window as anybody would write it, without a conductor: the control for Baseline.

    Model, losses and optimizer are those of a synthetic run, whose one gradient row [P] is in memory though not used.
    """

    def __init__(self, cfg: DictConfig, device: torch.device) -> None:
        self._run = SyntheticRun(cfg, device)
        self.model = self._run.model.train()
        self._lambdas, self._micro_batches = dict(cfg.loss.tasks), cfg.scale.accumulation_steps
        self._clip_norm = cfg.strategy.conductor.clip_norm

    def forward(self) -> None:
        for _ in range(self._micro_batches):
            self._loss()

    def backward(self) -> None:
        self._run.optimizer.zero_grad()
        for _ in range(self._micro_batches):
            (self._loss() / self._micro_batches).backward()

    def step(self) -> None:
        self.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
        self._run.optimizer.step()

    def _loss(self) -> Tensor:
        losses = self._run.losses(list(self._lambdas))
        return sum((weight * losses[task] for task, weight in self._lambdas.items()), torch.zeros(()))


def work_of(setting: Setting, method: str, device: torch.device, *more: str) -> Callable[[], object]:
    """One step of `method`, ready to be taken again and again."""
    cfg = setting.config(method, *more)
    own = {"plain": "step", "forward": "forward", "forward and backward": "backward"}
    return getattr(Plain(cfg, device), own[method]) if method in own else SyntheticRun(cfg, device).step


def passes(cfg: DictConfig) -> tuple[int, int]:
    """Forward and backward passes of a micro-batch."""
    estimator, tasks = cfg.strategy.conductor.estimator, len(cfg.loss.tasks)
    if not estimator._target_.endswith(".Sequential"):
        return 1, 1
    return (tasks if estimator.get("forward", "shared") == "per_task" else 1), tasks


def measure(setting: Setting, device: torch.device, rounds: int) -> Iterator[Row]:
    """Raises ValueError where the methods do not fit on the device together."""
    about = setting.about(device) | stamp()
    sizes = dict.fromkeys(setting.methods, setting.config("baseline").scale.micro_batch)
    if device.type == "cuda":
        for method in setting.methods:
            if method.startswith("forward"):
                continue
            found = peak_alone(setting, method, device, sizes[method])
            if found is not None:
                sizes[method] = found[0]
                yield about | {"strategy": method, "quantity": "peak", "unit": "MB", "value": found[1]}
            elif setting.own:
                del sizes[method]
            if setting.own:
                value = found[0] if found else None
                yield about | {"strategy": method, "quantity": "largest_micro_batch", "unit": "images", "value": value}
    try:
        works = {method: work_of(setting, method, device, f"scale.micro_batch={n}") for method, n in sizes.items()}
        times = interleaved(works, rounds, device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(
            f"out of memory on {describe(device)}: expected room for {len(sizes)} methods side by side, each with its "
            "weights and moments; name fewer at a time: strategy=baseline,gcond_stochastic, then strategy=baseline,"
            "pcgrad, and so on"
        ) from error
    images = {method: taken / sizes[method] for method, taken in times.items()}
    yield from compared(about, times, images, "baseline", "ratio")
    for form in set(SEQUENTIAL) & set(images) if "gcond_stochastic" in images else ():
        yield about | ratio("gcond_stochastic", form, images, "ratio")
    r = float(np.median((times["forward and backward"] - times["forward"]) / times["forward"]))
    for method in [each for each in times if each not in FORMS or each in SEQUENTIAL]:
        forward, backward = passes(setting.config(method))
        bound = {"quantity": "bound", "unit": "ratio", "value": (forward + backward * r) / (1 + r)}
        yield about | {"strategy": method, "against": "baseline", "n": rounds} | bound


def peak_alone(setting: Setting, method: str, device: torch.device, start: int) -> tuple[int, float] | None:
    """Micro-batch and peak in MB of a method alone on the device, under the cap; None where it fails.

    The micro-batch is `start`, or, of a setting with own ones, the largest, `start` being where to look first.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:  # its own: the cap is for good
        return process.submit(_peak_alone, setting, method, str(device), start).result()


def _peak_alone(setting: Setting, method: str, device_name: str, start: int) -> tuple[int, float] | None:
    device = pick(device_name, threads=1)
    room = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(bytes_of(setting.cap, "--cap") / room, device.index)
    cfg = setting.config("baseline")
    short = len(cfg.loss.tasks)  # micro-batches of a trial: one is alive at a time, so that more do not hold more

    def peak(size: int, steps: int) -> float | None:
        return peak_mb(setting, method, device, f"scale.micro_batch={size}", f"scale.accumulation_steps={steps}")

    size = largest(lambda n: peak(n, short) is not None, start) if setting.own else start
    while size:
        found = peak(size, cfg.scale.accumulation_steps)
        if found is not None:
            return size, found
        size = size - 1 if setting.own else None
    return None


def peak_mb(setting: Setting, method: str, device: torch.device, *more: str) -> float | None:
    """None: out of memory. All of it is free again afterwards."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        work = work_of(setting, method, device, *more)
        for _ in range(TRIAL_STEPS):
            work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    return torch.cuda.max_memory_allocated(device) / MIB


def largest(fits: Callable[[int], bool], start: int) -> int | None:
    """The largest n >= 1 with fits(n), where smaller ones fit too; None where not even 1 does. Looks around `start`
    first, in growing steps."""
    good, bad, n, step = 0, math.inf, start, 1
    while bad - good > 1:
        if fits(n):
            good = n
        else:
            bad = n
        if bad == math.inf:
            n, step = good + step, 2 * step
        elif good == 0:
            n, step = max(1, int(bad) - step), 2 * step
        else:
            n = (good + int(bad)) // 2
    return good or None


# Rows


def ratio(name: str, against: str, taken: Mapping[str, np.ndarray], unit: str) -> Row:
    found = Ratio.of(taken[name], taken[against])
    numbers = {"value": found.median, "low": found.low, "high": found.high, "n": len(taken[name])}
    return {"strategy": name, "against": against, "quantity": "time", "unit": unit} | numbers


def compared(
    about: Row, times: Mapping[str, np.ndarray], taken: Mapping[str, np.ndarray], against: str, unit: str
) -> Iterator[Row]:
    """The median step of each work, and its ratio to `against` in what it has `taken` (a step, or an image of it)."""
    for name, own in times.items():
        step = {"quantity": "step_time", "unit": "s", "value": float(np.median(own)), "n": len(own)}
        yield about | {"strategy": name} | step
        if name != against:
            yield about | ratio(name, against, taken, unit)


# The arbitration alone

COPY = "copy of J"
PARAMETERS, TASKS = (3_000_000, 30_000_000, 90_000_000), (2, 3, 5, 10)
COPIES = 18  # of J that all works hold together, by trial: with m = 10 and P = 30 million 15 were not enough
CONFLICT = 0.65  # share of the common direction: cosine -a^2 / (1 + a^2) = -.3 between every other pair of tasks


class Filled(Sequential):
    """An estimator whose rows hold the task gradients already."""

    def backward(self, window: Any, values: Any) -> None:
        return


class Arbitration:
    """A conductor's step without forward and backward passes: statistics, solver, combination, update."""

    def __init__(self, rows: Tensor, resolver: Any, update: Any, **options: Any) -> None:
        weight = nn.Parameter(torch.zeros(rows.shape[1], device=rows.device))
        self._rows = rows
        self._losses = {f"t{i}": torch.ones((), device=rows.device, requires_grad=True) for i in range(len(rows))}
        tasks = dict.fromkeys(self._losses, 1.0)
        self.conductor = GradientConductor([weight], tasks, Filled(1), resolver, update, clip_norm=50.0, **options)
        gradients: Any = self.conductor.gradients
        gradients.zero = lambda: None
        gradients.reached = lambda: torch.ones(len(rows), 1, dtype=torch.bool)

    def fill(self) -> None:
        self.conductor.gradients.rows.copy_(self._rows)

    def step(self) -> None:
        self.conductor.step([None], lambda batch, names: self._losses)


def task_gradients(tasks: int, parameters: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(3)
    rows = torch.randn(tasks, parameters, generator=generator, device=device)
    common = torch.randn(parameters, generator=generator, device=device)
    for index, row in enumerate(rows):
        row.add_(common, alpha=CONFLICT if index % 2 else -CONFLICT)
    return rows


def resolve(device: torch.device, rounds: int, parameters: int, tasks: int) -> list[Row]:
    from torchjd import aggregation  # the other cases do without it

    from gcond.strategy.resolve.torchjd import TorchJD

    rows = task_gradients(tasks, parameters, device)
    arbitrations = {
        "GCond": Arbitration(rows, GCond(), EMA()),
        "GCond, compiled": Arbitration(rows, GCond(), EMA(), compiled=True),
        "GCond, bfloat16 reference": Arbitration(rows, GCond(), EMA(), reference_dtype="bfloat16"),
        "PCGrad": Arbitration(rows, PCGrad(), Raw()),
        "CAGrad": Arbitration(rows, CAGrad(), Raw()),
        "UPGrad": Arbitration(rows, TorchJD("UPGrad"), Raw()),
        "GradDrop": Arbitration(rows, GradDrop(), Raw()),
    }
    parts = arbitrations["GCond"].conductor.gradients
    compiled = arbitrations["GCond, compiled"].conductor.gradients
    buffer, out, weights, momentum = torch.empty_like(rows), torch.empty_like(rows[0]), torch.rand(tasks), EMA()
    made = {
        "TorchJD's PCGrad": aggregation.PCGrad(),
        "TorchJD's CAGrad": aggregation.CAGrad(c=0.5),
        "TorchJD's UPGrad": aggregation.UPGrad(),
    }
    works: dict[str, Callable[[], object]] = {
        COPY: lambda: buffer.copy_(rows),
        **{name: each.step for name, each in arbitrations.items()},
        "statistics": lambda: parts.products(rows),
        "statistics, compiled": lambda: compiled.products(rows),
        "combination": lambda: parts.combine(weights, weights, out),
        "momentum": lambda: momentum.apply(out, parts),
        "emptying the rows": lambda: buffer.zero_(),
        **{name: lambda method=method: method(rows) for name, method in made.items()},
    }
    fill = {name: each.fill for name, each in arbitrations.items()}
    times = interleaved(works, rounds, device, prepare=lambda name: fill.get(name, int)())
    about = {"bench": "resolve", "device": describe(device), "parameters": parameters, "tasks": tasks} | stamp(
        "torch", "torchjd"
    )
    return list(compared(about, times, times, COPY, "passes"))


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(known["MemAvailable"].split()[0]) * 1024


# Command line


def run(options: argparse.Namespace) -> None:
    device = pick(options.device, threads=1)
    cap = bytes_of(options.cap, "--cap")
    if device.type == "cuda" and cap > (total := torch.cuda.get_device_properties(device).total_memory):
        raise ValueError(f"`--cap`: expected at most the device's {total / 1e9:.1f}GB, found {options.cap}")
    todo: list[tuple[str, Row, Sequence[str], Callable[[], Any]]] = []
    for name in options.cases:
        if name == "resolve":
            for p, m in itertools.product(options.parameters, TASKS):
                about = {"bench": name, "device": describe(device), "parameters": p, "tasks": m}
                work = lambda p=p, m=m: resolve(device, options.rounds or 7, p, m)  # noqa: E731
                needed, free = COPIES * m * p * 4, free_bytes(device)
                if needed > free:
                    print(f"resolve, m = {m}, P = {p:,}: left out, needs {needed / 1e9:.0f} GB of {free / 1e9:.0f} GB")
                else:
                    todo.append((f"resolve, m = {m}, P = {p:,}", about, [COPY], work))
        else:
            for setting in settings(name, device, options.cap, options.overrides):
                rounds = options.rounds or (CASES[name].rounds if device.type == "cpu" else 15)
                about = setting.about(device)
                title = f"{name}, {about['dataset']}, {about['precision']} {about['case']}"
                work = lambda setting=setting, rounds=rounds: measure(setting, device, rounds)  # noqa: E731
                todo.append((title, about, setting.methods, work))
    for title, about, strategies, work in todo:
        if not options.anew and bench.is_recorded(options.results, about, strategies):
            print(f"{title}: recorded in {options.results}; --anew measures it again")
            continue
        print(title, flush=True)
        bench.add(options.results, work())
    print(f"written: {options.results}/bench.csv, {pages.make('bench', options.results)[0]}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    names = (*CASES, "resolve")
    parser.add_argument("words", nargs="+", help=f"cases of {', '.join(names)}, and overrides")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … (default: auto)")
    parser.add_argument("--rounds", type=at_least_one, help="default: 15 on CUDA, 6 to 15 on the CPU, 7 for resolve")
    parser.add_argument("--cap", default="16GB", help="memory that a method may use on CUDA (default: 16GB)")
    sizes = {"nargs": "+", "type": lambda text: int(float(text)), "default": list(PARAMETERS)}
    parser.add_argument("--parameters", **sizes, metavar="P", help="of resolve (default: 3e6 3e7 9e7)")
    parser.add_argument("--anew", action="store_true", help="measure also what is recorded")
    parser.add_argument("--results", type=Path, default=OWN, help=f"folder of bench.csv (default: {OWN})")
    options = parser.parse_intermixed_args(arguments)
    options.cases = [word for word in options.words if "=" not in word]
    options.overrides = [word for word in options.words if "=" in word]
    if unknown := sorted(set(options.cases) - set(names)):
        parser.error(f"expected cases of {', '.join(names)}, found {', '.join(unknown)}")
    warnings.filterwarnings("ignore", module="torch")
    return status_of(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())

"""What a step of every strategy holds on CUDA, and the largest micro-batches for a budget: planned, no GPU.

    python bench/memory.py [--strategies pcgrad,baseline] [--budget 16GB] [--anew] [--results DIR]

At the paper's scale, steps neither diagnosed nor followed by a validation, no margin. The peak against K, the number of
tasks and how long a graph is kept (MobileNetV3-Small; ResNet-50 against K alone; ImageNet at K = 24), the buffers of
each strategy in units of P float32 numbers, and the largest micro-batch in the budget (ConvNeXt). The project has two
tasks; the third is the mean square of the same prediction's error, lambda 0.1, with no layers of its own. Rows go to
bench.csv in --results; what is recorded there is not planned again without --anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from gcond.config import CONFIG, compose
from gcond.engine.memory import GRAPHS, Passes, Planner, bytes_of
from gcond.engine.settings import Settings
from gcond.files import OWN
from gcond.loss import TASKS, ReconstructionLoss
from gcond.model.patches import patchify, select
from gcond.output import status_of
from gcond.strategy import GradientConductor, Joint
from gcond.strategy import Sequential as SequentialEstimator
from gcond.study import bench, pages
from gcond.timing import stamp

MIB = 2**20
Row = dict[str, object]
STRATEGIES = sorted(path.stem for path in (CONFIG / "strategy").glob("*.yaml"))
SEQUENTIAL = ("gcond_sequential", "gcond_sequential_per_task")  # the latter as published
PER_TASK = ["strategy=gcond_sequential", "strategy.conductor.estimator.forward=per_task"]
BUFFERS = {  # words of `case` -> overrides
    "bfloat16 reference": ["+strategy.conductor.reference_dtype=bfloat16"],
    "bfloat16 buffers": ["+strategy.conductor.buffer_dtype=bfloat16"],
}
LARGEST = (  # of the paper; all others hold what one of these does
    *("baseline", "baseline_integrated", "pcgrad", "cagrad", "gradnorm", "graddrop"),
    *("gcond_stochastic", "gcond_pure", "gcond_lion", *SEQUENTIAL),
)
PROFILED = ("baseline", "gcond_stochastic", "pcgrad", *SEQUENTIAL)  # with ResNet-50
TABLE3 = ("baseline", "cagrad", "gradnorm", "pcgrad", "gcond_stochastic", *SEQUENTIAL)
LARGE = [("convnext_tiny", "ct", 256), ("convnextv2_base", "ct", 256)]
LARGE += [("convnextv2_base", "imagenet256", 256), ("convnextv2_base", "ct", 512)]
THIRD = {"square": 0.1}
CUDA = torch.device("cuda")
PARTS = {
    "task_gradients": "task-gradient rows",
    "reference": "reference rows",
    "mean": "mean of the resolutions",
    "momentum": "momentum",
    "optimizer": "optimizer state",
}


@dataclass(frozen=True)
class Plan:
    """What is planned, named as in bench.csv. Without a budget at the micro-batch."""

    strategy: str
    model: str = "mobilenetv3_small"
    dataset: str = "ct"
    image_size: int = 256
    precision: str = "fp32"
    accumulation_steps: int = 24
    tasks: int = 2
    graph: str = GRAPHS[0]
    buffers: str = ""
    budget: str = ""
    micro_batch: int = 256

    def about(self) -> Row:
        """What its rows have in common, but for P."""
        graph = "" if self.graph == GRAPHS[0] else f"graph {self.graph}"
        fields = asdict(self)
        words = ", ".join(filter(None, [fields.pop("budget"), graph, fields.pop("buffers")]))
        del fields["graph"]
        batch = {"micro_batch": None} if self.budget else {}
        return {"bench": "memory", "case": words, "device": "planned for CUDA"} | fields | batch

    def overrides(self) -> list[str]:
        strategy = PER_TASK if self.strategy == SEQUENTIAL[1] else [f"strategy={self.strategy}"]
        words = ["scale=paper", f"model={self.model}", f"dataset={self.dataset}", f"precision={self.precision}"]
        words += [f"scale.{name}={getattr(self, name)}" for name in ("image_size", "micro_batch", "accumulation_steps")]
        return [*words, *strategy, *BUFFERS.get(self.buffers, [])]

    def passes(self) -> tuple[object, ...]:
        """Of plans that are equal in this the passes are counted together."""
        return (self.model, self.dataset, self.image_size, self.precision, self.tasks)


def plans(strategies: Sequence[str], budget: str) -> Iterator[Plan]:
    for name in strategies:
        conductor = conductor_of(name)
        graphs = GRAPHS if shares_a_graph(conductor) else GRAPHS[:1]
        taking_turns = not isinstance(conductor.estimator, (Joint, SequentialEstimator))  # a micro-batch for each task
        windows = [k for k in (1, 2, 8, 24) if k > 1 or not taking_turns]
        yield from (Plan(name, accumulation_steps=k) for k in windows)
        yield from (Plan(name, graph=graph, tasks=m) for m in (2, 3) for graph in graphs if (m, graph) != (2, "freed"))
        if conductor.resolver.uses_history:
            yield from (Plan(name, buffers=words) for words in BUFFERS)
        if name in PROFILED:
            yield from (Plan(name, "resnet50", accumulation_steps=k) for k in (*windows, 4))
        if name in TABLE3:
            yield Plan(name, dataset="imagenet256")
        for shapes in LARGE if name in LARGEST else ():
            for precision in ("fp32", "bf16"):
                for graph in dict.fromkeys((graphs[0], graphs[-1])):
                    yield Plan(name, *shapes, precision, graph=graph, budget=budget)
                if name == "gcond_stochastic":
                    yield Plan(name, *shapes, precision, buffers="bfloat16 buffers", budget=budget)


def conductor_of(strategy: str) -> GradientConductor:
    parameters = {name: [torch.nn.Parameter(torch.zeros(1))] for name in ("head", "body")}
    return Settings(compose(Plan(strategy).overrides())).conductor(parameters, seed=0)


def shares_a_graph(conductor: GradientConductor) -> bool:
    """Whether several backward passes share a graph."""
    estimator = conductor.estimator
    return isinstance(estimator, SequentialEstimator) and estimator.forward == "shared"


class WithSquare(ReconstructionLoss):
    """The reconstruction losses, and "square"."""

    def __call__(self, predictions: Tensor, images: Tensor, hidden: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        losses = super().__call__(predictions, images, hidden, [task for task in tasks if task in TASKS])
        if "square" in tasks:
            with torch.autocast("cpu", enabled=False):
                targets = select(patchify(images, self.patch_size), hidden)
                losses["square"] = (predictions.float() - targets).square().mean()
        return losses


def passes_of(plan: Plan) -> Passes:
    passes = Passes(compose(plan.overrides()), CUDA)
    if plan.tasks == 3:
        passes.loss = WithSquare(passes.loss.patch_size, passes.loss.intensity)
    return passes


def measure(plan: Plan, passes: Passes) -> Iterator[Row]:
    cfg = compose(plan.overrides())
    tasks = {str(name): float(value) for name, value in cfg.loss.tasks.items()} | (THIRD if plan.tasks == 3 else {})
    planner = Planner(cfg, CUDA, passes, tasks, plan.graph)
    size, k = planner.conductor.gradients.size, plan.accumulation_steps
    about = plan.about() | {"parameters": size} | stamp()
    if plan.budget:
        found = planner.largest_of(k, bytes_of(plan.budget, "--budget"), step_only=True)
        images = None if found is None else found.micro_batch
        yield about | {"quantity": "largest_micro_batch", "unit": "images", "value": images}
        yield about | {"quantity": "peak_at_1", "unit": "MB", "value": planner.plan(1, k).step_peak / MIB}
        return
    one = planner.plan(plan.micro_batch, k)
    yield about | {"quantity": "peak", "unit": "MB", "value": one.step_peak / MIB}
    if plan == Plan(plan.strategy, buffers=plan.buffers):
        for name, part in PARTS.items():
            yield about | {"quantity": name, "unit": "P", "value": round(one.held[part] / (4 * size), 4)}


def run(options: argparse.Namespace) -> None:
    bytes_of(options.budget, "--budget")
    names = [*STRATEGIES, SEQUENTIAL[1]]
    if unknown := sorted(set(options.strategies) - set(names)):
        raise ValueError(f"--strategies: expected some of {', '.join(names)}, found {', '.join(unknown)}")
    todo = [
        plan
        for plan in plans(options.strategies or names, options.budget)
        if options.anew or not bench.is_recorded(options.results, plan.about(), [plan.strategy])
    ]
    shared: dict[tuple[object, ...], Passes] = {}
    rows: list[Row] = []
    for plan in tqdm(sorted(todo, key=lambda plan: str(plan.passes())), unit="plan"):
        if plan.passes() not in shared:
            bench.add(options.results, rows)
            shared, rows = {plan.passes(): passes_of(plan)}, []
        rows += measure(plan, shared[plan.passes()])
    bench.add(options.results, rows)
    print(f"written: {options.results}/bench.csv, {pages.make('bench', options.results)[0]}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("--strategies", type=lambda text: text.split(","), default=[], help="default: all")
    parser.add_argument("--budget", default="16GB", help="of a device, such as 16GB or 16GiB")
    parser.add_argument("--anew", action="store_true", help="plan also what is recorded")
    parser.add_argument("--results", type=Path, default=OWN, help=f"folder of bench.csv (default: {OWN})")
    options = parser.parse_args(arguments)
    return status_of(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())

"""What a step of every strategy holds in memory on CUDA, and the largest micro-batch for a budget: planned, no GPU.

    python scripts/bench_memory.py [--out results/bench/memory.csv] [--add] [--budget 16GB]
    [--strategies pcgrad,baseline]

At the paper's scale. A row is one plan: at the paper's micro-batch against K, the number of tasks and how long a graph
is kept (MobileNetV3-Small, CT; ResNet-50 against K alone), or at the largest micro-batch for the budget (ConvNeXt).
Steps are neither diagnosed nor followed by a validation, and there is no margin, as where others report what their
steps took. Passes are counted at a few micro-batches; in between their memory lies on a line, to the byte, or is
counted.

The project has two tasks; the third is the mean square of the same prediction's error, lambda 0.1, with no layers of
its own. Passes are counted once for all strategies that run the same. A row that is in `--out` already, of the same
commit, is kept; with `--add` whatever its commit, so that only new rows are planned (the page names all commits).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from gcond.config import CONFIG, build, compose
from gcond.engine.device import commit
from gcond.engine.memory import Plan, Planner, bytes_of
from gcond.engine.passes import GRAPHS, Loss, Passes
from gcond.engine.settings import Settings
from gcond.files import write_text
from gcond.loss import TASKS
from gcond.model.patches import patchify, select
from gcond.report.memory import COLUMNS, FORMS, KEY, PER_TASK, STEPS, page
from gcond.report.records import frame, read_csv, write_csv
from gcond.strategy import GradientConductor, Joint, Sequential
from gcond.synthetic_run import channels_of
from gcond.timing import versions

STRATEGIES = sorted(path.stem for path in (CONFIG / "strategy").glob("*.yaml"))
PER_TASK_CHOICE = "strategy.conductor.estimator.forward=per_task"
FORM_CHOICES = {
    "": [],
    "bfloat16 reference": ["+strategy.conductor.reference_dtype=bfloat16"],
    "bfloat16 buffers": ["+strategy.conductor.buffer_dtype=bfloat16"],
}
LARGEST = (  # of the paper; all others hold what one of these does
    *("baseline", "baseline_integrated", "pcgrad", "cagrad", "gradnorm", "graddrop"),
    *("gcond_stochastic", "gcond_pure", "gcond_lion", "gcond_sequential"),
)
PROFILED = ("baseline", "gcond_stochastic", "gcond_sequential", "pcgrad")  # with ResNet-50
THIRD = {"square": 0.1}
CUDA = torch.device("cuda")
PARTS = {
    "weights": "weights",
    "task-gradient rows": "rows",
    "reference rows": "reference",
    "mean of the resolutions": "mean",
    "momentum": "momentum",
    "optimizer state": "optimizer",
    "next micro-batch on its way": "next_images",
}


@dataclass(frozen=True)
class Case:
    """What is planned. An empty `budget` plans at `micro_batch`."""

    budget: str
    model: str
    dataset: str
    image_size: int
    precision: str
    strategy: str
    form: str
    graph: str = "freed"
    tasks: int = 2
    accumulation_steps: int = 24
    micro_batch: int = 256

    @property
    def overrides(self) -> list[str]:
        name, per_task = self.strategy.removesuffix(PER_TASK), self.strategy.endswith(PER_TASK)
        return [
            *("scale=paper", f"model={self.model}", f"dataset={self.dataset}", f"strategy={name}"),
            f"scale.image_size={self.image_size}",
            f"scale.micro_batch={self.micro_batch}",
            f"scale.accumulation_steps={self.accumulation_steps}",
            f"precision={self.precision}",
            *([PER_TASK_CHOICE] if per_task else []),
            *FORM_CHOICES[self.form],
        ]

    @property
    def passes(self) -> tuple[object, ...]:
        """Of cases that are equal in this the passes are counted together."""
        return (self.model, self.dataset, self.image_size, self.precision, self.tasks)


def cases(strategies: list[str], budget: str) -> Iterator[Case]:
    names = strategies + [f"{name}{PER_TASK}" for name in strategies if name == "gcond_sequential"]
    shapes = ("mobilenetv3_small", "ct", 256, "fp32")
    for name in names:
        conductor = conductor_of(name)
        for form in FORMS if conductor.resolver.uses_history else [""]:
            yield Case("", *shapes, name, form)
        yield Case("", *shapes, name, "", tasks=3)
        for steps in (1, 2, 8):
            if possible(name, steps):
                yield Case("", *shapes, name, "", accumulation_steps=steps)
        for graph in GRAPHS[1:] if keeps(conductor) else ():
            yield Case("", *shapes, name, "", graph)
            yield Case("", *shapes, name, "", graph, tasks=3)
    for name in [name for name in names if name.removesuffix(PER_TASK) in PROFILED]:
        for steps in STEPS:
            if possible(name, steps):
                yield Case("", "resnet50", *shapes[1:], name, "", accumulation_steps=steps)
    for model, dataset, size in (
        ("convnext_tiny", "ct", 256),
        ("convnextv2_base", "ct", 256),
        ("convnextv2_base", "imagenet256", 256),
        ("convnextv2_base", "ct", 512),
    ):
        for precision in ("fp32", "bf16"):
            for name in [name for name in names if name.removesuffix(PER_TASK) in LARGEST]:
                for graph in (GRAPHS[0], GRAPHS[-1]) if keeps(conductor_of(name)) else GRAPHS[:1]:
                    yield Case(budget, model, dataset, size, precision, name, "", graph)
            if "gcond_stochastic" in names:
                yield Case(budget, model, dataset, size, precision, "gcond_stochastic", "bfloat16 buffers")


def conductor_of(strategy: str) -> GradientConductor:
    cfg = compose(Case("", "mobilenetv3_small", "ct", 256, "fp32", strategy, "").overrides)
    return Settings(cfg).conductor({name: [torch.nn.Parameter(torch.zeros(1))] for name in ("head", "body")}, seed=0)


def possible(strategy: str, steps: int) -> bool:
    """Whether a window of so few micro-batches has one for each of two tasks, where it must."""
    return steps > 1 or isinstance(conductor_of(strategy).estimator, (Joint, Sequential))


def keeps(conductor: GradientConductor) -> bool:
    """Whether several backward passes share a graph."""
    return isinstance(conductor.estimator, Sequential) and conductor.estimator.forward == "shared"


def passes_of(case: Case) -> tuple[Passes, torch.nn.Module]:
    cfg = compose(case.overrides)
    with torch.device("meta"):
        model = build(cfg.model, channels=channels_of(cfg))
    passes = Passes(cfg, model, CUDA, lines=True)
    if case.tasks == 3:
        passes = Passes(cfg, model, CUDA, with_third(passes.loss, cfg.scale.patch_size))
    return passes, model


def with_third(loss: Loss, side: int) -> Loss:
    def losses(predictions: Tensor, images: Tensor, hidden: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        known = dict(loss(predictions, images, hidden, [task for task in tasks if task in TASKS]))
        if "square" in tasks:
            with torch.autocast("cpu", enabled=False):
                known["square"] = (predictions.float() - select(patchify(images, side), hidden)).square().mean()
        return known

    return losses


def planned(case: Case, passes: Passes, model: torch.nn.Module) -> dict[str, object]:
    cfg = compose(case.overrides)
    tasks = {str(name): float(value) for name, value in cfg.loss.tasks.items()} | (THIRD if case.tasks == 3 else {})
    planner = Planner(cfg, model, CUDA, passes, tasks, case.graph)  # type: ignore[arg-type]
    plan: Plan | None = planner.plan(case.micro_batch, case.accumulation_steps)
    one = None
    if case.budget:
        one = planner.plan(1, case.accumulation_steps).step_peak
        plan = planner.largest_of(case.accumulation_steps, bytes_of(case.budget, "--budget"), step_only=True)
    estimator = planner.conductor.estimator
    kind = "joint" if isinstance(estimator, Joint) else "shared" if keeps(planner.conductor) else "one task at a time"
    found = asdict(case) | {
        "parameters": planner.conductor.gradients.size,
        "passes": kind,
        "one": one,
        "versions": versions(("torch", "timm", "torchjd")),
        "commit": commit()[0],
        "micro_batch": None if plan is None else plan.micro_batch,
    }
    if plan is not None:
        found |= {column: plan.held[part] for part, column in PARTS.items()}
        found |= {"images_and_activations": plan.phases["forward and backward"], "peak": plan.step_peak}
    return found


def recorded(path: Path | None, of_any_commit: bool) -> pd.DataFrame:
    """Rows of this commit, unless `of_any_commit`: those of another may have been planned by other code."""
    if path is None or not path.exists():
        return frame([], COLUMNS)
    rows = read_csv(path, COLUMNS, KEY)
    return rows if of_any_commit else rows[rows["commit"] == commit()[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--budget", default="16GB", help="of a device, such as 16GB or 16GiB")
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="of conf/strategy")
    parser.add_argument("--out", type=Path, help="a CSV file; the page is written beside it")
    parser.add_argument("--add", action="store_true", help="keep the rows of other commits")
    arguments = parser.parse_args()
    bytes_of(arguments.budget, "--budget")
    unknown = sorted(set(arguments.strategies.split(",")) - set(STRATEGIES))
    if unknown:
        raise ValueError(f"--strategies: expected names of conf/strategy, found {', '.join(unknown)}")
    table = recorded(arguments.out, arguments.add)
    done = {tuple(row) for row in table[KEY].itertuples(index=False)}
    todo = [
        case
        for case in cases(arguments.strategies.split(","), arguments.budget)
        if tuple(asdict(case)[name] for name in KEY) not in done
    ]
    shared: dict[tuple[object, ...], tuple[Passes, torch.nn.Module]] = {}
    rows = []
    for case in tqdm(sorted(todo, key=lambda case: str(case.passes)), unit="plan"):
        if case.passes not in shared:
            shared = {case.passes: passes_of(case)}
        rows.append(planned(case, *shared[case.passes]))
    table = pd.concat([table, frame(rows, COLUMNS)]) if len(table) else frame(rows, COLUMNS)
    if arguments.out:
        write_csv(arguments.out, table, KEY)
        table = read_csv(arguments.out, COLUMNS, KEY)
        write_text(arguments.out.with_suffix(".md"), page(table))
    print(page(table))


if __name__ == "__main__":
    main()

"""What scripts/bench_throughput.py measures: cases of Tables 3 and 4, and one optimizer step of each method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from omegaconf import DictConfig, OmegaConf

from gcond.config import CONFIG, compose
from gcond.engine.device import describe
from gcond.report import paper_throughput as paper
from gcond.report.throughput import METHODS, OWN_BATCHES
from gcond.synthetic_run import SyntheticRun

CPU_SHAPES = {  # so that one Baseline step of K = 24 micro-batches takes one thread seconds, not hours
    "table3": {"scale.micro_batch": "1"},  # at the paper's 256 px: 1 to 2 s
    "table4": {"scale.micro_batch": "1", "scale.image_size": "128"},  # 6 to 8 s
}
CHOICES = {  # of methods that are no option of conf/strategy
    "plain": ["strategy=baseline"],
    "gcond_sequential_per_task": ["strategy=gcond_sequential", "strategy.conductor.estimator.forward=per_task"],
}
STRATEGIES = [method for method in METHODS if method not in CHOICES]


@dataclass(frozen=True)
class Case:
    """What is measured together, in the same rounds.

    Args:
        methods: of `gcond.report.throughput.METHODS`, in that order.
        shared: overrides of all methods, of the steps that are taken.
        paper: the same at the paper's shapes.
        cap: memory of the device that one method may use, such as 16GB.
        own: each method has its own largest micro-batch under the cap.
    """

    table: str
    dataset: str
    precision: str
    methods: tuple[str, ...]
    shared: tuple[str, ...]
    paper: tuple[str, ...]
    cap: str
    own: bool

    def config(self, method: str, *more: str) -> DictConfig:
        return compose([*self.shared, *CHOICES.get(method, [f"strategy={method}"]), *more])

    def paper_config(self, method: str) -> DictConfig:
        return compose([*self.paper, *CHOICES.get(method, [f"strategy={method}"])])

    def setting(self, device: torch.device) -> dict[str, object]:
        """What names the case among recorded rows (`gcond.report.throughput.SETTING`)."""
        cfg = self.config("baseline")
        return {
            "device": describe(device),
            "precision": self.precision,
            "batches": OWN_BATCHES if self.own else str(cfg.scale.micro_batch),
            "cap": self.cap,
            "model": cfg.model.name,
            "dataset": self.dataset,
            "image_size": cfg.scale.image_size,
            "patch_size": cfg.scale.patch_size,
            "accumulation_steps": cfg.scale.accumulation_steps,
        }


def cases(table: str, device: torch.device, cap: str, overrides: list[str]) -> list[Case]:
    """`overrides`, of Hydra, replace what conf/experiment/<table>.yaml and CPU_SHAPES say.

    Raises ValueError for a data set or strategy that the table does not know, and for strategies without Baseline.
    """
    experiment = OmegaConf.load(CONFIG / "experiment" / f"{table}.yaml").hydra.sweeper.params
    on_cpu = device.type == "cpu"
    chosen = {"scale": "paper", "precision": "fp32" if on_cpu else "fp32,bf16"}
    chosen |= {key: str(value) for key, value in experiment.items()}
    typed = dict(text.partition("=")[::2] for text in overrides)
    own = (False, True) if table == "table4" and not on_cpu else (False,)
    taken = chosen | (CPU_SHAPES[table] if on_cpu else {}) | typed
    at_paper = chosen | {key: value for key, value in typed.items() if not key.startswith("scale.")}
    datasets, precisions, strategies = (taken[key].split(",") for key in ("dataset", "precision", "strategy"))
    for dataset in datasets:
        paper.of(table, dataset)
    methods = _methods(strategies)

    def fixed(values: dict[str, str], **of_case: str) -> tuple[str, ...]:
        values = {key: value for key, value in values.items() if key != "strategy"} | of_case
        return tuple(f"{key}={value}" if value else key for key, value in values.items())

    return [
        Case(
            table,
            dataset,
            precision,
            methods,
            fixed(taken, dataset=dataset, precision=precision),
            fixed(at_paper, dataset=dataset, precision=precision),
            cap,
            is_own,
        )
        for precision, dataset, is_own in product(precisions, datasets, own)
    ]


def _methods(strategies: list[str]) -> tuple[str, ...]:
    if "baseline" not in strategies or not set(strategies) <= set(STRATEGIES):
        raise ValueError(
            f"`strategy`: expected baseline, to which every ratio is, and others of {', '.join(STRATEGIES)}; found "
            f"{','.join(strategies)}"
        )
    also = {"plain"} | ({"gcond_sequential_per_task"} if "gcond_sequential" in strategies else set())
    return tuple(method for method in METHODS if method in also or method in strategies)


class PlainLoop:
    """Baseline as anybody would write it, without the conductor: the control for the conductor's Baseline.

    Model, losses and optimizer are those of a rehearsal, whose one gradient row [P] is in memory though not used.
    """

    def __init__(self, cfg: DictConfig, device: torch.device) -> None:
        self._run = SyntheticRun(cfg, device)
        self.model = self._run.model
        self._lambdas, self._micro_batches = dict(cfg.loss.tasks), cfg.scale.accumulation_steps
        self._clip_norm = cfg.strategy.conductor.clip_norm

    def step(self) -> None:
        self.model.train()
        for _ in range(self._micro_batches):
            losses = self._run.losses(list(self._lambdas))
            loss = sum(weight * losses[task] for task, weight in self._lambdas.items())
            (loss / self._micro_batches).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
        self._run.optimizer.step()
        self._run.optimizer.zero_grad()


def work_of(case: Case, method: str, device: torch.device, *more: str) -> Callable[[], object]:
    """One optimizer step of `method`, ready to be taken again and again."""
    cfg = case.config(method, *more)
    return PlainLoop(cfg, device).step if method == "plain" else SyntheticRun(cfg, device).step

"""Whether everything that the study would train at scale=paper starts: settings, memory and a first step, on the CPU.

    python tools/rehearse_paper.py [--experiments table2,o1] [--micro-batch 2] [--out runs/rehearsal.csv] [--no-step]

Every experiment's runs are composed with scale=paper, at the first seed, learning rate, weight decay and data set of
each (ImageNet in the place of photos), and their settings are checked. Of runs that differ in more than numbers that
only scale something, one is planned at the exact settings (peak on one CUDA device, in GB of 10^9 bytes) and takes its
first, diagnosed optimizer step on made images: 256 pixels, K = 24, the whole encoder. ONLY THE MICRO-BATCH IS CUT, from
256 to --micro-batch. What is in `--out` already, of the same commit, is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from gcond.config import CONFIG
from gcond.engine.device import commit
from gcond.engine.memory import Passes, Planner
from gcond.engine.run_folder import resolved
from gcond.engine.settings import Settings
from gcond.files import write_atomically
from gcond.sweep.plan import plan
from gcond.synthetic_run import SyntheticRun

EXPERIMENTS = sorted(path.stem for path in (CONFIG / "experiment").glob("*.yaml"))
COLUMNS = ["case", "commit", "experiments", "runs", "model", "dataset", "micro_batch", "planned_gb", "seconds", "error"]
ONCE = ("seed", "dataset", "optimizer.lr", "optimizer.build.weight_decay")
Cases = dict[str, tuple[DictConfig, list[str]]]
"""What is rehearsed once -> a config of it, and the experiment of each run that it stands for."""


def runs_of(experiment: str) -> Iterator[DictConfig]:
    """At the first value of what is in `ONCE`."""
    params = OmegaConf.load(CONFIG / "experiment" / f"{experiment}.yaml").hydra.sweeper.params
    first = {key: str(params[key]).split(",")[0].replace("photos", "imagenet256") for key in ONCE if key in params}
    words = [f"{key}={value}" for key, value in first.items()]
    for run in plan([f"experiment={experiment}", "scale=paper", *words]):
        yield run.cfg


def name_of(cfg: DictConfig) -> str:
    """The config without what cannot decide whether it starts."""
    content = resolved(cfg)
    for key in ("seed", "dataset"):
        del content[key]
    del content["optimizer"]["lr"], content["scale"]["lr"], content["optimizer"]["build"]["weight_decay"]
    content["loss"]["tasks"] = {name: weight > 0 for name, weight in content["loss"]["tasks"].items()}
    changed = {name: content[name] for name in ("precision", "loss", "scale", "optimizer", "strategy")}
    short = OmegaConf.to_yaml(OmegaConf.create(changed))
    return f"{cfg.model.name} {cfg.strategy.name} {hash_of(short)}"


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def distinct(experiments: Sequence[str]) -> Cases:
    """Raises ValueError, naming the run, where settings are refused."""
    found: Cases = {}
    for experiment in tqdm(experiments, desc="compose", unit="experiment", mininterval=2):
        for cfg in runs_of(experiment):
            try:
                Settings(cfg)
            except ValueError as error:
                raise ValueError(f"{experiment}, {cfg.strategy.name} on {cfg.dataset.name}: {error}") from error
            found.setdefault(name_of(cfg), (cfg, []))[1].append(experiment)
    return found


class Plans:
    """Plans of which those of equal passes share the counts."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Passes] = {}

    def peak(self, cfg: DictConfig) -> int:
        scale, device = cfg.scale, torch.device("cuda")
        key = (cfg.model.name, cfg.dataset.name, scale.image_size, cfg.precision, str(cfg.loss.reconstruction))
        if key not in self._known:
            self._known[key] = Passes(cfg, device)
        return Planner(cfg, device, self._known[key]).plan(scale.micro_batch, scale.accumulation_steps).peak


def first_step(cfg: DictConfig, micro_batch: int) -> float:
    """Seconds. Raises ValueError where something that is logged is not finite."""
    cut = cfg.copy()
    cut.scale.micro_batch = min(micro_batch, cfg.scale.micro_batch)
    start = time.perf_counter()
    record = SyntheticRun(cut, torch.device("cpu"), diagnose_every=1).step()
    broken = [name for name, value in record.items() if name.startswith("loss/") and not math.isfinite(value)]
    if broken:
        raise ValueError(f"expected finite losses, found {', '.join(broken)}")
    return time.perf_counter() - start


def rehearse(cases: Cases, micro_batch: int, step: bool, out: Path | None) -> pd.DataFrame:
    own = commit()[0]
    table = pd.read_csv(out, keep_default_na=False) if out and out.exists() else pd.DataFrame(columns=COLUMNS)
    table = table[table["commit"] == own]
    plans = Plans()
    for name, (cfg, runs) in tqdm(sorted(cases.items()), desc="rehearse", unit="case", mininterval=2):
        if name in set(table.case):
            continue
        row = {"case": name, "commit": own, "experiments": " ".join(sorted(set(runs))), "runs": len(runs)}
        row |= {"model": cfg.model.name, "dataset": cfg.dataset.name, "micro_batch": micro_batch, "error": ""}
        try:
            row["planned_gb"] = round(plans.peak(cfg) / 1e9, 2)
            if step:
                row["seconds"] = round(first_step(cfg, micro_batch), 1)
        except Exception as error:  # of any kind: what does not start is what is looked for
            row["error"] = f"{type(error).__name__}: {error}"
        table = pd.concat([table, pd.DataFrame([row], columns=COLUMNS).astype(object)]).fillna("")
        if out:
            write_atomically(out, lambda to, table=table: table.to_csv(to, index=False))
    return table[table.case.isin(list(cases))]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--experiments", default=",".join(EXPERIMENTS), help="of conf/experiment (default: all)")
    parser.add_argument("--micro-batch", type=int, default=2, help="of the steps (default: 2)")
    parser.add_argument("--no-step", action="store_true", help="settings and plans only")
    parser.add_argument("--out", type=Path, help="a CSV file to go on from")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cases = distinct(options.experiments.split(","))
    table = rehearse(cases, options.micro_batch, not options.no_step, options.out)
    print(table[["case", "runs", "planned_gb", "seconds", "error"]].to_string(index=False))
    runs, broken = sum(len(own) for _, own in cases.values()), int((table.error != "").sum())
    steps = (
        "no steps" if options.no_step else f"steps of micro-batches of {options.micro_batch} in place of the paper's"
    )
    print(f"{runs} runs compose; {len(cases)} differ in more than numbers: {broken} of them fail ({steps})")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

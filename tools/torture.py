"""make torture N=100: runs that are killed at random moments and started again must end as if nothing had happened.

A trial draws a strategy, an estimator, a data set and a seed. One run of it is left alone. The other is ended at random
moments, by SIGKILL (4 of 5) or SIGTERM, started again each time, and at last allowed to finish. Compared are the bytes
of metrics.jsonl, every tensor and number of the last checkpoint (weights, optimizer, conductor, generators), and
report.json but for wall-clock fields. Runs are processes forked from one that has imported everything, which saves the
six seconds of each start. Finished trials are recorded in OUT/trials.jsonl; the same command goes on after them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import timm.models.vision_transformer  # noqa: F401  imported once, before the forks
import torch
from tqdm import tqdm

import gcond.data.ct
import gcond.data.imagenet256
import gcond.data.photos  # noqa: F401
from gcond.config import CONFIG, compose
from gcond.engine.checkpoint import checkpoints
from gcond.engine.run_folder import RunFolder
from gcond.output import at_least_one
from gcond.train import train

STRATEGIES = tuple(sorted(path.stem for path in (CONFIG / "strategy").glob("*.yaml")))
SMALL = (
    "scale=smoke",
    "scale.steps_per_epoch=4",
    "scale.accumulation_steps=4",
    "model=mobilenetv3_small_050",
    "model.width=32",
    "model.depth=1",
    "device=cpu",
    "progress=quiet",
    "finished_keeps=checkpoints",  # optimizer and strategy are compared too
    "checkpoint_minutes=1e-6",  # a checkpoint after every step, so that every step is continued from
)
ARBITRATE = (  # GCond meets a conflict in every step, so that all of its memory matters
    "strategy.conductor.resolver.thresholds=[-0.8,0.5,0.999]",
    "strategy.conductor.resolver.dominance_window=1",
)
WALL_CLOCK = ("started", "seconds", "cpu_seconds", "load_start", "load_end", "peak_memory_mb", "name")


@dataclass
class Trial:
    """What is drawn, and what came of it: kills and terminations that met the run at work, and differences."""

    number: int
    dataset: str
    strategy: str
    estimator: str
    overrides: list[str]
    kills: int = 0
    terminations: int = 0
    differences: list[str] = field(default_factory=list)


def draw(number: int, seed: int, datasets: list[str], strategies: list[str]) -> Trial:
    """Trial `number`, the same for the same seed."""
    dice = random.Random(f"{seed}/{number}")
    dataset = datasets[number % len(datasets)]
    strategy = dice.choice(strategies)
    own = compose([f"strategy={strategy}"]).strategy.conductor
    overrides = [*SMALL, f"dataset={dataset}", f"strategy={strategy}", f"seed={dice.randrange(1000)}"]
    overrides += [f"scale.workers={dice.choice([0, 0, 0, 1])}"]
    if own.resolver._target_ == "gcond.strategy.GCond":
        overrides += ARBITRATE
    estimator = own.estimator._target_.rpartition(".")[2]
    if estimator == "Sequential":
        forward, every = dice.choice(["shared", "per_task"]), dice.choice(["window", "micro_batch"])
        overrides += [f"strategy.conductor.estimator.forward={forward}"]
        overrides += [f"strategy.conductor.estimator.resolve_every={every}"]
        estimator = f"Sequential, {forward}, {every}"
    return Trial(number, dataset, strategy, estimator, overrides)


def attempt(trial: Trial, runs: Path, log: Path, after: float | None, how: int) -> tuple[int, float]:
    """One process of the run, sent `how` after `after` seconds (None: never); its exit status and its duration."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            cfg = compose([*trial.overrides, f"runs={runs}"])
            train(cfg, RunFolder(cfg))
            status = 0
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(status)
    sent = False
    while True:
        found, state = os.waitpid(child, os.WNOHANG)
        spent = time.monotonic() - began
        if found:
            return os.waitstatus_to_exitcode(state), spent
        if after is not None and not sent and spent >= after:
            os.kill(child, how)
            sent = True
        time.sleep(0.002)


def run(trial: Trial, seed: int, out: Path) -> Trial:
    """With what came of it: the undisturbed run and the disturbed one, and how they differ."""
    dice = random.Random(f"{seed}/{trial.number}/kills")
    place = out / f"trial-{trial.number:04}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    status, duration = attempt(trial, place / "whole", place / "whole.log", None, 0)
    if status != 0:
        trial.differences.append(f"the undisturbed run ended with status {status}")
        return trial
    for _ in range(dice.randint(1, 4)):
        how = signal.SIGKILL if dice.random() < 0.8 else signal.SIGTERM
        status, _ = attempt(trial, place / "killed", place / "killed.log", dice.uniform(0, duration), how)
        if status == 0:
            break
        trial.kills += how == signal.SIGKILL
        trial.terminations += how == signal.SIGTERM
        if status not in (-how, 128 + how):
            trial.differences.append(f"status {status} after {how.name}")
    else:
        status, _ = attempt(trial, place / "killed", place / "killed.log", None, 0)
    if status == 0:
        whole, killed = (RunFolder(compose([*trial.overrides, f"runs={place / name}"])) for name in ("whole", "killed"))
        trial.differences += differences(whole, killed)
    else:
        trial.differences.append(f"the last attempt ended with status {status}")
    if not trial.differences:
        shutil.rmtree(place)
    return trial


def differences(whole: RunFolder, killed: RunFolder) -> list[str]:
    """What differs between two finished runs, wall-clock fields aside; empty if nothing does."""
    found = []
    if whole.metrics.read_bytes() != killed.metrics.read_bytes():
        found.append("metrics.jsonl")
    states = [torch.load(checkpoints(each.checkpoints)[0], weights_only=True) for each in (whole, killed)]
    for state in states:
        state["state"].pop("seconds")
        state["state"].pop("cpu_seconds")
    found += [f"checkpoint: {key}" for key in unequal(*states)]
    reports = [json.loads(each.report.read_text()) for each in (whole, killed)]
    for key in sorted(set(reports[0]) | set(reports[1])):
        if key not in WALL_CLOCK and reports[0].get(key) != reports[1].get(key):
            found.append(f"report.json: {key}")
    return found


def unequal(one: Any, other: Any, path: str = "") -> list[str]:
    """Paths at which two nests of dicts, lists, tensors and plain values differ in any bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        bits = same and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()
        return [] if bits else [path]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in unequal(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for place, (left, right) in pairs for found in unequal(left, right, f"{path}/{place}")]
    return [] if type(one) is type(other) and repr(one) == repr(other) else [path]


def report(trials: list[Trial]) -> int:
    """Print the count; the exit status."""
    equal = sum(not trial.differences for trial in trials)
    kills, terminations = sum(each.kills for each in trials), sum(each.terminations for each in trials)
    print(f"Torture: {equal} of {len(trials)} continuations equal the undisturbed run to the bit")
    print(f"         {kills} ends by SIGKILL, {terminations} by SIGTERM; {Counter(each.dataset for each in trials)}")
    print(f"         {len({o.strategy for o in trials})} strategies, {Counter(o.estimator for o in trials)}")
    for each in trials:
        if each.differences:
            print(f"  trial {each.number} ({each.strategy}, {each.dataset}): {'; '.join(each.differences)}")
    return 0 if equal == len(trials) else 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-n", type=at_least_one, default=100, help="trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=at_least_one, default=os.cpu_count(), help="trials side by side")
    parser.add_argument("--datasets", default="photos,ct", help="in turn")
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="drawn from these")
    parser.add_argument("--override", action="append", default=[], help="a Hydra override for every run")
    parser.add_argument("--out", type=Path, default=Path("runs/torture"))
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    ledger = chosen.out / "trials.jsonl"
    key = [chosen.seed, chosen.datasets, chosen.strategies, chosen.override]
    lines = [json.loads(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []
    over = {line["trial"]["number"]: Trial(**line["trial"]) for line in lines if line["key"] == key}
    trials = [over[number] for number in sorted(over) if number < chosen.n]
    with ProcessPoolExecutor(chosen.jobs, get_context("fork")) as pool, ledger.open("a") as file:
        pending = []
        for number in sorted(set(range(chosen.n)) - set(over)):
            trial = draw(number, chosen.seed, chosen.datasets.split(","), chosen.strategies.split(","))
            trial.overrides += chosen.override
            pending.append(pool.submit(run, trial, chosen.seed, chosen.out))
        for future in tqdm(as_completed(pending), total=len(pending), desc="torture", unit="trial"):
            trials.append(future.result())
            file.write(json.dumps({"key": key, "trial": asdict(trials[-1])}) + "\n")
            file.flush()
    return report(sorted(trials, key=lambda trial: trial.number))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())

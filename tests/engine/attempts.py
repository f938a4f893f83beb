"""Attempts at a run in processes of their own, which can be signalled, killed and limited."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.runs import TINY, parts, run
from omegaconf import DictConfig
from torch import Tensor

import gcond.train
from gcond.config import CONFIG
from gcond.engine.checkpoint import checkpoints
from gcond.engine.run_folder import RunFolder
from gcond.engine.trainer import Trainer

ROOT = CONFIG.parent
PATIENCE = 600  # seconds, of a machine that does other things too
PROCESSES = multiprocessing.get_context("fork")  # a forked process need not import PyTorch again
TAKE_STEP = Trainer.step


class Attempt:
    """A forked process at work on a run; the leader of a process group of its own. Its output is kept in `log`.

    Before optimizer step `held` it waits until `go_on` is called. `prepare` is called first of all in the process.
    """

    def __init__(
        self, cfg: DictConfig, log: Path, held: int | None = None, prepare: Callable[[], object] = lambda: None
    ) -> None:
        self._cfg, self._log, self._held, self._prepare = cfg, log, held, prepare
        self._arrived, self._released = PROCESSES.Event(), PROCESSES.Event()
        self._process = PROCESSES.Process(target=self._work)
        self._process.start()

    def wait_until_held(self) -> None:
        assert self._arrived.wait(PATIENCE), self.said

    def send(self, which: signal.Signals, group: bool = False) -> None:
        pid = self._process.pid
        assert pid is not None
        (os.killpg if group else os.kill)(pid, which)

    def go_on(self) -> None:
        self._released.set()

    def status(self) -> int:
        """The exit status when the process has ended; -n where signal n killed it."""
        end = time.monotonic() + PATIENCE
        while self._process.exitcode is None and time.monotonic() < end:  # join would wait for its workers as well
            time.sleep(0.01)
        code = self._process.exitcode
        if code is None:
            self.send(signal.SIGKILL, group=True)
            raise AssertionError(f"still at work after {PATIENCE} seconds: {self.said}")
        return code

    @property
    def said(self) -> str:
        return self._log.read_text()

    def _work(self) -> None:
        os.setsid()
        # Tests that are run in the background inherit that it is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdout = sys.stderr = self._log.open("w", buffering=1)
        os.dup2(sys.stderr.fileno(), 2)
        self._prepare()
        Trainer.step = self._step
        gcond.train.train(self._cfg, RunFolder(self._cfg))

    @property
    def _step(self) -> Callable[[Trainer, int], dict[str, Any]]:
        def step(trainer: Trainer, number: int) -> dict[str, Any]:
            if number == self._held:
                self._arrived.set()
                self._released.wait(PATIENCE)
            return TAKE_STEP(trainer, number)

        return step


def interrupted(cfg: DictConfig, step: int = 3) -> RunFolder:
    """Of a run that Ctrl-C ends before optimizer step 3: step 2 is logged, but not in the checkpoint."""

    def take(trainer: Trainer, number: int) -> dict[str, Any]:
        if number == step:
            raise KeyboardInterrupt
        return TAKE_STEP(trainer, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", take)
        with pytest.raises(KeyboardInterrupt):
            run(cfg)
    return RunFolder(cfg)


def typed(runs: Path, log: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """`torchrun … -m gcond.train …` on `engine.tiny`, of two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command += ["gcond.train", f"runs={runs}", *TINY, *overrides]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    with log.open("w") as out:
        return subprocess.Popen(
            command, cwd=runs.parent, env=environment, stdout=out, stderr=out, start_new_session=True
        )


def wait_for_lines(path: Path, count: int) -> None:
    """Until the file has `count` lines."""
    end = time.monotonic() + PATIENCE
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < end, f"{path}: no {count} lines after {PATIENCE} seconds"
        time.sleep(0.05)


def saved_steps(folder: RunFolder) -> list[int]:
    """The optimizer steps after which the checkpoints that are kept were written, the newest first."""
    return [int(path.name[:8]) for path in checkpoints(folder.checkpoints)]


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def same(left: object, right: object) -> bool:
    """Bit-identical, however deeply tensors are nested."""
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return (
            isinstance(right, dict) and list(left) == list(right) and all(same(left[key], right[key]) for key in left)
        )
    if isinstance(left, list | tuple):
        return isinstance(right, list | tuple) and len(left) == len(right) and all(map(same, left, right))
    return left == right


def assert_ended_alike(folder: RunFolder, whole: RunFolder) -> None:
    """The same records, bit for bit, and the same state of model, optimizer, conductor and scaler."""
    assert folder.done
    assert whole.done
    assert folder.error is None
    assert folder.metrics.read_bytes() == whole.metrics.read_bytes()
    assert saved_steps(folder)[0] == saved_steps(whole)[0]
    assert same(parts(folder), parts(whole))

import multiprocessing
import os
from pathlib import Path

import pytest
from engine.runs import config
from omegaconf import OmegaConf

from gcond.engine.folder import RunFolder, config_hash

BASE = ("dataset=ct", "scale=smoke", "strategy=baseline")


@pytest.fixture(scope="module")
def base_hash() -> str:
    return config_hash(config(*BASE))


@pytest.mark.parametrize(
    "override", ["paths.ct=elsewhere", "dataset.root=elsewhere", "runs=r", "progress=bar", "device=cuda"]
)
def test_what_cannot_change_the_numbers_is_not_in_the_hash(override: str, base_hash: str) -> None:
    assert config_hash(config(*BASE, override)) == base_hash


@pytest.mark.parametrize(
    "override",
    [
        "seed=11",
        "optimizer.lr=1e-4",
        "dataset.window=c500w2000",
        "threads=2",
        "loss.tasks.l1=0.5",
        "strategy.conductor.update._target_=gcond.strategy.EMA",
    ],
)
def test_what_can_change_them_is(override: str, base_hash: str) -> None:
    assert config_hash(config(*BASE, override)) != base_hash


def test_two_ways_to_say_the_same_thing_are_one_run(base_hash: str) -> None:
    assert config_hash(config(*BASE, "optimizer.lr=1e-3", "scale.epochs=2")) == base_hash  # both stand in smoke.yaml


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(config(*BASE, f"runs={tmp_path}"))


@pytest.fixture(scope="module")
def cfg() -> object:
    return config(*BASE)


def test_a_run_is_kept_under_its_scale_and_a_name_that_people_can_read(folder: RunFolder, tmp_path: Path) -> None:
    assert folder.path == tmp_path / "smoke" / f"ct-mobilenetv3_small-baseline-seed42-{folder.hash}"


def test_a_failure_is_written_down_and_forgotten_by_the_next_attempt(folder: RunFolder, cfg) -> None:
    assert folder.error is None
    with pytest.raises(OSError, match="no store"), folder.open(cfg):
        raise OSError("no store in data/ct")
    assert folder.error == "OSError: no store in data/ct"
    with folder.open(cfg):
        assert folder.error is None
    assert folder.error is None


def test_an_interruption_is_no_failure(folder: RunFolder, cfg) -> None:
    with pytest.raises(KeyboardInterrupt), folder.open(cfg):
        raise KeyboardInterrupt
    assert folder.error is None
    assert not folder.done


def test_the_config_that_is_kept_gives_the_same_numbers(folder: RunFolder, cfg) -> None:
    with folder.open(cfg):
        pass
    kept = OmegaConf.load(folder.path / "config.yaml")
    assert kept.optimizer.lr == 1e-3  # filled in, whatever becomes of conf/
    assert kept.strategy == OmegaConf.create(OmegaConf.to_container(cfg.strategy, resolve=True))


def test_done_is_written_last_of_all(folder: RunFolder, cfg) -> None:
    with folder.open(cfg):
        assert not folder.done
    folder.finish()
    assert folder.done


def test_a_run_belongs_to_one_process_at_a_time_and_a_dead_one_holds_nothing(folder: RunFolder, cfg) -> None:
    fork = multiprocessing.get_context("fork")

    def hold(holding, release) -> None:
        with folder.open(cfg):
            holding.set()
            release.wait(20)
            os._exit(9)  # killed: no clean-up

    holding, release = fork.Event(), fork.Event()
    other = fork.Process(target=hold, args=(holding, release))
    other.start()
    assert holding.wait(20)
    with pytest.raises(RuntimeError, match="another process"), folder.open(cfg):
        pytest.fail("two processes at work on one run")
    assert folder.error is None  # the other one's run has not failed
    release.set()
    other.join(20)
    with folder.open(cfg):
        pass

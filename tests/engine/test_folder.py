import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from engine.runs import config
from omegaconf import OmegaConf

from gcond.engine.run_folder import MODELS, FinishedMeanwhile, RunFolder, config_hash, running
from gcond.files import DiskFull

BASE = ("dataset=ct", "scale=smoke", "strategy=baseline")


@pytest.fixture(scope="module")
def base_hash() -> str:
    return config_hash(config(*BASE))


@pytest.mark.parametrize(
    "override",
    [
        "paths.ct=elsewhere",
        "dataset.root=elsewhere",
        "runs=r",
        "recorded=results",
        "progress=bar",
        "device=cuda",
        "name=mine",
        "logger=wandb",
        "reconstructions.images=0",
        "checkpoint_minutes=1",
    ],
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
        "nonfinite=skip",
        "precision=bf16",
        "compile=true",
        "arbitration=per_rank",
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


def test_a_run_may_be_given_a_name(tmp_path: Path) -> None:
    assert RunFolder(config(*BASE, f"runs={tmp_path}", "name=2025")).path == tmp_path / "smoke" / "2025"


@pytest.mark.parametrize("name", ["", "a/b", "../b", "..", ".", ".hidden", "/a", "a/"])
def test_a_name_that_is_not_one_folder_s_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`name`: expected the name of a folder"):
        RunFolder(config(*BASE, f"runs={tmp_path}", f"name='{name}'"))
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_another_encoder_is_not_called_by_the_name_of_its_own() -> None:
    with pytest.raises(ValueError, match=r"`model\.name`: .* model\.name=resnet18"):
        RunFolder(config(*BASE, "model.encoder=resnet18"))
    assert "-resnet18-" in RunFolder(config(*BASE, "model.encoder=resnet18", "model.name=resnet18")).name
    assert "-resnet34-" in RunFolder(config(*BASE, "model.encoder=resnet34", "model.name=${model.encoder}")).name
    for path in MODELS.glob("*.yaml"):
        assert f"-{path.stem}-" in RunFolder(config(*BASE, f"model={path.stem}")).name


def test_another_config_in_the_folder_is_told_key_by_key(tmp_path: Path) -> None:
    first = config(*BASE, f"runs={tmp_path}", "name=mine", "logger=none")
    with RunFolder(first).open(first):
        pass
    before = {path.name: path.read_bytes() for path in RunFolder(first).path.iterdir()}
    seven = ["seed=1", "threads=2", "optimizer.lr=0.5", "scale.epochs=3", "nonfinite=skip", "loss.tasks.l1=0.5"]
    other = config(*BASE, f"runs={tmp_path}", "name=mine", "logger=wandb", *seven, "compile=true")
    with pytest.raises(ValueError, match=r"mine: expected the config that the run began with") as refused:
        RunFolder(other).check(other)
    assert 'compile false there, true here, loss.tasks.l1 0.85 there, 0.5 here, nonfinite "raise" there, "skip"' in str(
        refused.value
    )
    assert "and 2 more. Choose another `name`" in str(refused.value)
    with pytest.raises(ValueError, match="expected the config"), RunFolder(other).open(other):
        pytest.fail("opened")
    assert {path.name: path.read_bytes() for path in RunFolder(first).path.iterdir()} == before
    RunFolder(first).check(first)


def test_a_key_that_only_one_of_the_configs_has_is_told(tmp_path: Path) -> None:
    first = config(*BASE, f"runs={tmp_path}", "name=mine")
    with RunFolder(first).open(first):
        pass
    other = config(*BASE, f"runs={tmp_path}", "name=mine", "+optimizer.build.amsgrad=true")
    with pytest.raises(ValueError, match=r"optimizer.build.amsgrad - there, true here"):
        RunFolder(other).check(other)


def test_only_the_first_of_several_processes_holds_the_folder(folder: RunFolder, cfg) -> None:
    with folder.open(cfg), folder.open(cfg, main=False):
        pass
    (folder.path / "DONE").unlink()
    with pytest.raises(ValueError, match="in the second"), folder.open(cfg, main=False):
        raise ValueError("in the second")
    assert folder.error is None
    assert not folder.done


def test_a_child_of_the_process_does_not_hold_the_folder(folder: RunFolder, cfg) -> None:
    """As a DataLoader's worker, which outlives a training process that was killed."""
    fork = multiprocessing.get_context("fork")
    child_of_the_killed, end = fork.SimpleQueue(), fork.Event()

    def work() -> None:
        with folder.open(cfg):
            child = fork.Process(target=end.wait, args=(20,))
            child.start()
            child_of_the_killed.put(child.pid)
            os.kill(os.getpid(), signal.SIGKILL)

    killed = fork.Process(target=work)
    killed.start()
    pid = child_of_the_killed.get()
    while killed.exitcode is None:  # join would wait for the child as well
        time.sleep(0.01)
    os.kill(pid, 0)  # is there still
    with folder.open(cfg):
        pass
    end.set()


def test_an_error_is_not_hidden_by_a_disk_that_cannot_take_it(
    folder: RunFolder, cfg, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def fail() -> None:
        monkeypatch.setattr("gcond.engine.run_folder.write_text", full)
        raise ValueError("the error itself")

    with pytest.raises(ValueError, match="the error itself"), folder.open(cfg):
        fail()
    assert "could not be written: [Errno 28] No space left on device" in capsys.readouterr().err
    with pytest.raises(DiskFull, match="free some space"), folder.open(cfg):
        pytest.fail("opened without a config.yaml")


def test_what_another_process_finishes_before_the_lock_is_left_as_it_is(folder: RunFolder, cfg) -> None:
    with folder.open(cfg):
        folder.report.write_text('{"schema": 1, "status": "done", "data_checksum": "0"}')
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    with pytest.raises(FinishedMeanwhile, match=str(folder.path)), folder.open(cfg):
        pytest.fail("opened")
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before


@pytest.mark.parametrize("report", ["", '{"schema": 1, "status": "do', '{"schema": 1, "status": "failed"}'])
def test_done_beside_no_whole_report_is_taken_back(report: str, folder: RunFolder, cfg) -> None:
    with folder.open(cfg):
        folder.report.write_text(report)
    assert folder.done
    with folder.open(cfg):
        assert not folder.done
        assert not folder.report.exists()


def test_a_config_that_cannot_be_read_is_told(folder: RunFolder, cfg) -> None:
    folder.path.mkdir(parents=True)
    for content in (b"\xff\xfe\x00", b"seed: [1,", b"\0" * 100):
        (folder.path / "config.yaml").write_bytes(content)
        with pytest.raises(ValueError, match=r"config.yaml: expected .*move the run's folder away"):
            folder.check(cfg)


def test_a_folder_in_the_locks_place_is_told(folder: RunFolder, cfg) -> None:
    (folder.path / ".lock").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"\.lock: expected a file, found a folder; remove it"), folder.open(cfg):
        pytest.fail("opened")


@pytest.mark.parametrize("missing", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_with_the_remedy(
    missing: int, folder: RunFolder, cfg, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(file: object, kind: int) -> None:
        raise OSError(missing, os.strerror(missing))

    monkeypatch.setattr("fcntl.flock", flock)
    expected = rf"{folder.path}: its file system has no locks .* set `runs`"
    with pytest.raises(ValueError, match=expected) as told, folder.open(cfg):
        pytest.fail("opened")
    assert os.strerror(missing) in str(told.value)
    with pytest.raises(ValueError, match="no locks"):
        running(folder.path)
    assert folder.error is None


def test_a_disk_that_is_full_when_done_is_to_be_written_is_told(
    folder: RunFolder, cfg, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder, "finish", full)
    with pytest.raises(DiskFull, match="free some space"), folder.open(cfg):
        pass
    assert not folder.done
    assert "free some space" in str(folder.error)

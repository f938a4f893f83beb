"""Recorded files, edited or damaged: each is a sentence with the file and the field."""

import errno
import json

import pytest
from engine.runs import CONFIG, config
from omegaconf import OmegaConf

from gcond.engine import run_folder
from gcond.engine.run_folder import (
    RunFolder,
    config_hash,
    read_config,
    read_report,
    resolved,
    running,
)
from gcond.files import DiskFull

BASE = ("dataset=ct", "scale=smoke", "strategy=baseline")

SAME = (
    "paths.ct=elsewhere dataset.root=elsewhere runs=r recorded=results progress=bar device=cuda name=mine logger=wandb"
)
SAME += " reconstructions.images=0 checkpoint_minutes=1 finished_keeps=checkpoints"
OTHER = "seed=11 optimizer.lr=1e-4 dataset.window=c500w2000 threads=2 loss.tasks.l1=0.5 nonfinite=skip precision=bf16"
OTHER += " compile=true arbitration=per_rank strategy.conductor.update._target_=gcond.strategy.EMA"


def test_the_hash_is_of_what_can_change_the_numbers():
    base = config_hash(config(*BASE))
    assert config_hash(config(*BASE, *SAME.split())) == base
    others = {config_hash(config(*BASE, override)) for override in OTHER.split()}
    assert len(others - {base}) == len(OTHER.split())


@pytest.fixture
def folder(tmp_path):
    return RunFolder(config(*BASE, f"runs={tmp_path}"))


@pytest.fixture(scope="module")
def cfg():
    return config(*BASE)


def test_a_run_is_kept_under_its_scale_and_a_name_that_people_can_read(folder, tmp_path):
    assert folder.path == tmp_path / "smoke" / f"ct-mobilenetv3_small-baseline-seed42-{folder.hash}"


def test_a_model_with_another_encoder_is_not_called_by_the_name_of_its_own():
    with pytest.raises(ValueError, match=r"`model\.name`: .* model\.name=resnet18"):
        RunFolder(config(*BASE, "model.encoder=resnet18"))
    assert "-resnet18-" in RunFolder(config(*BASE, "model.encoder=resnet18", "model.name=resnet18")).name
    assert "-resnet34-" in RunFolder(config(*BASE, "model.encoder=resnet34", "model.name=${model.encoder}")).name
    for path in (CONFIG / "model").glob("*.yaml"):
        assert f"-{path.stem}-" in RunFolder(config(*BASE, f"model={path.stem}")).name


def test_a_copied_file_that_keeps_its_name_is_refused(tmp_path, monkeypatch):
    """Its runs would take the place of the other's in every table."""
    monkeypatch.setattr(run_folder, "ROOT", tmp_path)
    monkeypatch.setattr(run_folder, "_stated", run_folder._stated.__wrapped__)
    strategies = tmp_path / "conf" / "strategy"
    strategies.mkdir(parents=True)
    for name in ("baseline", "mine"):
        (strategies / f"{name}.yaml").write_text("strategy:\n  name: baseline\n  label: Baseline\n")
    with pytest.raises(ValueError, match=r"`strategy\.name`: conf/strategy/mine\.yaml"):
        RunFolder(config(*BASE, "strategy=baseline"))
    (strategies / "mine.yaml").write_text("strategy:\n  name: mine\n")
    assert "-baseline-" in RunFolder(config(*BASE, "strategy=baseline")).name


def test_an_error_is_not_hidden_by_a_disk_that_cannot_take_it(folder, cfg, monkeypatch, capsys):
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def fail():
        monkeypatch.setattr("gcond.engine.run_folder.write_text", full)
        raise ValueError("the error itself")

    with pytest.raises(ValueError, match="the error itself"), folder.open(cfg):
        fail()
    assert "could not be written: [Errno 28] No space left on device" in capsys.readouterr().err
    with pytest.raises(DiskFull, match="free some space"), folder.open(cfg):
        pytest.fail("opened without a config.yaml")
    monkeypatch.undo()
    monkeypatch.setattr(folder, "finish", lambda: full(folder.path / "DONE", ""))
    with pytest.raises(DiskFull, match="free some space"), folder.open(cfg):
        pass
    assert not folder.done
    assert "free some space" in str(folder.error)


def test_a_file_system_without_locks_is_told(folder, cfg, monkeypatch):
    def flock(file, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(ValueError, match=r"its file system has no locks \(No locks .* set `runs`"), folder.open(cfg):
        pytest.fail("opened")
    with pytest.raises(ValueError, match="no locks"):
        running(folder.path)
    assert folder.error is None


REPORT = {"schema": 1, "status": "done", "hash": "0" * 10, "seed": 1, "steps": 4, "seconds": 1.5, "more": {"any": None}}
REPORT["error"] = "half of a pair: \ud83d"
REPORT["validation"] = [{"epoch": 1, "step": 2, "val_l1": 0.5, "val_ssim": None}]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"steps": "4"}, "`steps`: expected a valid integer, found '4'"),
        ({"seconds": float("nan")}, "`seconds`: expected a finite number, found nan"),
        ({"seed": True}, "`seed`: expected a valid integer, found true"),
        ({"status": "fine"}, "`status`: expected 'done' or 'failed', found 'fine'"),
        ({"schema": 2}, "`schema`: expected 1, found 2"),
        (
            {"validation": [{"epoch": 1, "val_l1": "low"}]},
            r"`validation\.0\.val_l1`: expected a valid number, found 'low'",
        ),
        ({"trivial": {"mean": {"val_l1": None}}}, r"`trivial\.mean\.val_l1`: expected a valid"),
        ({"steps": None}, "expected the fields steps, found no steps"),
    ],
)
def test_a_report_is_read_as_it_stands_or_refused_by_file_and_field(change, field, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(REPORT))
    assert read_report(tmp_path, "steps") == REPORT
    path.write_text(json.dumps(REPORT | change))
    with pytest.raises(ValueError, match=rf"report\.json: .*{field}"):
        read_report(tmp_path, "steps")


@pytest.mark.parametrize("text", [b"[1]", b'{"schema": 1,', b"", b"\0" * 40, b"\xff\xfe{}", b"[" * 100_000, None])
def test_a_report_that_is_damaged_or_missing_is_named(text, tmp_path):
    if text is not None:
        (tmp_path / "report.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"report\.json: (expected a JSON object, found|cannot be read)"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("seed: 42", "seed: foo", "`seed`: expected a valid integer"),
        ("seed: 42", "seed: ${oc.env:HOME}", "found a list or an interpolation"),
        ("seed: 42", "seed: !!python/object/apply:os.system ['true']", "could not determine"),
        ("seed: 42", "seed: [", "expected YAML, found"),
        ("seed: 42\n", "", "`seed`: expected a value, found none"),
        ("mask_ratio: 0.75", "mask_ratio: .nan", r"`scale\.mask_ratio`: expected a finite number"),
        ("name: smoke", "name: ../..", r"`scale\.name`: expected a folder's name"),
    ],
)
def test_a_config_is_read_as_it_was_written_or_refused_by_file_and_field(old, new, field, folder, cfg, tmp_path):
    text = OmegaConf.to_yaml(OmegaConf.create(resolved(cfg)))
    (tmp_path / "config.yaml").write_text(text)
    assert OmegaConf.to_yaml(read_config(tmp_path)) == text
    assert old in text
    (tmp_path / "config.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"config\.yaml: .*{field}"):
        read_config(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"- a list\n", b"seed: [1,", b"\0" * 100])
def test_a_run_whose_config_cannot_be_read_is_not_continued(content, folder, cfg):
    folder.path.mkdir(parents=True)
    (folder.path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.yaml: expected .*move the run's folder away"):
        folder.check(cfg)

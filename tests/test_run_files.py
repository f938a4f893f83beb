"""Recorded files, edited or damaged: each is a sentence with the file and the field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine.runs import tiny_config
from omegaconf import OmegaConf

from gcond.engine.run_folder import RunFolder, read_config, read_report, resolved

REPORT = {"schema": 1, "status": "done", "hash": "0" * 10, "seed": 1, "steps": 4, "seconds": 1.5, "more": {"any": None}}
REPORT["error"] = "half of a pair: \ud83d"
REPORT["validation"] = [{"epoch": 1, "step": 2, "val_l1": 0.5, "val_ssim": None}]


def written(folder: Path, text: str | bytes) -> Path:
    (folder / "report.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_a_sound_report_is_read_as_it_stands(tmp_path: Path) -> None:
    assert read_report(written(tmp_path, json.dumps(REPORT)), "steps") == REPORT


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (json.dumps(REPORT | {"steps": "4"}), "`steps`: expected an integer or null, found '4'"),
        (json.dumps(REPORT | {"seconds": float("nan")}), "`seconds`: expected a number or null, found nan"),
        (json.dumps(REPORT | {"seed": "foo"}), "`seed`: expected an integer or null, found 'foo'"),
        (json.dumps(REPORT | {"seed": True}), "`seed`: expected an integer or null, found true"),
        (json.dumps(REPORT | {"status": "fine"}), "`status`: expected one of done, failed, found 'fine'"),
        (json.dumps(REPORT | {"schema": 2}), "`schema`: expected 1, found 2"),
        (
            json.dumps(REPORT | {"validation": [{"epoch": 1, "val_l1": "low"}]}),
            r"`validation\.0\.val_l1`: expected a number or null, found 'low'",
        ),
        (json.dumps(REPORT | {"trivial": {"mean": {"val_l1": None}}}), r"`trivial\.mean\.val_l1`: expected a number"),
        (json.dumps(REPORT | {"steps": None}), "expected the fields steps, found no steps"),
        (json.dumps([REPORT]), "expected a JSON object, found list"),
        (json.dumps(REPORT)[:-9], "expected a JSON object, found"),
        ("", "expected a JSON object, found"),
        ("\0" * 40, "expected a JSON object, found"),
        (b"\xff\xfe" + json.dumps(REPORT).encode(), "expected a JSON object, found"),
        ("[" * 100_000, "cannot be read: maximum recursion"),
    ],
)
def test_a_damaged_report_is_a_sentence_with_file_and_field(text: str | bytes, field: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"report\.json: .*{field}"):
        read_report(written(tmp_path, text), "steps")


def test_a_report_that_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"report\.json: cannot be read: .*No such file"):
        read_report(tmp_path)


@pytest.fixture
def text(tmp_path: Path) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(resolved(tiny_config(tmp_path, "strategy=baseline"))))


def test_a_recorded_config_is_read_as_it_was_written(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert OmegaConf.to_yaml(read_config(tmp_path)) == text


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("seed: 42", "seed: foo", "`seed`: expected an integer"),
        ("seed: 42", "seed: ${oc.env:HOME}", "found a list or an interpolation"),
        (
            "seed: 42",
            "seed: !!python/object/apply:os.system ['true']",
            "could not determine",
        ),
        ("seed: 42", "seed: [", "expected YAML, found"),
        ("seed: 42\n", "", "`seed`: expected a value, found none"),
        ("mask_ratio: 0.75", "mask_ratio: .nan", r"`scale\.mask_ratio`: expected a number"),
        ("name: smoke", "name: ../..", r"`scale\.name`: expected a folder's name"),
    ],
)
def test_a_damaged_config_is_a_sentence_with_file_and_field(
    old: str, new: str, field: str, text: str, tmp_path: Path
) -> None:
    assert old in text
    (tmp_path / "config.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=rf"config\.yaml: .*{field}"):
        read_config(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"- a list\n"])
def test_a_run_whose_config_cannot_be_read_is_not_continued(content: bytes, tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, "strategy=baseline")
    folder = RunFolder(cfg)
    folder.path.mkdir(parents=True)
    (folder.path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.yaml: expected"):
        folder.check(cfg)

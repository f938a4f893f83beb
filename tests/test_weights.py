"""Export, reconstruct and evaluate, on a tiny finished run."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
import torch
from engine.runs import run, tiny_config
from engine.tiny import gratings
from PIL import Image
from safetensors.torch import load_file

from gcond import cli
from gcond.data.ct import read_dicom
from gcond.engine.checkpoint import keep_only
from gcond.engine.reconstructions import GAP
from gcond.load_run import LoadedRun
from gcond.model import encoders
from gcond.model.masking import fixed_hidden
from gcond.model.patches import hidden_mask
from gcond.weights import of_timm

SIZE, PATCH = 64, 16
TRUST = ("--trust", "engine")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose best epoch, the first, is not its last: its learning rate is far too large."""
    return run(tiny_config(tmp_path_factory.mktemp("runs"), "strategy=baseline", "optimizer.lr=1")).path


@pytest.fixture
def copy(finished, tmp_path):
    """To be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("weights", ["last", "best"])
def test_timm_loads_the_encoder_strictly_as_the_docs_say(weights, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", str(finished), "--timm", "encoder.safetensors", "--weights", weights, *TRUST]) == 0
    page = (Path(__file__).parents[1] / "docs" / "running.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict = {}
    exec(compile(block, "docs/running.md", "exec"), names)
    said = names["metadata"]
    names["encoder"].load_state_dict(load_file("encoder.safetensors"), strict=True)
    back = LoadedRun(finished, {}, ["engine"])
    model, step = back.model(weights, 3)
    black = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)
    expected = model.eval().encoder(back.data().intensity.normalise(black))
    assert (names["features"] - expected).norm() <= 1e-4 * expected.norm()
    seen = {"channels": 3, "size": SIZE, "unit": "0 to 255", "min": 0, "max": 255}
    seen |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert said["encoder"] == "mobilenetv3_small_050"
    assert json.loads(said["input"]) == seen
    came = {"name": finished.name, "config_hash": finished.name[-10:], "weights": weights, "step": step}
    assert json.loads(said["run"]) == came
    assert step == {"last": 4, "best": 2}[weights]


@pytest.mark.parametrize("name", ["convnextv2_atto", "efficientnet_b0", "resnet18", "swin_tiny_patch4_window7_224"])
def test_each_kind_of_network_is_what_timm_makes_again(name):
    """`of_timm` itself loads strictly and compares the maps."""
    encoder = encoders.build(name, channels=1, stride=16, image_size=SIZE)
    arguments, state = of_timm(encoder, SIZE)
    assert len(state) == len(encoder.net.state_dict())
    assert arguments["model_name"] == name


def test_no_data_are_needed_unless_the_report_is_of_an_older_version(copy, tmp_path):
    words = ["export", str(copy), "--timm", str(tmp_path / "e"), *TRUST]
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("engine.tiny.load", "engine.tiny.never"))
    assert cli.main(words) == 0
    (copy / "report.json").write_text(json.dumps({**report(copy), "intensity": None}))
    with pytest.raises(AssertionError, match="data was read"):
        cli.main(words)


def test_weights_that_are_gone_are_refused_with_what_a_run_keeps(copy, tmp_path, capsys):
    words = ["export", str(copy), "--timm", str(tmp_path / "e"), *TRUST]
    keep_only("model", copy / "checkpoints")
    assert cli.main(words) == 0
    assert cli.main([*words, "--weights", "best"]) == 2
    assert "of step 2, found the last ones alone, of step 4, which finished_keeps=weights" in capsys.readouterr().err
    shutil.rmtree(copy / "checkpoints")
    assert cli.main(words) == 2
    assert "finished_keeps=weights" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("weights", ["last", "best"])
def test_the_losses_are_the_recorded_ones(split, weights, finished, capsys):
    assert cli.main(["evaluate", str(finished), "--split", split, "--weights", weights, *TRUST]) == 0
    printed = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:])
    recorded = report(finished)["final"][weights]
    for name in ("l1", "ssim"):
        assert float(printed[name]) == pytest.approx(recorded[f"{split}_{name}"], abs=1e-6)


def test_another_loss_than_the_recorded_one_is_told(copy, capsys):
    changed = report(copy)
    changed["final"]["last"]["test_l1"] += 0.01
    (copy / "report.json").write_text(json.dumps(changed))
    assert cli.main(["evaluate", str(copy), *TRUST]) == 1
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if "differs" in line] == ["l1"]
    (copy / "report.json").write_text(json.dumps(changed | {"final": {}}))
    assert cli.main(["evaluate", str(copy), *TRUST]) == 2
    assert "found no final" in capsys.readouterr().err
    assert cli.main(["evaluate", str(copy), "--data", "nowhere", *TRUST]) == 2  # never ignored
    assert "`dataset.root`: there is no such setting" in capsys.readouterr().err


def test_a_photograph_and_an_image_of_the_data_are_drawn(finished, tmp_path):
    """Originals to the pixel, masked as asked for; the other columns are those of engine/test_evaluate."""
    photo = gratings(1, 96)[0].permute(1, 2, 0).numpy()
    Image.fromarray(photo).save(tmp_path / "photo.png")
    words = ["reconstruct", str(finished), str(tmp_path / "photo.png"), "test:3", "--out", str(tmp_path / "sheet.png")]
    assert cli.main([*words, "--mask-ratio", "0.5", "--seed", "7", *TRUST]) == 0
    sheet, pitch = np.asarray(Image.open(tmp_path / "sheet.png")), SIZE + GAP
    assert sheet.shape == (2 * pitch - GAP, 4 * pitch - GAP, 3)
    wanted = [np.asarray(Image.fromarray(photo).resize((SIZE, SIZE), Image.Resampling.BILINEAR))]
    wanted += [LoadedRun(finished, {}, ["engine"]).data().test[3].permute(1, 2, 0).numpy()]
    for row, (original, place) in enumerate(zip(wanted, (0, 3), strict=True)):
        grid = hidden_mask(fixed_hidden([place], 16, 0.5, 7), 16).view(4, 4).numpy()
        hidden = np.kron(grid, np.ones((PATCH, PATCH), dtype=bool))[..., None]
        np.testing.assert_array_equal(sheet[row * pitch :, :][:SIZE, :SIZE], original)
        np.testing.assert_array_equal(sheet[row * pitch :, pitch:][:SIZE, :SIZE], np.where(hidden, 128, original))


@pytest.mark.parametrize(
    ("image", "said"),
    [("none.png", "none.png"), ("test:99", "test:0 to test:5"), ("small.png", "small.png"), ("text.png", "text.png")],
)
def test_an_image_that_is_none_is_refused_by_name(image, said, finished, tmp_path, capsys):
    Image.new("RGB", (32, 32)).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no picture")
    name = image if ":" in image else str(tmp_path / image)
    assert cli.main(["reconstruct", str(finished), name, "--out", str(tmp_path / "out.png"), *TRUST]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["reconstruct", str(finished), "test:0", "--out", str(tmp_path), *TRUST])
    assert f"--out: expected a file, found the folder {tmp_path}" in capsys.readouterr().err


def test_a_dicom_file_becomes_the_slice_that_a_store_would_hold():
    """pydicom's own: 128 x 128 pixels, stored - 1024 = HU. Enlarged to 256 and reduced it is itself, smoothed."""
    path = Path(pydicom.data.get_testdata_file("CT_small.dcm"))
    stored = pydicom.dcmread(path).pixel_array.astype(float)  # slope 1, intercept -1024: HU + 1024
    read = read_dicom(path, 128)
    assert (read.shape, read.dtype) == ((1, 128, 128), torch.int16)
    assert np.corrcoef(read.numpy().ravel(), stored.ravel())[0, 1] > 0.98
    assert read.float().mean() == pytest.approx(stored.mean(), rel=0.01)
    with pytest.raises(ValueError, match="MR"):
        read_dicom(Path(pydicom.data.get_testdata_file("MR_small.dcm")), 128)

"""Losses of single images, by hand and against the loss itself; and the pictures that are drawn of them."""

import dataclasses
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engine import tiny
from engine.runs import tiny_config
from PIL import Image
from strategy.far_device import CudaDevice, FarDevice, FarQueue
from torch import Tensor, nn

from gcond.data.images import TensorImages
from gcond.data.intensity import Intensity
from gcond.engine import evaluate as module
from gcond.engine.evaluate import (
    MASK_SEED,
    Best,
    EvaluationSet,
    baseline_scores,
    by_group,
    constant_predictors,
    evaluate,
    final_records,
    means,
    per_image,
)
from gcond.engine.reconstructions import GAP, Reconstructions
from gcond.loss import ReconstructionLoss
from gcond.model.masking import fixed_hidden
from gcond.model.patches import hidden_mask, patchify, select

CPU = torch.device("cpu")
DATA = tiny.load(64, val=7)
LOSS = ReconstructionLoss(16, DATA.intensity)
TASKS = ("l1", "ssim")


class Normalised(nn.Module):
    """Predicts the hidden patches from themselves, batch-normalised: every image of a batch matters in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.norm.running_mean += torch.tensor([0.1, 0.2, 0.3])

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        return select(patchify(self.norm(images), 16), hidden) * 0.5


def score(model: nn.Module, count: int | None = None) -> dict[str, float]:
    data = EvaluationSet.of(DATA, "val", count, 16, 0.75)
    return means(evaluate(model, LOSS, data, TASKS, CPU))


def score_by_hand(indices: list[int]) -> dict[str, float]:
    model = Normalised().eval()
    sums = dict.fromkeys(TASKS, 0.0)
    for index in indices:
        image, hidden = DATA.intensity.normalise(DATA.val[index][None]), fixed_hidden([index], 16, 0.75, MASK_SEED)
        with torch.no_grad():
            values = LOSS(model(image, hidden), image, hidden, TASKS)
        sums = {task: sums[task] + float(values[task]) / len(indices) for task in TASKS}
    return sums


@pytest.mark.parametrize("batch", [1, 4, 32])  # 4: batches of 4 and 3 images
def test_the_score_is_the_mean_over_images_whatever_the_batch(batch, monkeypatch):
    monkeypatch.setattr(module, "BATCH", batch)
    assert score(Normalised()) == pytest.approx(score_by_hand(list(range(7))), rel=1e-6)


def test_a_thinned_set_takes_evenly_spaced_images_with_the_masks_they_have_in_the_whole():
    assert score(Normalised(), count=3) == pytest.approx(score_by_hand([0, 3, 6]), rel=1e-6)
    assert score(Normalised(), count=1) == pytest.approx(score_by_hand([0]), rel=1e-6)
    assert score(Normalised(), count=100) == score(Normalised())


@pytest.mark.parametrize("device", [FarDevice, pytest.param(CudaDevice, marks=pytest.mark.cuda)])
def test_an_evaluation_waits_for_the_device_once_at_its_end(device, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    if device is FarDevice:
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no "meta"
        monkeypatch.setattr(module, "transfer_to", FarQueue)
    device, data = device(), EvaluationSet.of(DATA, "val", None, 16, 0.75)
    with device:
        model = Normalised().to(device.device)
        for _ in range(2):  # the first moves mean and standard deviation
            device.clear()
            evaluate(model, LOSS, data, TASKS, device.device)
        assert (device.counts["synchronisations"], device.counts["transfers"]) == (1, 0), device.log


def test_an_evaluation_leaves_model_and_random_numbers_as_they_were():
    model = Normalised().train()
    before, random = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    score(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


CT, PHOTOS = Intensity.of_hu_window(-800, 2000, mean=0.3, std=0.2), Intensity.of_photographs()
SSIM_LOSS = ReconstructionLoss(2, CT, ssim_window=1)


def test_l1_of_the_body_by_hand():
    """Patches of 2 x 2 pixels in images of 4 x 4; the patches 1 (top right) and 2 (bottom left) are hidden."""
    images = torch.zeros(3, 1, 4, 4)
    images[0, 0, 0] = torch.tensor([9.0, 9.0, 1.0, 2.0])  # the last two are hidden
    body = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    body[0, 0, 0, 3] = True  # hidden, 2
    body[0, 0, 3, 0] = True  # hidden, 0
    body[0, 0, 0, 0] = True  # visible: does not count
    body[1, 0, 3, 3] = True  # visible only: nothing to measure
    body[2, 0, 2:, :2] = True
    predictions = torch.full((3, 2, 1, 2, 2), 0.5)
    found = per_image(SSIM_LOSS, predictions, images, torch.tensor([[1, 2]] * 3), ["l1"], body)
    assert found["l1"].tolist() == [(0.5 + 1.5 + 6 * 0.5) / 8, 0.5, 0.5]
    assert found["body_l1"].tolist() == [(1.5 + 0.5) / 2, 0.0, 0.5]
    assert found["body_images"].tolist() == [1, 0, 1]
    assert means(found)["body_l1"] == (1.0 + 0.5) / 2  # of the two images that have one
    assert means(found)["body_images"] == 2

    groups = by_group(found, ["b", "a", "b"])
    assert groups["b"] == {"images": 2, "l1": (0.625 + 0.5) / 2, "body_l1": 0.75, "body_images": 2}
    assert math.isnan(groups["a"]["body_l1"])
    assert (groups["a"]["images"], groups["a"]["body_images"]) == (1, 0)


def test_a_prediction_that_is_not_a_number_is_not_taken_for_air():
    predictions = torch.full((1, 2, 1, 2, 2), math.nan)
    body = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    found = means(per_image(SSIM_LOSS, predictions, torch.zeros(1, 1, 4, 4), torch.tensor([[0, 1]]), ["l1"], body))
    assert math.isnan(found["l1"])
    assert math.isnan(found["body_l1"])
    assert found["body_images"] == 1


def test_the_losses_of_images_are_those_of_batches_of_one_and_groups_add_up_to_the_whole():
    draw = torch.Generator().manual_seed(1)
    loss = ReconstructionLoss(16, PHOTOS, flip_strength=0.7)
    images, hidden = torch.randn(7, 3, 64, 64, generator=draw), fixed_hidden(range(7), 16, 0.75, seed=0)
    predictions = torch.randn(7, 12, 3, 16, 16, generator=draw)
    found = per_image(loss, predictions, images, hidden, loss.tasks)
    for place in range(7):
        one = slice(place, place + 1)
        expected = loss(predictions[one], images[one], hidden[one], loss.tasks)
        assert {task: float(values[place]) for task, values in found.items()} == pytest.approx(
            {task: float(value) for task, value in expected.items()}, rel=1e-6
        )
    assert means(found)["l1"] == pytest.approx(
        float((predictions - select(patchify(images, 16), hidden)).abs().double().mean()), rel=1e-6
    )
    groups = by_group(found, list("abcabca"))
    assert [groups[name]["images"] for name in "abc"] == [3, 2, 2]
    for task, whole in means(found).items():
        weighted = sum(group["images"] * group[task] for group in groups.values()) / 7
        assert weighted == pytest.approx(whole, rel=1e-12)


SCORED = replace(
    tiny.load(64, val=7),
    groups={"train": ["t"] * 12, "val": list("aabbbac"), "test": list("ddeeff")},
    body_above=127,
)
SETS = {split: EvaluationSet.of(SCORED, split, None, 16, 0.75) for split in ("val", "test")}


class Level(nn.Module):
    """One number."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(1))
        self.norm = nn.BatchNorm1d(1)


def at(model: Level, level: float) -> Level:
    model.level.data.fill_(level)
    model.norm.running_mean.fill_(level)  # type: ignore[union-attr]
    return model


def best_of(losses: list[float]) -> Best:
    model = Level()
    best = Best(model, {"l1": 0.5, "ssim": 2.0})
    for epoch, loss in enumerate(losses, start=1):
        at(model, epoch)
        best.consider(epoch, 10 * epoch, {"val_l1": 0.0, "val_ssim": loss, "val_without_weight": -99 * epoch})
    return best


@pytest.mark.parametrize(
    ("losses", "epoch"),
    [([3, 2, 4], 2), ([2, 2, 2], 1), ([math.nan, 5, 4], 3), ([math.nan, math.nan], 1), ([1, math.nan], 1)],
)
def test_the_best_epoch_is_the_first_with_the_smallest_weighted_loss(losses, epoch):
    best = best_of(losses)
    assert (best.epoch, best.step) == (epoch, 10 * epoch)
    model = best._model
    with best.in_the_model():
        assert model.level.item() == model.norm.running_mean.item() == epoch
    assert model.level.item() == model.norm.running_mean.item() == len(losses)


@pytest.mark.parametrize(("losses", "at"), [([1, 2], [1, 2]), ([2, 1], [2, 2])])
def test_all_images_are_scored_at_the_best_and_at_the_last_epoch_and_each_group_by_itself(losses, at):
    """Nothing is measured twice where they are the same."""
    best = best_of(losses)
    measured: list[float] = []

    def measure(images):
        """The level, and more for each image than for the one before."""
        measured.append(best._model.level.item())
        count = len(images.images)
        return {"l1": best._model.level.item() + torch.arange(count, dtype=torch.float64)}

    records = list(final_records(best, 2, 20, SETS, measure))
    assert measured == [level for level in (2, 1) if level in at for _ in SETS]
    assert [(record["at"], record["kind"], record.get("split")) for record in records] == [
        (name, *what) for name in ("best", "last") for what in (("final", None), ("groups", "val"), ("groups", "test"))
    ]
    for record, epoch in zip((records[0], records[3]), at, strict=True):
        assert (record["epoch"], record["step"], record["val_l1"]) == (epoch, 10 * epoch, epoch + 3)  # of 0 … 6
        assert (record["val_images"], record["test_images"]) == (7, 6)
    assert records[1]["groups"] == {
        "a": {"images": 3, "l1": at[0] + (0 + 1 + 5) / 3},
        "b": {"images": 3, "l1": at[0] + (2 + 3 + 4) / 3},
        "c": {"images": 1, "l1": at[0] + 6},
    }
    assert best._model.level.item() == 2


# Constant predictors


@pytest.mark.parametrize("intensity", [CT, PHOTOS], ids=["ct", "photos"])
def test_constant_predictors_are_those_of_loops(intensity):
    """Of 7 training images the evenly spaced 0, 1, 3 and 5; channels differ."""
    generator = torch.Generator().manual_seed(1)
    shape = (12, intensity.channels, 32, 32)
    levels = torch.arange(1, intensity.channels + 1, dtype=torch.uint8)[:, None, None]
    raw = torch.randint(0, 256, shape, generator=generator).to(torch.uint8) // levels
    train, images = TensorImages(raw[:7]), intensity.normalise(raw[7:])
    hidden = fixed_hidden(range(5), 4, 0.5, seed=0)

    z_train, z = intensity.normalise(raw[[0, 1, 3, 5]]).double().numpy(), images.double().numpy()
    expected = {name: np.zeros_like(z) for name in ("dataset_mean", "global_median", "pixel_median", "visible_mean")}
    for c in range(z.shape[1]):
        ordered = np.sort(z_train[:, c], axis=None)
        expected["global_median"][:, c] = ordered[(ordered.size - 1) // 2]
        expected["pixel_median"][:, c] = np.sort(z_train[:, c], axis=0)[1]  # of four the lower one, as PyTorch has it
        for i, row in enumerate(hidden.tolist()):
            corners = [(16 * (n // 2), 16 * (n % 2)) for n in range(4) if n not in row]
            expected["visible_mean"][i, c] = np.mean([z[i, c, y : y + 16, x : x + 16] for y, x in corners])

    found = constant_predictors(train, intensity, 16, at_most=4)
    assert list(found) == list(expected)
    for name, whole in expected.items():
        patches = select(patchify(torch.from_numpy(whole).float(), 16), hidden)
        torch.testing.assert_close(found[name](images, hidden), patches, atol=1e-6, rtol=1e-5)


def test_baselines_are_scored_once_per_data_set_and_scale(tmp_path, monkeypatch):
    cfg = tiny_config(tmp_path)
    sets = {split: EvaluationSet.of(DATA, split, None, 16, 0.75) for split in ("val", "test")}
    scores = baseline_scores(cfg, DATA, sets, LOSS)

    # By hand: the mean of the data set is 0 in z-space, so its L1 is the mean absolute value of the hidden pixels.
    rows = [
        DATA.intensity.normalise(DATA.val[index])[:, 16 * (patch // 4) :, 16 * (patch % 4) :][:, :16, :16]
        for index in range(7)
        for patch in sets["val"].hidden[index].tolist()
    ]
    assert scores["dataset_mean"]["val_l1"] == pytest.approx(float(torch.stack(rows).abs().mean()), rel=1e-6)
    assert sorted(scores["visible_mean"]) == ["test_l1", "test_ssim", "val_l1", "val_ssim"]

    monkeypatch.setattr(module, "constant_predictors", lambda *_: {"another": Normalised()})
    assert baseline_scores(tiny_config(tmp_path, "strategy=baseline", "seed=1"), DATA, sets, LOSS) == scores
    other_data = replace(DATA, checksum="other")
    assert set(baseline_scores(cfg, other_data, sets, LOSS)) == {"another"}
    assert set(baseline_scores(tiny_config(tmp_path, "scale.eval_images=2"), DATA, sets, LOSS)) == {"another"}
    for kept in (tmp_path / "smoke").glob("trivial-*.json"):
        kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"trivial-\S+\.json: expected a JSON object"):
        baseline_scores(cfg, DATA, sets, LOSS)


# Pictures

PATCH, SIZE = 16, 64
SPLIT = EvaluationSet.of(DATA, "val", 4, (SIZE // PATCH) ** 2, 0.75)


class Constant(nn.Module):
    """Predicts `values` [C], in z-space, everywhere."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        assert not self.training
        return self.values.view(1, 1, -1, 1, 1).expand(len(images), hidden.shape[1], -1, PATCH, PATCH)


def cells(path: Path) -> np.ndarray:
    """The picture taken apart: [n, 4, S, S, 3], uint8."""
    sheet = np.asarray(Image.open(path))
    pitch = SIZE + GAP
    rows, columns = (sheet.shape[0] + GAP) // pitch, (sheet.shape[1] + GAP) // pitch
    assert sheet.shape == (rows * pitch - GAP, columns * pitch - GAP, 3)
    assert (sheet[SIZE : SIZE + GAP] == 255).all()
    assert (sheet[:, SIZE : SIZE + GAP] == 255).all()
    return np.stack(
        [[sheet[row * pitch :, column * pitch :][:SIZE, :SIZE] for column in range(columns)] for row in range(rows)]
    )


def test_the_four_columns_by_hand_and_what_is_kept_of_them(tmp_path):
    """Photographs are uint8, so `original` is the raw image itself; a unit value v is the pixel round(255 v)."""
    unit = torch.tensor([0.2, 1.7, -0.3])  # the last two lie outside [0, 1]
    model = Constant((unit - torch.tensor(DATA.intensity.mean)) / torch.tensor(DATA.intensity.std))
    drawn = Reconstructions(tmp_path / "r", DATA, SPLIT, 3, False)
    path = drawn.draw(model, CPU, step=7)
    assert path == tmp_path / "r" / "00000007.png"
    found = cells(path)
    assert found.shape[:2] == (3, 4)
    for row in range(3):
        image = SPLIT.images[row].permute(1, 2, 0).numpy()
        grid = hidden_mask(SPLIT.hidden[row : row + 1], 16).view(4, 4).numpy()
        hidden = np.kron(grid, np.ones((PATCH, PATCH), dtype=bool))[..., None]
        grey, predicted = np.array([128] * 3), np.array([51, 255, 0])
        expected = [
            image,
            np.where(hidden, grey, image),
            np.where(hidden, predicted, grey),
            np.where(hidden, predicted, image),
        ]
        for column in range(4):
            np.testing.assert_array_equal(found[row, column], expected[column])

    drawn.keep(model, CPU, tmp_path / "kept.npz", PATCH)
    with np.load(tmp_path / "kept.npz") as kept:
        assert set(kept) == {"original", "masked", "pasted", "hidden", "patch_size"}
        for place, name in ((0, "original"), (1, "masked"), (3, "pasted")):
            assert kept[name].dtype == np.uint8
            np.testing.assert_array_equal(np.moveaxis(kept[name], 1, -1), found[:, place])
        np.testing.assert_array_equal(kept["hidden"], SPLIT.hidden[:3].numpy())
        assert int(kept["patch_size"]) == PATCH


def test_ct_is_drawn_on_request_only_and_in_grey(tmp_path):
    """HU + 1024 of int16; the window -1000..1000 HU maps HU 0 to one half."""
    data = dataclasses.replace(
        DATA,
        val=TensorImages(torch.full((4, 1, SIZE, SIZE), 1024, dtype=torch.int16)),
        intensity=Intensity.of_hu_window(-1000, 1000, 0.1, 0.2),
        shows_patients=True,
    )
    split = EvaluationSet.of(data, "val", 4, (SIZE // PATCH) ** 2, 0.75)
    model = Constant(torch.tensor([(1.0 - 0.1) / 0.2]))
    assert Reconstructions(tmp_path / "no", data, split, 3, False).draw(model, CPU, 1) is None
    assert not (tmp_path / "no").exists()
    path = Reconstructions(tmp_path / "yes", data, split, 3, True).draw(model, CPU, 1)
    assert path is not None
    original, _, _, pasted = cells(path)[0]
    assert np.unique(original).tolist() == [128]
    assert np.unique(pasted).tolist() == [128, 255]


def test_no_more_images_than_there_are_and_none_for_zero(tmp_path):
    model = Constant(torch.zeros(3))
    path = Reconstructions(tmp_path / "all", DATA, SPLIT, 99, False).draw(model, CPU, 1)
    assert path is not None
    assert len(cells(path)) == 4
    assert Reconstructions(tmp_path / "none", DATA, SPLIT, 0, False).draw(model, CPU, 1) is None

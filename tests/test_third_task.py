"""Whole runs with a task beside L1 and SSIM, on a tiny data set."""

import json
import math
from dataclasses import replace

import pytest
import torch
from engine import tiny
from engine.attempts import assert_ended_alike, interrupted, same
from engine.runs import config, parts, run, tiny_config
from torch import nn

from gcond.classification import ClassifyingLoss, area_under_roc
from gcond.config import build
from gcond.engine.batches import Findings, Given, MicroBatches, TrainingImages, Turned, Turns, labelling_of, seeded
from gcond.engine.evaluate import EvaluationSet, by_group, evaluate, means
from gcond.engine.settings import Settings
from gcond.engine.trainer import Trainer
from gcond.load_run import LoadedRun

CPU = torch.device("cpu")
CLASSES = ("loss=l1_ssim_class", "scale.accumulation_steps=3")
FLIPPED = ("loss=l1_ssim_flipped", "scale.accumulation_steps=3")


def test_the_flipped_target_is_trained_and_measured_everywhere(tmp_path):
    folder = run(tiny_config(tmp_path, *FLIPPED, "strategy=gcond_stochastic"))
    report = json.loads(folder.report.read_text())
    assert report["tasks"] == {"l1": 0.35, "ssim": 0.15, "flipped": 0.5}
    assert report["train_flipped_first"] > 0
    assert all(epoch["val_flipped"] > 0 and epoch["test_flipped"] > 0 for epoch in report["validation"])
    for scores in report["trivial"].values():  # at strength 1 the mean, 0, is as far from -x as from x
        assert set(scores) == {f"{split}_{task}" for split in ("val", "test") for task in ("l1", "ssim", "flipped")}
    mean = report["trivial"]["dataset_mean"]
    assert mean["val_flipped"] == mean["val_l1"]
    steps = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert all({"loss/flipped", "grad_norm/flipped", "weight/flipped"} <= set(s) for s in steps if s["kind"] == "step")
    assert all("self_cosine/flipped/all" in record for record in steps if record["kind"] == "probe")


# Classification


def test_a_classifier_is_trained_measured_and_no_part_of_the_conflict(tmp_path, monkeypatch):
    take_step, shared = Trainer.step, {}

    def step(trainer, number):
        record = take_step(trainer, number)
        for segment in trainer.conductor.gradients.segments:
            shared.setdefault(segment.group, set()).update(segment.shared)
        return record

    monkeypatch.setattr(Trainer, "step", step)
    folder = run(tiny_config(tmp_path, *CLASSES, "strategy=gcond_stochastic"))
    report = json.loads(folder.report.read_text())
    assert report["train_class_first"] > 0
    for epoch in report["validation"]:
        assert epoch["val_class"] > 0
        assert epoch["val_top1"] in {count / 6 for count in range(7)}  # of 6 images
    for scores in report["trivial"].values():
        assert scores["val_class"] == pytest.approx(math.log(4))
        assert scores["test_top1"] == 0.25
    assert shared == {"encoder": {True}, "body": {True}, "head": {True}, "classifier": {False}}

    back = LoadedRun(folder.path, {}, ["engine"])
    model, step = back.model("last", 3)
    assert step == report["steps"]
    assert same(dict(model.state_dict()), parts(folder)["model"])
    assert any("class" in name for name in model.state_dict())


def test_an_interrupted_run_with_classes_ends_bit_identical(tmp_path):
    chosen = (*CLASSES, "strategy=gcond_stochastic")
    interrupted(cfg := tiny_config(tmp_path / "parts", *chosen))
    assert_ended_alike(run(cfg), run(tiny_config(tmp_path / "whole", *chosen)))


def test_turned_images_are_the_same_for_all_strategies_and_after_a_resume():
    """A batch depends on seed and position alone; turned back it is the one that is shown without classes."""
    data = tiny.load(64)

    def batches(position, labelling, seed=42):
        stream = MicroBatches(
            TrainingImages(data.train, data.intensity, 4, 16, 0.75, seed, CPU, labelling=labelling), position
        )
        return [next(stream) for _ in range(4)]

    shown, plain = batches(0, Turns()), batches(0, None)
    for batch, before in zip(shown, plain, strict=True):
        assert torch.equal(batch.hidden, before.hidden)
        back = [torch.rot90(image, -k, (1, 2)) for image, k in zip(batch.images, batch.labels.tolist(), strict=True)]
        assert torch.equal(torch.stack(back), before.images)
    assert {k for batch in shown for k in batch.labels.tolist()} == {0, 1, 2, 3}
    later = batches(2, Turns())
    assert torch.equal(later[0].images, shown[2].images)
    assert torch.equal(later[0].labels, shown[2].labels)
    assert not all(torch.equal(a.labels, b.labels) for a, b in zip(shown, batches(0, Turns(), seed=1), strict=True))


def test_an_evaluation_image_has_one_turn_whatever_is_left_out():
    data = tiny.load(64, val=12)
    whole, thin = (EvaluationSet.of(data, "val", count, 16, 0.75, Turns()) for count in (None, 2))
    assert thin.labels.tolist() == whole.labels[[0, 11]].tolist()
    assert torch.equal(thin.images[1], torch.rot90(data.val[11], int(thin.labels[1]), (1, 2)))
    assert whole.part(1, 2).labels.tolist() == whole.labels[1::2].tolist()
    assert len(set(whole.labels.tolist())) > 1
    assert len(Turned(data.val)) == 12


class Says(nn.Module):
    """Predicts zeros, and the logits [n, k] image after image."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self._logits = logits

    def forward(self, images: torch.Tensor, hidden: torch.Tensor, classify: bool) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(*hidden.shape, 3, 16, 16), self._logits[: len(images)]


def test_cross_entropy_and_accuracy_by_hand():
    data = tiny.load(64)
    split = replace(EvaluationSet.of(data, "val", None, 16, 0.75, Turns()), labels=torch.tensor([1, 1, 0, 3, 2, 1]))
    loss = ClassifyingLoss(16, data.intensity)
    found = means(evaluate(Says(torch.tensor([0.0, 2, 0, 0]).expand(6, 4)), loss, split, loss.tasks, CPU))
    total = math.exp(2) + 3
    assert found["top1"] == 0.5
    assert found["class"] == pytest.approx(0.5 * -math.log(math.exp(2) / total) + 0.5 * math.log(total), rel=1e-6)
    with pytest.raises(ValueError, match="expected logits and labels for class"):
        loss(torch.zeros(1, 1, 3, 16, 16), torch.zeros(1, 3, 64, 64), torch.tensor([[0]]), ["class"])


# Findings, any number an image


def test_binary_cross_entropy_and_macro_auc_by_hand():
    """Third finding: no image has it, so that it has no area; second: 3 of 4 pairs are in order, one is a tie."""
    data = tiny.load(64, val=4)
    truth = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]]).float()
    logits = torch.tensor([[2, 3, -1], [1, 1, -1], [0.5, 1, -1], [-1, 0, -1]])
    labelling = Findings(("a", "b", "c"), {"train": truth, "val": truth})
    split = EvaluationSet.of(data, "val", None, 16, 0.75, labelling)
    loss = ClassifyingLoss(16, data.intensity)
    scores = evaluate(Says(logits), loss, split, loss.tasks, CPU)
    found = means(scores)
    by_hand = [math.log(1 + math.exp(-x if y else x)) for x, y in zip(logits.flatten(), truth.flatten(), strict=True)]
    assert found["class"] == pytest.approx(sum(by_hand) / 12, rel=1e-6)
    assert (found["auc/a"], found["auc/b"], found["auc_findings"]) == (0.75, 3.5 / 4, 2)
    assert math.isnan(found["auc/c"])
    assert found["auc"] == (0.75 + 3.5 / 4) / 2
    assert not {"top1", "logit/a", "truth/a"} & set(found)
    assert set(by_group(scores, ["x", "x", "y", "y"])["x"]) == {"images", "l1", "ssim", "class"}
    rates = labelling.by_chance(truth)  # (2 + 1) / (4 + 2) twice, (0 + 1) / 6
    assert rates["class"] == pytest.approx((2 * math.log(2) - math.log(5 / 6)) / 3, rel=1e-6)


def test_the_area_is_the_share_of_pairs_in_order():
    draw = torch.Generator().manual_seed(3)
    for classes in (4, 1000):  # with many ties and with few
        scores = torch.randint(classes, (60,), generator=draw).double()
        positive = torch.rand(60, generator=draw) < 0.3
        pairs = [(a > b) + (a == b) / 2 for a in scores[positive].tolist() for b in scores[~positive].tolist()]
        assert area_under_roc(scores, positive) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


def test_top5_by_hand():
    data = tiny.load(64, val=6)
    names = [str(number) for number in range(7)]
    labelling = Given({"train": names, "val": ["0", "4", "5", "6", "0", "3"]})
    split = EvaluationSet.of(data, "val", None, 16, 0.75, labelling)
    loss = ClassifyingLoss(16, data.intensity)
    logits = torch.arange(7.0, 0, -1).expand(6, 7)  # class 0 is the first guess, 5 and 6 are the last two
    found = means(evaluate(Says(logits), loss, split, loss.tasks, CPU))
    assert (found["top1"], found["top5"]) == (2 / 6, 4 / 6)
    assert labelling.by_chance(split.labels) == {"class": math.log(7), "top1": 1 / 7, "top5": 5 / 7}


def test_the_rest_of_a_classifying_model_starts_like_one_without_classes():
    cfg = config("scale=smoke", "dataset=photos", "model=mobilenetv3_small_050").model
    weights = []
    for classes in (None, 4):
        with seeded(3, "weights"):
            weights.append(build(cfg, channels=3, classes=classes).state_dict())
    without, with_classes = weights
    assert set(with_classes) - set(without) == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(with_classes[name], value) for name, value in without.items())


def test_labels_that_do_not_exist_or_are_not_needed_are_refused(monkeypatch):
    chosen = ("loss=l1_ssim_class", "loss.labels=dataset")
    with pytest.raises(ValueError, match=r"`loss\.labels`: expected rotation, since photos has no labels"):
        labelling_of(config(*chosen, "dataset=photos"))
    names = {"train": ["cat", "ant", "bee", "ant"], "val": ["bee"], "test": ["cat"]}
    monkeypatch.setattr("gcond.data.imagenet256.labels", {"somewhere": names}.get)
    given = labelling_of(config(*chosen, "dataset=imagenet256", "dataset.name=mine", "dataset.root=somewhere"))
    assert isinstance(given, Given)
    assert given.classes == 3
    data = tiny.load(64)
    raw = torch.stack([data.train[2], data.train[1]])
    shown, drawn = given.drawn(raw, [2, 1], torch.Generator())
    assert torch.equal(shown, raw)
    assert drawn.tolist() == [1, 0]
    assert given.fixed(data.val, "val")[1].tolist() == [1]
    with pytest.raises(ValueError, match=r"expected classes of training images, found also dog"):
        Given({"train": ["cat"], "val": ["dog"]})
    with pytest.raises(ValueError, match=r"expected rotation, since imagenet256 has no labels"):
        labelling_of(config(*chosen, "dataset=imagenet256", "dataset.root=elsewhere"))
    with pytest.raises(ValueError, match=r"resolver\.group`: expected encoder, .*, found head"):
        Settings(config("loss=l1_ssim_class", "strategy=gradnorm", "strategy.conductor.resolver.group=head"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["graddrop", "mgda", "upgrad", "gcond_sequential", "gcond_lion", "uw", "nash_mtl"])
def test_other_strategies_train_a_classifier(strategy, tmp_path):
    assert run(tiny_config(tmp_path, *CLASSES, f"strategy={strategy}")).done

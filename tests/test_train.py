"""Whole runs on a tiny data set: common random numbers, resume, refusals, and what a run leaves behind."""

import copy
import functools
import json
import re
from dataclasses import dataclass, field
from typing import NoReturn

import pytest
import torch
from engine import tiny
from engine.attempts import assert_ended_alike, interrupted, same
from engine.runs import CONFLICTS, parts, run, steps, tiny_config
from torch import Tensor

from gcond.config import CONFIG
from gcond.engine import evaluate as final
from gcond.engine.checkpoint import Checkpoint
from gcond.engine.run_folder import RunFolder
from gcond.engine.settings import Settings
from gcond.model import MaskedAutoencoder

ROOT = CONFIG.parent
STRATEGIES = sorted(path.stem for path in (CONFIG / "strategy").glob("*.yaml"))
FAST = ("baseline", "gcond_lion", "gcond_stochastic", "gradnorm", "pcgrad")  # every kind of memory that there is
EACH_STRATEGY = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in STRATEGIES]
ARBITRATING = [name for name in STRATEGIES if name.startswith("gcond") and name != "gcond_as_pcgrad"]  # choose winners


def conflicting(strategy: str) -> list[str]:
    """Overrides under which GCond arbitrates in every step, so that all of its memory matters."""
    return [f"strategy={strategy}", *(CONFLICTS[1:] if strategy in ARBITRATING else ())]


@dataclass
class Received:
    """What the model was given whenever gradients were computed, and its weights at the first of it."""

    batches: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)

    def by(self, model: MaskedAutoencoder, images: Tensor, hidden: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            if not self.weights:
                self.weights = {key: value.clone() for key, value in model.state_dict().items()}
            self.batches.append((images.clone(), hidden.clone()))
        return FORWARD(model, images, hidden)


FORWARD = MaskedAutoencoder.forward


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """strategy, overrides -> the folder of a run that nothing interrupted, and what its model received."""

    @functools.cache
    def of(strategy, *overrides):
        received = Received()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MaskedAutoencoder, "forward", lambda *arguments: received.by(*arguments))
            cfg = tiny_config(tmp_path_factory.mktemp("runs"), *conflicting(strategy), *overrides)
            return run(cfg), received

    return of


# Common random numbers


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "baseline"])
def test_strategies_of_one_seed_see_the_same_images_masks_and_first_weights(strategy, complete):
    (_, expected), (_, received) = complete("baseline"), complete(strategy)
    assert len(received.batches) == 2 * (4 + 2)  # a pass per micro-batch, of four steps and two probes
    assert same(received.batches, expected.batches)
    assert same(received.weights, expected.weights)


# Resume


@pytest.mark.parametrize("strategy", EACH_STRATEGY)
def test_an_interrupted_run_ends_bit_identical(strategy, complete, tmp_path, monkeypatch):
    cfg = tiny_config(tmp_path, *conflicting(strategy))
    folder = interrupted(cfg)
    assert len(steps(folder)) == 3
    assert not folder.done
    saved, loaded = parts(folder), {}
    load = Checkpoint.load

    def load_and_look(checkpoint, last):
        state = load(checkpoint, last)
        loaded.update({name: copy.deepcopy(part.state_dict()) for name, part in checkpoint._parts.items()})
        return state

    monkeypatch.setattr(Checkpoint, "load", load_and_look)
    torch.manual_seed(12345)  # nobody's business
    run(cfg)
    assert same(loaded, saved)  # nothing is forgotten, whether or not these few steps would show it

    whole, _ = complete(strategy)
    assert folder.name == whole.name
    assert_ended_alike(folder, whole)
    reports = [json.loads(path.read_text()) for path in (folder.report, whole.report)]
    for wall_clock in ("started", "seconds", "cpu_seconds", "peak_memory_mb"):
        assert all(report.pop(wall_clock) for report in reports)
    for report in reports:
        for changing in ("dirty", "load_start", "load_end"):  # somebody may be editing while the test runs
            report.pop(changing)
    assert reports[0] == reports[1]


def test_the_weights_of_the_best_epoch_survive_an_interruption(tmp_path, monkeypatch):
    """The first epoch is made the best one, and the run is interrupted in the second."""
    monkeypatch.setattr(final, "weighted_loss", lambda scores, weights: scores["epoch"])
    interrupted(cfg := tiny_config(tmp_path / "parts"))
    assert_ended_alike(resumed := run(cfg), run(tiny_config(tmp_path / "whole")))

    report = json.loads(resumed.report.read_text())
    first, second = report["validation"]
    best, last = report["final"]["best"], report["final"]["last"]
    assert first != second
    assert {key: best[key] for key in first} == first
    assert {key: last[key] for key in second} == second


def test_the_curve_is_of_a_part_of_the_images_and_the_final_scores_of_all(tmp_path):
    whole, thin = (run(tiny_config(tmp_path, *overrides)) for overrides in ((), ("+scale.curve_images=2",)))
    reports = [json.loads(folder.report.read_text()) for folder in (whole, thin)]
    assert reports[0]["final"]["last"] == reports[1]["final"]["last"]
    assert reports[1]["final"]["last"]["val_images"] == 6
    assert reports[0]["validation"][-1]["val_l1"] != reports[1]["validation"][-1]["val_l1"]
    assert reports[0]["trivial"] == reports[1]["trivial"]
    assert reports[0]["tf32"] is False


def test_the_resumed_runs_above_had_something_to_remember(complete):
    """Where nothing is arbitrated, a resume that forgets the resolver is bit-identical too."""
    for strategy in ARBITRATING:
        taken = steps(complete(strategy)[0])
        assert all(step["wins/l1"] + step["wins/ssim"] > 0 for step in taken)
        assert {step["wins/l1"] > step["wins/ssim"] for step in taken} == {True, False}


def test_changed_data_are_not_trained_on(tmp_path, monkeypatch):
    cfg = tiny_config(tmp_path)
    monkeypatch.setattr(RunFolder, "finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(cfg)
    monkeypatch.setattr(tiny, "gratings", lambda count, size: torch.zeros(count, 3, size, size, dtype=torch.uint8))
    with pytest.raises(ValueError, match="move the run's folder away"):
        run(cfg)


def interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


# Refusals


@pytest.mark.parametrize(
    ("key", "overrides"),
    [
        ("strategy.conductor.estimator.accumulation_steps", "scale.accumulation_steps=3"),
        ("strategy.conductor.estimator.resolve_every", "+strategy.conductor.estimator.resolve_every=micro_batch"),
        ("strategy.conductor.resolver.thresholds", "strategy.conductor.resolver.thresholds=[-0.5,-0.8,0]"),
        ("strategy.conductor.update.beta", "strategy.conductor.update.beta=1.0"),
        ("loss.tasks", "+loss.tasks.depth=1"),
        ("loss.labels", "loss=l1_ssim_class loss.labels=turns"),
        ("loss.labels", "loss=l1_ssim_class loss.labels=null"),
        ("loss.labels", "+loss.labels=rotation"),
        ("scale.final_lr", "scale.final_lr=1"),
        ("scale.final_lr", "scale.final_lr=1 scale.steps_per_epoch=null"),
        ("scale.warmup_epochs", "scale.warmup_epochs=2"),
        ("scale.mask_ratio", "scale.mask_ratio=0.99"),
        ("loss.reconstruction.ssim_window", "loss.reconstruction.ssim_window=17"),
        ("optimizer.build.betas", "optimizer=sgd"),
        ("optimizer.build.weight_decay", "optimizer.build.weight_decay=3000"),
        ("model.width", "model.width=33"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(key, overrides, tmp_path):
    with pytest.raises(ValueError, match=rf"`{re.escape(key)}`"):
        Settings(tiny_config(tmp_path, "strategy=gcond_stochastic", *overrides.split()))


def test_what_is_refused_is_refused_before_any_data_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for key, override in (("device", "device=cuda"), ("scale.warmup_epochs", "scale.warmup_epochs=2")):
        cfg = tiny_config(tmp_path / key, "dataset._target_=engine.tiny.never", override)
        with pytest.raises(ValueError, match=rf"`{key}`"):
            run(cfg)
        assert f"`{key}`" in str(RunFolder(cfg).error)  # for the end of a sweep
        assert json.loads(RunFolder(cfg).report.read_text())["status"] == "failed"
    for override in ("seed=foo", "scale.image_size=72", "+scale.curve_images=0", "loss.tasks.l1=-1", "name=a/b"):
        with pytest.raises(ValueError, match=rf"`{re.escape(override.split('=')[0].lstrip('+'))}`"):
            run(tiny_config(tmp_path / "none", override))
    assert not (tmp_path / "none").exists()


def test_a_loss_that_is_not_finite_stops_the_run_before_the_step(tmp_path, monkeypatch):
    models = set()
    monkeypatch.setattr(MaskedAutoencoder, "forward", lambda *given: models.add(given[0]) or FORWARD(*given))
    cfg = tiny_config(tmp_path, "strategy=baseline", "loss.reconstruction._target_=engine.tiny.BreakingLoss")
    message = "step 2: the loss of task 'ssim' is nan"
    with pytest.raises(FloatingPointError, match=message):
        run(cfg)
    folder, (model,) = RunFolder(cfg), models
    saved = parts(folder)["model"]  # after two steps, the last good ones
    assert same({name: saved[name] for name, _ in model.named_parameters()}, dict(model.named_parameters()))
    assert folder.error == f"NotFinite: {message}"
    report = json.loads(folder.report.read_text())
    assert (report["status"], report["error"]) == ("failed", folder.error)
    assert not folder.done


# What a run leaves behind


TASK, GROUP = "(l1|ssim)", "(encoder|body|head)"
AT_TIMES = {"pair_cosine/A,B", f"count/{TASK}", "unsolved"}  # of other tasks, tried in tests/strategy


def documented() -> list[str]:
    """The keys of the table "What is logged", as regular expressions."""
    section = (ROOT / "docs" / "strategies.md").read_text().split("## What is logged")[1]
    keys = []
    for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE):
        names = re.findall(r"`([^`]+)`", row)
        prefix = names[0].split("/")[0] + "/" if "/" in names[0] else ""
        keys += [name if "/" in name else prefix + name for name in names]
    assert len(keys) > 10
    replaced = {"TASK": TASK, "GROUP": GROUP, "…": f"(all|{GROUP})"}
    return [functools.reduce(lambda key, word: key.replace(word, replaced[word]), replaced, key) for key in keys]


@pytest.fixture(scope="module")
def logged(complete):
    return {strategy: steps(complete(strategy)[0]) for strategy in STRATEGIES}


def test_the_documented_keys_are_the_logged_ones(logged):
    page = (ROOT / "docs" / "strategies.md").read_text()
    names = {name for records in logged.values() for record in records for name in record} - {"kind", "step", "lr"}
    assert [key for key in {*documented()} - AT_TIMES if not any(re.fullmatch(key, name) for name in names)] == []
    unknown = [name for name in names if not any(re.fullmatch(key, name) for key in documented())]
    assert sorted(name for name in unknown if f"`{name}`" not in page) == []


def test_costly_diagnoses_run_every_few_steps_only(logged):
    for records in logged.values():  # scale=smoke: diagnose_every 2
        assert [step["step"] for step in records] == [0, 1, 2, 3]
        assert ["step_rms_over_lr" in step for step in records] == [True, False, True, False]
        assert ["outside_unit_share" in step for step in records] == [True, False, True, False]


@pytest.mark.parametrize("strategy", ["baseline", "gcond_stochastic"])
def test_batch_statistics_move_in_train_mode_only(strategy, complete):
    trained = parts(complete(strategy)[0])["model"]
    frozen = parts(complete(strategy, "strategy.model_mode=eval")[0])["model"]
    means = [name for name in trained if name.endswith("running_mean")]
    assert means
    for mean in means:
        assert bool(trained[mean].any())
        assert not bool(frozen[mean].any())  # 0 and 1, as they started
        assert bool((frozen[mean.replace("mean", "var")] == 1).all())

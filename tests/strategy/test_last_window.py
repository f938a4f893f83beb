"""What a conductor tells of the last window: pairs of tasks, counts, and who shares which parameters."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from strategy.faulty import TASKS, Network, window
from strategy.problems import assert_refused
from torch.nn.functional import cosine_similarity

from gcond.strategy import GradientConductor, Joint, Linear, PCGrad, Raw, Sequential

PAIRS = list(combinations(TASKS, 2))


def flat_gradient(network: Network, task: str, group: str = "") -> torch.Tensor:
    """Of one task's loss, lambda applied, over the parameters of a group that all tasks share."""
    shared = [p for name, p in network.named_parameters() if not name.startswith("own") and name.startswith(group)]
    loss = torch.stack([network.losses(batch, [task])[task] for batch in window(0)]).mean() * TASKS[task]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, shared)])


def test_each_pair_has_its_cosine_in_all_and_by_group():
    network = Network()
    conductor = GradientConductor(network.groups(), TASKS, resolver="pcgrad", accumulate=3)
    metrics = conductor.step(window(0), network.losses)
    last = conductor.last
    for pair in PAIRS:
        expected = [cosine_similarity(*(flat_gradient(network, task, g) for task in pair), 0) for g in ("", "head")]
        assert metrics[f"pair_cosine/{','.join(pair)}"] == pytest.approx(float(expected[0]), rel=1e-4)
        assert last.cosines["all"][pair] == metrics[f"pair_cosine/{','.join(pair)}"]
        assert last.cosines["head"][pair] == pytest.approx(float(expected[1]), rel=1e-4)
    assert min(last.cosines["all"].values()) == pytest.approx(metrics["cosine/all"])
    assert last.norms["trunk"]["b"] == pytest.approx(float(flat_gradient(network, "b", "trunk").norm()), rel=1e-4)
    assert last.losses == {task: metrics[f"loss/{task}"] for task in TASKS}
    assert (last.counts, last.metrics) == (dict.fromkeys(TASKS, 3), metrics)


def test_two_tasks_log_what_they_always_have():
    network = Network()
    conductor = GradientConductor(network, {"a": 0.5, "b": 0.5}, Sequential(3), PCGrad(), Raw())
    metrics = conductor.step(window(0), network.losses)
    assert not [key for key in metrics if key.startswith("pair_cosine")]
    assert conductor.last.cosines["all"] == {("a", "b"): pytest.approx(metrics["cosine/all"])}


def test_of_micro_batches_the_record_is_their_mean():
    network = Network()
    conductor = GradientConductor(network, TASKS, Sequential(3, resolve_every="micro_batch"), PCGrad(), Raw())
    conductor.step(window(0), network.losses)
    grams = []
    for batch in window(0):
        single = GradientConductor(network, TASKS, Sequential(1), PCGrad(), Raw())
        single.step([batch], network.losses)
        grams.append(single.last.grams["all"])
    torch.testing.assert_close(conductor.last.grams["all"], torch.stack(grams).mean(0))


def test_the_summary_says_who_shares_what():
    network = Network()
    network.spare = torch.nn.Linear(1, 1)
    conductor = GradientConductor(network, TASKS, accumulate=3)
    assert_refused("`summary`", conductor.summary)
    conductor.step(window(0), network.losses)
    told, _, *lines = conductor.summary().splitlines()
    assert told.endswith("a: 3, b: 3, c: 3")
    found = {line.split("  ")[0]: line.split() for line in lines}
    assert list(found) == ["a, b, c", "a alone", "b alone", "c alone", "none"]
    shared = sum(p.numel() for name, p in network.named_parameters() if name.startswith(("trunk", "head")))
    total = sum(p.numel() for p in network.parameters())
    assert found["a, b, c"][3:] == ["4", str(shared), f"{shared / total:.1%}", "trunk.weight,", "trunk.bias,", "…"]
    assert found["none"][1:3] == ["2", "2"]


def test_one_row_for_all_tasks_is_told_apart_by_a_diagnosis_alone():
    network = Network()
    conductor = GradientConductor(network, TASKS, Joint(3), Linear())
    conductor.step(window(0), network.losses)
    assert conductor.summary().splitlines()[2].split()[:2] == ["a+b+c", "10"]
    conductor.step(window(0), network.losses, diagnose=True)
    assert "a alone" in conductor.summary()


def test_a_window_that_is_left_out_leaves_no_record():
    network = Network()
    conductor = GradientConductor(network, TASKS, accumulate=3, nonfinite="skip")
    conductor.step(window(0, loss=math.nan), network.losses)
    assert conductor.last is None

"""What changes between two steps: it is followed exactly, or refused with the name of what has changed."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from strategy.problems import (
    ESTIMATORS,
    TASKS,
    ConvNet,
    Net,
    TwoHeads,
    assert_refused,
    batch_of,
    flat_grad,
    image_batches,
    linear,
    opposed_losses,
    plain_gradients,
    seeded,
    two_head_losses,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from gcond import EMA, SAMGS, GCond, GradientConductor, Joint, Linear, LionLARS, PCGrad, Raw, Sequential, Stochastic

BUT_BY_MICRO_BATCH = [each for each in ESTIMATORS if not each.resolves_micro_batches]


def stepped(model: Any = None, **settings: Any) -> tuple[Any, GradientConductor]:
    """A network and its conductor after one step."""
    model = Net() if model is None else model
    conductor = linear(model, **settings)
    conductor.step([batch_of(0)] * conductor.estimator.accumulation_steps, opposed_losses(model))
    return model, conductor


# Layout, dtype, device


STRATEGIES = {
    "joint": lambda: (Joint(2), Linear(), Raw()),
    "pcgrad": lambda: (Sequential(2, resolve_every="micro_batch"), PCGrad(), Raw()),
    "gcond": lambda: (Stochastic(2), GCond(), EMA(0.9)),
    "lion": lambda: (Sequential(2), GCond(), LionLARS()),
    "sam-gs": lambda: (Sequential(2), SAMGS(), EMA(0.5)),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_strides_that_change_in_training_change_nothing_else(name):
    """Momentum, history and SAM-GS's moments are permuted with the weights: all steps are those without a change."""

    def trained(changes: dict[int, torch.memory_format], **settings: Any) -> Tensor:
        model = ConvNet().double()
        conductor = GradientConductor(model.named_parameters(), TASKS, *STRATEGIES[name](), **settings)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        gradients = []
        for step in range(5):
            if step in changes:
                model.to(memory_format=changes[step])
            conductor.step([batch.double() for batch in image_batches(2, step)], opposed_losses(model))
            assert all(p.grad.stride() == p.stride() for p in model.parameters())
            gradients.append(flat_grad(model))
            optimizer.step()
        return torch.stack(gradients)

    changes = {2: torch.channels_last, 4: torch.contiguous_format}
    for settings in ({}, {"reference_dtype": "bfloat16"})[: 1 + STRATEGIES[name]()[1].uses_history]:
        torch.testing.assert_close(trained(changes, **settings), trained({}, **settings), rtol=1e-9, atol=1e-11)


def test_a_wider_dtype_is_followed():
    def trained(update: Any, buffer_dtype: str | None, widens: bool) -> Tensor:
        model, conductor = stepped(update=update(), buffer_dtype=buffer_dtype)
        if widens:
            model.double()
        for seed in (1, 2):
            batch = batch_of(seed).to(model.enc.weight.dtype)
            conductor.step([batch], opposed_losses(model))
            assert {p.grad.dtype for p in model.parameters()} == {batch.dtype}
        return flat_grad(model).float()

    for update in (Raw, EMA, LionLARS):
        for buffer_dtype in (None, "float32"):
            wide, narrow = (trained(update, buffer_dtype, widens) for widens in (True, False))
            torch.testing.assert_close(wide, narrow, rtol=1e-5, atol=1e-6)


def test_a_narrower_dtype_and_another_shape_are_followed_where_nothing_is_kept():
    model, conductor = stepped()
    model.bfloat16()
    conductor.step([batch_of(1).bfloat16()], opposed_losses(model))
    assert {p.grad.dtype for p in model.parameters()} == {torch.bfloat16}
    model.float()
    model.head.weight.data, model.head.bias.data = torch.ones(3, 4), torch.ones(3)
    conductor.step([batch_of(1)], opposed_losses(model))
    found = flat_grad(model)
    plain_gradients(model, opposed_losses(model), batch_of(1))
    torch.testing.assert_close(found, flat_grad(model))


def test_what_cannot_be_followed_is_refused_again_and_again():
    for change, message in (
        (lambda model: model.bfloat16(), "momentum .* kept as torch.float32, which torch.bfloat16 would round"),
        (lambda model: model.head.double(), r"one device and one dtype, found .*enc.*head"),
        (lambda model: setattr(model.head.weight, "data", torch.zeros(3, 4)), r"head.weight of shape \(2, 4\), .*foun"),
    ):
        model, conductor = stepped(update=EMA())
        change(model)
        for _ in range(2):
            assert_refused(f"`parameters`: .*{message}", conductor.step, [batch_of(1)], opposed_losses(model))


@pytest.mark.cuda
def test_a_model_moved_to_the_gpu_is_followed():
    found = []
    for move in (nn.Module.cpu, nn.Module.cuda):
        model = Net()
        conductor = GradientConductor(model, TASKS, Sequential(1), GCond(), EMA())
        for seed in (0, 1):
            conductor.step([batch_of(seed).to(model.enc.weight.device)], opposed_losses(model))
            move(model)
        found.append(flat_grad(model).cpu())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


# Identity


class Scaled(Net):
    """Its output may be multiplied by a parameter that comes later."""

    def forward(self, batch: Tensor) -> Tensor:
        return super().forward(batch) * (self.scale.sum() if hasattr(self, "scale") else 1)


@pytest.mark.parametrize("estimator", BUT_BY_MICRO_BATCH, ids=repr)
def test_parameters_that_the_conductor_does_not_hold_are_refused(estimator):
    by_assignment = lambda m: m.load_state_dict({k: v.clone() for k, v in m.state_dict().items()}, assign=True)  # noqa: E731
    for change, message in (
        (by_assignment, r"in place of head.weight, which it holds"),
        (lambda model: setattr(model, "head", nn.Linear(4, 2)), r"in place of head.weight, which it holds"),
        (lambda model: model.register_parameter("scale", nn.Parameter(torch.ones(3))), r"scale of shape \(3,\)"),
        (lambda model: parametrizations.weight_norm(model.enc), r"original0 of shape \(4, 1\)"),
    ):
        model, conductor = stepped(Scaled(), estimator=estimator)
        change(model)
        message = f"`parameters`: the loss of .* does not hold, .*{message}"
        assert_refused(message, conductor.step, [batch_of(1)] * 2, opposed_losses(model))
        assert all(parameter.grad is None for parameter in model.parameters())


def test_losses_of_another_model_are_refused_in_the_first_window():
    model, other = Net(), Net().requires_grad_(False)
    reaches_nothing = "`losses`: expected a loss that reaches a parameter"
    conductor = linear(model)
    for _ in range(2):  # each with a point of its own, which has no gradient of the window before
        losses = opposed_losses(lambda batch: other(batch + torch.zeros(4, requires_grad=True)))
        assert_refused(reaches_nothing, conductor.step, [batch_of(0)], losses)
    left_to_autograd = r"does not hold, Parameter of shape \(2, 4\)"
    conductor = linear(model.enc.named_parameters())
    assert_refused(left_to_autograd, conductor.step, [batch_of(0)], opposed_losses(model))
    model.head.requires_grad_(False)
    conductor.step([batch_of(0)], opposed_losses(model))
    point, losses = nn.Parameter(torch.ones(())), opposed_losses(model)
    itself = lambda batch, names: losses(batch, names) | {"ssim": point}  # noqa: E731
    assert_refused(r"does not hold, Parameter of shape \(\)", conductor.step, [batch_of(0)], itself)


def test_a_leaf_that_only_some_micro_batches_reach_is_found():
    """The third of four: at once in the first window; later within four windows."""
    model, extra = Net(), nn.Linear(4, 2)

    def losses(batch: tuple[int, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        place, images = batch
        added = extra(images).sum() if place == 2 else 0
        return {name: value + added for name, value in opposed_losses(model)(images, names).items()}

    window = [(place, batch_of(place)) for place in range(4)]
    assert_refused("does not hold", linear(model, Joint(4)).step, window, losses)
    conductor = linear(model, Joint(4))
    extra.requires_grad_(False)
    conductor.step(window, losses)
    extra.requires_grad_(True)
    assert_refused("does not hold", lambda: [conductor.step(window, losses) for _ in range(4)])


def test_inputs_may_require_a_gradient():
    """As in physics-informed networks; but one that is used again and again adds up."""
    model = Net()

    def losses(batch: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        outputs = model(batch)
        (slope,) = torch.autograd.grad(outputs.sum(), batch, create_graph=True)
        return {name: slope.square().sum() + outputs.sum() for name in names}

    conductor = linear(model)
    for seed in range(3):
        conductor.step([batch_of(seed).requires_grad_()], losses)
    fixed = batch_of(0).requires_grad_()
    conductor.step([fixed], losses)
    assert_refused(r"does not hold, Tensor of shape \(8, 4\)", conductor.step, [fixed], losses)


def test_what_keeps_the_parameters_is_followed():
    for change in (
        lambda model: prune.l1_unstructured(model.enc, "weight", 0.5),
        lambda model: prune.remove(prune.l1_unstructured(model.enc, "weight", 0.5), "weight"),
        lambda model: parametrizations.spectral_norm(model.enc),
        lambda model: setattr(model.enc.weight, "data", model.enc.weight.data.clone() + 1),
        lambda model: setattr(model.head, "bias", None),
        lambda model: setattr(model, "head", nn.Sequential(model.head, nn.Tanh())),
    ):
        (model, conductor), reference = stepped(), Net()
        for each in (model, reference):
            torch.manual_seed(0)
            change(each)
        conductor.step([batch_of(1)], opposed_losses(model))
        torch.manual_seed(0)
        plain_gradients(reference, opposed_losses(reference), batch_of(1))
        found, expected = ([p.grad for p in each.parameters()] for each in (model, reference))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("resolver", ["gcond", "upgrad"])
def test_a_copy_of_model_and_conductor_goes_on_alike(resolver):
    for duplicate in (copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))):
        model = Net()
        conductor = GradientConductor(model, TASKS, Sequential(1), resolver, EMA())
        conductor.step([batch_of(0)], opposed_losses(model))
        other, copied = duplicate((model, conductor))
        for each, own in ((model, conductor), (other, copied)):
            own.step([batch_of(1)], opposed_losses(each))
        assert torch.equal(flat_grad(model), flat_grad(other))
    alone = copy.deepcopy(linear(model))  # which holds other parameters
    assert_refused("does not hold", alone.step, [batch_of(0)], opposed_losses(model))


# Frozen, unfrozen, reached or not


@pytest.mark.parametrize("beta", [None, 0.9])
def test_layers_that_freeze_and_thaw_train_as_without_a_conductor(beta):
    """Without and with momentum inside: a frozen layer keeps its average, and the count that corrects it."""

    def trained(estimator: Any) -> list[Tensor]:
        model = Net().double()
        model.enc.requires_grad_(False)
        conductor = linear(model, estimator, beta and EMA(beta)) if estimator else None
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, betas=(0.9, 0.95), weight_decay=0.1)
        averages, counts = [torch.zeros_like(p) for p in model.parameters()], [0] * 4
        for step in range(8):
            model.enc.requires_grad_(step % 3 != 0)
            batch, losses = batch_of(step).double(), opposed_losses(model)
            if conductor:
                conductor.step([batch], losses)
            else:
                plain_gradients(model, losses, batch)
                for place, parameter in enumerate(model.parameters()):
                    if beta and parameter.grad is not None:
                        averages[place].lerp_(parameter.grad, 1 - beta)
                        counts[place] += 1
                        parameter.grad = averages[place] / (1 - beta ** counts[place])
            assert (model.enc.weight.grad is None) == (not model.enc.weight.requires_grad)
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    expected = trained(None)
    for estimator in (Joint(1), Sequential(1)):
        torch.testing.assert_close(trained(estimator), expected, rtol=1e-9, atol=1e-12)


class Experts(nn.Module):
    """A trunk, and two experts of which a batch uses one, by the sign of its first number."""

    @seeded(1)
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 4)
        self.experts = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])

    def forward(self, batch: Tensor) -> Tensor:
        return self.experts[int(batch[0, 0] > 0)](torch.tanh(self.trunk(batch)))


@pytest.mark.parametrize("estimator", ESTIMATORS[:-1], ids=repr)
def test_an_expert_that_a_window_does_not_use_is_not_moved(estimator):
    """Ten steps against the loop that calls zero_grad: values of all parameters, with weight decay and momentum."""

    def trained(with_conductor: bool) -> list[Tensor]:
        model = Experts().double()
        gather = linear(model, estimator).step if with_conductor else None
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
        for step in range(10):
            window = [batch_of(seed).double().abs() * (-1 if step % 3 else 1) for seed in (2 * step, 2 * step + 1)]
            if gather:
                gather(window, opposed_losses(model))
            else:
                plain_gradients(model, opposed_losses(model), *window)
            assert [e.weight.grad is None for e in model.experts] == [step % 3 == 0, step % 3 != 0]
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    torch.testing.assert_close(trained(True), trained(False), rtol=1e-9, atol=1e-12)


def pcgrad(model: nn.Module, estimator: Any = None) -> GradientConductor:
    return GradientConductor(model, TASKS, estimator or Sequential(1), PCGrad(), Raw(), clip_norm=None)


def test_a_head_is_one_task_s_own_in_the_windows_where_it_is():
    """Both tasks reach the first head in the second window only: its gradient there is resolved, later it is l1's."""
    model = TwoHeads()
    conductor, head, inputs = pcgrad(model), model.heads["l1"].weight, batch_of(3)
    ask = two_head_losses(model)
    shared = lambda batch, names: ask(batch, names) | {"ssim": 9 * model(batch.double())[0].mean()}  # noqa: E731
    for losses in (ask, shared, ask):
        conductor.step([inputs], losses)
        gradients = [0.85 * torch.autograd.grad(losses(inputs, TASKS)["l1"], head)[0]]
        if losses is shared:
            gradients.append(0.15 * torch.autograd.grad(losses(inputs, TASKS)["ssim"], head)[0])
        assert torch.allclose(head.grad, sum(gradients)) == (losses is ask)


@pytest.mark.parametrize("estimator", [Sequential(2), Sequential(2, "per_task"), Stochastic(2)])
def test_zeros_that_a_reentrant_checkpoint_gives_to_the_other_head_are_nothing(estimator):
    found = []
    for reentrant in (None, False, True):
        model = TwoHeads()

        def called(batch: Tensor, model: Any = model, reentrant: Any = reentrant) -> tuple[Tensor, ...]:
            kept = {} if reentrant is None else {"use_reentrant": reentrant}
            return checkpoint(model, batch.clone().requires_grad_(), **kept) if kept else model(batch)

        pcgrad(model, estimator).step([batch_of(seed) for seed in range(2)], two_head_losses(called))
        found.append(flat_grad(model))
    torch.testing.assert_close(found[1:], [found[0]] * 2)


def test_sparse_gradients_become_dense_and_are_told_once():
    table, chosen = nn.Embedding(5, 2, sparse=True), torch.tensor([1, 1, 3])
    conductor = linear(table)
    losses = lambda batch, names: {name: table(chosen).square().sum() for name in names}  # noqa: E731
    with pytest.warns(UserWarning, match="`sparse=True`.*dense.*SparseAdam"):
        conductor.step([0], losses)
    with warnings.catch_warnings(action="error"):
        conductor.step([0], losses)
    expected = torch.zeros(5, 2)
    expected[[1, 3]] = table.weight.detach()[[1, 3]] * torch.tensor([[4.0], [2.0]])
    torch.testing.assert_close(table.weight.grad, expected)


# What is no step


def meddling(model: nn.Module, meddle: Any) -> Any:
    """Losses of `model`; `meddle` is called with the first that is asked for."""

    def losses(batch: Tensor, names: Sequence[str]) -> Any:
        values = opposed_losses(model)(batch, names)
        meddle(next(iter(values.values())))
        return values

    return losses


@pytest.mark.parametrize("buffer_dtype", [None, "float64"])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_zero_grad_within_losses_changes_nothing_and_backward_is_refused(estimator, buffer_dtype):
    plain, cleared, added = Net(), Net(), Net()
    conductors = [linear(model, estimator, buffer_dtype=buffer_dtype) for model in (plain, cleared, added)]
    for seed in range(2):
        batches = [batch_of(seed)] * 2
        conductors[0].step(batches, opposed_losses(plain))
        conductors[1].step(batches, meddling(cleared, lambda loss: cleared.zero_grad(set_to_none=False)))
        conductors[2].step(batches, opposed_losses(added))
        assert torch.equal(flat_grad(plain), flat_grad(cleared))
    losses = meddling(added, lambda loss: loss.backward(retain_graph=True))
    for batches in ([batch_of(0)] * 2, [batch_of(1)] * 2):  # at whichever place graphs are looked at
        refusal = "`losses`: expected them to be computed only.* found a gradient of "
        assert_refused(refusal, conductors[2].step, batches, losses)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_a_backward_hook_that_clears_gradients_is_refused(estimator):
    """What was gathered until then would stand in no row."""
    model = Net()
    conductor = linear(model, estimator)
    meddle = lambda loss: loss.register_hook(lambda gradient: model.zero_grad())  # noqa: E731
    refused = "`losses`: expected a backward pass to leave every p.grad in its place, found another one of "
    assert_refused(refused, conductor.step, [batch_of(0)] * 2, meddling(model, meddle))


def test_a_hook_that_sees_the_gradient_of_each_task_is_refused():
    """An optimizer in the backward pass would move parameters between the tasks."""
    model, conductor = stepped()
    handle = model.head.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    refused = "`parameters`: expected none with a hook of register_post_accumulate_grad_hook, found one on head.weight"
    assert_refused(refused, conductor.step, [batch_of(0)], opposed_losses(model))
    handle.remove()
    conductor.step([batch_of(0)], opposed_losses(model))


def test_a_step_without_gradients_is_refused():
    model = Net()
    conductor = linear(model)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            refusal = "`step`: expected to be called with gradients on"
            assert_refused(refusal, conductor.step, [batch_of(0)], opposed_losses(model))

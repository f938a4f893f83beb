"""What changes between two steps: it is followed exactly, or refused with the name of what has changed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from strategy.problems import ConvNet, flat_grad, image_batches, opposed_losses
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from gcond.strategy import EMA, GCond, GradientConductor, Joint, Linear, LionLARS, PCGrad, Raw, Sequential, Stochastic
from gcond.strategy.resolve.sam_gs import SAMGS

TASKS = {"l1": 0.85, "ssim": 0.15}


class Net(nn.Module):
    """Two layers, [B, 4] -> [B, 2]: an output for each task."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.enc, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, batch: Tensor) -> Tensor:
        return self.head(torch.tanh(self.enc(batch)))


def losses_of(model: Callable[[Tensor], Tensor]) -> Any:
    def losses(batch: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        outputs = model(batch)
        values = {"l1": (outputs[:, 0] - 1).square().mean(), "ssim": (outputs[:, 1] + 2).abs().mean()}
        return {name: values[name] for name in names}

    return losses


def batch_of(seed: int) -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))


def plain_gradients(model: nn.Module, losses: Any, batch: Tensor) -> None:
    model.zero_grad()
    values = losses(batch, list(TASKS))
    sum(weight * values[name] for name, weight in TASKS.items()).backward()


def linear(model: Any, estimator: Any = None, update: Any = None, **settings: Any) -> GradientConductor:
    return GradientConductor(model, TASKS, estimator or Sequential(1), Linear(), update or Raw(), None, **settings)


def assert_plain(model: nn.Module, reference: nn.Module) -> None:
    for (name, found), expected in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (found.grad is None) == (expected.grad is None), name
        if found.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-6)


# Layout, dtype, device


STRATEGIES = {
    "joint": lambda: (Joint(2), Linear(), Raw()),
    "pcgrad": lambda: (Sequential(2, resolve_every="micro_batch"), PCGrad(), Raw()),
    "gcond": lambda: (Stochastic(2), GCond(), EMA(0.9)),
    "lion": lambda: (Sequential(2), GCond(), LionLARS()),
    "sam-gs": lambda: (Sequential(2), SAMGS(), EMA(0.5)),
}


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("reference_dtype", [None, "bfloat16"])
def test_strides_that_change_in_training_change_nothing_else(name, reference_dtype):
    """Momentum, history and SAM-GS's moments are permuted with the weights: all steps are those without a change."""
    settings = {"reference_dtype": reference_dtype} if STRATEGIES[name]()[1].uses_history else {}

    def trained(changes: dict[int, torch.memory_format]) -> Tensor:
        model = ConvNet().double()
        estimator, resolver, update = STRATEGIES[name]()
        conductor = GradientConductor(model.named_parameters(), TASKS, estimator, resolver, update, **settings)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        gradients = []
        for step in range(5):
            if step in changes:
                model.to(memory_format=changes[step])
            conductor.step([batch.double() for batch in image_batches(2, step)], opposed_losses(model))
            assert all(p.grad.stride() == p.stride() for p in model.parameters())
            gradients.append(flat_grad(list(model.parameters())))
            optimizer.step()
        return torch.stack(gradients)

    changes = {2: torch.channels_last, 4: torch.contiguous_format}
    torch.testing.assert_close(trained(changes), trained({}), rtol=1e-9, atol=1e-11)


def test_strides_that_change_before_the_first_step():
    model, reference = ConvNet(), ConvNet().to(memory_format=torch.channels_last)
    conductor = linear(model)
    model.to(memory_format=torch.channels_last)
    losses, batch = opposed_losses(model), image_batches(1)[0]
    conductor.step([batch], losses)
    plain_gradients(reference, opposed_losses(reference), batch)
    assert_plain(model, reference)


@pytest.mark.parametrize("buffer_dtype", [None, "float32"])
@pytest.mark.parametrize("update", [Raw, EMA, LionLARS])
def test_a_wider_dtype_is_followed(update, buffer_dtype):
    def trained(widens: bool) -> Tensor:
        model = Net()
        conductor = linear(model, update=update(), buffer_dtype=buffer_dtype)
        conductor.step([batch_of(0)], losses_of(model))
        if widens:
            model.double()
        for seed in (1, 2):
            batch = batch_of(seed).to(model.enc.weight.dtype)
            conductor.step([batch], losses_of(model))
            assert {p.grad.dtype for p in model.parameters()} == {batch.dtype}
        return flat_grad(list(model.parameters())).float()

    torch.testing.assert_close(trained(True), trained(False), rtol=1e-5, atol=1e-6)


def test_a_narrower_dtype_is_followed_where_nothing_is_kept():
    model = Net()
    conductor = linear(model)
    conductor.step([batch_of(0)], losses_of(model))
    model.bfloat16()
    conductor.step([batch_of(1).bfloat16()], losses_of(model))
    assert {p.grad.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.bfloat16(), "momentum .* kept as torch.float32, which torch.bfloat16 would round"),
        (lambda model: model.head.double(), r"one device and one dtype, found .*enc.*head"),
        (
            lambda model: setattr(model.head.weight, "data", torch.zeros(3, 4)),
            r"head.weight of shape \(2, 4\), .*found",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused_again_and_again(change, message):
    model = Net()
    conductor = linear(model, update=EMA())
    conductor.step([batch_of(0)], losses_of(model))
    change(model)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"`parameters`: .*{message}"):
            conductor.step([batch_of(1)], losses_of(model))


def test_another_shape_is_followed_where_nothing_is_kept():
    model = Net()
    conductor = linear(model)
    conductor.step([batch_of(0)], losses_of(model))
    model.head.weight.data, model.head.bias.data = torch.ones(3, 4), torch.ones(3)
    conductor.step([batch_of(1)], losses_of(model))
    reference = copy.deepcopy(model)
    plain_gradients(reference, losses_of(reference), batch_of(1))
    assert_plain(model, reference)


@pytest.mark.cuda
def test_a_model_moved_to_the_gpu_is_followed():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")

    def trained(moves: bool) -> Tensor:
        model = Net()
        conductor = GradientConductor(model, TASKS, Sequential(1), GCond(), EMA())
        conductor.step([batch_of(0)], losses_of(model))
        if moves:
            model.cuda()
        conductor.step([batch_of(1).to(model.enc.weight.device)], losses_of(model))
        return flat_grad(list(model.parameters())).cpu()

    torch.testing.assert_close(trained(True), trained(False), rtol=1e-4, atol=1e-5)


# Identity


def replaced_by_assignment(model: Net) -> None:
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


@pytest.mark.parametrize("estimator", [Joint(2), Sequential(2), Sequential(2, "per_task"), Stochastic(2)])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced_by_assignment, r"in place of head.weight, which it holds"),
        (lambda model: setattr(model, "head", nn.Linear(4, 2)), r"in place of head.weight, which it holds"),
        (lambda model: model.register_parameter("scale", nn.Parameter(torch.ones(3))), r"scale of shape \(3,\)"),
        (lambda model: parametrizations.weight_norm(model.enc), r"original0 of shape \(4, 1\)"),
    ],
)
def test_parameters_that_the_conductor_does_not_hold_are_refused(change, message, estimator):
    model = Net()
    conductor = linear(model, estimator)

    def losses(batch: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        values = losses_of(model)(batch, names)
        return (
            {name: value * model.scale.sum() for name, value in values.items()} if hasattr(model, "scale") else values
        )

    conductor.step([batch_of(0)] * 2, losses)
    change(model)
    with pytest.raises(ValueError, match=f"`parameters`: the loss of .* does not hold, .*{message}"):
        conductor.step([batch_of(1)] * 2, losses)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_losses_of_another_model_are_refused_in_the_first_window():
    model, other = Net(), Net().requires_grad_(False)
    point = torch.zeros(4, requires_grad=True)
    with pytest.raises(ValueError, match="`losses`: found no loss that reaches a parameter of the conductor"):
        linear(model).step([batch_of(0)], losses_of(lambda batch: other(batch + point)))


def test_a_head_left_to_autograd_is_refused_in_the_first_window():
    model = Net()
    conductor = linear(model.enc.named_parameters())
    with pytest.raises(ValueError, match=r"does not hold, Parameter of shape \(2, 4\)"):
        conductor.step([batch_of(0)], losses_of(model))
    model.head.requires_grad_(False)
    conductor.step([batch_of(0)], losses_of(model))


def test_a_leaf_that_only_some_micro_batches_reach_is_found():
    """The third of four: at once in the first window; later within four windows."""
    model, extra = Net(), nn.Linear(4, 2)

    def losses(batch: tuple[int, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        place, images = batch
        values = losses_of(model)(images, names)
        return {
            name: value + extra(images).sum() * (place == 2) if place == 2 else value for name, value in values.items()
        }

    window = [(place, batch_of(place)) for place in range(4)]
    with pytest.raises(ValueError, match="does not hold"):
        linear(model, Joint(4)).step(window, losses)
    extra.requires_grad_(False)
    conductor = linear(model, Joint(4))
    conductor.step(window, losses)
    extra.requires_grad_(True)

    def four_windows() -> None:
        for _ in range(4):
            conductor.step(window, losses)

    with pytest.raises(ValueError, match="does not hold"):
        four_windows()


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
    with pytest.raises(ValueError, match=r"does not hold, Tensor of shape \(8, 4\)"):
        conductor.step([fixed], losses)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: prune.l1_unstructured(model.enc, "weight", 0.5),
        lambda model: prune.remove(prune.l1_unstructured(model.enc, "weight", 0.5), "weight"),
        lambda model: parametrizations.spectral_norm(model.enc),
        lambda model: setattr(model.enc.weight, "data", model.enc.weight.data.clone() + 1),
        lambda model: setattr(model.head, "bias", None),
        lambda model: setattr(model, "head", nn.Sequential(model.head, nn.Tanh())),
    ],
)
def test_what_keeps_the_parameters_is_followed(change):
    model, reference = Net(), Net()
    conductor = linear(model)
    conductor.step([batch_of(0)], losses_of(model))
    for each in (model, reference):
        torch.manual_seed(0)
        change(each)
    conductor.step([batch_of(1)], losses_of(model))
    torch.manual_seed(0)
    plain_gradients(reference, losses_of(reference), batch_of(1))
    assert_plain(model, reference)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_of_model_and_conductor_goes_on_alike(duplicate):
    model = Net()
    conductor = GradientConductor(model, TASKS, Sequential(1), GCond(), EMA())
    conductor.step([batch_of(0)], losses_of(model))
    other, copied = duplicate((model, conductor))
    for each, own in ((model, conductor), (other, copied)):
        own.step([batch_of(1)], losses_of(each))
    assert torch.equal(flat_grad(list(model.parameters())), flat_grad(list(other.parameters())))


def test_a_copy_of_the_conductor_alone_holds_other_parameters():
    model = Net()
    with pytest.raises(ValueError, match="does not hold"):
        copy.deepcopy(linear(model)).step([batch_of(0)], losses_of(model))


# Frozen, unfrozen, reached or not


@pytest.mark.parametrize("update", [Raw, EMA])
@pytest.mark.parametrize("estimator", [Joint(1), Sequential(1)])
def test_layers_that_freeze_and_thaw_train_as_without_a_conductor(estimator, update):
    """EMA with AdamW's beta1 = 0 is compared at the first moment: a frozen layer keeps it and its count of steps."""

    def trained(with_conductor: bool) -> list[Tensor]:
        model = Net().double()
        model.enc.requires_grad_(False)
        conductor = linear(model, estimator, update())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, betas=(0.9, 0.95), weight_decay=0.1)
        averages = []
        for step in range(8):
            model.enc.requires_grad_(step % 3 != 0)
            batch, losses = batch_of(step).double(), losses_of(model)
            if with_conductor:
                conductor.step([batch], losses)
            else:
                plain_gradients(model, losses, batch)
            frozen = not model.enc.weight.requires_grad
            assert (model.enc.weight.grad is None) == frozen
            if update is Raw:
                optimizer.step()
                averages.append(flat_grad(list(model.parameters())))
            else:
                own = [p.grad for p in model.parameters()] if with_conductor else first_moments(optimizer)
                averages.append(torch.cat([g.flatten() for g in own[2 if frozen else 0 :]]))
        return [*averages, *[p.detach() for p in model.parameters()]]

    def first_moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
        before = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
        optimizer.step()
        moments = []
        for p, old in zip(optimizer.param_groups[0]["params"], before, strict=True):
            p.data.copy_(old)
            state = optimizer.state.get(p)
            moments.append(state["exp_avg"] / (1 - 0.9 ** float(state["step"])) if state else torch.zeros(0))
        return moments

    for found, expected in zip(trained(True), trained(False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


class Experts(nn.Module):
    """A trunk, and two experts of which a batch uses one, by the sign of its first number."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.trunk = nn.Linear(4, 4)
            self.experts = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])

    def forward(self, batch: Tensor) -> Tensor:
        return self.experts[int(batch[0, 0] > 0)](torch.tanh(self.trunk(batch)))


@pytest.mark.parametrize(
    "estimator", [Joint(2), Sequential(2), Sequential(2, resolve_every="micro_batch"), Sequential(2, "per_task")]
)
def test_an_expert_that_a_window_does_not_use_is_not_moved(estimator):
    """Ten steps against the loop that calls zero_grad: values of all parameters, with weight decay and momentum."""

    def trained(with_conductor: bool) -> list[Tensor]:
        model = Experts().double()
        conductor = linear(model, estimator)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
        for step in range(10):
            window = [batch_of(seed).double().abs() * (-1 if step % 3 else 1) for seed in (2 * step, 2 * step + 1)]
            if with_conductor:
                conductor.step(window, losses_of(model))
            else:
                optimizer.zero_grad()
                for batch in window:
                    values = losses_of(model)(batch, list(TASKS))
                    (sum(weight * values[name] for name, weight in TASKS.items()) / 2).backward()
            assert [e.weight.grad is None for e in model.experts] == [step % 3 == 0, step % 3 != 0]
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    torch.testing.assert_close(trained(True), trained(False), rtol=1e-9, atol=1e-12)


class TwoHeads(nn.Module):
    """[B, 4] -> a prediction for each task, from heads of its own."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.trunk = nn.Linear(4, 4)
            self.heads = nn.ModuleDict({name: nn.Linear(4, 1) for name in TASKS})

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        features = torch.tanh(self.trunk(batch))
        return tuple(head(features) for head in self.heads.values())


def two_head_losses(called: Callable[[Tensor], tuple[Tensor, ...]]) -> Any:
    def losses(batch: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        first, second = called(batch)
        values = {"l1": (first - 1).square().mean(), "ssim": (second + first.detach() + 2).square().mean()}
        return {name: values[name] for name in names}

    return losses


def test_a_head_is_one_task_s_own_in_the_windows_where_it_is():
    """Both tasks reach the first head in the second window only: its gradient there is resolved, later it is l1's."""
    model = TwoHeads().double()
    conductor = GradientConductor(model, TASKS, Sequential(1), PCGrad(), Raw(), clip_norm=None)
    head = model.heads["l1"].weight

    def losses(batch: tuple[bool, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        both, inputs = batch
        values = two_head_losses(model)(inputs, names)
        if both:
            values["ssim"] = values["ssim"] + 9 * model(inputs)[0].mean()
        return values

    for both in (False, True, False):
        batch = (both, batch_of(3).double())
        conductor.step([batch], losses)
        own, other = (
            weight * torch.autograd.grad(losses(batch, list(TASKS))[name], head, allow_unused=True)[0]
            if name == "l1" or both
            else None
            for name, weight in TASKS.items()
        )
        if both:
            assert not torch.allclose(head.grad, own + other)
        else:
            torch.testing.assert_close(head.grad, own)


@pytest.mark.parametrize("estimator", [Sequential(2), Sequential(2, "per_task"), Stochastic(2)])
def test_zeros_that_a_reentrant_checkpoint_gives_to_the_other_head_are_nothing(estimator):
    def gradients(reentrant: bool | None) -> Tensor:
        model = TwoHeads().double()

        def called(batch: Tensor) -> tuple[Tensor, ...]:
            if reentrant is None:
                return model(batch)
            return checkpoint(model, batch.clone().requires_grad_(), use_reentrant=reentrant)

        conductor = GradientConductor(model, TASKS, estimator, PCGrad(), Raw(), clip_norm=None)
        conductor.step([batch_of(seed).double() for seed in range(2)], two_head_losses(called))
        return flat_grad(list(model.parameters()))

    for reentrant in (False, True):
        torch.testing.assert_close(gradients(reentrant), gradients(None))


def test_a_task_whose_batch_lacks_it_reaches_nothing():
    """The advised zero: the other task's gradient is then all there is, and the absent task's head is not moved."""
    model = TwoHeads()
    conductor = GradientConductor(model, TASKS, Sequential(1), PCGrad(), Raw(), clip_norm=None)
    ask = two_head_losses(model)

    def losses(batch: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        return ask(batch, names) | {"ssim": torch.zeros((), requires_grad=True)}

    metrics = conductor.step([batch_of(0)], losses)
    assert metrics["loss/ssim"] == 0
    assert model.heads["ssim"].weight.grad is None
    expected = torch.autograd.grad(0.85 * ask(batch_of(0), ["l1"])["l1"], model.trunk.weight)[0]
    torch.testing.assert_close(model.trunk.weight.grad, expected)


def test_sparse_gradients_become_dense():
    table = nn.Embedding(5, 2, sparse=True)
    conductor = linear(table)
    chosen = torch.tensor([1, 1, 3])
    conductor.step([0], lambda batch, names: {name: table(chosen).square().sum() for name in names})
    expected = torch.zeros(5, 2)
    expected[[1, 3]] = table.weight.detach()[[1, 3]] * torch.tensor([[4.0], [2.0]])
    torch.testing.assert_close(table.weight.grad, expected)


def test_conductors_may_take_turns_on_the_same_parameters():
    model, reference = Net(), Net()
    for seed, conductor in enumerate([linear(model), linear(model, Joint(1))] * 2):
        conductor.step([batch_of(seed)], losses_of(model))
        plain_gradients(reference, losses_of(reference), batch_of(seed))
        assert_plain(model, reference)


def test_an_exception_leaves_no_gradient():
    model = Net()
    conductor = linear(model, Sequential(2))
    conductor.step([batch_of(0)] * 2, losses_of(model))
    for batches in ([batch_of(0)], iter([batch_of(0)]), iter([])):
        with pytest.raises(ValueError, match="`batches`: expected accumulation_steps = 2"):
            conductor.step(batches, losses_of(model))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("estimator", [Joint(2), Sequential(2), Sequential(2, "per_task"), Stochastic(2)])
@pytest.mark.parametrize("buffer_dtype", [None, "float64"])
@pytest.mark.parametrize(
    "meddle",
    [
        lambda model, loss: model.zero_grad(),
        lambda model, loss: model.zero_grad(set_to_none=False),
        lambda model, loss: loss.backward(retain_graph=True),
    ],
)
def test_losses_that_touch_gradients_are_refused(meddle, buffer_dtype, estimator):
    model = Net()
    conductor = linear(model, estimator, buffer_dtype=buffer_dtype)

    def losses(batch: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        values = losses_of(model)(batch, names)
        meddle(model, next(iter(values.values())))
        return values

    if buffer_dtype and meddle.__code__.co_names[0] == "zero_grad":  # no gradient is kept in `p.grad`
        conductor.step([batch_of(0)] * 2, losses)
        return
    conductor.step([batch_of(0)] * 2, losses_of(model))
    with pytest.raises(ValueError, match="`losses`: expected it to compute losses only"):
        conductor.step([batch_of(0)] * 2, losses)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_step_without_gradients_is_refused(mode):
    model = Net()
    conductor = linear(model)
    with mode(), pytest.raises(ValueError, match="`step`: expected to be called with gradients on"):
        conductor.step([batch_of(0)], losses_of(model))

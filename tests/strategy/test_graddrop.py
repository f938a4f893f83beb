"""GradDrop against TorchJD with the same draws, by hand, by its properties, and for any cut into blocks."""

from __future__ import annotations

import pytest
import torch
from strategy.problems import by_blocks, conflict, flat_grad, prescribed
from torchjd import aggregation

from gcond.strategy import GradientConductor, Raw, Sequential, gradients
from gcond.strategy.resolve.graddrop import GradDrop


def update(rows, seed=0, resolver=None, sizes=None):
    return by_blocks(resolver or GradDrop(), rows, sizes, seed)


def random_rows(m, size):
    return torch.randn(m, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.oracle("graddrop", "TorchJD with the same draws")
@pytest.mark.parametrize("leak", [None, [0.5, 0.0, 0.2, 1.0]])
def test_is_torchjd_s_with_the_same_draws(monkeypatch, leak):
    rows = random_rows(4, 1000).double()
    draws = torch.rand(1000)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: draws.clone())
    resolver = GradDrop() if leak is None else GradDrop(dict(zip(["t0", "t1", "t2", "t3"], leak, strict=True)))
    expected = aggregation.GradDrop(leak=None if leak is None else torch.tensor(leak).double())(rows)
    torch.testing.assert_close(update(rows, resolver=resolver), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.oracle("graddrop", "by hand")
def test_by_hand(monkeypatch):
    """P = (3/4, 3/4, 1/4, 1, 0, undefined) against U."""
    rows = torch.tensor([[3.0, 3.0, -3.0, 1.0, -1.0, 0.0], [-1.0, -1.0, 1.0, 2.0, -2.0, 0.0]])
    draws = torch.tensor([0.7, 0.8, 0.2, 1 - 2**-24, 0.0, 0.5])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: draws)
    assert update(rows).tolist() == [3, -1, 1, 3, -3, 0]
    leaky = update(rows, resolver=GradDrop({"t1": 0.25}))
    assert leaky.tolist() == [2.75, -1, 0.25 + 0.75, 3, -3, 0]
    assert torch.equal(update(rows, resolver=GradDrop(1.0)), rows.sum(0))


@pytest.mark.oracle("graddrop", "frequencies of the signs")
def test_probability_of_a_sign_is_its_share():
    """(3, -1) gives 3 three times out of four; so the mean is the sum, 2. Four standard errors of 40,000 draws."""
    found = update(torch.tensor([[3.0], [-1.0]]).expand(2, 40_000))
    assert float((found == 3).float().mean()) == pytest.approx(0.75, abs=0.009)
    assert set(found.unique().tolist()) == {3.0, -1.0}
    assert found.shape == (40_000,)  # one draw for all tasks of a coordinate


def test_gradient_does_not_depend_on_the_blocks(monkeypatch):
    """Through the conductor, with a parameter in the middle that one task alone reaches."""

    def run(size):
        monkeypatch.setitem(gradients.CHUNK_ELEMENTS, "cpu", size)
        parameters = [torch.nn.Parameter(torch.ones(n)) for n in (20, 5, 30)]
        shared = prescribed([parameters[0], parameters[2]], random_rows(2, 50))

        def losses(batch, names):
            values = shared(batch, names)
            return {name: value + parameters[1].sum() * 2 if name == "t0" else value for name, value in values.items()}

        by_micro_batch = Sequential(3, resolve_every="micro_batch")
        conductor = GradientConductor(parameters, {"t0": 1.0, "t1": 1.0}, by_micro_batch, GradDrop(), Raw(), None)
        conductor.step([None] * 3, losses)
        return flat_grad(parameters)

    rows = random_rows(3, 100)
    for sizes in ([1] * 100, [7, 93], [50, 50], [16, 16, 68]):
        assert torch.equal(update(rows, sizes=sizes), update(rows))
    expected = run(1 << 16)
    for chunk in (1, 3, 16, 1000):
        assert torch.equal(run(chunk), expected)
    assert torch.equal(expected[20:25], torch.full((5,), 2.0))


def test_draws_belong_to_the_resolver_s_generator():
    rows = random_rows(2, 200)
    assert torch.equal(update(rows, seed=3), update(rows, seed=3))
    assert not torch.equal(update(rows, seed=3), update(rows, seed=4))
    resolver, seen = GradDrop(), conflict(rows)
    first, second = (resolver.resolve(seen).blockwise(rows, 0) for _ in range(2))
    assert not torch.equal(first, second)
    state = torch.random.get_rng_state()
    update(rows)
    assert torch.equal(torch.random.get_rng_state(), state)
    low = rows.bfloat16()  # nor do they depend on the precision
    before, expected = low.clone(), update(low.float())
    assert torch.equal(update(low).float(), expected)
    assert torch.equal(update(low.double()).float(), expected)
    update(low).mul_(0)
    assert torch.equal(low, before)

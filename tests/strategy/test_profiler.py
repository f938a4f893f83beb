"""The profiler where the truth is known, against plain arithmetic on the gradients, and that it moves nothing."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, RandomSampler

from gcond import CAGrad, GCond, GradDrop, Linear, PCGrad, Profile, profile
from gcond.strategy.conflict import Conflict

Array = Any


class Given(nn.Module):
    """Tasks whose gradients are the numbers of the batch: a [m, P] of `early` and `late`, one after the other."""

    def __init__(self, early: int, late: int) -> None:
        super().__init__()
        self.early, self.late = nn.ParameterDict({"w": torch.zeros(early)}), nn.ParameterDict({"w": torch.zeros(late)})
        self.head = nn.Linear(1, 1, bias=False)  # of the first task alone

    def losses(self, batch: Tensor, names: list[str]) -> dict[str, Tensor]:
        weights = torch.cat([self.early["w"], self.late["w"]])
        found = {name: weights @ row for name, row in zip(names, batch, strict=True) if not row.isnan().any()}
        return {name: loss + self.head.weight.sum() if name == "a" else loss for name, loss in found.items()}


def profiled(gradients: Array, early: int | None = None, methods: Any = None, **settings: Any) -> Profile:
    """Of gradients [n, m, P]; nan: a batch that lacks the task."""
    n, m, size = gradients.shape
    early = size - 1 if early is None else early
    model = Given(early, size - early)
    rows = torch.as_tensor(gradients, dtype=torch.float32)
    return profile(model, model.losses, rows, list("abcd")[:m], n, methods=methods or (), **settings)


def noisy(cosine: float, noise: float, n: int, size: int, seed: int, shared: float = 0.0) -> Array:
    """Gradients [n, 2, P] around unit vectors with a `cosine`, noise of that variance; a share of it is common."""
    draw = np.random.default_rng(seed)
    means = np.zeros((2, size))
    means[0, 0], means[1, :2] = 1, (cosine, math.sqrt(1 - cosine**2))
    own, common = draw.standard_normal((n, 2, size)), draw.standard_normal((n, 1, size))
    return means + math.sqrt(noise / size) * (math.sqrt(1 - shared) * own + math.sqrt(shared) * common)


def unbiased(rows: Array) -> Array:
    """[m, m], means of inner products over pairs of different micro-batches that have the tasks, one pair at a time."""
    n, m, _ = rows.shape
    found = np.zeros((m, m))
    for i, j in itertools.product(range(m), repeat=2):
        pairs = [rows[x, i] @ rows[y, j] for x, y in itertools.permutations(range(n), 2)]
        found[i, j] = np.nanmean(pairs)
    return found


def cosine(x: Array, y: Array) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def interval(statistic: Callable[[Array], float], rows: Array, blocks: int, family: int) -> list[float]:
    value, length = statistic(rows), len(rows) // blocks
    left_out = [statistic(np.delete(rows, slice(s, s + length), axis=0)) for s in range(0, len(rows), length)]
    reach = student.ppf(1 - 0.025 / family, blocks - 1) * math.sqrt(blocks - 1) * np.std(left_out)
    return [min(1, max(-1, value)), max(-1, value - reach), min(1, value + reach)]


def test_numbers_are_those_of_the_gradients_and_a_batch_may_lack_a_task() -> None:
    draw = np.random.default_rng(0)
    n, m, blocks, early = 32, 3, 8, 5
    rows = draw.standard_normal((m, 9)) + 1.5 * draw.standard_normal((n, m, 9))
    rows[draw.random((n, m)) < 0.2] = math.nan
    rows[:, 2, early:] *= np.where(np.isnan(rows[:, 2, early:]), 1, 0)  # the third task does not reach `late`
    found = profiled(rows, early, blocks=blocks)
    groups = {"all": slice(None), "early": slice(0, early), "late": slice(early, None)}
    expected = [("all", *p) for p in ("ab", "ac", "bc")] + [("early", *p) for p in ("ab", "ac", "bc")]
    expected += [("late", "a", "b")]
    assert [(row["group"], *row["pair"].split(", ")) for row in found.pairs] == expected
    for row in found.pairs:
        i, j = ("abc".index(task) for task in row["pair"].split(", "))
        own = rows[..., groups[row["group"]]]

        def of_pair(rows: Array, i: int = i, j: int = j) -> float:
            products = unbiased(rows[:, [i, j]])
            return float(products[0, 1] / math.sqrt(products[0, 0] * products[1, 1]))

        assert [row["cosine"], row["low"], row["high"]] == pytest.approx(interval(of_pair, own, blocks, 7), abs=1e-5)
        halves = [np.nanmean(half, 0) for half in (own[: n // 2], own[n // 2 :])]
        across = [cosine(halves[0][i], halves[1][j]), cosine(halves[1][i], halves[0][j])]
        assert row["halves"] == pytest.approx(np.mean(across), abs=1e-5)
        assert row["floor"] == pytest.approx(min(cosine(halves[0][k], halves[1][k]) for k in (i, j)), abs=1e-5)
        for size in (1, 2, 4):
            sums = np.nansum(own.reshape(n // size, size, m, -1), 1)
            dots = [window[i] @ window[j] for window in sums if window[i].any() and window[j].any()]
            assert row[f"conflict/{size}"] == pytest.approx(np.mean([dot < 0 for dot in dots]))
        assert "conflict/8" not in row
    products = unbiased(rows)
    for i, row in enumerate(found.tasks):
        squares = np.nanmean((rows[:, i] ** 2).sum(-1))

        def with_sum(rows: Array, i: int = i) -> float:
            products = unbiased(rows)
            return float(products[i].sum() / math.sqrt(products[i, i] * products.sum()))

        assert row["micro_batches"] == np.isfinite(rows[:, i, 0]).sum()
        assert row["norm"] == pytest.approx(math.sqrt(products[i, i]), rel=1e-5)
        assert row["noise"] == pytest.approx((squares - products[i, i]) / products[i, i], rel=1e-5)
        assert [row["with_sum"], row["low"], row["high"]] == pytest.approx(interval(with_sum, rows, 8, 3), abs=1e-5)
    assert (found.about["shared"], found.about["parameters"]) == (9, 10)  # not the first task's head


@pytest.mark.parametrize(("angle", "noise", "shared"), [(-0.3, 4.0, 0.0), (0.2, 4.0, 0.7)])
def test_intervals_hold_as_often_as_they_say(angle: float, noise: float, shared: float) -> None:
    """Also where the tasks share their batches' noise, which pulls the cosine of every window up."""
    runs = [profiled(noisy(angle, noise, 32, 30, seed, shared)).pairs[0] for seed in range(50)]
    assert sum(row["low"] <= angle <= row["high"] for row in runs) >= 0.9 * len(runs)
    assert np.mean([row["cosine"] for row in runs]) == pytest.approx(angle, abs=0.08)


def test_pure_noise_is_never_called_more() -> None:
    """95 % of the time at least; common noise, which every window shows as agreement, is none either."""
    for shared in (0.0, 0.5):
        rows = [draw.standard_normal((32, 2, 10)) + shared * draw.standard_normal((32, 1, 10))
                for draw in map(np.random.default_rng, range(30))]  # fmt: skip
        found = [profiled(each) for each in rows]
        assert sum(each.pairs[0]["verdict"] == "not known" for each in found) >= 0.9 * len(found)
    assert sum("not known" in each.recommendation for each in found) > 25


def test_the_same_task_twice_and_its_opposite() -> None:
    rows = noisy(0, 2, 32, 10, 0)[:, [0, 0]]
    same = profiled(rows, methods={"PCGrad": PCGrad()})
    assert [same.pairs[0][name] for name in ("cosine", "low", "high")] == pytest.approx([1, 1, 1], abs=1e-6)
    assert same.methods == [{"method": "PCGrad", "change/1": 0, "change/4": 0, "change/32": 0}]
    assert same.recommendation.endswith("(every cosine above +1.00): sum the losses.")
    rows[:, 1] *= -0.5
    opposite = profiled(rows)
    assert [opposite.pairs[0][name] for name in ("cosine", "low", "high")] == pytest.approx([-1, -1, -1], abs=1e-6)
    assert [row["with_sum"] for row in opposite.tasks] == pytest.approx([1, -1], abs=1e-6)
    assert "a, b: real conflict, cosine -1.00 [-1.00, -1.00], also within early." in opposite.recommendation
    assert "A step along the sum makes b worse" in opposite.recommendation


def test_the_window_that_shows_the_sign_by_hand() -> None:
    """Noise of opposite signs in the two tasks, which two micro-batches take out: K = 1 shows nothing but conflict."""
    signs = np.resize([1, -1], 64)
    rows = np.stack([np.stack([np.ones(64), 3 * signs], 1), np.stack([np.ones(64), -3 * signs], 1)], 1)
    found = profiled(rows)
    row = found.pairs[0]
    assert [row[f"conflict/{size}"] for size in (1, 2, 4, 8)] == [1, 0, 0, 0]
    assert (row["verdict"], row["sign_from"]) == ("agreement", 2)
    assert "the 100% of conflicts at K=1 are noise. Accumulate K=2 before resolving" in found.recommendation


def test_conflict_in_one_group_alone_is_found_there() -> None:
    draw = np.random.default_rng(0)
    means = np.zeros((2, 8))
    means[:, 0], means[0, 4], means[1, 4] = 1, 3, 3  # `early` has coordinates 0 to 3
    means[1, 0] = -1
    found = profiled(means + 0.2 * draw.standard_normal((64, 2, 8)), 4)
    verdicts = {"all": "agreement", "early": "conflict", "late": "agreement"}
    assert {row["group"]: row["verdict"] for row in found.pairs} == verdicts
    assert "a, b: real conflict in early only" in found.recommendation
    assert found.recommendation.endswith("sum the losses.")


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize("resolver", [PCGrad(), CAGrad(), GCond()])
def test_a_method_turns_the_sum_as_it_does_on_the_gradients(resolver: Any) -> None:
    """Every third micro-batch lacks the second task."""
    rows = noisy(-0.6, 0.5, 64, 6, 3)
    rows[::3, 1] = math.nan
    row = profiled(rows, methods={"it": resolver}).methods[0]
    assert (row["change/1"] is None) == isinstance(resolver, GCond)
    for size in (8, 64) if isinstance(resolver, GCond) else (1, 8, 64):
        means = np.nanmean(rows.reshape(-1, size, 2, 6), 1)
        fresh, draw, sines = type(resolver)(), torch.Generator().manual_seed(0), []
        for step, mean in enumerate(means):
            there = mean[~np.isnan(mean).any(1)]
            before = means[step - 1] if step and size > 1 else 0 * there
            gram, cross = (torch.from_numpy(there @ other.T) for other in (there, before))
            ones, names = torch.ones(len(there), dtype=torch.float64), ("a", "b")[: len(there)]
            weights = fresh.resolve(Conflict(names, gram, cross, {}, ones, ones, step, draw)).weights.numpy()
            sines.append(math.sqrt(max(0, 1 - cosine(weights @ there, there.sum(0)) ** 2)))
        assert row[f"change/{size}"] == pytest.approx(np.mean(sines), abs=1e-4)
        assert size == 64 or row[f"change/{size}"] > 0.01


def augmented(examples: list[Tensor]) -> Tensor:
    return torch.stack(examples) + random.random() + np.random.random()  # noqa: NPY002


def test_nothing_moves() -> None:
    """Also where the losses change the mode and `p.grad`, a buffer is replaced, and the loader ends too soon."""
    torch.manual_seed(0)
    own, of_sampler = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    net: Any = nn.Module()
    net.trunk = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU())
    net.a, net.b, net.eval_only = nn.Linear(8, 1), nn.Linear(8, 1), nn.Dropout().eval()
    net.scale = nn.Parameter(torch.ones(()))
    sampler = torch.utils.data.RandomSampler(range(256), generator=of_sampler)
    loader = DataLoader(torch.randn(256, 6), 4, sampler=sampler, generator=own, collate_fn=augmented)

    def losses(batch: Tensor, names: list[str]) -> dict[str, Tensor]:
        net.eval_only.train()
        net.zero_grad()
        net.trunk[1].running_var = net.trunk[1].running_var + 1
        hidden = net.scale * net.trunk(batch)
        return {"a": net.a(hidden).square().mean(), "b": (net.b(hidden) - 1).square().mean()}

    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)

    def state() -> list[Any]:
        generators = [own.get_state(), of_sampler.get_state(), torch.get_rng_state()]
        numpy = np.random.get_state()  # noqa: NPY002
        tensors = [*generators, *net.state_dict().values(), *(p.grad for p in net.parameters()), torch.tensor(numpy[1])]
        modes = [module.training for module in net.modules()]
        return [[tensor.clone() for tensor in tensors], modes, random.getstate(), numpy[2:]]

    def same(x: Any, y: Any) -> bool:
        return x[1:] == y[1:] and all(torch.equal(*pair) for pair in zip(x[0], y[0], strict=True))

    before, buffers, grads = state(), list(net.buffers()), [p.grad for p in net.parameters()]
    found = profile(net, losses, loader, {"a": 1, "b": 0.5})
    assert same(state(), before)
    assert all(now is then for now, then in zip(net.buffers(), buffers, strict=True))
    assert all(p.grad is then for p, then in zip(net.parameters(), grads, strict=True))
    assert {row["group"] for row in found.pairs} == {"all", "(own)", "trunk"}
    assert str(profile(net, losses, loader, {"a": 1, "b": 0.5})) == str(found)
    with pytest.raises(ValueError, match=r"`loader`: expected 128 micro-batches, found 64"):
        profile(net, losses, loader, {"a": 1, "b": 0.5}, 128)
    assert same(state(), before)


def test_the_default_device_changes_nothing() -> None:
    model, rows = Given(7, 1), torch.as_tensor(noisy(-0.5, 1, 32, 8, 0), dtype=torch.float32)
    expected = str(profile(model, model.losses, rows, ["a", "b"], 32))
    with torch.device("meta"):
        assert str(profile(model, model.losses, rows, ["a", "b"], 32)) == expected


def test_batches_of_a_short_pass_are_told_from_independent_ones() -> None:
    """As much noise as gradient in 30 batches, of a pass of 64."""
    model, rows = Given(7, 1), torch.as_tensor(noisy(0.5, 30, 64, 8, 0), dtype=torch.float32)
    told = []
    for sampler in (RandomSampler(rows), RandomSampler(rows, replacement=True)):
        loader = DataLoader(rows, None, sampler=sampler)
        told.append(profile(model, model.losses, loader, ["a", "b"], methods=()).recommendation)
    assert ["A pass of 64 batches is short" in each for each in told] == [True, False]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tasks": ["a"]}, "`tasks`"),
        ({"tasks": {"a": 1.0, "b": 0.0}}, "`tasks`"),
        ({"micro_batches": 48}, "`micro_batches`: expected 32, 64"),
        ({"blocks": 4}, "`blocks`"),
        ({"methods": {"graddrop": GradDrop()}}, "`methods`"),
        ({"methods": {"linear": Linear()}}, "`methods`"),
        ({"methods": ["dwa"]}, "`methods`"),
        ({"methods": ["sgd"]}, "`resolver`"),
        ({"losses": lambda batch, names: {"a": torch.zeros(()), "z": torch.zeros(())}}, "`losses`"),
        ({"scale": math.nan}, "`losses`: expected finite gradients, found that of a in micro-batch 0"),
        ({"reentrant": True}, "`losses`: expected checkpoints with use_reentrant=False"),
        ({"alone": True}, "`losses`: expected parameters that two tasks reach"),
        ({"model": nn.Linear(2, 2).requires_grad_(False)}, "`parameters`"),
    ],
)
def test_refusals(change: dict[str, Any], match: str) -> None:
    model = Given(2, 2)
    scale, alone, reentrant = change.pop("scale", 1.0), change.pop("alone", False), change.pop("reentrant", False)

    def losses(batch: Tensor, names: list[str]) -> dict[str, Tensor]:
        found = {"a": scale * (model.early["w"] @ batch), "b": model.late["w"].sum()}
        if reentrant:
            found["a"] += checkpoint(
                lambda x: x @ model.early["w"], torch.ones(2, requires_grad=True), use_reentrant=True
            )
        return found if alone else found | {"b": model.early["w"].sum()}

    settings = {"model": model, "losses": losses, "loader": torch.ones(32, 2), "tasks": ["a", "b"], "micro_batches": 32}
    with pytest.raises(ValueError, match=match):
        profile(**(settings | change))


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & dict(attrs).keys()
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words += data + " "


def test_the_page_holds_all_that_is_printed_and_needs_nothing_else(tmp_path: Path) -> None:
    found = profiled(noisy(-0.5, 1, 64, 8, 0), 4, methods={"PCGrad": PCGrad(), "<CAGrad>": CAGrad()})
    found.save(tmp_path / "profile.html")
    page = Page((tmp_path / "profile.html").read_text(encoding="utf-8"))
    assert page.tags.count("table") == 3
    assert page.tags.count("svg") == len(found.pairs) + len(found.tasks)
    assert not {"script", "link", "img"} & set(page.tags)
    for word in str(found).split():
        assert word in page.words, word


def test_a_solver_that_fails_costs_its_own_row_only() -> None:
    class Fails(PCGrad):
        def resolve(self, conflict: Conflict) -> Any:
            raise RuntimeError("not solved")

    found = profiled(noisy(-0.5, 1, 32, 8, 0), methods={"fails": Fails(), "PCGrad": PCGrad()})
    failed = {"method": "fails", **dict.fromkeys(["change/1", "change/4", "change/32"]), "failed": "not solved"}
    assert found.methods[0] == failed
    assert found.methods[1]["change/1"] > 0
    assert "not solved" in str(found)

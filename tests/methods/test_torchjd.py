"""The adapter around TorchJD: what it hands over, what it refuses, and that no failure stays silent."""

from __future__ import annotations

import warnings

import pytest
import torch
from methods.methods import UGLY, build, conflict, dependent_cases, matrix, random_cases
from torchjd import aggregation

from gcond import TorchJD, Unsolved

J_BASE = [[-4, 1, 1], [6, 1, 1]]
UNSOLVABLE = {"one zero row", "anti-parallel", "sum is zero", "more tasks than parameters", "rank one"}
TOO_HARD = {("fairgrad", "unlike norms")}  # twelve decades apart
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning:torchjd")


def weights(method, rows, seed=0, **settings):
    return TorchJD(method, **settings).resolve(conflict(rows, seed=seed, step=7)).weights


@pytest.mark.parametrize(
    "make",
    [
        aggregation.UPGrad,
        aggregation.UPGradWeighting,
        aggregation.ConFIG,
        aggregation.IMTLG,
        aggregation.AlignedMTL,
        lambda: aggregation.CAGrad(c=0.5),
        lambda: aggregation.NashMTL(n_tasks=2),
    ],
)
def test_instance_gives_what_torchjd_gives_for_the_jacobian(make):
    """Directly on J [2, 3] where there is an aggregator, which the adapter only ever sees as a 2 x 2 matrix."""
    given = make()
    direct = (
        given(matrix(J_BASE)) if isinstance(given, aggregation.Aggregator) else aggregation.UPGrad()(matrix(J_BASE))
    )
    torch.testing.assert_close(weights(make(), J_BASE) @ matrix(J_BASE), direct, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["aligned_mtl", "config", "imtl_g", "upgrad", "mgda"])
@pytest.mark.parametrize("rows", UGLY.values(), ids=UGLY)
def test_ugly_matrices_give_torchjd_s_update(name, rows):
    """Where TorchJD, given J itself, has a finite update; except zeros, where any weights give it."""
    settings = {"max_iters": 250, "epsilon": 1e-5} if name == "mgda" else {}
    names = {"aligned_mtl": "AlignedMTL", "config": "ConFIG", "imtl_g": "IMTLG", "upgrad": "UPGrad", "mgda": "MGDA"}
    rows = matrix(rows) / max(float(matrix(rows).norm(dim=1).max()), 1e-300)
    direct = getattr(aggregation, names[name])(**settings)(rows)
    found = build(name).resolve(conflict(rows)).weights @ rows
    torch.testing.assert_close(found, direct, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["nash_mtl", "fairgrad"])
@pytest.mark.parametrize("ugly", UGLY)
def test_a_problem_without_solution_raises_and_any_other_is_solved(name, ugly):
    """sum_i w_i g_i = 0 for some w >= 0, not all 0: nothing fulfils G w = w^(-1/alpha)."""
    rows = 1e15 * matrix(UGLY[ugly])
    if ugly in UNSOLVABLE or (name, ugly) in TOO_HARD:
        with pytest.raises(Unsolved, match=r"(NashMTL|FairGrad), resolution 3: .*; Gram \[\["):
            build(name).resolve(conflict(rows, step=3))
    else:
        found = build(name).resolve(conflict(rows)).weights
        assert bool(found.isfinite().all())
        assert float((found @ rows).norm()) > 0 or ugly == "zero"


@pytest.mark.parametrize("name", ["nash_mtl", "fairgrad"])
def test_the_mean_takes_the_place_of_a_solution_that_there_is_not(name):
    """Told once, counted; Nash-MTL's is cut to norm 1, as every update of its is; what has a solution stays."""
    resolver = build(name, on_unsolved="mean")
    rows = matrix(UGLY["one zero row"])
    with pytest.warns(UserWarning, match=r"resolution 0: there is no solution where .* is zero; Gram.* said once"):
        found = resolver.resolve(conflict(1e-3 * rows))
    with warnings.catch_warnings(action="error"):
        longer, solved = [resolver.resolve(conflict(each)) for each in (1e3 * rows, J_BASE)]
    assert (found.metrics, longer.metrics, solved.metrics["unsolved"]) == ({"unsolved": 1.0}, {"unsolved": 1.0}, 0.0)
    torch.testing.assert_close(found.weights @ rows, rows.mean(0))
    mean = 1e3 * rows.mean(0)
    torch.testing.assert_close(longer.weights @ rows * 1e3, mean / mean.norm() if name == "nash_mtl" else mean)
    assert torch.equal(solved.weights, build(name).resolve(conflict(J_BASE)).weights)
    for ugly in [*UGLY.values(), dependent_cases()[-1].rows]:
        assert bool(resolver.resolve(conflict(ugly)).weights.isfinite().all())


def test_nash_is_solved_where_torchjd_s_own_start_leads_astray():
    """TorchJD's stops without a word at weights that do not fulfil its equation; at least one of these, so."""
    astray = 0
    for case in random_cases(3, tasks=(3,)):
        rows = matrix(case.rows)
        gram = rows @ rows.T
        found = weights("NashMTL", 1e-3 * rows, max_norm=0.0)
        torch.testing.assert_close(1e-6 * gram @ found, 1 / found, rtol=1e-4, atol=0)
        own = aggregation.NashMTL(n_tasks=3, max_norm=0.0)
        alone = own.weighting(1e-3 * rows)
        product = alone * (1e-6 * gram @ alone)
        astray += float((product / product.mean() - 1).abs().max()) > 0.05
    assert astray > 0


def test_weights_of_another_dtype_are_taken():
    """Constant's are float32."""
    given = torch.tensor([0.25, 0.75])
    torch.testing.assert_close(weights(aggregation.Constant(given), J_BASE), given.double())


def test_an_unfinished_solve_raises():
    rows = random_cases(4, tasks=(5,))[1].rows
    with pytest.raises(Unsolved, match=r"MGDA, resolution 7: not solved, weights .* residual .* Gram"):
        weights("MGDA", rows, max_iters=1)
    assert bool(weights("MGDA", rows, max_iters=1, tolerance=100.0).isfinite().all())


class Broken(aggregation.Weighting):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, gramian):
        if isinstance(self.answer, Exception):
            raise self.answer
        return torch.full((len(gramian),), self.answer, dtype=gramian.dtype)


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), ValueError("the solver gave up")])
def test_failure_of_a_solver_names_method_step_and_gram_matrix(answer):
    with pytest.raises(Unsolved, match=r"Broken, resolution 7: .*; Gram \[\[18.0, -22.0\], \[-22.0, 38.0\]\]"):
        weights(Broken(answer), J_BASE)


def test_randomness_comes_from_the_resolver_s_generator_and_leaves_the_global_one_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    drawn = [weights("Random", J_BASE, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(drawn[0], weights("Random", J_BASE, seed=0))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("UpGrad", {}, "`method`: expected a name in torchjd.aggregation, found 'UpGrad'"),
        ("GradDrop", {}, "`method`: .* found GradDrop, of coordinates"),
        ("TrimmedMean", {"trim_number": 1}, "`method`: .* found TrimmedMean, of coordinates"),
        ("GradVac", {}, "`method`: .* without a memory, .* found GradVac"),
        ("NashMTL", {"update_weights_every": 2}, "`update_weights_every`: expected 1, found 2"),
        ("UPGrad", {"tolerance": 0.0}, "`tolerance`: expected a number > 0, found 0.0"),
        ("UPGrad", {"on_unsolved": "sum"}, '`on_unsolved`: expected "raise" or "mean", found \'sum\''),
    ],
)
def test_what_does_not_fit_is_refused_at_once(method, settings, message):
    with pytest.raises(ValueError, match=message):
        TorchJD(method, **settings).check({"a": 1.0, "b": 1.0}, ("all",))


def test_zero_lambda_is_refused_where_there_is_no_solution_or_none_that_moves():
    for name in ("nash_mtl", "fairgrad", "mgda"):
        with pytest.raises(ValueError, match=r"`tasks`: expected every lambda above 0 for .*, found 0 for \['b'\]"):
            build(name).check({"a": 1.0, "b": 0.0}, ("all",))
    build("imtl_g").check({"a": 1.0, "b": 0.0}, ("all",))

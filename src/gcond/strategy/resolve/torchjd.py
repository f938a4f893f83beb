"""Any method of TorchJD (https://torchjd.org, 0.18) that needs task gradients only through their inner products.

Letters: m tasks, J [m, P] task gradients, G = J J^T [m, m], w [m] weights, C the cosines in G. Rotations of the
parameter space change nothing, so a method that asks for J gets S [m, m] with S S^T = G.

The update d = w J is on TorchJD's own scale:
    UPGrad       mean over tasks of the projected gradients; the mean of the gradients where nothing conflicts
    MGDA         the shortest convex combination (w >= 0, sum 1): much shorter than a sum
    NashMTL      G w = 1 / w, so that ||d||^2 = m however long the gradients are, then cut to `max_norm`, 1 by default
    AlignedMTL   mean over tasks (the authors' code: sum), principal components shortened to the smallest one
    IMTLG        equal projections on all gradients, weights of any sign, sum 1
    ConFIG       equal cosines with all gradients; ||d|| is the sum of the gradients' projections on d
    FairGrad     G w = w^(-1/alpha); for alpha = 1, ||d||^2 = m however long the gradients are
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gcond.strategy.arguments import expect, expect_one_of
from gcond.strategy.conflict import Conflict, Resolution, Resolver
from gcond.strategy.safety import Unsolved

Solve = Callable[[Tensor], Tensor]  # G -> w
NEED_NONZERO = ("NashMTL", "FairGrad")  # a power of w_i times (G w)_i is the same for all: impossible for a zero row


class TorchJD(Resolver):
    """Weights from a weighting or an aggregator of TorchJD, in float64; drawn numbers come from our generator.

    G is handed over scaled to a largest diagonal entry of 1, because TorchJD's tolerances are absolute (a trace of 1e-4
    is zero for UPGrad, a sum of 1e-12 for IMTLG); FairGrad again with the scale at which its weights sum to 1, as else
    a pair at cosine -1 + 1e-5 may be half wrong. The weights are scaled back where they depend on it. NashMTL gets
    unit gradients, w_i is divided by ||g_i||, which is exact, and every solve starts anew inside the problem's domain
    (G w > 0), so that there is no state. From its own start, ones or the last solution, TorchJD returned a wrong answer
    without a word for one random matrix in ten (three tasks; norms a factor ten apart) and wherever norms were 1e-3.
    Where all gradients vanish, so does the update, and the weights are 1.

    Nash-MTL and FairGrad have no solution where a gradient is zero, or where some weights >= 0, not all 0, make the
    gradients' sum zero, as two opposite ones do. The default raises: it is Nash-MTL, or it is not. Both refuse a
    lambda of 0, and so does MGDA, whose updates would all be zero.

    Args:
        method: a name in `torchjd.aggregation` such as "UPGrad", or an instance.
        tolerance: the largest residual of an iterative method. TorchJD does not report an unfinished solve. NashMTL,
            FairGrad: largest relative error of the defining equation; MGDA: duality gap / largest squared norm.
        on_unsolved: what takes the place of a solution that there is not, or that a solver has not found: "raise"
            `Unsolved`, which the conductor's `nonfinite="skip"` turns into a step left out; or the "mean" of the
            gradients (NashMTL: cut to `max_norm` too), counted in the metrics as `unsolved` and told once.
        settings: what the named method is built with; `n_tasks` is filled in.

    Raises:
        ValueError: an unknown name, a method that works on coordinates, or one with a memory.
        ImportError: torchjd, or what the method needs, is missing (UPGrad: qpsolvers, quadprog; NashMTL: cvxpy, ecos;
            FairGrad: scipy).
        Unsolved: by `resolve`: no solution, a solver that failed or did not finish, weights that are not finite.
    """

    def __init__(self, method: Any, tolerance: float = 1e-2, on_unsolved: str = "raise", **settings: Any) -> None:
        expect(tolerance > 0, "tolerance", "a number > 0", tolerance)
        expect_one_of("on_unsolved", on_unsolved, "raise", "mean")
        self.on_unsolved = on_unsolved
        self.name = method if isinstance(method, str) else type(method).__name__.removesuffix("Weighting")
        self.tolerance = tolerance
        self._method, self._settings = method, settings
        self._solves: dict[int, Solve] = {}  # by the number of tasks
        self._alpha = 1.0  # FairGrad's
        self._max_norm = 0.0  # NashMTL's; 0 is off
        self._told = False
        self.ignores_lambdas = self.name == "NashMTL"  # of unit gradients

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_solves": {}}  # functions, made anew

    @staticmethod
    def passes_settings_to(settings: Mapping[str, Any]) -> Callable[..., Any]:
        """What takes `settings`, for whoever checks them beforehand; an instance, still to be built, takes none.

        Raises ValueError for an unknown method.
        """
        method = settings.get("method")
        return object if isinstance(method, Mapping) and "_target_" in method else _named(method)

    def check(self, tasks: dict[str, float], groups: tuple[str, ...]) -> None:
        zero = [name for name, value in tasks.items() if value == 0]
        positive = self.name in (*NEED_NONZERO, "MGDA")  # whose shortest combination would be that zero gradient
        expect(not positive or not zero, "tasks", f"every lambda above 0 for {self.name}", f"0 for {zero}")
        self._prepare(len(tasks))

    def resolve(self, conflict: Conflict) -> Resolution:
        gram = conflict.gram
        solve = self._prepare(len(gram))
        seed = int(torch.randint(2**62, (), generator=conflict.generator))
        solved = {} if self.on_unsolved == "raise" else {"unsolved": 0.0}
        if not bool(gram.any()):
            return Resolution(torch.eye(len(gram), dtype=torch.float64), solved)
        try:
            if self.name in NEED_NONZERO and not bool((gram.diagonal() > 0).all()):
                raise ArithmeticError("there is no solution where the gradient of a task is zero")
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "You are solving a parameterized problem that is not DPP")
                warnings.filterwarnings("ignore", "Solution may be inaccurate")  # the residual says how inaccurate
                torch.default_generator.manual_seed(seed)
                weights = solve(gram)
            residual = self._residual(gram, weights)
            if not bool(weights.isfinite().all()) or not residual <= self.tolerance:
                raise ArithmeticError(f"not solved, weights {weights.tolist()}, residual {residual:.2g}")
        except Exception as error:
            unsolved = Unsolved(f"{self.name}, resolution {conflict.step}: {error}; Gram {gram.tolist()}")
            if self.on_unsolved == "raise":
                raise unsolved from error
            return self._mean(gram, unsolved)
        return Resolution(torch.diag(weights), {"torchjd/residual": residual} | solved)

    def _mean(self, gram: Tensor, unsolved: Unsolved) -> Resolution:
        if not self._told:
            self._told = True
            warnings.warn(f"{unsolved}; the mean takes its place, which `unsolved` counts; said once", stacklevel=2)
        length = float(gram.mean().clamp(min=0).sqrt())
        cut = self._max_norm / length if 0 < self._max_norm < length else 1.0
        weights = torch.full((len(gram),), cut / len(gram), dtype=torch.float64)
        return Resolution(torch.diag(weights), {"unsolved": 1.0})

    def _prepare(self, m: int) -> Solve:
        if m not in self._solves:
            method = self._method
            if isinstance(method, str):
                build = _named(method)
                tasks = {"n_tasks": m} if "n_tasks" in inspect.signature(build).parameters else {}
                method = build(**tasks, **self._settings)
            self._solves[m] = self._bind(method)
        return self._solves[m]

    def _bind(self, method: Any) -> Solve:
        from torchjd import Stateful, aggregation

        if isinstance(method, aggregation.NashMTL):
            self._max_norm = method.max_norm
            return _solve_nash(method)
        remembers = isinstance(method, Stateful)
        expect(not remembers, "method", "NashMTL, or one without a memory, which would not be saved", self.name)
        if isinstance(method, aggregation.ConFIG):
            return lambda gram: _weights_of(torch.as_tensor(method(_root(gram))), gram)
        weighting = method
        if not isinstance(method, aggregation.Weighting):
            weighting = getattr(method, "gramian_weighting", getattr(method, "weighting", None))
        expect(weighting is not None, "method", "one that gives weights, or ConFIG", f"{self.name}, of coordinates")
        if isinstance(weighting, aggregation.FairGradWeighting):
            self._alpha = float(weighting.alpha)
            expect(self._alpha >= 0, "alpha", "a number >= 0", self._alpha)
            return self._bind_fairgrad(weighting)
        return lambda gram: torch.as_tensor(weighting(gram / gram.diagonal().max()), dtype=gram.dtype)

    def _bind_fairgrad(self, weighting: Any) -> Solve:
        degree = -self._alpha / (1 + self._alpha)  # w(k G) = k^degree w(G)

        def solve(gram: Tensor) -> Tensor:
            unit = 1 / gram.diagonal().max()
            for _ in range(5):
                weights = torch.as_tensor(weighting(unit * gram) * unit**-degree)
                if self._residual(gram, weights) < 1e-6:
                    break
                unit = weights.sum() ** (-1 / degree)  # so that the next weights sum to 1, where the solver starts
            return weights

        return solve

    def _residual(self, gram: Tensor, weights: Tensor) -> float:
        pull = gram @ weights  # <g_i, d>
        if self.name == "MGDA":
            return float((weights @ pull - pull.min()) / gram.diagonal().max())
        if self.name not in NEED_NONZERO:
            return 0.0
        if self._alpha == 0:  # FairGrad's limit, the mean
            return 0.0
        level = weights.clamp(min=0) ** (1 / self._alpha) * pull
        return float((level / (1.0 if self.name == "FairGrad" else level.mean()) - 1).abs().max())


def _named(method: Any) -> Callable[..., Any]:
    from torchjd import aggregation

    expect(method in aggregation.__all__, "method", "a name in torchjd.aggregation", repr(method))
    return getattr(aggregation, method)  # type: ignore[no-any-return]


def _solve_nash(method: Any) -> Solve:
    expect(method.update_weights_every == 1, "update_weights_every", "1", method.update_weights_every)
    weighting, max_norm = method.weighting, method.max_norm
    weighting.max_norm = 0.0

    def solve(gram: Tensor) -> Tensor:
        norms = gram.diagonal().sqrt()
        cosines = gram / torch.outer(norms, norms)
        weights = 1 / norms
        if len(gram) > 1:  # the only answer for one task; TorchJD refuses it
            weighting.step = 0.0  # it builds its problem anew
            weighting.prvs_alpha = _inside(cosines / cosines.norm()).numpy()
            weights = weighting(_root(cosines)) / norms
        length = float(len(gram)) ** 0.5
        weights = weights * (length / (weights @ gram @ weights).clamp(min=0).sqrt())
        return torch.as_tensor(weights * (max_norm / length) if 0 < max_norm < length else weights)

    return solve


def _inside(gram: Tensor) -> Tensor:
    """Some w > 0 with G w > 0 and w G w = m: the shortest convex combination, moved towards the mean where it may."""
    from torchjd.aggregation import MGDAWeighting

    m = len(gram)
    shortest, share = MGDAWeighting(epsilon=1e-4, max_iters=1000)(gram), 1.0
    while share > 1e-12 and float((gram @ ((1 - share) * shortest + share / m)).min()) <= 0:
        share /= 2
    weights = (1 - share / 2) * shortest + share / 2 / m
    return torch.as_tensor(weights * (m / (weights @ gram @ weights)).sqrt())


def _root(gram: Tensor) -> Tensor:
    """S [m, m] with S S^T = G, by way of the cosines, so that a short gradient is not lost in a long one's rounding."""
    norms = gram.diagonal().sqrt()
    safe = torch.where(norms > 0, norms, 1.0)
    values, vectors = torch.linalg.eigh(gram / torch.outer(safe, safe))
    values = torch.where(values > len(gram) ** 2 * torch.finfo(gram.dtype).eps, values, 0.0)
    return torch.as_tensor(norms.unsqueeze(1) * (vectors * values.sqrt()))


def _weights_of(update: Tensor, gram: Tensor) -> Tensor:
    """The shortest w, in units of the gradients' norms, with w S = `update` [m]; 0 for a gradient that is zero."""
    norms = gram.diagonal().sqrt()
    safe = torch.where(norms > 0, norms, 1.0)
    units = _root(gram) / safe.unsqueeze(1)
    shares = torch.linalg.pinv(units.T, rtol=1e-7) @ update
    return torch.where(norms > 0, shares / safe, 0.0)

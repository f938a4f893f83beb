"""What is expected of every method, in one place. The tests hold each word of it against the code."""

from __future__ import annotations

from dataclasses import dataclass

from methods.methods import families, kind
from methods.properties import PROPERTIES


@dataclass(frozen=True)
class Expectation:
    """`verdict` is "holds" (to `tolerance`, relative), "fails by design" or "not promised" (nor tried).

    What holds does so on dependent rows too, or `dependent` says why it does not.
    """

    verdict: str
    tolerance: float = 1e-6
    reason: str = ""
    dependent: str = ""


HOLDS = Expectation("holds")
SHOWN_TO_FAIL = 1e-4  # a violation above this shows that a property fails


def but_for(reason: str) -> Expectation:
    return Expectation("holds", dependent=reason)


def within(tolerance: float, reason: str) -> Expectation:
    return Expectation("holds", tolerance, reason)


def fails(reason: str) -> Expectation:
    return Expectation("fails by design", reason=reason)


def not_promised(reason: str) -> Expectation:
    return Expectation("not promised", reason=reason)


REWEIGHTS = fails("it reweights tasks whether they conflict or not")
UNSOLVED = "Unsolved is raised, or the mean taken (on_unsolved)"
NO_SOLUTION = fails(f"there is no solution where any convex combination vanishes: {UNSOLVED}")
ROOT_OF_LENGTH = fails("k times the gradients give k^((1 - alpha) / (1 + alpha)) times the update")
LONG_MATTER = fails("its weights depend on the gradients' lengths")

GCOND_JUMPS = (-0.695,)  # cosines, in the scan of `continuous`
TIES = (
    "where many gradients are parallel, several pairs have the smallest cosine, -1; as published, the first of them is "
    "taken, so rounding and the order of tasks choose"
)
GCOND = {
    "any_order": but_for(TIES),
    "non_conflicting": fails("the winner of a critical conflict is kept whole, so the update may oppose the loser"),
    "linear": fails("the winner depends on the gradients' lengths"),
    "scale": fails(
        "strength is measured against averages that start at 1, as published; equivariant once they have settled, or "
        "with norm_ema_bias_correction"
    ),
    "continuous": fails(
        "the update jumps where stability lets another task win "
        f"(in this scan at {', '.join(map(str, GCOND_JUMPS))}); nowhere else, not at the thresholds either"
    ),
}

# Strategy -> property -> expectation; a property that is not named holds to 1e-6.
DECLARED: dict[str, dict[str, Expectation]] = {
    "baseline": {"non_conflicting": fails("nothing is resolved")},
    "pcgrad": {
        "non_conflicting": fails("with three tasks or more, a later projection may undo an earlier one"),
        "any_order": fails("with three tasks or more, projections are made in a random order"),
    },
    "cagrad": {
        "any_order": Expectation(
            "holds",
            reason="for c = 0.4; at c = 0.9 the worst direction may nearly vanish, and the solver's last digits then "
            "turn it, by less than 1e-2 of the gradients' norm where tried",
        ),
        "non_conflicting": fails("it stays within 0.4 of the mean's length from the mean; tasks may still be opposed"),
        "linear": LONG_MATTER,
        "no_conflict": REWEIGHTS,
        "one_task": fails("the update is (1 + c) / (1 + c^2) times the gradient, as in its authors' code"),
    },
    "gradnorm": {
        "non_conflicting": fails("it looks at lengths and losses, never at angles"),
        "linear": LONG_MATTER,
        "scale": not_promised("Adam, which moves the weights, has an absolute epsilon of 1e-8"),
        "no_conflict": REWEIGHTS,
    },
    "gcond_lion": GCOND,
    "gcond_as_pcgrad": {
        "non_conflicting": fails("with three tasks or more, a later projection may undo an earlier one"),
        "any_order": but_for(TIES),
        "linear": but_for(TIES),
        "scale": but_for(TIES),
    },
    "gradops": {"stationary": fails("conflicting gradients in the span of the others vanish, all of them at times")},
    "gradops_alpha": {
        "linear": LONG_MATTER,
        "stationary": fails("conflicting gradients in the span of the others vanish, all of them at times"),
        "no_conflict": REWEIGHTS,
    },
    "graddrop": {
        "non_conflicting": fails("it settles signs coordinate by coordinate, not angles"),
        "linear": LONG_MATTER,
        "no_conflict": fails("coordinates may differ in sign where gradients do not conflict"),
        "continuous": fails("a coordinate switches sign where the drawn number is passed"),
    },
    "sam_gs": {
        "non_conflicting": fails("it looks at lengths and at the past, never at angles"),
        "linear": LONG_MATTER,
        "scale": fails("gradients are multiplied by their own momentum: quadratic in their scale"),
        "no_conflict": REWEIGHTS,
        "one_task": fails("the gradient is multiplied by its own momentum"),
    },
    "upgrad": {
        "non_conflicting": within(5e-3, "TorchJD adds 1e-4 of the squared lengths to the Gram matrix"),
        "linear": within(1e-1, "TorchJD adds 1e-4 of the squared lengths to the Gram matrix"),
    },
    "mgda": {
        "non_conflicting": within(1e-2, "Frank-Wolfe stops early"),
        "linear": LONG_MATTER,
        "stationary": fails("it stops where any convex combination vanishes, though some tasks could still gain"),
        "no_conflict": REWEIGHTS,
    },
    "nash_mtl": {
        "finite": fails(f"there is no solution at stationary points or for a zero gradient: {UNSOLVED}"),
        "linear": fails("each task counts alike however long its gradient"),
        "scale": fails("every update is cut to norm 1"),
        "stationary": NO_SOLUTION,
        "no_conflict": REWEIGHTS,
        "one_task": fails("every update is cut to norm 1"),
    },
    "fairgrad": {
        "finite": fails(
            "there is no solution at stationary points or for a zero gradient, and none is found for lengths twelve "
            f"decades apart: {UNSOLVED}"
        ),
        "linear": LONG_MATTER,
        "scale": ROOT_OF_LENGTH,
        "stationary": NO_SOLUTION,
        "no_conflict": REWEIGHTS,
        "one_task": ROOT_OF_LENGTH,
    },
    "aligned_mtl": {
        "non_conflicting": fails("it makes principal components alike; the update may oppose a short gradient"),
        "linear": LONG_MATTER,
        "no_conflict": REWEIGHTS,
    },
    "imtl_g": {
        "non_conflicting": fails("three tasks or more: equal projections may all be negative, weights have any sign"),
        "linear": LONG_MATTER,
        "no_conflict": REWEIGHTS,
    },
    "config": {
        "non_conflicting": but_for("equal cosines with more gradients than dimensions need not be positive"),
        "no_conflict": REWEIGHTS,
    },
    "dwa": {},
    "famo": {},
    "uw": {},
}


def declared(name: str) -> str | None:
    """The name under which a strategy, or one with the same resolver, is declared."""
    return next((each for each in families()[name] if each in DECLARED), None)


def expectation(name: str, prop: str) -> Expectation | None:
    """None where a method sees losses only, and the property is about gradients."""
    if kind(name) == "loss weighting" and prop != "blocks":
        return None
    return DECLARED[declared(name) or name].get(prop, HOLDS)


def expectations() -> dict[tuple[str, str], Expectation]:
    return {
        (name, prop): found
        for name in families()
        if declared(name)
        for prop in PROPERTIES
        if (found := expectation(name, prop)) is not None
    }

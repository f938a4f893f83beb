"""The paper's claims and what it leaves open, each judged by recorded numbers alone: `make claims`."""

from gcond.report.claims import (
    ablations,
    conflict,
    controls,
    cost,
    dynamics,
    front,
    frozen,
    further,
    gap,
    memory,
    reconstruction,
    representation,
    tradeoff,
    updates,
)
from gcond.report.claims.judge import Claim

_FAMILIES = (reconstruction, cost, memory, dynamics, updates, ablations, further)
_QUESTIONS = (gap, controls, front, frozen, conflict, tradeoff, representation)

CLAIMS: tuple[Claim, ...] = tuple(claim for family in _FAMILIES for claim in family.CLAIMS)
QUESTIONS: tuple[Claim, ...] = tuple(
    sorted(
        (claim for family in _QUESTIONS for claim in family.CLAIMS),
        key=lambda claim: (claim.id[0] != "O", int(claim.id[1:])),
    )
)

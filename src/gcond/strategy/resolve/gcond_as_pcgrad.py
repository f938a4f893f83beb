"""GCond-as-PCGrad: the ablation of GCond's Figure 12 (arXiv 2509.07252, edition A)."""

from __future__ import annotations

from gcond.strategy.conflict import Conflict, Resolution
from gcond.strategy.resolve.gcond import GCond


class GCondAsPCGrad(GCond):
    """GCond's search for the worst pair, with PCGrad's hard projections in place of its smooth ones.

    Take the pair with the smallest cosine, project each fully on the other's normal plane, both at once, and repeat. So
    nobody wins, and what only decides a winner (stability, strength, dominance) or the angle (remap_power) has no place
    here. With two tasks this is PCGrad; with more, pairs are taken worst first and see each other's projections.

    Args:
        thresholds: (critical, main, weak) cosines. A pair conflicts below weak; the other two only name its zone.
        projection_max_iters, norm_cap, conflict_margin, vanishing: as for `GCond`.
    """

    uses_history = False

    def __init__(
        self,
        thresholds: tuple[float, float, float] = (-0.8, -0.5, 0.0),
        projection_max_iters: int = 3,
        norm_cap: float | None = None,
        conflict_margin: float = 1e-9,
        vanishing: str = "relative",
    ) -> None:
        super().__init__(
            thresholds=thresholds,
            projection_max_iters=projection_max_iters,
            norm_cap=norm_cap,
            conflict_margin=conflict_margin,
            vanishing=vanishing,
        )

    def resolve(self, conflict: Conflict) -> Resolution:
        resolution = super().resolve(conflict)
        metrics = {key: value for key, value in resolution.metrics.items() if not key.startswith("wins/")}
        return Resolution(resolution.coefficients, metrics)

    def _arbitrate(self, pair: tuple[int, int], scores: list[float]) -> tuple[int, int]:
        return pair

    def _shares(self, cosine: float) -> tuple[float, float]:
        return 1.0, 1.0

"""Gradient conflict in multi-task learning: GCond and its peers.

What `gcond.strategy` exports is here too. PyTorch is imported when the first of these names is asked for.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "DWA",
    "EMA",
    "FAMO",
    "SAMGS",
    "UW",
    "CAGrad",
    "Conflict",
    "Estimator",
    "GCond",
    "GCondAsPCGrad",
    "GradDrop",
    "GradNorm",
    "GradOPS",
    "GradientConductor",
    "GradientNotFinite",
    "Joint",
    "Linear",
    "LionLARS",
    "LossWeighting",
    "NotFinite",
    "PCGrad",
    "Profile",
    "Raw",
    "Replicated",
    "ReplicatedPerRank",
    "Resolution",
    "Resolver",
    "Sequential",
    "Sharded",
    "SingleProcess",
    "Stochastic",
    "TorchJD",
    "Unsolved",
    "Update",
    "__version__",
    "as_torchjd",
    "merged_batchnorm",
    "profile",
]

if TYPE_CHECKING:
    from gcond.strategy import *
else:  # type checkers would take any name for one that __getattr__ answers

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'gcond' has no attribute {name!r}")
        from gcond import strategy

        return getattr(strategy, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

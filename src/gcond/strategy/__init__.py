"""A strategy is an estimator, a resolver and an update; `GradientConductor` runs them."""

from gcond.strategy.conductor import GradientConductor
from gcond.strategy.conflict import Conflict, Resolution, Resolver
from gcond.strategy.estimate import Joint, Sequential, Stochastic
from gcond.strategy.resolve import CAGrad, GCond, GradNorm, Linear, PCGrad
from gcond.strategy.update import EMA, LionLARS, Raw

__all__ = [
    "EMA",
    "CAGrad",
    "Conflict",
    "GCond",
    "GradNorm",
    "GradientConductor",
    "Joint",
    "Linear",
    "LionLARS",
    "PCGrad",
    "Raw",
    "Resolution",
    "Resolver",
    "Sequential",
    "Stochastic",
]

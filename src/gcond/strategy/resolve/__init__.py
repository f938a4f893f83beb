"""Resolvers: one file per paper."""

from gcond.strategy.resolve.cagrad import CAGrad
from gcond.strategy.resolve.gcond import GCond
from gcond.strategy.resolve.gradnorm import GradNorm
from gcond.strategy.resolve.linear import Linear
from gcond.strategy.resolve.pcgrad import PCGrad

__all__ = ["CAGrad", "GCond", "GradNorm", "Linear", "PCGrad"]

"""A strategy is an estimator, a resolver and an update; `GradientConductor` runs them."""

from gcond.strategy.aggregator import as_torchjd
from gcond.strategy.batchnorm import merged_batchnorm
from gcond.strategy.conductor import GradientConductor
from gcond.strategy.conflict import Conflict, LossWeighting, Resolution, Resolver
from gcond.strategy.estimate import Estimator, Joint, Sequential, Stochastic
from gcond.strategy.processes import Replicated, ReplicatedPerRank, Sharded, SingleProcess
from gcond.strategy.profiler import Profile, profile
from gcond.strategy.resolve.cagrad import CAGrad
from gcond.strategy.resolve.dwa import DWA
from gcond.strategy.resolve.famo import FAMO
from gcond.strategy.resolve.gcond import GCond
from gcond.strategy.resolve.gcond_as_pcgrad import GCondAsPCGrad
from gcond.strategy.resolve.graddrop import GradDrop
from gcond.strategy.resolve.gradnorm import GradNorm
from gcond.strategy.resolve.gradops import GradOPS
from gcond.strategy.resolve.linear import Linear
from gcond.strategy.resolve.pcgrad import PCGrad
from gcond.strategy.resolve.sam_gs import SAMGS
from gcond.strategy.resolve.torchjd import TorchJD
from gcond.strategy.resolve.uw import UW
from gcond.strategy.safety import GradientNotFinite, NotFinite, Unsolved
from gcond.strategy.update import EMA, LionLARS, Raw, Update

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
    "as_torchjd",
    "merged_batchnorm",
    "profile",
]

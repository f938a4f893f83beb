"""The parts of a strategy by name, as in `GradientConductor(model, tasks, resolver="pcgrad")`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from gcond.strategy.estimate import Joint, Sequential, Stochastic
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
from gcond.strategy.update import EMA, LionLARS, Raw

Named = Mapping[str, Callable[..., Any]]

ESTIMATORS: Named = {"joint": Joint, "sequential": Sequential, "stochastic": Stochastic}
UPDATES: Named = {"raw": Raw, "ema": EMA, "lion_lars": LionLARS}
RESOLVERS: Named = {
    "linear": Linear,
    "gcond": GCond,
    "gcond_as_pcgrad": GCondAsPCGrad,
    "pcgrad": PCGrad,
    "cagrad": CAGrad,
    "graddrop": GradDrop,
    "gradnorm": GradNorm,
    "gradops": GradOPS,
    "sam_gs": SAMGS,
    "dwa": DWA,
    "famo": FAMO,
    "uw": UW,
    "aligned_mtl": partial(TorchJD, "AlignedMTL"),
    "config": partial(TorchJD, "ConFIG"),
    "fairgrad": partial(TorchJD, "FairGrad", alpha=2.0),
    "imtl_g": partial(TorchJD, "IMTLG"),
    "mgda": partial(TorchJD, "MGDA"),
    "nash_mtl": partial(TorchJD, "NashMTL"),
    "upgrad": partial(TorchJD, "UPGrad"),
}

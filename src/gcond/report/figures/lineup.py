"""The paper's figures (numbers of arXiv 2509.07252): what each shows, of which runs, and how it is drawn.

`python -m gcond.report figureN` and its messages come from here. Controls are ours, not the paper's: a figure without
them is complete.
"""

from dataclasses import dataclass

from gcond.report.lineup import PAPER_MODEL, STRATEGIES

LABELS = STRATEGIES | {"gcond_as_pcgrad": "GCond-as-PCGrad", "baseline_integrated": "Baseline integrated (control)"}
PHOTOS = ("photos", "imagenet256")  # either stands for the paper's ImageNet
BOTH = ("photos", "ct")


@dataclass(frozen=True)
class Figure:
    """`kind` is what draws it: validation, training, cosines, conflict, activations or reconstructions."""

    number: int
    title: str
    kind: str
    strategies: tuple[str, ...]
    datasets: tuple[str, ...] = BOTH  # "photos" is whichever of PHOTOS a scale has
    model: str = PAPER_MODEL
    controls: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"figure{self.number}"

    def make(self, scale: str) -> str:
        """The command that makes the runs and draws them."""
        return f"make reproduce-{self.name} SCALE={scale}"


_MODES = ("gcond_stochastic", "gcond_sequential")
_METHODS = ("baseline", "pcgrad", "cagrad", "gradnorm", "gcond_stochastic")
_LION = ("baseline", "gcond_stochastic", "gcond_lion")
_CONTROL = ("baseline_integrated",)
_BASE = "convnextv2_base"

FIGURES = {
    figure.number: figure
    for figure in (
        Figure(1, "stochastic and sequential GCond, training", "training", _MODES),
        Figure(2, "stochastic and sequential GCond, validation", "validation", _MODES),
        Figure(3, "all methods, training", "training", _METHODS, controls=_CONTROL),
        Figure(4, "all methods, validation", "validation", _METHODS, controls=_CONTROL),
        Figure(5, "GCond and Baseline, validation", "validation", ("baseline", "gcond_stochastic"), ("ct",), _BASE),
        Figure(6, "activations of the last encoder layer by epoch", "activations", ("gcond_stochastic", "baseline"),
               ("ct",), _BASE),
        Figure(7, "stochastic and pure GCond, Baseline, training", "training",
               ("baseline", "gcond_stochastic", "gcond_pure"), controls=_CONTROL),
        Figure(8, "GCond with AdamW and with Lion/LARS, Baseline, training", "training", _LION),
        Figure(9, "GCond with AdamW and with Lion/LARS, Baseline, validation", "validation", _LION),
        Figure(10, "reconstructions of held-out photographs", "reconstructions", (*_METHODS, "gcond_lion"),
               ("photos",)),
        Figure(11, "minimum cosine between the tasks' gradients", "cosines",
               ("gcond_stochastic", "gcond_lion", "pcgrad"), ("ct",)),
        Figure(12, "conflict and training: PCGrad, GCond-as-PCGrad, GCond", "conflict",
               ("pcgrad", "gcond_as_pcgrad", "gcond_stochastic"), ("ct",)),
    )
}  # fmt: skip

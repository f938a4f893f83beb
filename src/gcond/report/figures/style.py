"""How the figures look: one colour, dash and marker per strategy, told apart in grey print as well."""

import textwrap

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gcond.report import curves
from gcond.report.figures.lineup import LABELS
from gcond.report.figures.select import Selection
from gcond.report.lineup import NOT_EVIDENCE

_COLOURS = {strategy: look[0] for strategy, look in curves.LOOKS.items()}
LOOKS = {  # colour, dashes, marker
    "baseline": (_COLOURS["baseline"], "-", "o"),
    "baseline_integrated": ("#666666", (0, (1, 1)), "P"),
    "cagrad": (_COLOURS["cagrad"], (0, (5, 2)), "s"),
    "graddrop": (_COLOURS["graddrop"], (0, (3, 1, 1, 1, 1, 1)), "X"),
    "gradnorm": (_COLOURS["gradnorm"], (0, (5, 1, 1, 1)), "D"),
    "pcgrad": (_COLOURS["pcgrad"], (0, (2, 1)), "v"),
    "gcond_sequential": (_COLOURS["gcond_sequential"], (0, (5, 2)), "<"),
    "gcond_stochastic": (_COLOURS["gcond_stochastic"], "-", "^"),
    "gcond_pure": (_COLOURS["gcond_pure"], (0, (4, 1, 1, 1)), ">"),
    "gcond_lion": (_COLOURS["gcond_lion"], (0, (2, 1)), "*"),
    "gcond_as_pcgrad": ("#0072B2", (0, (5, 2)), "d"),
}
MARKERS = 8  # on a line at most
THIN, THICK = {"linewidth": 0.6, "alpha": 0.35}, {"linewidth": 1.9}


def draw_mean(axes: Axes, strategy: str, order: int, x: pd.Series, table: pd.DataFrame, label: str | None) -> None:
    """`table`: a column per seed over the positions `x`; the mean where every seed has a value.

    `order`, the strategy's place in the figure, sets where its markers begin, so that those of equal lines stay apart.
    """
    colour, dashes, marker = LOOKS[strategy]
    if table.shape[1] > 1:
        axes.plot(x, table.to_numpy(dtype=float), color=colour, linestyle=dashes, **THIN)
    mean = table.mean(axis=1, skipna=False)
    every = max(1, len(x) // MARKERS)
    marks = {"marker": marker, "markersize": 7 if marker == "*" else 4.5, "markevery": (order % every, every)}
    edges = {"markeredgecolor": "white", "markeredgewidth": 0.4}
    values = mean.to_numpy(dtype=float)
    axes.plot(x, values, color=colour, linestyle=dashes, label=label, **THICK, **marks, **edges)


def finish(figure: Figure, selection: Selection, extra: str, legend: bool = True) -> None:
    """The title, with what every reader must know, and one legend below all panels."""
    width = int(figure.get_figwidth() * 12)
    lines = [f"Figure {selection.figure.number} at scale {scale_words(selection.scale)}: {selection.figure.title}"]
    lines += textwrap.wrap(f"{selection.model}; {devices(selection)}; {seeds(selection)}. {extra}", width)
    figure.suptitle("\n".join(lines), fontsize=10.5)
    if legend:
        handles = {}
        for axes in figure.axes:
            for line, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, line)
        columns = min(len(handles), max(2, int(figure.get_figwidth() // 2.6)))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False,
                      fontsize=9, handlelength=3.2)  # fmt: skip


def scale_words(scale: str) -> str:
    return f"{scale} (not evidence)" if scale in NOT_EVIDENCE else scale


def devices(selection: Selection) -> str:
    return " and ".join(sorted(set(selection.runs.device) - {""})) or "device not recorded"


def seeds(selection: Selection) -> str:
    """ "3 seeds", or "2 to 3 seeds a method" where they differ."""
    names = set(selection.runs.seed)
    if len(names) == 1:
        return f"1 seed ({names.pop()})"
    counts = set(selection.runs.groupby(["strategy", "dataset"]).seed.nunique())
    if len(counts) == 1:
        (count,) = counts
        return f"{count} seed{'s' if count > 1 else ''}"
    return f"{min(counts)} to {max(counts)} seeds a method"


def label(strategy: str) -> str:
    return LABELS[strategy]

"""A small panel per parameter: differences to the default, paired by seed, all panels on one axis."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from gcond.report.claims.evidence import METRICS
from gcond.report.pages.parameters import Parameter, Row, Setting, frequency, shown
from gcond.report.pages.source import Source, name

LOOKS = {"l1": ("#000000", "o", -1), "ssim": ("#D55E00", "^", 1)}  # colour, marker, side
LINEAR = 2.0  # percent: the axis is logarithmic beyond, where one parameter would flatten all others
LARGE = 10.0
ACROSS = 4
READING = "Each value less the default, paired by seed; below 0: better than the default"
SHOWN = (
    "Validation losses at the best epoch: each value less the default, paired by seed, in percent of the "
    "default's loss; below zero is better than the default. Small: single seeds; large, with its 95 % t-interval: "
    "their mean. All panels share one axis, linear or, where a difference is above 10 %, linear up to 2 % and "
    "logarithmic beyond; an interval that leaves it goes on in an arrow. Above each panel: how often a step the "
    "parameter can act at all, as a range over its values."
)


def draw(source: Source, settings: Sequence[Setting], parameters: Sequence[Parameter]) -> Figure:
    blocks = [(setting, parameter) for setting in settings for parameter in parameters]
    down = len(settings) * -(-len(parameters) // ACROSS)
    figure = Figure(figsize=(13, 3.1 * down + 1.2), layout="constrained")
    panels = figure.subplots(down, ACROSS, sharey=True, squeeze=False)
    low, high = _limits(settings)
    each = -(-len(parameters) // ACROSS) * ACROSS
    for place, axes in enumerate(panels.flat):
        setting, index = settings[place // each], place % each
        if index >= len(parameters):
            axes.set_axis_off()
            _legend(axes)
            continue
        parameter = blocks[place // each * len(parameters) + index][1]
        rows = [row for row in setting.rows if row.parameter == parameter]
        _panel(axes, rows, low, high)
        title = f"{name(setting.default)}, {setting.dataset}\n" if len(settings) > 1 else ""
        axes.set_title(f"{title}{parameter.title}\n{_acts(rows)}", fontsize=9.5)
        if index % ACROSS == 0:
            axes.set_ylabel("difference to the default, %")
        _scale(axes, low, high)
        axes.set_ylim(low, high)
    return figure


def _limits(settings: Sequence[Setting]) -> tuple[float, float]:
    """All seeds, and of the intervals what lies within twice their largest difference."""
    effects = [found.effect for setting in settings for row in setting.rows for found in row.differences.values()]
    seeds = [value for effect in effects for value in effect.values] or [0.0]
    most = 2 * max(map(abs, seeds))
    ends = [end for effect in effects for end in (effect.low, effect.high) if abs(end) <= most]
    low, high = min([*seeds, *ends, -0.1]), max([*seeds, *ends, 0.1])
    room = 0.08 * (high - low)
    return low - room, high + room


def _scale(axes: Axes, low: float, high: float) -> None:
    if max(-low, high) <= LARGE:
        return
    axes.set_yscale("symlog", linthresh=LINEAR)
    ticks = [sign * tick for tick in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) for sign in (-1, 1)]
    axes.set_yticks(sorted({tick for tick in ticks if low <= tick <= high}))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _panel(axes: Axes, rows: Sequence[Row], low: float, high: float) -> None:
    axes.axhline(0, color="0.4", linewidth=0.9)
    axes.grid(color="0.92", linewidth=0.6, axis="y")
    axes.tick_params(labelleft=True)
    if not rows:
        axes.text(0.5, 0.6, "not run", transform=axes.transAxes, ha="center", color="0.4")
        axes.set_xticks([])
        return
    for place, row in enumerate(rows):
        if row.is_default:
            axes.plot([place], [0], marker="s", color="0.4", markersize=6)
        for metric, found in row.differences.items():
            colour, marker, side = LOOKS[metric]
            effect, x = found.effect, place + 0.13 * side
            spread = np.linspace(0.15, 0.25, effect.n) if effect.n > 1 else np.full(effect.n, 0.2)
            axes.plot(
                x + side * spread,
                effect.values,
                color=colour,
                marker=marker,
                markersize=3,
                alpha=0.45,
                linestyle="none",
            )
            if not math.isnan(effect.low):
                axes.plot([x, x], [max(effect.low, low), min(effect.high, high)], color=colour, linewidth=1.4)
                for end, edge, arrow in ((effect.low, low, "v"), (effect.high, high, "^")):
                    if not low <= end <= high:
                        axes.plot([x], [edge * 0.97], marker=arrow, color=colour, markersize=6)
            axes.plot([x], [effect.mean], color=colour, marker=marker, markersize=7, markeredgecolor="white")
    labels = [shown(row.value).replace(", ", ",\n") + ("\ndefault" if row.is_default else "") for row in rows]
    axes.set_xticks(range(len(rows)), labels, fontsize=8)
    axes.set_xlim(-0.5, len(rows) - 0.5)


def _acts(rows: Sequence[Row]) -> str:
    """How often the parameter can act, over the values that ran."""
    if not rows:
        return ""
    known = [row.often for row in rows if row.often == row.often]
    if not known:
        return "how often it can act: not recorded"
    if rows[0].acts == "at every step":
        return "acts at every step"
    if rows[0].parameter.key.endswith("norm_cap"):
        return f"exceeded in {100 * min(known):.0f} to {100 * max(known):.0f} % of the bins"
    low, high = frequency(min(known)), frequency(max(known))
    return f"can act {low if low == high else f'{low} to {high}'} times a step"


def _legend(axes: Axes) -> None:
    handles = [
        axes.plot([], [], color=colour, marker=marker, markersize=7, linewidth=1.4, markeredgecolor="white",
                  label=f"validation {METRICS[metric]}, mean and 95 % interval")[0]
        for metric, (colour, marker, _) in LOOKS.items()
    ]  # fmt: skip
    handles += [axes.plot([], [], color="0.5", marker="o", markersize=3, linestyle="none", label="single seeds")[0]]
    handles += [axes.plot([], [], color="0.4", marker="s", markersize=6, linestyle="none", label="the default")[0]]
    axes.legend(handles=handles, loc="center", frameon=False, fontsize=9)

"""How noisy the gradients of K micro-batches are at frozen weights, and how often their conflict has the right sign."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from gcond.report.claims.conflict import GROUPS, trained
from gcond.report.claims.dynamics import SAMPLES
from gcond.report.claims.judge import number
from gcond.report.figures.style import THIN
from gcond.report.pages.o10 import GROUP_TITLES
from gcond.report.pages.page import Page, command, finish, numbers, table
from gcond.report.pages.source import Run, Source, load, name, nothing
from gcond.report.statistics import Effect, single

TITLE = "Noise and signs against the number of micro-batches"
STATES = {"initial": "initial weights", "last": "last checkpoint"}
MODES = {"train": "train mode", "eval": "eval mode"}
TASKS = {"l1": "L1", "ssim": "SSIM"}
DRAWN = ("baseline", "gcond_stochastic")
READING = (
    "At frozen weights of finished runs; gradients of each task on micro-batches that are drawn independently of each "
    "other, K of them in a window, one window after the other. Means over n seeds with a 95 % t-interval over seeds. "
    "Independent draws give 1/K by arithmetic, so the first table can only show whether windows are what they should "
    "be; whether K micro-batches are enough to know a conflict is what the tables of signs show."
)
VARIANCE = (
    "K x sampled variance of the mean over K micro-batches, against K = 1; all parameters. 1.00: it falls as 1/K. "
    "Noise: variance at K over the squared length of the mean over all micro-batches; above 1, noise outweighs what is "
    "left in common. Within a run: the jackknife's standard error at the largest K, mean over runs."
)
SIGNS = (
    "Share of windows, in percent, whose cosine of L1 and SSIM has the sign that it has over all micro-batches. Same "
    "samples: both tasks on the same ones, as in sequential mode; the sign over all has the windows in it, and the "
    "common noise of both tasks, which does not average out between them. Other samples: L1 on one window and SSIM on "
    "another, as in stochastic mode, against the sign between disjoint halves. 50 %: a coin. A cosine no larger than "
    "its error within a run (±, jackknife, mean over runs) has no known sign, and agreement with it means nothing."
)
RELIABILITY = (
    "Cosine of each task's mean gradient with itself, on two halves of the micro-batches: 1 if half of them know it, "
    "0 if they know nothing of it."
)
SHOWN = (
    "Left: sampled variance of the mean over K micro-batches against that at K = 1, both axes logarithmic; grey: 1/K. "
    "Right: share of windows whose cosine of L1 and SSIM has the sign that it has over all micro-batches, for tasks on "
    "the same samples and on other samples; grey: a coin. Frozen weights, all parameters, train mode. Thick: mean over "
    "seeds; thin: single seeds."
)


def build(scale: str, results: Path, asked: tuple[str, ...] | None) -> Page:
    source = load("windows", scale, results, asked, ("photos", "ct"))
    measured = source.evidence.windows
    there = [run for run in trained(source.evidence, measured) if run[0] in source.datasets]
    if not there:
        raise nothing(source, f"no run on {' or '.join(source.datasets)} has windows recorded")
    rows: list[dict[str, object]] = []
    parts = [READING, "![variance and signs by K](../figures/windows.png)"]
    for dataset in source.datasets:
        runs = [run for run in there if run[0] == dataset]
        if runs:
            own = [_Block(source, run, state, mode) for run in runs for state in STATES for mode in MODES]
            parts += [f"## {source.title(dataset)}", *_tables([block for block in own if block.there], rows)]
    runs_rows = source.rows(there)
    drawing = draw(source, there)
    finish(drawing, TITLE, source, runs_rows, "Train mode, all parameters")
    lacking = []
    for dataset, arm in there:
        seeds = set(source.evidence.own(measured, dataset, arm).seed)
        if without := sorted(set(source.evidence.by_seed(dataset, arm).index) - seeds):
            lacking.append(f"{name(arm)} on {dataset}, seed {', '.join(map(str, without))}: nothing in windows.csv")
    return Page(source, TITLE, parts, rows, runs_rows, drawing, SHOWN, lacking, command(source, asked))


class _Block:
    """What is measured of one arm at one state in one mode."""

    def __init__(self, source: Source, run: Run, state: str, mode: str) -> None:
        self.run, self.state, self.mode = run, state, mode
        rows = source.evidence.own(source.evidence.windows, *run)
        self.rows = rows[(rows.state == state) & (rows["mode"] == mode)]
        self.scale = source.scale
        self._named = dict(iter(self.rows.groupby(["group", "name"])))

    @property
    def there(self) -> bool:
        return len(self.rows) > 0

    @property
    def words(self) -> list[str]:
        return [name(self.run[1]), STATES[self.state], MODES[self.mode].removesuffix(" mode")]

    def effect(self, group: str, statistic: str) -> Effect:
        """Over seeds."""
        return single(self._of(group, statistic).set_index("seed").value)

    def error(self, group: str, statistic: str) -> float:
        """Within a run, mean over runs."""
        return float(self._of(group, statistic).standard_error.mean())

    def _of(self, group: str, statistic: str) -> pd.DataFrame:
        return self._named.get((group, statistic), self.rows.iloc[:0])


def sizes(rows: pd.DataFrame, kind: str) -> list[int]:
    """K of the names KIND/K."""
    found = rows.name.str.extract(rf"^{kind}/(\d+)$")[0].dropna()
    return sorted(set(found.astype(int)))


def _tables(blocks: list[_Block], rows: list[dict[str, object]]) -> list[str]:
    def said(block: _Block, group: str, statistic: str, unit: str, factor: float = 1.0) -> str:
        effect = block.effect(group, statistic).times(factor)
        dataset, arm = block.run
        where = {"scale": block.scale, "dataset": dataset, "strategy": arm.strategy, "state": block.state}
        where |= {"mode": block.mode, "group": group, "statistic": statistic}
        rows.append(where | numbers(effect) | {"error_within": factor * block.error(group, statistic)})
        return number(effect, unit) if effect.n else "-"

    every = pd.concat([block.rows for block in blocks])
    head = ["method", "weights", "mode"]
    longer = sizes(every, "scaled_noise/l1") or sizes(every, "scaled_noise/ssim")
    variance: list[list[str]] = [[*head, "task", "n", *(f"K = {k}" for k in longer), "within a run ±"], []]
    variance[0] += [f"noise at K = {k}" for k in (1, longer[-1])]
    for block in blocks:
        for task, title in TASKS.items():
            cells = [said(block, "all", f"scaled_noise/{task}/{k}", "ratio") for k in longer]
            n = block.effect("all", f"scaled_noise/{task}/{longer[-1]}").n
            if not n:
                continue
            within = f"{block.error('all', f'scaled_noise/{task}/{longer[-1]}'):.2f}"
            noise = [said(block, "all", f"noise/{task}/{k}", "number") for k in (1, longer[-1])]
            variance.append([*block.words, title, str(n), *cells, within, *noise])
    parts = ["### Variance", VARIANCE, table(variance)]

    parts += ["### Signs", SIGNS]
    for kind, cosine, title in (
        ("sign_agreement", "cosine", "Same samples"),
        ("sign_agreement_disjoint", "cosine_disjoint", "Other samples"),
    ):
        counts = sizes(every, kind)
        if not counts:
            continue
        lines = [[*head, "parameters", "n", "cosine over all", "±", *(f"K = {k}" for k in counts)], []]
        for block in blocks:
            for group in GROUPS:
                n = block.effect(group, cosine).n
                if n:
                    cells = [said(block, group, f"{kind}/{k}", "share", 100) for k in counts]
                    over = [said(block, group, cosine, "cosine"), f"{block.error(group, cosine):.2f}"]
                    lines.append([*block.words, GROUP_TITLES[group], str(n), *over, *cells])
        parts += [f"#### {title}", table(lines)]

    lines = [[*head, "parameters", "n", *TASKS.values()], []]
    for block in blocks:
        for group in GROUPS:
            cells = [said(block, group, f"self_cosine/{task}", "cosine") for task in TASKS]
            n = max(block.effect(group, f"self_cosine/{task}").n for task in TASKS)
            if n:
                lines.append([*block.words, GROUP_TITLES[group], str(n), *cells])
    return [*parts, "### Reliability of each task's own gradient", RELIABILITY, table(lines)]


LOOKS = {  # (kind, state) -> colour, dashes, marker; task or samples give the colour, weights the dashes
    ("l1", "initial"): ("#0072B2", (0, (4, 2)), "s"),
    ("l1", "last"): ("#0072B2", "-", "s"),
    ("ssim", "initial"): ("#009E73", (0, (4, 2)), "D"),
    ("ssim", "last"): ("#009E73", "-", "D"),
    ("sign_agreement", "initial"): ("#888888", (0, (4, 2)), "o"),
    ("sign_agreement", "last"): ("#888888", "-", "o"),
    ("sign_agreement_disjoint", "initial"): ("#D55E00", (0, (4, 2)), "^"),
    ("sign_agreement_disjoint", "last"): ("#D55E00", "-", "^"),
}


def draw(source: Source, there: list[Run]) -> Figure:
    """Rows: data set and method; columns: variance and signs."""
    runs = [run for run in there if run[1].strategy in DRAWN] or there[:1]
    figure = Figure(figsize=(10, 3.2 * len(runs) + 1.6), layout="constrained")
    panels = figure.subplots(len(runs), 2, sharex=True, sharey="col", squeeze=False)
    for (left, right), run in zip(panels, runs, strict=True):
        where = f"{name(run[1])}, {source.title(run[0]).split(' (')[0]}"
        for state, words in STATES.items():
            block = _Block(source, run, state, "train")
            for task, title in TASKS.items():
                _line(left, block, f"noise/{task}", LOOKS[task, state], f"{title}, {words}", relative=True)
            for kind, title in SAMPLES.items():
                width = 1.9 if "disjoint" in kind else 4.5  # both may be at 100 %
                _line(right, block, kind, LOOKS[kind, state], f"{title}, {words}", relative=False, width=width)
        counts = sorted({k for line in left.get_lines() for k in np.asarray(line.get_xdata(), dtype=float)})
        if counts:
            left.plot(counts, [1 / k for k in counts], color="0.55", linewidth=5, alpha=0.5, zorder=1, label="1/K")
            for axes in (left, right):
                axes.set_xscale("log")
                axes.set_xticks(counts, [f"{k:g}" for k in counts])
                axes.xaxis.set_minor_locator(NullLocator())
                axes.grid(color="0.92", linewidth=0.6)
        left.set_yscale("log")
        left.set_ylabel("variance at K / variance at 1")
        left.set_title(f"{where}: variance", fontsize=9.5)
        right.axhline(50, color="0.55", linewidth=1)
        right.set_ylim(0, 104)
        right.set_ylabel("windows with the right sign, %")
        right.set_title(f"{where}: sign of the conflict", fontsize=9.5)
    for axes in panels[-1]:
        axes.set_xlabel("K, micro-batches in a window")
    for column, place in ((0, "outside lower left"), (1, "outside lower right")):
        handles = {}
        for axes in panels[:, column]:
            for line, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, line)
        figure.legend(handles.values(), handles.keys(), loc=place, ncols=2, frameon=False, fontsize=8.5,
                      handlelength=3.2)  # fmt: skip
    return figure


def _line(axes: Axes, block: _Block, kind: str, look: tuple, label: str, relative: bool, width: float = 1.9) -> None:
    own = block.rows[
        (block.rows.group == "all") & block.rows.name.isin([f"{kind}/{k}" for k in sizes(block.rows, kind)])
    ]
    if own.empty:
        return
    values = own.assign(k=own.name.str.rpartition("/")[2].astype(int)).pivot(index="k", columns="seed", values="value")
    values = values / values.loc[values.index.min()] if relative else 100 * values
    colour, dashes, marker = look
    counts = values.index.to_numpy(dtype=float)
    if values.shape[1] > 1:
        axes.plot(counts, values.to_numpy(dtype=float), color=colour, linestyle=dashes, **THIN)
    mean = values.mean(axis=1, skipna=False).to_numpy(dtype=float)
    axes.plot(counts, mean, color=colour, linestyle=dashes, marker=marker, markersize=4.5, markeredgecolor="white",
              markeredgewidth=0.4, label=label, linewidth=width, zorder=1.5 if width > 4 else 2)  # fmt: skip

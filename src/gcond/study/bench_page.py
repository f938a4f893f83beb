"""The tables of bench.md, from bench.csv and the paper's Tables 3 and 4.

A table is a list of rows of texts, the first the heading; it is empty where nothing of it is recorded. Most are
made of rows of bench.csv with three more columns: `line` and `column`, the titles of a cell's place, and `cell`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gcond.study import bench
from gcond.study.methods import facts, label, ordered

Table = list[list[str]]
BATCH = "largest_micro_batch"
PER_TASK = "gcond_sequential_per_task"
FORMS = {
    "plain": "plain loop",
    PER_TASK: "GCond sequential, a forward pass per task",
    "forward": "forward passes alone",
    "forward and backward": "forward and backward passes alone",
}
ENCODERS = {"mobilenetv3_small": "MobileNetV3-Small", "convnext_tiny": "ConvNeXt-Tiny"}
ENCODERS |= {"convnextv2_base": "ConvNeXtV2-Base", "resnet50": "ResNet-50"}
DATASETS = {"imagenet256": "ImageNet", "ct": "CT"}
KEPT = "graph kept until the next"
COSTS = ("plain", "cagrad", "gradnorm", "pcgrad", "gcond_stochastic", "gcond_sequential", PER_TASK)
MEMORY_COSTS = ("baseline", *COSTS[1:])
ARBITRATIONS = ("GCond", "GCond, compiled", "statistics", "statistics, compiled", "combination", "momentum", "PCGrad")
ARBITRATIONS += ("CAGrad", "UPGrad", "GradDrop", "TorchJD's PCGrad", "TorchJD's CAGrad", "TorchJD's UPGrad")
TRACE = {  # quantity -> column, form
    "step_time": ("step, ms", ".0f"),
    "data": ("waiting for data", ".1%"),
    "passes": ("forward, backward", ".1%"),
    "arbitration": ("arbitration", ".1%"),
    "optimizer": ("optimizer", ".1%"),
    "headroom": ("data alone / step alone", ".0f"),
}


def tables(folder: Path) -> dict[str, Any]:
    """What the template shows: tables by name, and `b`, all rows."""
    b = bench.read(folder)
    memory = b[b.bench == "memory"]
    small = memory.query("quantity == 'peak' and model == 'mobilenetv3_small' and dataset == 'ct'")
    machines = [[device, "; ".join(own.versions.unique()), ", ".join(own.commit.unique())]
                for device, own in b[b.bench != "memory"].groupby("device")]  # fmt: skip
    return {
        "b": b,
        "costs": costs(b),
        "memory_costs": memory_costs(b),
        "steps": steps(b[b.bench == "step"]),
        "resolve": arbitration(b.query("bench == 'resolve' and quantity == 'time'")),
        "held": held(memory[memory.unit == "P"]),
        "peaks": peaks(small),
        "largest": largest(memory[(memory.model == "convnextv2_base") & (memory.quantity == BATCH)]),
        "trace": trace(b[b.bench == "trace"]),
        "reading": reading(b[b.bench == "reading"]),
        "origin": [["device", "versions", "commits"], *machines],
        "paper": facts("paper"),
        "by_tasks": small.query("case == '' and accumulation_steps == 24").pivot_table("value", "strategy", "tasks"),
    }


def texts(rows: pd.DataFrame, form: str = ".3f", interval: bool = False) -> list[str]:
    """The values, "" where there is none, with the `interval` where one was measured."""
    cells = ["" if pd.isna(value) else f"{value:{form}}" for value in rows.value]
    ends = zip(cells, rows.low, rows.high, strict=True)
    return [f"{cell} [{low:{form}}, {high:{form}}]" if interval and pd.notna(low) else cell for cell, low, high in ends]


def span(rows: pd.DataFrame, form: str = ".2f") -> str:
    """Smallest to largest value."""
    values = rows.value.dropna()
    return " to ".join(dict.fromkeys(f"{end:{form}}" for end in (values.min(), values.max()))) if len(values) else ""


def wide(
    cells: pd.DataFrame, corner: str, lines: Iterable[str] = (), columns: Iterable[str] = (), join: bool = False
) -> Table:
    """A cell where its line meets its column, in the order of `lines` and `columns` or of the rows. Lines without a
    number are left out; with `join` lines of equal cells share one."""
    found = cells[cells.cell != ""].pivot_table("cell", "line", "column", "first", sort=False).fillna("")
    if found.empty:
        return []
    found = found.reindex([line for line in lines or found.index if line in found.index])
    found = found.reindex(columns=list(columns or found.columns), fill_value="")
    if join:
        titles = found.index.to_series().groupby([*found.to_numpy().T], sort=False).agg("; ".join)
        found = found.drop_duplicates().set_axis(titles)
    return [[corner, *found.columns], *([line, *row] for line, row in zip(found.index, found.to_numpy(), strict=True))]


def named(strategy: str) -> str:
    return FORMS.get(strategy, label(strategy))


def device_name(device: str) -> str:
    """Short: a CPU without its cores, or a GPU."""
    return "CPU, one thread" if device.startswith("CPU") else device


# Tables 3 and 4: a line a setting, below the paper's.


def costs(b: pd.DataFrame) -> Table:
    """Time of a step, by image, over Baseline's; on a GPU also images a second."""
    rows = []
    for table, dataset in (("table3", "imagenet256"), ("table3", "ct"), ("table4", "ct")):
        ours = []
        for title, own in _settings(b[(b.bench == table) & (b.dataset == dataset)]):
            ratios = own[(own.quantity == "time") & (own.against == "baseline")]
            ours.append(_line(title, COSTS, ratios, ".3f", True))
            if "CPU" not in title:
                step, largest = own[own.quantity == "step_time"], own[own.quantity == BATCH]
                size = step.strategy.map(largest.set_index("strategy").value)  # of methods with one of their own
                images = step.micro_batch.astype(float).fillna(size) * step.accumulation_steps
                ours.append(_line("images a second", COSTS, step.assign(value=images / step.value), ",.0f"))
        title = f"Table {table[-1]}, {DATASETS[dataset]}"
        rows += [_paper(title, table, dataset, "epoch_seconds", COSTS), *ours] if ours else []
    return [["", *map(named, COSTS)], *rows] if rows else []


def memory_costs(b: pd.DataFrame) -> Table:
    """Peak memory over Baseline's, and largest micro-batches."""
    rows, b = [], b[b.quantity.isin(["peak", BATCH])]
    planned = b.query("bench == 'memory' and image_size == 256 and accumulation_steps == 24 and tasks == 2")
    for dataset in ("imagenet256", "ct"):
        plan = planned[(planned.model == "mobilenetv3_small") & (planned.dataset == dataset) & (planned.case == "")]
        measured = b.query("bench == 'table3' and quantity == 'peak' and dataset == @dataset")
        lines = [("planned, micro-batch 256", plan), *_settings(measured)]
        ours = [_line(title, MEMORY_COSTS, own.assign(value=own.value / own[own.strategy == "baseline"].value.max()))
                for title, own in lines if len(own)]  # fmt: skip
        title = f"Table 3, {DATASETS[dataset]}, peak / Baseline's"
        rows += [_paper(title, "table3", dataset, "peak_mb", MEMORY_COSTS), *ours] if ours else []
    plan = planned[(planned.model == "convnext_tiny") & (planned.dataset == "ct") & (planned.quantity == BATCH)]
    lines = [(f"planned, {precision}{words}", plan[(plan.precision == precision) & (plan.case == f"16GB{words}")])
             for precision in ("fp32", "bf16") for words in ("", f", {KEPT}")]  # fmt: skip
    lines += _settings(b.query(f"bench == 'table4' and dataset == 'ct' and quantity == '{BATCH}'"))
    ours = [_line(title, MEMORY_COSTS, own, ".0f") for title, own in lines if len(own)]
    title = "Table 4, CT, largest micro-batch in 16 GB"
    rows += [_paper(title, "table4", "ct", "micro_batch", MEMORY_COSTS), *ours] if ours else []
    return [["", *map(named, MEMORY_COSTS)], *rows] if rows else []


def _settings(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Rows that were measured together, and their title; GPUs first."""
    groups = rows.groupby(["device", "precision", "case"])
    for (device, precision, case), own in sorted(groups, key=lambda group: group[0][0].startswith("CPU")):
        batch = case or f"micro-batch {', '.join(own.micro_batch.dropna().astype(str).unique())}"
        yield f"ours, {device_name(device)}, {precision}, {batch}", own


def _line(title: str, methods: Sequence[str], rows: pd.DataFrame, *how: Any) -> list[str]:
    cells = dict(zip(rows.strategy, texts(rows, *how), strict=True))
    return [title, *(cells.get(name, "") for name in methods)]


def _paper(title: str, table: str, dataset: str, quantity: str, methods: Sequence[str]) -> list[str]:
    """The paper's numbers over its Baseline's; micro-batches as they are."""
    known = facts("paper")[table][dataset]
    base, form = (1, ".0f") if quantity == "micro_batch" else (known["baseline"][quantity], ".3f")
    return [f"{title}: paper", *(f"{known[name][quantity] / base:{form}}" if name in known else "" for name in methods)]


# Single parts.


def steps(b: pd.DataFrame) -> Table:
    """A step of every strategy over Baseline's, by encoder; ordered by the first."""
    b = b[(b.quantity == "bound") | (b.quantity == "time") & (b.against == "baseline")]
    b = b.assign(encoder=b.model.map(list(ENCODERS).index)).sort_values(["device", "encoder", "value"])
    time = b[b.quantity == "time"]
    if time.empty:
        return []
    time = _cells(time, [f"{ENCODERS[row.model]}, {device_name(row.device)}" for row in time.itertuples()], ".3f", True)
    bound = b[(b.quantity == "bound") & (b.device == time.device.iloc[0]) & (b.model == time.model.iloc[0])]
    bound = _cells(bound[bound.strategy.isin(time.strategy)], "its passes alone", ".2f")
    return wide(pd.concat([bound, time]), "strategy", time.line.unique())


def arbitration(b: pd.DataFrame) -> Table:
    """Medians, in copies of the task gradients."""
    b = b.sort_values(["device", "parameters", "tasks"])
    heads = [f"{row.parameters / 1e6:g} M, m = {row.tasks}{'' if row.device.startswith('CPU') else f', {row.device}'}"
             for row in b.itertuples()]  # fmt: skip
    return wide(_cells(b, heads, ".1f"), "", ARBITRATIONS)


def held(b: pd.DataFrame) -> Table:
    """Buffers in units of P float32 numbers."""
    parts = ["task_gradients", "reference", "mean", "momentum", "optimizer"]
    rows = []
    for case in ("", "bfloat16 reference", "bfloat16 buffers"):
        units = b[b.case == case].pivot_table("value", "strategy", "quantity").reindex(columns=parts).fillna(0.0)
        units = units.assign(sum=units.sum(axis="columns")).loc[ordered(units.index)]
        for cells, alike in units.groupby([*units], sort=False):
            numbers = (f"{round(unit, 2):g}" for unit in cells)
            rows.append(["; ".join(map(named, alike.index)), case or "float32", *numbers])
    heading = ["strategy", "buffers", *(part.replace("_", " ") for part in parts), "sum"]
    return [heading, *rows] if rows else []


def peaks(b: pd.DataFrame) -> Table:
    """Peak in MB against K, the number of tasks, and the end of the graph."""
    shapes = {(k, 2, ""): f"K = {k}" for k in (1, 2, 8, 24)} | {(24, 3, ""): "m = 3"}
    shapes |= {(24, m, KEPT): f"m = {m}, {KEPT}" for m in (2, 3)}
    heads = [shapes.get(shape) for shape in zip(b.accumulation_steps, b.tasks, b.case, strict=True)]
    return wide(_cells(b, heads, ",.0f"), "strategy", map(named, ordered(b.strategy)), shapes.values(), join=True)


def largest(b: pd.DataFrame) -> Table:
    """Largest micro-batch; with the graph kept until the next losses where several passes share one."""
    b = b.sort_values(["dataset", "precision", "image_size", "case"])  # kept graphs after freed ones
    heads = [f"{DATASETS[row.dataset]}, {row.image_size} px, {row.precision}" for row in b.itertuples()]
    cells = _cells(b, heads, ".0f")
    cells["line"] += b.case.str.endswith("bfloat16 buffers").map({True: ", bfloat16 buffers", False: ""})
    cells = cells[cells.cell != ""].groupby(["line", "column"], sort=False).cell.agg(" / ".join).reset_index()
    lines = [named(name) + words for words in ("", ", bfloat16 buffers") for name in ordered(b.strategy)]
    return wide(cells, "strategy", lines, join=True)


def trace(b: pd.DataFrame) -> Table:
    b = b.assign(value=b.value.mask(b.quantity == "step_time", 1e3 * b.value)).sort_values(["dataset", "case"])
    cells = pd.concat([_cells(b[b.quantity == name], *how) for name, how in TRACE.items()])
    cells["line"] = cells.dataset.replace(DATASETS) + ", " + cells.case + ", " + cells.device.map(device_name)
    return wide(cells, "data")


def reading(b: pd.DataFrame) -> Table:
    rate = b[b.unit == "images/s"].sort_values(["image_size", "value"], ascending=False)
    rate = _cells(rate, [f"images/s to {size} px" for size in rate.image_size], ",.0f")
    size = _cells(b[b.quantity == "size"], "KiB an image", ".0f")
    return wide(pd.concat([size, rate]), "kept as", rate.line.unique())


def _cells(rows: pd.DataFrame, column: Any, *how: Any) -> pd.DataFrame:
    return rows.assign(line=rows.strategy.map(named), column=column, cell=texts(rows, *how))

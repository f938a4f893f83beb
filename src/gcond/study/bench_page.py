"""The tables of bench.md, from bench.csv and the paper's Tables 3 and 4.

A table is a list of rows of texts, the first the heading; it is empty where nothing of it is recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from gcond.study import bench
from gcond.study.methods import facts, label, ordered

Table = list[list[str]]
BATCH, PLANNED = "largest_micro_batch", "planned for CUDA"
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
ARBITRATIONS = ("GCond", "GCond, compiled", "statistics", "statistics, compiled", "combination", "momentum", "PCGrad")
ARBITRATIONS += ("CAGrad", "UPGrad", "GradDrop", "TorchJD's PCGrad", "TorchJD's CAGrad", "TorchJD's UPGrad")
ARBITRATIONS += ("GCond on whole vectors",)


class Rows:
    """Rows of bench.csv that are asked for by the values of columns, several as a list."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self.all = rows

    def of(self, **where: Any) -> Rows:
        found = self.all
        for name, value in where.items():
            found = found[found[name].isin(value if isinstance(value, list | tuple) else [value])]
        return Rows(found)

    def texts(self, column: str) -> list[str]:
        """Distinct values, in the order of the file."""
        return list(dict.fromkeys(self.all[column].dropna().astype(str)))

    def split(self, *columns: str) -> Iterator[tuple[dict[str, Any], Rows]]:
        """Each combination of values, column by column in the order of the file, and its rows."""
        found = self.all[list(columns)].drop_duplicates()
        found = found.sort_values(list(columns), key=lambda column: pd.factorize(column)[0])
        for values in found.itertuples(index=False, name=None):
            where = dict(zip(columns, values, strict=True))
            yield where, self.of(**where)

    def span(self, form: str = "{:.2f}", **where: Any) -> str:
        """Smallest to largest."""
        values = self.of(**where).all.value.dropna()
        ends = [form.format(values.min()), form.format(values.max())] if len(values) else [""]
        return " to ".join(dict.fromkeys(ends))


class Column(NamedTuple):
    """Which rows of bench.csv a column shows, and how: the value times `scale`, with its `interval` or without."""

    where: Mapping[str, Any]
    form: str = "{:.3f}"
    interval: bool = False
    scale: float = 1.0

    def cell(self, rows: Rows, **where: Any) -> str:
        """The one value that there is; "" where there is none."""
        found = rows.of(**self.where, **where).all
        if found.empty or pd.isna(found.value.iloc[0]):
            return ""
        value, low, high = (self.form.format(self.scale * found[name].iloc[0]) for name in ("value", "low", "high"))
        return f"{value} [{low}, {high}]" if self.interval and pd.notna(found.low.iloc[0]) else value


def crossed(rows: Rows, corner: str, lines: Mapping[str, Mapping[str, Any]], columns: Mapping[str, Column]) -> Table:
    """A cell where a line meets a column; lines without a number are left out."""
    found = [[title, *(c.cell(rows, **where) for c in columns.values())] for title, where in lines.items()]
    found = [line for line in found if any(line[1:])]
    return [[corner, *columns], *found] if found else []


def grouped(table: Table) -> Table:
    """Lines of equal cells share one."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for title, *cells in table[1:]:
        groups.setdefault(tuple(cells), []).append(title)
    return [*table[:1], *(["; ".join(titles), *cells] for cells, titles in groups.items())]


def strategies(rows: Rows) -> dict[str, dict[str, Any]]:
    return {named(name): {"strategy": name} for name in ordered(rows.texts("strategy"))}


def named(strategy: str) -> str:
    return FORMS.get(strategy, label(strategy))


def device_name(device: str) -> str:
    """Short: a CPU without its cores, or a GPU."""
    return "CPU, one thread" if device.startswith("CPU") else device


def tables(folder: Path) -> dict[str, Any]:
    """What the template shows: tables by name, `b`, all rows, and the machines."""
    b = Rows(bench.read(folder))
    memory, machines = b.of(bench="memory"), b.of(bench=[name for name in b.texts("bench") if name != "memory"])
    commits = [[d["device"], "; ".join(own.texts("versions")), ", ".join(own.texts("commit"))]
               for d, own in machines.split("device")]  # fmt: skip
    return {
        "b": b,
        "costs": costs(b),
        "memory_costs": memory_costs(b),
        "steps": steps(b.of(bench="step")),
        "resolve": arbitration(b.of(bench="resolve")),
        "held": held(memory.of(unit="P")),
        "peaks": peaks(memory.of(quantity="peak", model="mobilenetv3_small", dataset="ct")),
        "largest": largest(memory.of(model="convnextv2_base", quantity=BATCH)),
        "trace": trace(b.of(bench="trace")),
        "reading": reading(b.of(bench="reading")),
        "processes": processes(b.of(bench="processes")),
        "origin": [["device", "versions", "commits"], *commits],
        "paper": facts("paper"),
        "growth": lambda strategy: growth(memory.of(quantity="peak", strategy=strategy)),
    }


def _settings(b: Rows, table: str, dataset: str) -> Iterator[tuple[str, Rows]]:
    """Rows of a cost table that were measured together, and their title; GPUs first."""
    found = list(b.of(bench=table, dataset=dataset).split("device", "precision", "case"))
    for where, own in sorted(found, key=lambda pair: pair[0]["device"].startswith("CPU")):
        batch = where["case"] or f"micro-batch {', '.join(own.texts('micro_batch'))}"
        yield f"ours, {device_name(where['device'])}, {where['precision']}, {batch}", own


def _theirs(paper: Mapping[str, Any], quantity: str, methods: tuple[str, ...]) -> list[str]:
    """The paper's numbers over its Baseline's."""
    base = paper["baseline"][quantity]
    return [f"{paper[name][quantity] / base:.3f}" if name in paper else "" for name in methods]


def costs(b: Rows) -> Table:
    """Tables 3 and 4: time of a step, by image, over Baseline's; the paper's line above ours."""
    rows = [["", *map(named, COSTS)]]
    time = Column({"against": "baseline", "quantity": "time"}, interval=True)
    for table in ("table3", "table4"):
        for dataset, paper in facts("paper")[table].items():
            ours = []
            for words, own in _settings(b, table, dataset):
                ours.append([words, *(time.cell(own, strategy=name) for name in COSTS)])
                ours += [] if "CPU" in words else [["images a second", *_rates(own)]]
            title = f"Table {table[-1]}, {DATASETS[dataset]}: paper"
            rows += [[title, *_theirs(paper, "epoch_seconds", COSTS)], *ours] if ours else []
    return rows if len(rows) > 1 else []


def _rates(own: Rows) -> list[str]:
    steps = own.of(quantity="step_time").all.set_index("strategy")
    sizes = own.of(quantity=BATCH).all.set_index("strategy").value  # of methods that have one of their own
    images = steps.micro_batch.astype(float).fillna(sizes) * steps.accumulation_steps / steps.value
    return [f"{images[name]:,.0f}" if name in images else "" for name in COSTS]


def memory_costs(b: Rows) -> Table:
    """Tables 3 and 4: peak memory over Baseline's, and largest micro-batches; the paper's line above ours."""
    methods = ("baseline", *COSTS[1:])
    rows = [["", *map(named, methods)]]
    planned = b.of(bench="memory", image_size=256, accumulation_steps=24, tasks=2)
    for dataset, paper in facts("paper")["table3"].items():
        peak = planned.of(model="mobilenetv3_small", dataset=dataset, case="", quantity="peak")
        lines = {"planned, micro-batch 256": peak} | dict(_settings(b.of(quantity="peak"), "table3", dataset))
        ours = []
        for words, own in lines.items():
            over = Column({}, scale=1 / own.of(strategy="baseline").all.value.max())
            ours += [[words, *(over.cell(own, strategy=name) for name in methods)]] if len(own.all) else []
        title = f"Table 3, {DATASETS[dataset]}, peak / Baseline's: paper"
        rows += [[title, *_theirs(paper, "peak_mb", methods)], *ours] if ours else []
    paper = facts("paper")["table4"]["ct"]
    tiny = planned.of(model="convnext_tiny", dataset="ct", quantity=BATCH)
    lines = {f"planned, {precision}{words}": tiny.of(precision=precision, case=f"16GB{words}")
             for precision in ("fp32", "bf16") for words in ("", f", {KEPT}")}  # fmt: skip
    lines |= dict(_settings(b.of(quantity=BATCH), "table4", "ct"))
    size = Column({}, "{:.0f}")
    ours = [[words, *(size.cell(own, strategy=n) for n in methods)] for words, own in lines.items() if len(own.all)]
    theirs = [str(paper[name]["micro_batch"]) if name in paper else "" for name in methods]
    rows += [["Table 4, CT, largest micro-batch in 16 GB: paper", *theirs], *ours] if ours else []
    return rows if len(rows) > 1 else []


def steps(b: Rows) -> Table:
    """A step of every strategy over Baseline's, by encoder; ordered by the first."""
    time = b.of(quantity="time", against="baseline")
    cases = [where for where, _ in b.split("device", "model")]
    cases.sort(key=lambda where: (where["device"], list(ENCODERS).index(where["model"])))
    if not cases:
        return []
    columns = {"its passes alone": Column(cases[0] | {"quantity": "bound"}, "{:.2f}")}
    for where in cases:
        head = f"{ENCODERS[where['model']]}, {device_name(where['device'])}"
        columns[head] = Column(where | {"quantity": "time", "against": "baseline"}, interval=True)
    first = time.of(**cases[0]).all.sort_values("value").strategy
    names = dict.fromkeys([*first, *time.texts("strategy")])
    return crossed(b, "strategy", {named(name): {"strategy": name} for name in names}, columns)


def arbitration(b: Rows) -> Table:
    """Medians, in copies of the task gradients."""
    time, columns = b.of(quantity="time"), {}
    for where, _ in sorted(time.split("device", "parameters", "tasks"), key=lambda pair: tuple(pair[0].values())):
        device = "" if where["device"].startswith("CPU") else f", {where['device']}"
        columns[f"{where['parameters'] / 1e6:g} M, m = {where['tasks']}{device}"] = Column(where, "{:.1f}")
    return crossed(time, "", {name: {"strategy": name} for name in ARBITRATIONS}, columns)


def held(b: Rows) -> Table:
    """Buffers in units of P float32 numbers."""
    parts = ["task_gradients", "reference", "mean", "momentum", "optimizer"]
    rows = [["strategy", "buffers", *(part.replace("_", " ") for part in parts), "sum"]]
    for case in ("", "bfloat16 reference", "bfloat16 buffers"):
        own = b.of(case=case)
        units = own.all.pivot_table("value", "strategy", "quantity").reindex(columns=parts).fillna(0.0)
        units["sum"] = units.sum(axis=1)
        cells = [[f"{round(unit, 2):g}" for unit in units.loc[name]] for name in ordered(units.index)]
        lines = [[named(name), case or "float32", *own] for name, own in zip(ordered(units.index), cells, strict=True)]
        rows += grouped([[], *lines])[1:]
    return rows if len(rows) > 1 else []


def peaks(b: Rows) -> Table:
    """Peak in MB against K, the number of tasks, and the end of the graph."""
    shapes = {f"K = {k}": (k, 2, "") for k in (1, 2, 8, 24)} | {"m = 3": (24, 3, "")}
    shapes |= {f"m = {m}, {KEPT}": (24, m, KEPT) for m in (2, 3)}
    names = ("accumulation_steps", "tasks", "case")
    columns = {head: Column(dict(zip(names, shape, strict=True)), "{:,.0f}") for head, shape in shapes.items()}
    return grouped(crossed(b, "strategy", strategies(b), columns))


def growth(b: Rows) -> str:
    """MB that a third task adds to the planned peak."""
    own = b.of(case="", accumulation_steps=24, model="mobilenetv3_small", dataset="ct")
    return f"{own.of(tasks=3).all.value.sum() - own.of(tasks=2).all.value.sum():.0f}"


def largest(b: Rows) -> Table:
    """Largest micro-batch; with the graph kept until the next losses where several passes share one."""
    columns = {
        f"{DATASETS[w['dataset']]}, {w['image_size']} px, {w['precision']}": Column(w, "{:.0f}")
        for w, _ in b.split("dataset", "precision", "image_size")
    }
    budget = b.texts("case")[0] if columns else ""
    freed, kept, buffers = (
        crossed(b.of(case=budget + words), "strategy", strategies(b), columns)
        for words in ("", f", {KEPT}", ", bfloat16 buffers")
    )
    for title, *cells in kept[1:]:
        (own,) = (line for line in freed if line[0] == title)
        own[1:] = [" / ".join(filter(None, pair)) for pair in zip(own[1:], cells, strict=True)]
    return [*grouped(freed), *([f"{title}, bfloat16 buffers", *cells] for title, *cells in buffers[1:])]


def trace(b: Rows) -> Table:
    shares = {"waiting for data": "data", "forward, backward": "passes"}
    shares |= {part: part for part in ("arbitration", "optimizer")}
    columns = {"step, ms": Column({"quantity": "step_time"}, "{:.0f}", scale=1e3)}
    columns |= {head: Column({"quantity": part}, "{:.1%}") for head, part in shares.items()}
    columns["data alone / step alone"] = Column({"quantity": "headroom"}, "{:.0f}")
    lines = {
        f"{DATASETS.get(where['dataset'], where['dataset'])}, {where['case']}, {device_name(where['device'])}": where
        for where, _ in b.split("dataset", "device", "case")
    }
    return crossed(b, "data", lines, columns)


def reading(b: Rows) -> Table:
    rate = {"quantity": "rate", "unit": "images/s"}
    sizes = sorted((int(size) for size in b.texts("image_size")), reverse=True)
    columns = {"KiB an image": Column({"quantity": "size"}, "{:.0f}")}
    columns |= {f"images/s to {size} px": Column(rate | {"image_size": size}, "{:,.0f}") for size in sizes}
    fastest = b.of(**rate, image_size=sizes[:1]).all.sort_values("value", ascending=False).strategy
    return crossed(b, "kept as", {name: {"strategy": name} for name in fastest}, columns)


def processes(b: Rows) -> Table:
    columns = {"sent / P": Column({"quantity": "sent"}, "{:.0f}")}
    columns["time / one process"] = Column({"quantity": "time"}, interval=True)
    return crossed(b, "strategy, arbitration", {name: {"strategy": name} for name in b.texts("strategy")}, columns)

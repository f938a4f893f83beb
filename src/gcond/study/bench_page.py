"""The tables of bench.md, from bench.csv and the paper's Tables 3 and 4.

A table is a list of rows of texts, the first the heading; it is empty where nothing of it is recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

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
KEPT = "graph kept until the next"
COSTS = ("plain", "cagrad", "gradnorm", "pcgrad", "gcond_stochastic", "gcond_sequential", PER_TASK)


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

    def cell(self, form: str = "{:.3f}", interval: bool = True, **where: Any) -> str:
        """The one value that there is, with its interval; "" where there is none."""
        found = self.of(**where).all
        if found.empty or pd.isna(found.value.iloc[0]):
            return ""
        row = found.iloc[0]
        text = form.format(row.value)
        return f"{text} [{form.format(row.low)}, {form.format(row.high)}]" if interval and pd.notna(row.low) else text

    def span(self, form: str = "{:.2f}", **where: Any) -> str:
        """Smallest to largest."""
        values = self.of(**where).all.value.dropna()
        ends = [form.format(values.min()), form.format(values.max())] if len(values) else [""]
        return " to ".join(dict.fromkeys(ends))


def named(strategy: str) -> str:
    return FORMS.get(strategy, label(strategy))


def device_name(device: str) -> str:
    """Short: a CPU without its cores, or a GPU."""
    return "CPU, one thread" if device.startswith("CPU") else device


def tables(folder: Path) -> dict[str, Any]:
    """What the template shows: tables by name, `b`, all rows, and the machines."""
    b = Rows(bench.read(folder))
    machines = b.of(bench=[name for name in b.texts("bench") if name != "memory"])
    return {
        "b": b,
        "costs": costs(b),
        "memory_costs": memory_costs(b),
        "steps": steps(b.of(bench="step")),
        "resolve": arbitration(b.of(bench="resolve")),
        "held": held(b.of(bench="memory")),
        "peaks": peaks(b.of(bench="memory", quantity="peak", model="mobilenetv3_small", dataset="ct")),
        "largest": largest(b.of(bench="memory", model="convnextv2_base", quantity=BATCH)),
        "trace": trace(b.of(bench="trace")),
        "reading": reading(b.of(bench="reading")),
        "processes": processes(b.of(bench="processes")),
        "origin": list(_origin(machines)),
        "paper": facts("paper"),
        "growth": lambda strategy: growth(b.of(bench="memory", quantity="peak"), strategy),
    }


def _origin(machines: Rows) -> Iterator[tuple[str, str, str]]:
    yield ("device", "versions", "commits")
    for device, rows in machines.all.groupby("device", sort=False):
        own = Rows(rows)
        yield (str(device), "; ".join(own.texts("versions")), ", ".join(own.texts("commit")))


def _settings(b: Rows, table: str, dataset: str) -> Iterator[tuple[str, Rows]]:
    """Rows of a cost table that were measured together, and their title."""
    found = b.of(bench=table, dataset=dataset)
    for device in sorted(found.texts("device"), key=lambda name: name.startswith("CPU")):
        for precision in found.of(device=device).texts("precision"):
            for case in found.of(device=device, precision=precision).texts("case"):
                own = found.of(device=device, precision=precision, case=case)
                batch = case or f"micro-batch {', '.join(own.texts('micro_batch'))}"
                yield f"ours, {device_name(device)}, {precision}, {batch}", own


def costs(b: Rows) -> Table:
    """Tables 3 and 4: time of a step, by image, over Baseline's; the paper's line above ours."""
    rows = [["", *map(named, COSTS)]]
    for table in ("table3", "table4"):
        for dataset, paper in facts("paper")[table].items():
            base = paper["baseline"]["epoch_seconds"]
            theirs = [f"{paper[name]['epoch_seconds'] / base:.3f}" if name in paper else "" for name in COSTS]
            title = f"Table {table[-1]}, {_title(dataset)}"
            ours = []
            for words, own in _settings(b, table, dataset):
                times = [own.cell(strategy=name, against="baseline", quantity="time") for name in COSTS]
                ours += [[words, *times], *([] if "CPU" in words else [["images a second", *_rates(own)]])]
            rows += [[f"{title}: paper", *theirs], *ours] if ours else []
    return rows if len(rows) > 1 else []


def _rates(own: Rows) -> list[str]:
    steps = own.of(quantity="step_time").all.set_index("strategy")
    sizes = own.of(quantity=BATCH).all.set_index("strategy").value  # of methods that have one of their own
    images = steps.micro_batch.astype(float).fillna(sizes) * steps.accumulation_steps / steps.value
    return [f"{images[name]:,.0f}" if name in images else "" for name in COSTS]


def memory_costs(b: Rows) -> Table:
    """Tables 3 and 4: peak memory over Baseline's, and largest micro-batches; the paper's line above ours."""
    methods = ["baseline", *COSTS[1:]]
    rows = [["", *map(named, methods)]]
    planned = b.of(bench="memory", image_size=256, accumulation_steps=24, tasks=2)
    for dataset, paper in facts("paper")["table3"].items():
        lines = {
            "planned, micro-batch 256": planned.of(model="mobilenetv3_small", dataset=dataset, case="", quantity="peak")
        }
        lines |= {words: own.of(quantity="peak") for words, own in _settings(b, "table3", dataset)}
        ours = [[words, *_over(own, methods)] for words, own in lines.items() if len(own.all)]
        theirs = [
            f"{paper[name]['peak_mb'] / paper['baseline']['peak_mb']:.3f}" if name in paper else "" for name in methods
        ]
        rows += [[f"Table 3, {_title(dataset)}, peak / Baseline's: paper", *theirs], *ours] if ours else []
    paper, lines = facts("paper")["table4"]["ct"], {}
    for precision in ("fp32", "bf16"):
        own = planned.of(model="convnext_tiny", dataset="ct", precision=precision, quantity=BATCH)
        lines |= {
            f"planned, {precision}": own.of(case="16GB"),
            f"planned, {precision}, {KEPT}": own.of(case=f"16GB, {KEPT}"),
        }
    lines |= {words: own.of(quantity=BATCH) for words, own in _settings(b, "table4", "ct")}
    ours = [
        [words, *(own.cell("{:.0f}", strategy=name) for name in methods)]
        for words, own in lines.items()
        if len(own.all)
    ]
    theirs = [str(paper[name]["micro_batch"]) if name in paper else "" for name in methods]
    rows += [["Table 4, CT, largest micro-batch in 16 GB: paper", *theirs], *ours] if ours else []
    return rows if len(rows) > 1 else []


def _over(own: Rows, methods: list[str]) -> list[str]:
    base = own.of(strategy="baseline").all.value.max()
    return [
        "" if found.empty else f"{found.iloc[0] / base:.3f}"
        for found in (own.of(strategy=m).all.value for m in methods)
    ]


def _title(dataset: str) -> str:
    return {"imagenet256": "ImageNet", "ct": "CT"}.get(dataset, dataset)


def steps(b: Rows) -> Table:
    """A step of every strategy over Baseline's, by encoder; ordered by the first."""
    cases = b.all[["device", "model"]].drop_duplicates()
    order = {name: place for place, name in enumerate(ENCODERS)}
    cases = sorted(cases.itertuples(index=False, name=None), key=lambda case: (case[0], order.get(case[1], 9)))
    if not cases:
        return []
    heads = [f"{ENCODERS.get(model, model)}, {device_name(device)}" for device, model in cases]
    time = b.of(quantity="time", against="baseline")
    first = time.of(device=cases[0][0], model=cases[0][1]).all.sort_values("value").strategy
    names = dict.fromkeys([*first, *time.texts("strategy")])
    rows = [
        [
            named(name),
            b.of(device=cases[0][0], model=cases[0][1]).cell("{:.2f}", strategy=name, quantity="bound"),
            *(time.cell(strategy=name, device=device, model=model) for device, model in cases),
        ]
        for name in names
    ]
    return [["strategy", "its passes alone", *heads], *rows]


def arbitration(b: Rows) -> Table:
    """Medians, in copies of the task gradients."""
    time = b.of(quantity="time")
    cases = sorted(time.all[["device", "parameters", "tasks"]].drop_duplicates().itertuples(index=False, name=None))
    if not cases:
        return []
    heads = [f"{p / 1e6:g} M, m = {m}" + ("" if device.startswith("CPU") else f", {device}") for device, p, m in cases]
    keys = [dict(zip(("device", "parameters", "tasks"), case, strict=True)) for case in cases]
    order = [
        "GCond",
        "GCond, compiled",
        "statistics",
        "statistics, compiled",
        "combination",
        "momentum",
        "PCGrad",
        "CAGrad",
    ]
    order += [
        "UPGrad",
        "GradDrop",
        "TorchJD's PCGrad",
        "TorchJD's CAGrad",
        "TorchJD's UPGrad",
        "GCond on whole vectors",
    ]
    names = [name for name in order if len(time.of(strategy=name).all)]
    return [
        ["", *heads],
        *([name, *(time.cell("{:.1f}", False, strategy=name, **key) for key in keys)] for name in names),
    ]


def _grouped(strategies: Iterable[str], cells: Mapping[str, list[str]]) -> Table:
    """Strategies of equal cells share a row."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in ordered(strategies):
        groups.setdefault(tuple(cells[name]), []).append(named(name))
    return [["; ".join(names), *own] for own, names in groups.items() if any(own)]


def held(b: Rows) -> Table:
    """Buffers in units of P float32 numbers."""
    parts = ["task_gradients", "reference", "mean", "momentum", "optimizer"]
    rows = [["strategy", "buffers", *(part.replace("_", " ") for part in parts), "sum"]]
    for case in ("", "bfloat16 reference", "bfloat16 buffers"):
        own = b.of(unit="P", case=case)
        cells = {}
        for name in own.texts("strategy"):
            units = [own.of(strategy=name, quantity=part).all.value.sum() for part in parts]
            cells[name] = [case or "float32", *(f"{round(unit, 2):g}" for unit in [*units, sum(units)])]
        rows += _grouped(cells, cells)
    return rows if len(rows) > 1 else []


def peaks(b: Rows) -> Table:
    """Peak in MB against K, the number of tasks, and the end of the graph."""
    if b.all.empty:
        return []
    longest = {"accumulation_steps": 24}
    columns = {f"K = {k}": {"accumulation_steps": k, "tasks": 2, "case": ""} for k in (1, 2, 8, 24)}
    columns |= {"m = 3": {**longest, "tasks": 3, "case": ""}}
    columns |= {f"m = {m}, {KEPT}": {**longest, "tasks": m, "case": KEPT} for m in (2, 3)}
    names = b.texts("strategy")
    cells = {name: [b.cell("{:,.0f}", strategy=name, **where) for where in columns.values()] for name in names}
    return [["strategy", *columns], *_grouped(names, cells)]


def growth(b: Rows, strategy: str) -> float:
    """MB that a third task adds to the planned peak."""
    own = b.of(strategy=strategy, case="", accumulation_steps=24, model="mobilenetv3_small", dataset="ct")
    return float(own.of(tasks=3).all.value.sum() - own.of(tasks=2).all.value.sum())


def largest(b: Rows) -> Table:
    """Largest micro-batch; with the graph kept until the next losses where several passes share one."""
    if b.all.empty:
        return []
    cases = list(b.all[["dataset", "image_size", "precision"]].drop_duplicates().itertuples(index=False, name=None))
    budget = b.texts("case")[0]
    heads = [f"{_title(dataset)}, {size} px, {precision}" for dataset, size, precision in cases]

    def cell(name: str, case: tuple[Any, ...], words: str) -> str:
        where = dict(zip(("dataset", "image_size", "precision"), case, strict=True))
        found = [b.cell("{:.0f}", strategy=name, case=each, **where) for each in (words, f"{budget}, {KEPT}")]
        return " / ".join(filter(None, found if words == budget else found[:1]))

    rows: Table = [["strategy", *heads]]
    for words in (budget, f"{budget}, bfloat16 buffers"):
        names = b.of(case=words).texts("strategy")
        own = _grouped(names, {name: [cell(name, case, words) for case in cases] for name in names})
        rows += [[row[0] + words.removeprefix(budget), *row[1:]] for row in own]
    return rows


def trace(b: Rows) -> Table:
    shares = {
        "data": "waiting for data",
        "passes": "forward, backward",
        "arbitration": "arbitration",
        "optimizer": "optimizer",
    }
    rows = [["data", "step, ms", *shares.values(), "data alone / step alone"]]
    for dataset in b.texts("dataset"):
        for device in b.of(dataset=dataset).texts("device"):
            for case in b.of(dataset=dataset, device=device).texts("case"):
                own = b.of(dataset=dataset, device=device, case=case)
                ms = f"{1e3 * own.of(quantity='step_time').all.value.iloc[0]:.0f}"
                parts = [own.cell("{:.1%}", False, quantity=part) for part in shares]
                title = f"{_title(dataset)}, {case}, {device_name(device)}"
                rows.append([title, ms, *parts, own.cell("{:.0f}", False, quantity="headroom")])
    return rows if len(rows) > 1 else []


def reading(b: Rows) -> Table:
    if b.all.empty:
        return []
    sizes = sorted(int(size) for size in b.texts("image_size"))[::-1]
    rate = b.of(quantity="rate", unit="images/s")
    names = rate.of(image_size=sizes[0]).all.sort_values("value", ascending=False).strategy
    heads = [f"images/s to {size} px" for size in sizes]
    return [
        ["kept as", "KiB an image", *heads],
        *(
            [
                name,
                b.cell("{:.0f}", strategy=name, quantity="size"),
                *(rate.cell("{:,.0f}", False, strategy=name, image_size=size) for size in sizes),
            ]
            for name in dict.fromkeys(names)
        ),
    ]


def processes(b: Rows) -> Table:
    names = b.texts("strategy")
    rows = [
        [name, b.cell("{:.0f}", strategy=name, quantity="sent"), b.cell(strategy=name, quantity="time")]
        for name in names
    ]
    return [["strategy, arbitration", "sent / P", "time / one process"], *rows] if rows else []

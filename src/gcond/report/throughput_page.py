"""Recorded costs of a training step as a page: ours beside the paper's, as ratios to Baseline."""

from pathlib import Path

import pandas as pd

from gcond.report import paper_throughput as paper
from gcond.report.throughput import DATASETS, METHODS, MODELS, PEERS, SEQUENTIAL, Section, read, sections

TASKS = 2
BACKWARD = 2  # forward passes that a backward pass costs, by the usual count


def page(table: str, csv: Path) -> tuple[str, bool]:
    """Markdown of "table3" or "table4", and whether every data set has a section with all methods.

    Raises ValueError where nothing is recorded, or rows contradict each other.
    """
    recorded = read(table, csv)
    found = list(sections(table, recorded))
    parts = [f"# {_title(table, recorded)}", *_reading(found)]
    for section in found:
        parts += [f"## {_heading(section)}", _grid(_columns(section)), _bullets(_findings(section))]
    parts += ["## Origin", _bullets(_origin(table, recorded, found))]
    whole = {section.setting["dataset"] for section in found if not section.missing}
    return "\n\n".join(parts) + "\n", {section.setting["dataset"] for section in found} == whole


def _title(table: str, recorded: pd.DataFrame) -> str:
    models = ", ".join(MODELS.get(name, name) for name in sorted(set(recorded.model)))
    devices = "; ".join(sorted(set(recorded.device)))
    only = " (ratios only)" if all(device.startswith("CPU") for device in recorded.device) else ""
    return f"Table {table.removeprefix('table')}: what a training step costs, {models}, on {devices}{only}"


def _reading(found: list[Section]) -> list[str]:
    shared, per_task = (1 + TASKS * BACKWARD) / (1 + BACKWARD), float(TASKS)
    lines = [
        f"Ours beside the paper's ({paper.DEVICE}), both as ratios to Baseline; the paper's are computed from the "
        "numbers that it prints. **Time** is that of an epoch, that is, per image; samples/s have the reciprocal "
        "ratio. Brackets: 95 % bootstrap interval of the median over rounds; in a round every method takes one "
        "optimizer step. Images are made: reading data is in none of our numbers, and may be in the paper's. **MB** "
        "are 2^20 bytes of tensors.",
        f"What to expect: if a backward pass costs {BACKWARD} forward passes and nothing else counts, {TASKS} backward "
        f"passes after a shared forward pass take {shared:.2f} of Baseline's time, {TASKS} of both take "
        f"{per_task:.2f}, and stochastic takes 1.00, which is {1 / shared:.2f} and {1 / per_task:.2f} of them. Where "
        f"the peers take less than {shared:.2f}, Baseline spends time on something else than these passes.",
    ]
    if any(section.on_cpu for section in found):
        cpu = next(section for section in found if section.on_cpu)
        batch = f"the largest batch in {cpu.setting['cap']}" if cpu.table == "table4" else "the paper's batch"
        lines.append(
            "On the CPU, time is processor time of one thread, at a small batch. What the peers do to all parameters "
            "after each micro-batch does not grow with its images, and so weighs more here than at the paper's batch: "
            "GCond sequential (shared forward) takes the peers' passes without it. Memory is planned, not measured, "
            f"for a CUDA device at the paper's image size and {batch}, without diagnosed steps and without a margin."
        )
    return lines


def _heading(section: Section) -> str:
    setting = section.setting
    batches = f"of {setting['batches']}"
    if section.own_batches:
        batches = f"({setting['batches']} in {setting['cap']})"
    dataset = DATASETS.get(str(setting["dataset"]), str(setting["dataset"]))
    return (
        f"{dataset}, {setting['precision']}: {setting['image_size']} px, patch {setting['patch_size']}, "
        f"K = {setting['accumulation_steps']} micro-batches {batches}; {setting['device']}"
    )


def _columns(section: Section) -> dict[str, list[str]]:
    """Heading -> cells; columns without any entry are left out."""
    rows, base, theirs = section.rows, section.rows["baseline"], section.paper
    columns = {"method": [METHODS[method] for method in rows]}

    def add(heading: str, cells: list[str]) -> None:
        if any(cells):
            columns[heading] = cells

    def of_paper(name: str) -> list[str]:
        whole = getattr(theirs["baseline"], name)
        return [f"{getattr(theirs[method], name) / whole:.3f}" if method in theirs else "" for method in rows]

    def of_ours(name: str) -> list[str]:
        return ["" if pd.isna(row[name]) else f"{row[name] / base[name]:.3f}" for row in rows.values()]

    add("time / Baseline", [_time(row) for row in rows.values()])
    add("paper's time", of_paper("epoch_seconds"))
    if section.own_batches or (section.table == "table4" and section.on_cpu):
        name, words = ("planned_micro_batch", ", planned") if section.on_cpu else ("micro_batch", "")
        steps = paper.ACCUMULATION_STEPS if section.on_cpu else base.accumulation_steps
        add(f"largest batch{words} (effective)", [_batch(row[name], steps) for row in rows.values()])
        add("batch / Baseline", of_ours(name))
        add("paper's batch", of_paper("micro_batch"))
    elif section.table == "table3":
        name, words = ("planned_mb", "planned memory") if section.on_cpu else ("measured_mb", "memory")
        add(f"{words} / Baseline", of_ours(name))
        add("paper's memory", of_paper("peak_mb"))
    if not section.on_cpu:
        images = paper.epoch_images(section.table, str(section.setting["dataset"]))
        rates = [row.micro_batch * row.accumulation_steps / row.step_seconds for row in rows.values()]
        add("peak MB", [_measured(row) for row in rows.values()])
        add("s/epoch", ["" if pd.isna(rate) else f"{images / rate:.1f}" for rate in rates])
        add("samples/s", ["" if pd.isna(rate) else f"{rate:.1f}" for rate in rates])
        if section.own_batches:
            add(
                "planned batch",
                ["" if pd.isna(size := row.planned_micro_batch) else f"{size}" for row in rows.values()],
            )
    add("planned MB", ["" if pd.isna(row.planned_mb) else f"{row.planned_mb:.0f}" for row in rows.values()])
    return columns


def _time(row: pd.Series) -> str:
    if row.method == row.against:
        return "1"
    if pd.isna(row.ratio):
        return "does not fit"
    return f"{row.ratio:.3f} [{row.ratio_low:.3f}, {row.ratio_high:.3f}]"


def _batch(size: int, steps: int) -> str:
    return "" if pd.isna(size) else f"{size} ({size * steps})"


def _measured(row: pd.Series) -> str:
    return f"more than {row.cap}" if pd.isna(row.measured_mb) else f"{row.measured_mb:.0f}"


def _findings(section: Section) -> list[str]:
    """What the section says about the paper's claims S1 and S2, and whether the conductor slows Baseline."""
    lines = []
    halves = [
        f"{_time(section.pairs['gcond_stochastic', form])} of {METHODS[form]}"
        for form in SEQUENTIAL
        if ("gcond_stochastic", form) in section.pairs
    ]
    if halves:
        lines.append(f"S1, stochastic costs half of sequential (two tasks): its time is {' and '.join(halves)}.")
    changes = [
        f"{METHODS[method]} {_throughput(section.rows[method])} (paper {_paper_throughput(section, method)})"
        for method in ("gcond_stochastic", *PEERS)
        if method in section.rows and pd.notna(section.rows[method].ratio)
    ]
    if changes:
        lines.append(f"S2, samples/s against Baseline: {'; '.join(changes)}.")
    if "plain" in section.rows:
        plain = _time(section.rows["plain"])
        lines.append(f"Is Baseline slowed by the conductor: a plain PyTorch loop takes {plain} of Baseline's time.")
    lines += _against_plan(section)
    if section.missing:
        lines.append(f"Not measured: {', '.join(METHODS[method] for method in section.missing)}.")
    return lines


def _against_plan(section: Section) -> list[str]:
    """How far the measured peaks lie from those planned for the same micro-batch."""
    if section.on_cpu or section.own_batches:
        return []
    ratios = [row.measured_mb / row.planned_mb for row in section.rows.values()]
    known = [ratio for ratio in ratios if pd.notna(ratio)]
    return [f"Peak memory is {min(known):.3f} to {max(known):.3f} times what was planned."] if known else []


def _throughput(row: pd.Series) -> str:
    """Change of samples/s against Baseline, with its interval."""
    return f"{_change(1 / row.ratio)} [{_change(1 / row.ratio_high)}, {_change(1 / row.ratio_low)}]"


def _paper_throughput(section: Section, method: str) -> str:
    costs = section.paper
    return _change(costs[method].samples_per_second / costs["baseline"].samples_per_second)


def _change(ratio: float) -> str:
    """ "-7.0 %"."""
    text = f"{100 * (ratio - 1):+.1f}"
    return f"{text.replace('-0.0', '+0.0')} %"


def _origin(table: str, recorded: pd.DataFrame, found: list[Section]) -> list[str]:
    lines = []
    if all(section.on_cpu for section in found):
        trial = ", and the largest batches by trial" if table == "table4" else ""
        lines.append(
            "Not measured, since no GPU has run it: peak memory, s/epoch and samples/s at the paper's shapes"
            f"{trial}. On a machine with one, `make reproduce-{table} DEVICE=cuda` adds them."
        )
    rounds = ", ".join(str(count) for count in sorted(set(recorded.rounds)))
    lines.append(f"Rounds: {rounds}. {'; '.join(sorted(set(recorded.versions)))}.")
    commits = sorted({(row.commit[:10], bool(row.dirty)) for row in recorded.itertuples()})
    told = [f"{commit}{' with uncommitted changes' if dirty else ''}" for commit, dirty in commits]
    dates = sorted({started[:10] for started in recorded.started})
    lines.append(f"Commit {', '.join(told)}; measured {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}.")
    lines.append(f"Generated by `python -m gcond.report {table}` from {table}.csv; do not edit.")
    return lines


def _grid(columns: dict[str, list[str]]) -> str:
    """Pipe table, aligned, so that it reads well unrendered too."""
    filled = []
    for heading, cells in columns.items():
        width = max(len(text) for text in [heading, *cells])
        first = heading == "method"
        align, rule = (str.ljust, "-" * width) if first else (str.rjust, "-" * (width - 1) + ":")
        filled.append([align(heading, width), rule, *(align(cell, width) for cell in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*filled, strict=True))


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)

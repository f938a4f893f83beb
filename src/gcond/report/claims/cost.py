"""S1 and S2: what a step costs. From results/bench/table3.csv and table4.csv, whose unit is a round, not a seed."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from gcond.report.claims.judge import Answer, Claim, Finding, judge
from gcond.report.statistics import FEWEST, Effect
from gcond.report.step import STOCHASTIC_LIMIT
from gcond.report.throughput import MODELS, PEERS, SEQUENTIAL, Section, read, sections

TABLES = {"table3": "3", "table4": "4"}
HALF = 0.55  # what still counts as half
WHERE = "../bench/table3.md, ../bench/table4.md"


def half_of_sequential(results: Path) -> Answer | None:
    """The published form, a forward pass per task, decides; the shared forward pass stands beside it."""
    found, short = _sections(results)
    findings, words = [], []
    for section in found:
        for form, name in (("gcond_sequential_per_task", "as published"), ("gcond_sequential", "shared forward")):
            row = section.pairs.get(("gcond_stochastic", form))
            if row is None or pd.isna(row.ratio):
                continue
            finding = Finding(
                f"{_name(section)}: stochastic / sequential ({name})", _effect(row), "ratio", (-math.inf, HALF)
            )
            if form == "gcond_sequential_per_task":
                findings.append(finding)
            else:
                words.append(f"{_name(section)} {_interval(row)}")
    shared = [f"Against sequential with one forward pass for all tasks, which needs no more: {'; '.join(words)}."]
    note = [f"Half: at most {HALF}. Two tasks; N-fold for N tasks is not measured. {_unit(found)}"]
    pairs = [("gcond_stochastic", form) for form in SEQUENTIAL]
    return _with_source(judge(findings, (), [*(shared if words else []), *_few(short, pairs), *note], WHERE), found)


def throughput(results: Path) -> Answer | None:
    found, short = _sections(results)
    findings, words = [], []
    for section in found:
        limit = STOCHASTIC_LIMIT["cpu" if section.on_cpu else "cuda"]
        theirs = section.paper
        for method in ("gcond_stochastic", *PEERS):
            row = section.rows.get(method)
            if row is None or pd.isna(row.ratio):
                continue
            region = (-math.inf, limit) if method == "gcond_stochastic" else (1.0, math.inf)
            findings.append(Finding(f"{_name(section)}: {method} / Baseline", _effect(row), "ratio", region))
            if method in PEERS and method in theirs:
                paper = 1 - theirs["baseline"].epoch_seconds / theirs[method].epoch_seconds
                words.append(f"{_name(section)} {method} {100 * (1 - 1 / row.ratio):.0f} % (paper {100 * paper:.0f} %)")
    lost = [f"Throughput that the peers lose: {'; '.join(words)}."] if words else []
    limits = ", ".join(f"{limit} on {device_.upper()}" for device_, limit in STOCHASTIC_LIMIT.items())
    note = [f"Time per image; Baseline's throughput: at most {limits} of its time. {_unit(found)}"]
    pairs = [(method, "baseline") for method in ("gcond_stochastic", *PEERS)]
    return _with_source(judge(findings, (), [*lost, *_few(short, pairs), *note], WHERE), found)


def _sections(results: Path) -> tuple[list[Section], list[Section]]:
    """Those that decide, of one kind of device: CUDA where there is any with enough rounds; and those of CUDA that had
    too few."""
    found = []
    for table in TABLES:
        csv = results / "bench" / f"{table}.csv"
        if csv.exists():
            found += list(sections(table, read(table, csv)))
    cuda = [section for section in found if not section.on_cpu]
    enough = [section for section in cuda if section.rounds >= FEWEST]
    short = [section for section in cuda if section.rounds < FEWEST]
    deciding = enough or [section for section in found if section.on_cpu] or short
    return deciding, [] if deciding is short else short


def _few(sections: list[Section], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """What sections with too few rounds show of these pairs."""
    lines = []
    for section in sections:
        shown = [
            f"{method} / {against} {_interval(row)}"
            for method, against in pairs
            if (row := section.pairs.get((method, against))) is not None and not pd.isna(row.ratio)
        ]
        if shown:
            where = f"{_name(section)} on {section.setting['device']}, {section.rounds} rounds, which decide nothing"
            lines.append(f"{where}: {'; '.join(shown)}.")
    return lines


def _name(section: Section) -> str:
    setting = section.setting
    model = MODELS.get(str(setting["model"]), setting["model"])
    batches = ", each its largest batch" if section.own_batches else ""
    return f"Table {TABLES[section.table]} ({model}, {setting['dataset']}, {setting['precision']}{batches})"


def _interval(row: pd.Series) -> str:
    return f"{row.ratio:.2f} [{row.ratio_low:.2f}, {row.ratio_high:.2f}]"


def _effect(row: pd.Series) -> Effect:
    return Effect(int(row.rounds), float(row.ratio), float(row.ratio_low), float(row.ratio_high), math.nan)


def _unit(found: list[Section]) -> str:
    batches = sorted({str(section.setting["batches"]) for section in found})
    steps = sorted({str(section.setting["accumulation_steps"]) for section in found})
    return f"n counts rounds; bootstrap intervals; micro-batches of {', '.join(batches)}, K = {', '.join(steps)}."


def _with_source(answer: Answer | None, found: list[Section]) -> Answer | None:
    devices = sorted({str(section.setting["device"]) for section in found})
    return answer and replace(answer, source=f"benchmark: {' and '.join(devices)}")


CLAIMS = (
    Claim(
        "S1",
        "A step of stochastic GCond costs half of a sequential one (two tasks)",
        "time per optimizer step, side by side, against both forms of sequential GCond",
        "make reproduce-table3 reproduce-table4",
        "15 minutes on a CPU (ratios); a CUDA GPU of 16 GB for the paper's batches",
        elsewhere=half_of_sequential,
    ),
    Claim(
        "S2",
        "Stochastic GCond has Baseline's throughput; PCGrad, CAGrad and GradNorm lose 7-22 % (Table 3), 34-36 % "
        "(Table 4)",
        "the same benchmark, same batch, K = 24",
        "make reproduce-table3 reproduce-table4",
        "15 minutes on a CPU (ratios); a CUDA GPU of 16 GB for the paper's batches",
        elsewhere=throughput,
    ),
)

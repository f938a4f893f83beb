"""Time and communication of a window against the number of GPUs, on paper: the tables of docs/scaling.md.

    python scripts/scaling.py                         # prints them
    python scripts/scaling.py --write                 # puts them into docs/scaling.md
    python scripts/scaling.py --forward-ms 20 --gigabytes-per-second 100 --parameters 30e6    # your own machine

Letters: R processes (a GPU each), K micro-batches of a window, m tasks, P parameters in N tensors and S groups. Nothing
here is measured: what is sent is what `gcond.strategy.processes` asks for (tests/test_scaling.py counts it at 2 and 4
processes), times follow from the assumptions below.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"

# What is sent


@dataclass(frozen=True)
class Setting:
    """`rows` are those of the task gradients: m, or 1 for a joint backward pass."""

    processes: int
    micro_batches: int
    tasks: int
    rows: int
    parameters: int
    tensors: int
    groups: int

    @property
    def own(self) -> int:
        """Micro-batches of a process."""
        return self.micro_batches // self.processes

    @property
    def told(self) -> int:
        """Numbers of the losses, and of which row reaches which parameter."""
        return self.tasks + self.rows * self.tensors

    @property
    def products(self) -> int:
        """Numbers of the inner products of rows with each other and with the previous ones, by group."""
        return self.groups * 2 * self.rows**2


Sent = Counter[str]  # "<collective>/calls" and "<collective>/numbers", as `Processes.counts` has them


def calls(collective: str, number: int, size: int) -> Sent:
    return Counter({f"{collective}/calls": number, f"{collective}/numbers": number * size})


def window(at: Setting) -> Sent:
    rest = at.parameters % at.processes  # fewer than R coordinates, sent with the losses
    whole = at.parameters - rest
    small = calls("all_reduce", 1, at.told + at.rows * rest) + calls("all_reduce", 1, at.products)
    return calls("reduce_scatter", at.rows, whole) + calls("all_gather", 1, whole) + small


def micro_batch(at: Setting) -> Sent:
    small = [calls("all_gather", at.own, at.processes * size) for size in (at.told, at.products)]
    return small[0] + small[1] + calls("all_reduce", 1, at.parameters)


def coordinates(at: Setting) -> Sent:
    return calls("all_reduce", at.rows, at.parameters) + calls("all_reduce", 1, at.told)


def per_rank(at: Setting) -> Sent:
    told = 2 + at.rows * at.tensors  # whether a loss or a gradient is not finite, in place of the losses
    return (
        calls("all_reduce", 1, told) + calls("all_reduce", 1, at.parameters) + Counter({"all_gather_object/calls": 1})
    )


def sharded(at: Setting) -> Sent:
    return calls("all_reduce", 1, at.told) + calls("all_reduce", 1, at.products)


def fsdp(at: Setting) -> Sent:
    """What FSDP2 sends by itself, in numbers: gradients after every backward pass, parameters before every pass."""
    backward = at.own * at.rows
    return Counter(
        {
            "reduce_scatter/numbers": backward * at.parameters,
            "all_gather/numbers": (backward + at.own) * at.parameters,
        }
    )


def plain(at: Setting) -> Sent:
    """Data parallel training without task gradients, one all-reduce a window: the bar."""
    return calls("all_reduce", 1, at.parameters)


@dataclass(frozen=True)
class Kind:
    name: str
    large: str  # what moves P numbers
    small: str  # what moves a few
    sent: Callable[[Setting], Sent]
    joint: bool = False  # one row
    own: Callable[[Setting], Sent] = lambda at: Counter()  # what the framework sends by itself


KINDS = {
    "plain": Kind("plain data parallel (not ours; the bar)", "1 all-reduce", "none", plain, joint=True),
    "joint": Kind("joint (Baseline, UW, FAMO, DWA)", "1 reduce-scatter, 1 all-gather", "2", window, joint=True),
    "window": Kind("a resolution a window (GCond)", "m reduce-scatters, 1 all-gather", "2", window),
    "micro-batch": Kind("a resolution a micro-batch (PCGrad, CAGrad, …)", "1 all-reduce", "2 K / R", micro_batch),
    "coordinates": Kind("on coordinates, by window (GradDrop, SAM-GS)", "m all-reduces", "1", coordinates),
    "per rank": Kind("`arbitration=per_rank`, as published", "1 all-reduce", "2", per_rank),
    "FSDP2, one row": Kind(
        "FSDP2, one backward pass a micro-batch", "K / R reduce-scatters, 2 K / R all-gathers", "2", sharded, True, fsdp
    ),
    "FSDP2": Kind("FSDP2, sequential", "m K / R reduce-scatters, (m + 1) K / R all-gathers", "2", sharded, False, fsdp),
}
COST = {"reduce_scatter": 1, "all_gather": 1, "all_reduce": 2}  # an all-reduce is a reduce-scatter and an all-gather


def numbers(sent: Sent) -> int:
    """Numbers that pass through a process, but for the factor (R - 1) / R of a ring."""
    return sum(cost * sent[f"{collective}/numbers"] for collective, cost in COST.items())


# How long it takes


@dataclass(frozen=True)
class Machine:
    """Assumptions, not measurements.

    forward_s: one forward pass of a micro-batch. backward: the time of a backward pass over that.
    bytes_per_s: what a process sends and receives at once, of a ring. latency_s: of one step of a ring or a tree.
    """

    forward_s: float
    bytes_per_s: float
    backward: float = 2.0
    latency_s: float = 10e-6
    bytes_per_number: int = 4


def ring_s(machine: Machine, processes: int, size: int) -> float:
    """A reduce-scatter or an all-gather of `size` numbers."""
    sent = size * machine.bytes_per_number * (processes - 1) / processes
    return sent / machine.bytes_per_s + (processes - 1) * machine.latency_s


def small_s(machine: Machine, processes: int) -> float:
    """A small all-reduce, up and down a tree: latency only."""
    return 2 * math.ceil(math.log2(processes)) * machine.latency_s


def extra_s(machine: Machine, processes: int, rows: int, parameters: int) -> float:
    """m reduce-scatters, one all-gather and two small all-reduces, over one all-reduce."""
    return (rows - 1) * ring_s(machine, processes, parameters) + 2 * small_s(machine, processes)


def passes(estimator: str, tasks: int, machine: Machine) -> float:
    """Time of a micro-batch in forward passes."""
    return {
        "stochastic": 1 + machine.backward,
        "sequential": 1 + tasks * machine.backward,
        "per task": tasks * (1 + machine.backward),
    }[estimator]


def extra_share(machine: Machine, estimator: str, tasks: int, parameters: int, processes: int, own: float) -> float:
    """`extra_s` over a window of `own` micro-batches in each process and one all-reduce."""
    compute = own * passes(estimator, tasks, machine) * machine.forward_s
    bar = compute + 2 * ring_s(machine, processes, parameters)
    return extra_s(machine, processes, tasks, parameters) / bar


def enough(machine: Machine, estimator: str, tasks: int, parameters: int, share: float) -> int:
    """The fewest micro-batches K / R that keep the extra time at or under `share`; R large, latency left out.

    K / R >= ((m - 1) / share - 2) P b / (B c t), c the `passes` of the estimator.
    """
    once = parameters * machine.bytes_per_number / machine.bytes_per_s
    needed = ((tasks - 1) / share - 2) * once / (passes(estimator, tasks, machine) * machine.forward_s)
    return max(1, math.ceil(needed))


# The tables

MICRO_BATCH = 256  # images, of scale=paper
PAPER = Machine(0.0, 25e9)
"""25 GB/s: about a 200 Gbit/s network card a GPU."""
FASTER = 10  # how much faster than the paper's RTX 4080 the assumed GPU is


@dataclass(frozen=True)
class Network:
    """The masked autoencoder of CT: P, N, and images a second forward and backward, on the paper's RTX 4080."""

    name: str
    parameters: int
    tensors: int
    samples_per_s: float

    def on(self, machine: Machine) -> Machine:
        forward = MICRO_BATCH / self.samples_per_s / (1 + machine.backward) / FASTER
        return replace(machine, forward_s=forward)


NETWORKS = [
    Network("mobilenetv3_small", 2_934_272, 170, 2367.52),  # Table 3, Baseline on CT
    Network("convnext_tiny", 29_872_224, 210, 575.52),  # Table 4, Baseline
    Network("convnextv2_base", 89_808_896, 408, 575.52 * 4.47 / 15.38),  # not in the paper: by timm's GMACs at 224 px
]
TASKS = (2, 3, 5, 10)
WINDOWS = (24, 48)
PROCESSES = (1, 2, 4, 8, 16, 24, 32, 48, 64)
BANDWIDTHS = {"1.25 GB/s": 1.25e9, "25 GB/s": 25e9, "300 GB/s": 300e9}


def sent_table() -> str:
    network = NETWORKS[1]

    def units(kind: Kind, processes: int) -> str:
        rows = 1 if kind.joint else 2
        at = Setting(processes, 24, 2, rows, network.parameters, network.tensors, groups=3)
        return f"{numbers(kind.sent(at) + kind.own(at)) / at.parameters:.2f} P"

    rows = [
        [kind.name, kind.large, kind.small, *(units(kind, processes) for processes in (2, 4, 8))]
        for kind in KINDS.values()
    ]
    heads = ["strategy", "collectives of P numbers", "small ones", *(f"sent, R = {r}" for r in (2, 4, 8))]
    return f"Per window. The last columns: {network.name}, m = 2, K = 24, small ones included.\n\n{table(heads, rows)}"


def share_table() -> str:
    network = NETWORKS[1]
    machine = network.on(PAPER)

    def cell(estimator: str, tasks: int, k: int, r: int) -> str:
        unit = tasks * r if estimator == "stochastic" else r
        if k % unit:
            return "–"
        return f"{100 * extra_share(machine, estimator, tasks, network.parameters, r, k // r):.1f}" if r > 1 else "0"

    rows = [
        [estimator, str(tasks), str(k), *(cell(estimator, tasks, k, r) for r in PROCESSES)]
        for estimator, those in (("stochastic", (2, 3)), ("sequential", TASKS))
        for tasks in those
        for k in WINDOWS
    ]
    setting = (
        f"{network.name}, P = {network.parameters / 1e6:.1f} M, float32 rows, {machine.forward_s * 1e3:.1f} ms for a "
        f"forward pass of {MICRO_BATCH} images, backward {machine.backward:g} of that, "
        f"{machine.bytes_per_s / 1e9:g} GB/s, {machine.latency_s * 1e6:g} µs. In %."
    )
    return f"{setting}\n\n{table(['estimator', 'm', 'K', *(f'R = {r}' for r in PROCESSES)], rows)}"


def enough_table() -> str:
    rows = []
    for network in NETWORKS:
        for name, bandwidth in BANDWIDTHS.items():
            machine = replace(network.on(PAPER), bytes_per_s=bandwidth)
            cells = [
                " / ".join(f"{enough(machine, 'stochastic', m, network.parameters, e):,}" for e in (0.01, 0.05))
                for m in TASKS
            ]
            rows.append([network.name, f"{machine.forward_s * 1e3:.1f} ms", name, *cells])
    return table(["encoder", "forward pass", "bandwidth", *(f"m = {m}" for m in TASKS)], rows)


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(heads), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def answer() -> str:
    """Two rows of `share_table`, every R, in a sentence."""
    network = NETWORKS[1]
    machine = network.on(PAPER)

    def most(k: int, share: float) -> int:
        shared = [r for r in range(2, k + 1) if k % (2 * r) == 0]
        kept = [r for r in shared if extra_share(machine, "stochastic", 2, network.parameters, r, k // r) <= share]
        return max(kept, default=1)

    return (
        f"With {network.name}, two tasks, the stochastic estimator, GPUs {FASTER} times as fast as the paper's and "
        f"{machine.bytes_per_s / 1e9:g} GB/s, it lengthens a window by at most 1 % up to R = {most(24, 0.01)} GPUs\n"
        f"for K = 24 micro-batches (R = {most(48, 0.01)} for K = 48), and by at most 5 % up to R = {most(24, 0.05)} "
        f"(R = {most(48, 0.05)}). R must divide K / 2."
    )


TABLES = {"answer": answer, "sent": sent_table, "share": share_table, "enough": enough_table}


def filled(page: str) -> str:
    """The page with its tables made anew."""
    for name, make in TABLES.items():
        head, end = f"<!-- {name}: python scripts/scaling.py --write -->", "<!-- end -->"
        block = rf"{re.escape(head)}\n.*?{end}"
        made = f"{head}\n\n{make()}\n{end}"
        page, found = re.subn(block, made.replace("\\", r"\\"), page, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"{PAGE.name}: expected one block `{head}` … `{end}`, found {found}")
    return page


def own_machine(machine: Machine, parameters: int) -> str:
    rows = [
        [str(m), *(str(enough(machine, estimator, m, parameters, e)) for estimator in ESTIMATORS for e in (0.01, 0.05))]
        for m in TASKS
    ]
    heads = ["m", *(f"{estimator}, {share}" for estimator in ESTIMATORS for share in ("1 %", "5 %"))]
    return "Fewest micro-batches a GPU, K / R, for which resolution costs that much at most:\n\n" + table(heads, rows)


ESTIMATORS = ("stochastic", "sequential")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.parent.name}/{PAGE.name}")
    parser.add_argument("--forward-ms", type=float, help="of one micro-batch on your GPU; prints a table for it alone")
    parser.add_argument(
        "--gigabytes-per-second", type=float, default=25.0, help="that a GPU sends and receives at once"
    )
    parser.add_argument("--parameters", type=float, default=30e6, help="P")
    options = parser.parse_args(arguments)
    for name in ("forward_ms", "gigabytes_per_second", "parameters"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"`--{name.replace('_', '-')}`: expected a number > 0, found {value}")
    if options.forward_ms is not None:
        machine = Machine(options.forward_ms / 1e3, options.gigabytes_per_second * 1e9)
        print(own_machine(machine, round(options.parameters)))
    elif options.write:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n\n".join(make() for make in TABLES.values()))


if __name__ == "__main__":
    main()

"""gcond: train, sweep, run the study and look at it (`gcond --help`)."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gcond.files import OWN, RECORDED, ROOT
from gcond.output import at_least_one, output_may_be_lost, status_of
from gcond.study.artefacts import MORE_SEEDS, PAPER_SEEDS, Artefact, Catalogue, Choices

Command = Callable[[list[str]], int | None]

ABOUT = """\
gcond train OVERRIDES       one run, or many with --multirun (the same as gcond-train)
gcond sweep OVERRIDES       many runs with plan, progress and summary (gcond sweep --help)
gcond study plan NAME       the runs that a table, figure or question needs, and what they cost
gcond study run NAME        train what is not finished, record it, and make the table or figure
gcond study table NAME      make it again from what is recorded; trains nothing
gcond study report          all of them from what is recorded, and what holds of the paper's claims
gcond study status          the runs in runs/: running, failed, interrupted, done
gcond study list            every table, figure and question
gcond dashboard             one HTML page of all runs
gcond export RUN --timm F   a finished run's encoder as a file that timm loads
gcond reconstruct RUN IMAGE what a finished run makes of images
gcond evaluate RUN          its losses again, beside the recorded ones
gcond data ct|samples|headneck|imagenet ARGUMENTS   make a data set (each has --help)
gcond profile RUN|CHOICES   whether tasks conflict beyond noise, and what a method would change
gcond plan-memory CHOICES   what a step holds in memory

NAME: table2, figure3, o1, conflict, …, `all`, or `queue`, the study's own runs in order of value.
"""

WEIGHTS = "gcond.weights"  # whose commands share one parser
MODULES = {  # command -> whose `main` it is, imported when it is asked for
    "sweep": "gcond.sweep.__main__",
    "dashboard": "gcond.study.dashboard",
    "profile": "gcond.profile_run",
    "plan-memory": "gcond.engine.memory",
    **dict.fromkeys(("export", "reconstruct", "evaluate"), WEIGHTS),
}
BENCH, BENCHED = "bench/steps.py", ("table3", "table4")
NOT_OF_THE_QUEUE = ("scale", "datasets", "seeds", "strategies", "lr", "launcher", "missing", "cap")  # options
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
DATA = {
    "ct": "data_prep/ct.py",
    "samples": "data_prep/samples.py",
    "headneck": "data_prep/samples.py",
    "imagenet": "data_prep/imagenet256.py",
}


@output_may_be_lost()
def main(arguments: list[str] | None = None) -> int:
    """Exit status 0: complete; 1: a run failed or a cell is missing; 2: bad input."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help"):
        print(ABOUT, end="")
        return 0 if words else 2
    command, rest = words[0], words[1:]
    known: Mapping[str, Command] = {"train": _train, "study": study, "data": _data}
    if command not in {**known, **MODULES}:
        expected = ", ".join([*known, *MODULES])
        print(f"error: expected {expected}; found {command!r} (gcond --help)", file=sys.stderr)
        return 2
    try:
        if command in known:
            return known[command](rest) or 0
        return _call(command, words if MODULES[command] == WEIGHTS else rest)
    except ModuleNotFoundError as error:
        if (error.name or "gcond").partition(".")[0] == "gcond":
            raise
        print(f"error: {error.name} is not installed: pip install 'gcond[study]'", file=sys.stderr)
        return 2


def train() -> int:
    """`gcond-train`."""
    return main(["train", *sys.argv[1:]])


def _train(rest: list[str]) -> None:
    from gcond import command

    sys.argv = ["gcond-train", *rest]  # Hydra reads it
    command.main()


def _call(command: str, words: list[str]) -> int:
    return int(importlib.import_module(MODULES[command]).main(words))


def _data(rest: list[str]) -> int:
    if not rest or rest[0] not in DATA:
        print(f"error: expected gcond data {'|'.join(DATA)}, found {' '.join(rest[:1]) or 'nothing'}", file=sys.stderr)
        return 2
    try:
        script = _of_the_clone(DATA[rest[0]])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sys.argv = [f"gcond data {rest[0]}", *(["--catalogue", "headneck"] if rest[0] == "headneck" else []), *rest[1:]]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
    return 0


def _of_the_clone(script: str) -> Path:
    """A script that no wheel has. ValueError where this is not a clone of the repository."""
    if not (ROOT / script).exists():
        raise ValueError(f"expected a clone of the repository, which has {script}; an installed wheel does not")
    return ROOT / script


def study(words: list[str]) -> int:
    """`gcond study …`."""
    options = _parser().parse_args(words)
    return status_of(lambda: int(options.act(options)))


def _run(options: argparse.Namespace) -> int:
    """Train, record, measure, and make the pages; goes on to what is left where a run fails."""
    if options.name == ["queue"]:
        return _queue(options, [])
    catalogue, choices = Catalogue(), _choices(options)
    artefacts = catalogue.find(options.name)
    if any(artefact.name in BENCHED for artefact in artefacts):
        _of_the_clone(BENCH)
    sweeps = _sweeps(catalogue, artefacts, options, choices)
    if len(sweeps) > 1:
        _print_plan(sweeps, options)
    failed = _train_sweeps(sweeps, options)
    if sweeps:
        _record(options)
    for then in dict.fromkeys(artefact.then for artefact in artefacts if artefact.then):
        failed |= _measure(then, options, choices)
        _record(options)
    options.seeds = choices.seeds
    for artefact in artefacts:
        failed |= _compute(artefact, options) or _make(artefact, options)
    return failed


def _plan(options: argparse.Namespace) -> int:
    if options.name == ["queue"]:
        return _queue(options, ["--plan"])
    catalogue = Catalogue()
    sweeps = _sweeps(catalogue, catalogue.find(options.name), options, _choices(options))
    if not sweeps:
        print(f"{', '.join(options.name)}: no run is needed")
        return 0
    return _print_plan(sweeps, options)


def _table(options: argparse.Namespace) -> int:
    failed = 0
    for artefact in Catalogue().find(options.name):
        failed |= _make(artefact, options)
    return failed


def _report(options: argparse.Namespace) -> int:
    from gcond.study import report

    nothing = []
    for name, paths in report.make(options.out, options.jobs):
        nothing += [] if paths else [name]
        for path in paths:
            print(f"written: {path}")
    if nothing:
        print(f"{len(nothing)} not made, since {options.out} records nothing of them: {', '.join(nothing)}")
    return 0


def _status(options: argparse.Namespace) -> int:
    from gcond.sweep.status import print_states

    print_states(options.runs, options.scale)
    return 0


def _list(options: argparse.Namespace) -> int:
    for artefact in Catalogue().artefacts.values():
        print(f"{artefact.name:12} {artefact.asks}")
    print("queue        The study's own runs, in order of value (study/queue.yaml)")
    return 0


def _queue(options: argparse.Namespace, more: list[str]) -> int:
    from gcond.study.__main__ import main as queue
    from gcond.sweep.plan import with_paths_quoted

    usual = _parser().parse_args(["run", "queue"])
    if given := [name for name in NOT_OF_THE_QUEUE if getattr(options, name) != getattr(usual, name)]:
        raise ValueError(f"queue: expected its runs as study/queue.yaml describes them, found --{', --'.join(given)}")
    results = [] if options.out == OWN else ["--results", str(options.out / "study")]
    return queue([*more, *results, "--jobs", str(options.jobs), *with_paths_quoted(_choices(options).overrides)])


def _sweeps(
    catalogue: Catalogue, artefacts: Sequence[Artefact], options: argparse.Namespace, choices: Choices
) -> list[list[str]]:
    sweeps = catalogue.sweeps(artefacts, choices)
    photographs = any(each.startswith("dataset=") and "imagenet256" in each for sweep in sweeps for each in sweep)
    if options.scale == "paper" and photographs and not options.imagenet:
        raise ValueError("--scale paper: expected --imagenet DIR and --ct DIR (a store of the CT archives), found none")
    return sweeps


def _print_plan(sweeps: Sequence[Sequence[str]], options: argparse.Namespace) -> int:
    from gcond.sweep.__main__ import plan_all
    from gcond.sweep.plan import with_paths_quoted

    recorded = [f"recorded={options.out.absolute()}"] if options.missing else []
    planned: dict[str, list[str]] = {}
    for overrides in sweeps:
        name = overrides[0].removeprefix("experiment=")
        planned[" ".join(overrides) if name in planned else name] = with_paths_quoted([*overrides, *recorded])
    plan_all(planned, options.jobs, options.out if options.missing else RECORDED, here=not options.launcher)
    return 0


def _train_sweeps(sweeps: Sequence[Sequence[str]], options: argparse.Namespace) -> int:
    """1 where a run failed. A signal ends the command, so that nothing else begins."""
    launcher = ["--launcher", options.launcher] if options.launcher else []
    recorded = ["--results", str(options.out), "--missing"] if options.missing else []
    failed = 0
    for overrides in sweeps:
        print(f"== {overrides[0].removeprefix('experiment=')}", flush=True)
        status = _call("sweep", ["--jobs", str(options.jobs), *launcher, *recorded, *overrides])
        if status >= 128:
            sys.exit(status)
        failed |= status
    return failed


def _record(options: argparse.Namespace) -> None:
    from gcond.study import tables

    for remark in tables.collect(options.runs / options.scale, options.out / options.scale):
        print(remark)


def _measure(then: str, options: argparse.Namespace, choices: Choices) -> int:
    """What is measured on finished runs, or trained because of them; the exit status."""
    if then == "static_weights":
        from gcond.study import special, tables

        weights = special.static_weights(tables.runs(options.out / options.scale), choices.datasets)
        settings = [f"scale={choices.scale}", f"seed={','.join(map(str, choices.seeds))}", *choices.overrides]
        return _train_sweeps([[*overrides, *settings] for overrides in weights], options)
    module = {"linear_probe": "gcond.linear_probe.__main__", "window_noise": "gcond.study.window_noise"}[then]
    words = ["--scale", options.scale, "--runs", str(options.runs), "--results", str(options.out)]
    words += ["--device", options.device]
    words += [word for name, path in _paths(options).items() for word in (f"--{name}", path)]
    words += ["--datasets", ",".join(choices.datasets)] if choices.datasets else []
    return int(importlib.import_module(module).main(words))


def _compute(artefact: Artefact, options: argparse.Namespace) -> int:
    """What an artefact needs that is no training run; the exit status."""
    if artefact.name in BENCHED:
        bench = [str(ROOT / BENCH), artefact.name, "--device", options.device, "--cap", options.cap]
        return subprocess.run([sys.executable, *bench, "--results", str(options.out)], env=ONE_THREAD).returncode
    if artefact.name == "toy":
        words = ["-m", "gcond.toy", "--out", str(options.out / "toy"), "--jobs", str(options.jobs)]
        return subprocess.run([sys.executable, *words], env=ONE_THREAD).returncode
    if module := {"table1": "gcond.study.zones", "table5": "gcond.study.settings"}.get(artefact.name):
        importlib.import_module(module).write(options.out / artefact.name)
    return 0


def _make(artefact: Artefact, options: argparse.Namespace) -> int:
    """Pages and figures of an artefact from what is recorded; 1 where a cell is missing that was asked for."""
    from gcond.study import pages, plots

    choices = {name: getattr(options, name) or None for name in ("scale", "lr", "seeds", "datasets")}
    made: list[Path] = []
    try:
        if artefact.name in pages.NAMES:
            made += pages.make(artefact.name, options.out, **choices)
        for figure in plots.of(artefact.name):
            try:
                made += plots.draw(figure, options.out, **choices)
            except ValueError as error:  # a figure beside the artefact may need more than it
                if figure == artefact.name:
                    raise
                print(f"{figure}: {error}", file=sys.stderr)
        text, complete = pages.text(artefact, options.out, **choices)
    except ValueError as error:  # nothing is recorded; other artefacts may have something
        print(f"error: {artefact.name}: {error}", file=sys.stderr)
        return 1
    if text:
        print(text)
    for path in made:
        print(f"written: {path}")
    return 0 if complete or getattr(options, "strategies", ()) else 1  # others were not asked for


def _paths(options: argparse.Namespace) -> dict[str, str]:
    """Of the data sets whose place is given."""
    paths = {"ct": options.ct, "headneck": options.headneck, "imagenet": options.imagenet}
    return {name: path for name, path in paths.items() if path}


def _choices(options: argparse.Namespace) -> Choices:
    overrides = [f"paths.{name}={path}" for name, path in _paths(options).items()]
    overrides += [f"device={options.device}"] if options.device != "auto" else []
    overrides += [f"runs={options.runs}"] if options.runs != Path("runs") else []
    return Choices(
        options.scale,
        options.seeds or PAPER_SEEDS,
        options.datasets,
        options.strategies,
        (*overrides, *options.overrides),
        "imagenet256" if options.imagenet else None,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gcond study", description="Tables, figures and questions of the study.")
    acts = parser.add_subparsers(required=True, metavar="plan|run|table|report|status|list")
    out = argparse.ArgumentParser(add_help=False)
    out.add_argument("--out", type=Path, default=OWN, help=f"records and tables (default: {OWN}, not results)")
    local = argparse.ArgumentParser(add_help=False)
    local.add_argument("--runs", type=Path, default=Path("runs"), help="folder of local runs")
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument("--scale", default="mini", help="mini takes minutes, sample hours, study a day (default: mini)")
    which.add_argument("--datasets", type=_names, default=(), help="only these, comma-separated")
    which.add_argument("--seeds", type=_seeds, default=(), help="10: ten (default: 11,42,2025; of a table, all)")
    which.add_argument("--lr", type=_rate, help="Table 2 and figures of the runs at this rate; claims name theirs")
    runs = argparse.ArgumentParser(add_help=False)
    runs.add_argument("--jobs", type=at_least_one, default=os.cpu_count(), help="runs side by side (default: cores)")
    runs.add_argument("--strategies", type=_names, default=(), help="train these instead of the experiment's arms")
    runs.add_argument("--launcher", choices=["slurm"], help="docs/running.md")
    runs.add_argument("--missing", action="store_true", help="leave out runs that --out records as done")
    runs.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    runs.add_argument("--cap", default="16GB", help="memory that a method may use in tables 3 and 4 (default: 16GB)")
    runs.add_argument("--ct", help="a CT store (default: data/ct)")
    runs.add_argument("--headneck", help="its store (default: data/headneck)")
    runs.add_argument("--imagenet", help="a copy of ImageNet-256 or a folder of JPEG files")
    for name, act, about in (("run", _run, "train, record, make"), ("plan", _plan, "say what would be trained")):
        of = acts.add_parser(name, parents=[out, local, which, runs], help=about)
        of.add_argument("name", nargs="+", metavar="NAME")
        of.add_argument("--set", dest="overrides", nargs="+", default=[], help="further Hydra overrides of every run")
        of.set_defaults(act=act)
    table = acts.add_parser("table", parents=[out, which], help="make it from what is recorded")
    table.add_argument("name", nargs="+", metavar="NAME")
    table.set_defaults(act=_table)
    report = acts.add_parser("report", parents=[out], help="make all from what is recorded, and judge every claim")
    report.add_argument("--jobs", type=at_least_one, default=os.cpu_count(), help="processes (default: cores)")
    report.set_defaults(act=_report)
    status = acts.add_parser("status", parents=[local], help="how the runs stand")
    status.add_argument("--scale", help="only this one (default: all)")
    status.set_defaults(act=_status)
    acts.add_parser("list", help="every artefact").set_defaults(act=_list)
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"expected different names with commas between them, found {text!r}")
    return names


def _seeds(text: str) -> tuple[int, ...]:
    return (*PAPER_SEEDS, *MORE_SEEDS) if text == "10" else tuple(int(part) for part in _names(text))


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"expected a learning rate above 0, found {text!r}")
    return rate


if __name__ == "__main__":
    sys.exit(main())

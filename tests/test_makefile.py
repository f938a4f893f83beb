"""What the Makefile would start for each artefact of the study; nothing is run."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
ABLATIONS = sorted(name for name in EXPERIMENTS if name.startswith("ablation_"))
PAPER = {"table1", "table3", "table4", "table5"}  # not trained


def commands(target: str, *variables: str) -> str:
    """The lines that concern runs and reports, continued ones as one."""
    shown = subprocess.run(["make", "-n", target, *variables], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = shown.stdout.replace("\\\n", " ").splitlines()
    return "\n".join(line for line in lines if "gcond." in line or "'experiment=" in line)


def planned(shown: str) -> list[list[str]]:
    """What the study's plan is given: the overrides of each sweep."""
    words = [word for word in shlex.split(shown) if word.startswith("experiment=") and " " in word]
    return [shlex.split(word) for word in words]


def experiments(shown: str) -> list[str]:
    return re.findall(r"gcond\.sweep .*?experiment=(\w+)", shown.replace(";", ";\n"))


@pytest.mark.parametrize(
    ("artefact", "runs", "page"),
    [
        ("figure7", ["figure7"], "figure7"),
        ("ablations", ABLATIONS, "ablations"),
        ("o1", ["o1", "o1_micro_batch", "o1_blocks"], "o1"),
        ("o6", ["table2"], "o6"),
        ("o5", ["figure1", "o5"], "claims"),
    ],
)
def test_an_artefact_is_run_recorded_and_printed(artefact: str, runs: list[str], page: str) -> None:
    shown = commands(f"reproduce-{artefact}", "SCALE=smoke", "OUT=there")
    assert experiments(shown) == runs
    assert re.findall(r"gcond\.report (\w+) --results 'there' --scale smoke", shown) == ["collect", page]
    assert shown.count("scale=smoke") == len(runs)


def test_the_study_runs_every_experiment_once_after_it_has_planned_them_and_controls_first() -> None:
    shown = commands("reproduce-all", "MORE=optimizer.lr=2e-4")
    plan = planned(shown)
    assert all({"scale=mini", "optimizer.lr=2e-4"} <= set(sweep) for sweep in plan)
    assert shown.index("gcond.sweep.study --jobs") < shown.index("gcond.sweep --jobs")
    run = experiments(shown)
    assert [sweep[0] for sweep in plan] == [f"experiment={name}" for name in run]
    assert len(set(run)) == len(run)
    assert set(run) == EXPERIMENTS - PAPER - {"o2"}
    assert run[:4] == ["o1", "o1_micro_batch", "o1_blocks", "table2"]
    assert set(experiments(commands("reproduce-all", "SCALE=sample"))) == EXPERIMENTS - PAPER - {"o2_part"}
    part = commands("reproduce-all", "STUDY=o1")
    assert experiments(part) == ["o1", "o1_micro_batch", "o1_blocks"]
    assert len(planned(part)) == 3


def test_data_sets_are_the_experiments_own_and_imagenet_takes_the_place_of_photos() -> None:
    assert "dataset=ct " in commands("reproduce-figure11", "IMAGENET=/d")
    assert "dataset=imagenet256 " in commands("reproduce-figure10", "IMAGENET=/d")
    assert "dataset=ct,imagenet256 " in commands("plan", "EXPERIMENT=o1", "IMAGENET=/d")
    assert "dataset=photos,ct " in commands("plan")
    assert "dataset=ct " in commands("plan", "DATASETS=ct")
    assert "gcond.report o6 --results 'reproduced' --scale mini  --datasets ct" in commands(
        "reproduce-o6", "DATASETS=ct"
    )
    assert "--datasets" not in commands("reproduce-o6")


def test_the_study_without_photographs_leaves_out_their_figure_and_says_so() -> None:
    assert "figure10" in commands("reproduce-all", "DATASETS=ct,imagenet256")
    shown = commands("reproduce-all", "DATASETS=ct")
    assert "experiment=figure10" not in shown
    assert "gcond.report figure10" not in shown
    made = subprocess.run(
        ["make", "-n", "reproduce-all", "DATASETS=ct"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "figure10 is left out" in made.stdout
    assert "gcond.report figure11" in shown
    assert "experiment=figure10" in commands("reproduce-figure10", "DATASETS=ct")  # which says what it expects


def test_variables_reach_the_runs() -> None:
    shown = commands("sweep", "SEEDS=10", "MISSING=1", "OUT=there", "LAUNCHER=slurm", "JOBS=3", "MORE=optimizer.lr=0.1")
    assert "seed=11,42,2025,1,2,3,4,5,6,7 " in shown
    assert "--jobs 3 --launcher slurm experiment=table2" in " ".join(shown.split())
    assert "'recorded=\"there\"' optimizer.lr=0.1" in shown
    assert "recorded=" not in commands("sweep")
    shown = commands("reproduce-table2", "SEEDS=11,42")
    assert "gcond.report table2 --results 'reproduced' --scale mini --datasets photos,ct --seeds 11,42" in shown
    assert "--lr" not in shown
    assert "--seeds 11,42,2025 --lr 2e-4" in commands("reproduce-table2", "MORE=optimizer.lr=2e-4")


def test_the_papers_scale_asks_for_its_data() -> None:
    assert "SCALE=paper needs IMAGENET=DIR" in commands("reproduce-figure1", "SCALE=paper")
    assert "needs IMAGENET" not in commands("reproduce-figure1", "SCALE=paper", "IMAGENET=/d")


def test_linear_probes_come_between_the_runs_and_the_pages() -> None:
    order = r"gcond\.(linear_probe|report \w+)"
    assert re.findall(order, commands("reproduce-o7")) == ["report collect", "linear_probe", "report o7"]
    parts = re.findall(order, commands("reproduce-all"))
    assert parts.index("report collect") < parts.index("linear_probe") < parts.index("report o7")
    shown = commands("reproduce-o7", "SCALE=smoke", "OUT=there", "DATASETS=ct", "CT=/c", "IMAGENET=/d", "DEVICE=cpu")
    options = "--scale smoke --results 'there' --device cpu --ct '/c' --imagenet '/d' --datasets ct ||"
    assert options in " ".join(shown.split())


def test_the_static_runs_of_o9_follow_from_the_record_of_its_methods() -> None:
    shown = commands("reproduce-o9", "SCALE=smoke", "OUT=there", "DATASETS=ct", "MISSING=1")
    parts = re.findall(r"gcond\.(?:report (?:collect|frozen|o9)|sweep)", shown)
    assert [part.split(".")[1] for part in parts] == [
        "sweep", "report collect", "report frozen", "sweep", "report collect", "report o9",
    ]  # fmt: skip
    static = shown.split("xargs")[1].split("||")[0]
    assert "'recorded=\"there\"'" in static
    assert "scale=smoke" in static
    assert "seed=11,42,2025" in static
    assert "dataset=" not in static


PATHS = ("/data/my ct", "/data/a=b", "/data/a,b", "/data/(copy)/ü", "/data/it's", '/data/"x"', "/data/{a}[b]: c & d; e")


@pytest.mark.parametrize("path", PATHS)
def test_a_path_reaches_hydra_whole_whatever_is_in_it(path: str) -> None:
    """By way of the shell, twice for the study's plan, and of Hydra's own grammar."""
    given = (f"CT={path}", f"HEADNECK={path}", f"IMAGENET={path}", f"OUT={path}", "MISSING=1", "STUDY=o1")
    shown = commands("reproduce-all", *given)
    words = [*shlex.split(shown), *(word for sweep in planned(shown) for word in sweep)]
    parsed = OverridesParser.create().parse_overrides(
        [word for word in words if word.startswith(("paths.", "recorded="))]
    )
    found = Counter((each.key_or_group, each.value(), each.is_sweep_override()) for each in parsed)
    # Three experiments of O1, planned and run, and the static runs of O9.
    assert found == {(key, path, False): 7 for key in ("paths.ct", "paths.headneck", "paths.imagenet", "recorded")}
    options = {words[place + 1] for place, word in enumerate(words) if word in ("--results", "--ct", "--imagenet")}
    assert options == {path}


RECORDING = (
    *("reproduce-table1", "reproduce-table2", "reproduce-table3", "reproduce-table4", "reproduce-table5"),
    *("reproduce-all", "reproduce-figure1", "reproduce-o7", "reproduce-o9", "reproduce-windows", "reproduce-toy"),
    *("bench", "table2", "claims", "methods"),
)


@pytest.mark.parametrize("target", RECORDING)
def test_what_is_run_here_is_kept_apart_from_what_the_project_recorded(target: str) -> None:
    """Every place that is written to is named on the command line, and lies where git ignores it."""
    shown = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    places = re.findall(r"--(?:results|out|methods-table) '([^']*)'", shown)
    assert {Path(place).parts[0] for place in places} == {"reproduced"}
    assert "/reproduced/" in (ROOT / ".gitignore").read_text().splitlines()

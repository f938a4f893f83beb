"""What the Makefile would start for each artefact of the study; nothing is run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
ABLATIONS = sorted(name for name in EXPERIMENTS if name.startswith("ablation_"))
PAPER = {"table1", "table3", "table4", "table5"}  # not trained


def commands(target: str, *variables: str) -> str:
    """The lines that concern runs and reports."""
    shown = subprocess.run(["make", "-n", target, *variables], cwd=ROOT, capture_output=True, text=True, check=True)
    return "\n".join(line for line in shown.stdout.splitlines() if "gcond." in line or "'experiment=" in line)


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
    assert re.findall(r"gcond\.report (\w+) --results there --scale smoke", shown) == ["collect", page]
    assert shown.count("scale=smoke") == len(runs)


def test_the_study_runs_every_experiment_once_after_it_has_planned_them_and_controls_first() -> None:
    shown = commands("reproduce-all", "MORE=optimizer.lr=2e-4")
    planned = re.findall(r"'experiment=(\w+) scale=mini [^']*optimizer\.lr=2e-4'", shown)
    assert shown.index("gcond.sweep.study --jobs") < shown.index("gcond.sweep --jobs")
    run = experiments(shown)
    assert planned == run
    assert len(set(run)) == len(run)
    assert set(run) == EXPERIMENTS - PAPER - {"o2"}
    assert run[:4] == ["o1", "o1_micro_batch", "o1_blocks", "table2"]
    assert set(experiments(commands("reproduce-all", "SCALE=sample"))) == EXPERIMENTS - PAPER - {"o2_part"}
    part = commands("reproduce-all", "STUDY=o1")
    assert experiments(part) == re.findall(r"'experiment=(\w+)", part) == ["o1", "o1_micro_batch", "o1_blocks"]


def test_data_sets_are_the_experiments_own_and_imagenet_takes_the_place_of_photos() -> None:
    assert "dataset=ct " in commands("reproduce-figure11", "IMAGENET=/d")
    assert "dataset=imagenet256 " in commands("reproduce-figure10", "IMAGENET=/d")
    assert "dataset=ct,imagenet256 " in commands("plan", "EXPERIMENT=o1", "IMAGENET=/d")
    assert "dataset=photos,ct " in commands("plan")
    assert "dataset=ct " in commands("plan", "DATASETS=ct")
    assert "gcond.report o6 --results results --scale mini  --datasets ct" in commands("reproduce-o6", "DATASETS=ct")
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
    assert "--jobs 3 --missing --results there --launcher slurm experiment=table2" in shown
    assert shown.rstrip().endswith("optimizer.lr=0.1")
    assert "--missing" not in commands("sweep")
    shown = commands("reproduce-table2", "SEEDS=11,42")
    assert "gcond.report table2 --results results --scale mini --datasets photos,ct --seeds 11,42" in shown
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
    assert "--scale smoke --results there --device cpu --ct /c --imagenet /d --datasets ct ||" in " ".join(
        shown.split()
    )


def test_the_static_runs_of_o9_follow_from_the_record_of_its_methods() -> None:
    shown = commands("reproduce-o9", "SCALE=smoke", "OUT=there", "DATASETS=ct", "MISSING=1")
    parts = re.findall(r"gcond\.(?:report (?:collect|frozen|o9)|sweep)", shown)
    assert [part.split(".")[1] for part in parts] == [
        "sweep", "report collect", "report frozen", "sweep", "report collect", "report o9",
    ]  # fmt: skip
    static = shown.split("xargs")[1].split("||")[0]
    assert "--missing --results there" in static
    assert "scale=smoke" in static
    assert "seed=11,42,2025" in static
    assert "dataset=" not in static

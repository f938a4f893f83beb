"""A sweep's plan, its estimate, its summary; and, slowly, a sweep itself."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from engine.runs import TINY, config, tiny_config
from engine.runs import run as carry_out
from omegaconf import DictConfig

import gcond.train
from gcond import cli
from gcond.command import main as train_command
from gcond.config import CONFIG
from gcond.data.checksums import of_photographs
from gcond.engine.metrics_log import steps_logged
from gcond.engine.run_folder import RunFolder, locked
from gcond.study import special
from gcond.study.tables import collect
from gcond.sweep.__main__ import main as sweep_command
from gcond.sweep.__main__ import plan_all, print_summary
from gcond.sweep.plan import (
    EXTRA,
    Planned,
    disk_needed,
    estimate,
    looked_at_again,
    plan,
    print_disk,
    print_plan,
    prove,
    size_of,
    with_paths_quoted,
)

ROOT = CONFIG.parent
STRATEGIES = {"baseline", "cagrad", "gradnorm", "pcgrad", "gcond_sequential", "gcond_stochastic", "gcond_pure"}
DECAY = "optimizer.build.weight_decay=0.05"
STRATEGIES |= {"gcond_lion", "graddrop", "baseline_integrated"}  # the paper's nine, and the control


def test_table2_is_60_runs_of_ten_strategies_on_two_data_sets_with_three_seeds():
    runs = plan(["experiment=table2"])
    assert len({run.folder.path for run in runs}) == len(runs) == 60
    product = Counter(run.cost for run in runs)
    assert set(product) == {
        ("mini", dataset, "mobilenetv3_small", strategy) for dataset in ("photos", "ct") for strategy in STRATEGIES
    }
    assert set(product.values()) == {3}
    seeds = Counter(run.folder.name.split("-seed")[1].split("-")[0] for run in runs)
    assert seeds == {"11": 20, "42": 20, "2025": 20}
    assert {run.steps for run in runs} == {96}


@pytest.mark.parametrize(
    ("swept", "message"),
    [
        ("seed=11,foo", "`seed`: expected a valid integer"),
        ("scale.accumulation_steps=2,3", "accumulation_steps`: expected a multiple"),
        ("device=cpu,cuda", "`device`: found 'cuda'"),
        (
            "model.name=mine model.encoder=mobilenetv3_small_050,nothing",
            "must be the name of a timm model, found 'nothing'",
        ),
        ("sede=1", "sede"),
    ],
)
def test_where_one_run_of_a_sweep_is_refused_none_starts(swept, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("gcond.sweep.__main__.launch", lambda *_: pytest.fail("started"))
    monkeypatch.setattr("sys.argv", ["gcond.sweep", "--jobs", "1", *TINY, f"runs={tmp_path}", *swept.split()])
    assert sweep_command() == 2
    assert message in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_sweep_without_its_labels_is_refused_before_the_first_run(tmp_path):
    words = ["dataset=photos", "scale=smoke", "loss=l1_ssim_class", "strategy=baseline", f"runs={tmp_path / 'runs'}"]
    prove(plan(words), here=True)
    without = plan([*words, "loss.labels=dataset"])
    prove(without, here=False)
    with pytest.raises(ValueError, match=r"`loss\.labels`.*photos has no labels"):
        prove(without, here=True)


SHARED = {  # experiment, what is typed -> its runs on CT a seed, and how many of them are Table 2's too
    ("figure12",): (3, 2),  # gcond_as_pcgrad is not in the table
    ("o1",): (12, 5),  # all in train mode but gcond_sequential_pure
    ("o2", DECAY, "optimizer.lr=2e-3"): (11, 9),  # at mini's rate; GCond lion has no weight decay in the table
    ("o2_part",): (33, 9),
    ("o3",): (8, 4),
    ("o8_weights", "optimizer.lr=2e-3"): (8, 1),
    ("o12",): (6, 2),
    ("conflict",): (11, 0),
}


@pytest.mark.slow
def test_experiments_share_their_runs(tmp_path):
    """A value that is the default anyway leads to the same folder, so that no run is trained for two artefacts."""
    fixed = ["scale=mini", "seed=11", "dataset=ct", f"runs={tmp_path}"]
    table2 = {run.folder.path for run in plan(["experiment=table2", *fixed, "dataset=photos,ct"])}
    for (experiment, *typed), expected in SHARED.items():
        runs = {run.folder.path for run in plan([f"experiment={experiment}", *fixed, *typed])}
        assert (len(runs), len(runs & table2)) == expected, experiment


def test_runs_that_sweeps_share_are_counted_once(tmp_path, capsys):
    """By hand: Table 2 on CT with one seed is 10 runs; O1 in train mode 6, of which 5 are Table 2's."""
    where = ["dataset=ct", "seed=11", f"runs={tmp_path / 'runs'}"]
    sweeps = {"table2": ["experiment=table2", *where], "o1": ["experiment=o1", "strategy.model_mode=train", *where]}
    planned = plan_all(sweeps, 2, ROOT / "results")
    total, *_, table2, o1 = capsys.readouterr().out.splitlines()
    assert total == "Plan: 11 runs, 0 finished, 11 to do (0 begun, 0 failed before)"
    assert [row.split()[:4] for row in (table2, o1)] == [["table2", "10", "10", "10"], ["o1", "6", "1", "1"]]
    (alone,) = [run for run in planned["o1"] if run.folder.name not in {each.folder.name for each in planned["table2"]}]
    assert alone.cost[3] == "gcond_sequential_pure"


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["experiment=table2", "seed=11", "strategy=baseline,gcond_lion"], 4),  # the experiment names two data sets
        (["experiment=o1", "seed=11,42", "dataset=ct", "strategy=gcond_pure", "optimizer.lr=1e-3,2e-3"], 8),
    ],
)
def test_the_plan_is_what_hydras_multirun_starts(overrides, count, tmp_path, monkeypatch):
    overrides = [*overrides, f"runs={tmp_path}"]
    started: list[DictConfig] = []
    monkeypatch.setattr(gcond.train, "train", lambda cfg, folder: started.append(cfg))
    monkeypatch.setattr(sys, "argv", ["gcond-train", "hydra/hydra_logging=disabled", *overrides])
    train_command()  # without --multirun: an experiment is a sweep
    planned = plan(overrides)
    assert len(started) == count
    assert [run.cfg for run in planned] == started
    assert [run.folder.path for run in planned] == [RunFolder(cfg).path for cfg in started]


@pytest.mark.parametrize("command", ["sweep seed=1", "study plan table2", "study run queue", "study report"])
def test_a_number_of_jobs_below_one_is_refused(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command.split(), "--jobs", "0"])
    assert "--jobs: expected an integer >= 1, found 0" in capsys.readouterr().err


def test_a_signal_ends_the_runs_of_frozen_weights_too(tmp_path, monkeypatch):
    statuses = [0, 143]  # of Table 2's sweep, and of the first of two; a third would find none
    monkeypatch.setattr(special, "static_weights", lambda *_: [["dataset=ct"], ["dataset=photos"]])
    monkeypatch.setattr(cli, "_call", lambda *_: statuses.pop(0))
    with pytest.raises(SystemExit, match="143"):
        cli.main(["study", "run", "o9", "--out", str(tmp_path), "--runs", str(tmp_path)])
    assert not statuses


@pytest.mark.parametrize("wrong", ["optimizer.learning_rate=1e-3,2e-3", "seed=(1", "dataset=cats"])
def test_what_hydra_refuses_is_said_without_a_traceback(wrong, capsys):
    assert sweep_command(["--plan-only", "experiment=table2", wrong]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    sweeps = {"one": ["scale=smoke", "dataset=photos"], "table2": ["experiment=table2", wrong]}
    with pytest.raises(ValueError, match=r"^table2: "):
        plan_all(sweeps, 1, ROOT)


@pytest.mark.parametrize("path", ["/data/a=b", "/data/(copy)/x", "/data/ü", "/data/a,b", "/my data", '/a"b', "/it's"])
def test_a_path_is_one_value_for_a_sweep_whatever_is_in_it(path):
    fixed = ("scale=smoke", "dataset=imagenet256", "seed=11", "strategy=baseline")
    typed = [*fixed, f"paths.imagenet={path}", f"runs={path}/runs"]
    (run,) = plan(with_paths_quoted(typed))
    assert (run.cfg.dataset.root, run.cfg.runs) == (path, f"{path}/runs")
    assert with_paths_quoted(with_paths_quoted(typed)) == with_paths_quoted(typed)
    (plain,) = plan([*fixed, "paths.imagenet=/data/plain"])
    assert plain.folder.hash == run.folder.hash


def test_paths_to_sweep_over_and_other_values_are_left_to_hydra():
    typed = ["dataset.root=choice(a,b)", "seed=1,2", "runs=/plain/path-1.x", "recorded=null", 'paths.ct="/a,b"']
    assert with_paths_quoted(typed) == typed


@pytest.mark.slow
def test_a_study_goes_on_where_another_machine_left_it(tmp_path):
    carry_out(tiny_config(tmp_path / "there", "seed=1"))
    collect(tmp_path / "there" / "smoke", tmp_path / "results" / "smoke")
    sweep = Sweep(tmp_path, "--jobs", "1", "--missing")
    process = sweep.start("seed=1,2")
    shown, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "Plan: 2 runs, 0 finished, 1 recorded, 1 to do" in shown
    assert "Sweep: 2 of 2 runs finished" in shown
    assert [logged_steps(run) for run in sweep.runs()] == [[0, 1, 2, 3]]

    process = sweep.start("seed=1")
    shown, _ = process.communicate(timeout=300)
    assert (process.returncode, "0 to do" in shown, len(sweep.runs())) == (0, True, 1)


def finish(run: Planned, seconds: float) -> Planned:
    run.folder.path.mkdir(parents=True)
    report = {"schema": 1, "status": "done", "data_checksum": of_photographs(), "seconds": seconds}
    run.folder.report.write_text(json.dumps(report))
    run.folder.finish()
    return looked_at_again([run])[0]


def a_run(place: Path, strategy: str, *overrides: str) -> Planned:
    cfg = config("dataset=photos", "scale=smoke", f"strategy={strategy}", f"runs={place}", *overrides)
    return Planned(RunFolder(cfg), cfg)


@pytest.fixture
def runs(tmp_path):
    """Two strategies with two seeds each; nothing has been run."""
    return [a_run(tmp_path, strategy, f"seed={seed}") for strategy in ("baseline", "pcgrad") for seed in (1, 2)]


def record(results: Path, rows: list[str]) -> None:
    """results/<scale>/runs.csv; the scale is smoke."""
    (results / "smoke").mkdir(parents=True, exist_ok=True)
    header = "dataset,model,strategy,seed,variant,status,seconds,peak_memory_mb,device,cpu_seconds"
    filled = [row + "," * (header.count(",") - row.count(",")) for row in rows]
    (results / "smoke" / "runs.csv").write_text("\n".join([header, *filled]) + "\n")


MODEL = "photos,mobilenetv3_small"


def test_damaged_records_spoil_no_estimate(runs, tmp_path, capsys):
    results, path = tmp_path / "results", tmp_path / "results" / "smoke" / "runs.csv"
    for damaged in (f"{MODEL},baseline,1,,done,long,,,0", f"{MODEL},baseline,1", "\xff,,,,,,,,,"):
        record(results, [f"{MODEL},pcgrad,1,,done,9", damaged])
        path.write_bytes(path.read_text().rstrip(",\n").encode("latin-1"))
        assert estimate(runs, results) == (None, None)
        assert "smoke/runs.csv is left out of the estimate: " in capsys.readouterr().err
    header = "dataset,model,strategy,seed,variant,seconds\n"  # the study's: all of its runs are done
    path.write_text(header + f"{MODEL},baseline,1,,7\n{MODEL},pcgrad,1,,8\n")
    assert estimate(runs, results)[0] == 2 * 7 + 2 * 8


def test_the_estimate_is_the_sum_of_medians_of_runs_of_the_same_kind(runs, tmp_path):
    rows = [f"{MODEL},baseline,{seed},,done,{seconds}" for seed, seconds in ((1, 10), (2, 12), (3, 50))]
    record(tmp_path / "results", rows)
    assert estimate(runs, tmp_path / "results")[0] == 4 * 12  # PCGrad, never recorded, lasts as long as the others
    rows += [f"{MODEL},pcgrad,{seed},,done,{seconds}" for seed, seconds in ((1, 20), (2, 21), (3, 90))]
    rows += [f"{MODEL},pcgrad,4,scale.epochs=9,done,1000", f"{MODEL},pcgrad,5,,failed,1", f"{MODEL},pcgrad,6,,done,"]
    record(tmp_path / "results", rows)
    assert estimate(runs, tmp_path / "results")[0] == 2 * 12 + 2 * 21
    runs[0] = finish(runs[0], 30.0)
    assert estimate(runs, tmp_path / "results")[0] == 21 + 2 * 21  # median of 10, 12, 30, 50
    assert estimate([finish(run, 8.0) for run in runs[1:]], tmp_path / "results")[0] == 0


def test_the_seconds_that_a_loaded_machine_let_a_run_wait_do_not_count(runs, tmp_path):
    """Of 100 seconds the processor worked 40; four threads work 400 in them; a GPU works beside the processor."""
    for device, cpu_seconds, expected in (("CPU", 40, 40), ("CPU", 400, 100), ("H100", 40, 100), ("CPU", "", 100)):
        record(tmp_path / "results", [f"{MODEL},baseline,1,,done,100,,{device},{cpu_seconds}"])
        assert estimate(runs[:1], tmp_path / "results")[0] == expected


def test_the_plan_tells_finished_begun_and_failed_apart(runs, tmp_path, capsys):
    """The memory is the most that a run of the same kind took."""
    rows = [
        f"{MODEL},baseline,1,,done,160,900,A",
        f"{MODEL},pcgrad,1,,done,160,1024,B",
        f"{MODEL},mgda,1,,done,1,5000,C",
    ]
    record(tmp_path / "results", rows)
    runs[0] = finish(runs[0], 160.0)
    for run in runs[1:3]:
        run.folder.checkpoints.mkdir(parents=True)
        (run.folder.checkpoints / "00000001-0.pt").touch()
    (runs[2].folder.path / "FAILED").write_text("OSError: disk full\n")
    print_plan({"": runs}, 2, tmp_path / "results")
    plan_line, time_line, memory_line, disk_line = capsys.readouterr().out.splitlines()
    assert plan_line == "Plan: 4 runs, 1 finished, 3 to do (2 begun, 1 failed before)"
    assert "2 side by side, estimated time 4 min" in time_line  # 3 x 160 s / 2
    assert (
        "memory 1.1 GB a run, 2.1 GB side by side, as recorded on B; this machine has" in memory_line
    )  # 1 GiB = 1.074 GB
    assert f"more in {tmp_path}" in disk_line


def test_the_plan_says_how_much_disk_is_free_and_when_that_is_too_little(tmp_path, monkeypatch, capsys):
    asked: list[Path] = []
    disk = type("Usage", (), {"free": 5_000_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda place: asked.append(place) or disk)
    print_disk(tmp_path / "not" / "yet", 3.9e9, 0.0)
    assert capsys.readouterr().out.splitlines() == [f"      disk 3.9 GB more in {tmp_path}/not/yet, 5.0 GB free"]
    assert asked == [tmp_path]
    print_disk(tmp_path, 3.9e9, 1.2e9)
    assert "NOT ENOUGH: expected 5.1 GB free" in capsys.readouterr().out


@pytest.mark.parametrize(
    "strategy",
    [
        "gcond_stochastic",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("baseline", "gcond_lion", "sam_gs")),
    ],
)
def test_the_disk_needed_is_what_a_run_then_takes(strategy, tmp_path):
    """From next to nothing kept for a parameter but AdamW's two moments, to five vectors of the strategy's own."""
    leaves, holds = {}, {}
    for keeps in ("weights", "checkpoints"):
        cfg = tiny_config(tmp_path / keeps, f"strategy={strategy}", "model.width=128", f"finished_keeps={keeps}")
        planned = Planned(RunFolder(cfg), cfg)
        lasting, passing = disk_needed([planned], jobs=1)
        leaves[keeps], holds[keeps] = lasting, lasting + passing
        carry_out(cfg)
        assert size_of(planned.folder.path / "checkpoints") == pytest.approx(lasting - EXTRA, rel=0.03)
        assert disk_needed([planned], jobs=1)[0] == max(0, lasting - size_of(planned.folder.path))
    assert holds["weights"] == holds["checkpoints"] == leaves["checkpoints"]


def test_the_runs_side_by_side_hold_their_checkpoints_whole_the_largest_counted(tmp_path):
    strategies = ("baseline", "gcond_stochastic", "gcond_stochastic")
    runs = [a_run(tmp_path, strategy, f"seed={seed}") for seed, strategy in enumerate(strategies)]
    small, large = (disk_needed(runs[at : at + 1], jobs=1)[1] for at in (0, 1))
    assert small < large
    assert [disk_needed(runs, jobs)[1] for jobs in (1, 2, 3, 4)] == [
        large, 2 * large, 2 * large + small, 2 * large + small
    ]  # fmt: skip


def test_the_summary_names_what_is_missing_and_why(runs, capsys):
    runs[:2] = [finish(run, 8.0) for run in runs[:2]]
    assert print_summary(runs[:2]) == 0
    assert capsys.readouterr().out == "Sweep: 2 of 2 runs finished\n"

    runs[2].folder.path.mkdir()
    (runs[2].folder.path / "FAILED").write_text("OSError: disk full\n")
    assert print_summary(runs) == 1
    assert capsys.readouterr().out.splitlines() == [
        "Sweep: 2 of 4 runs finished",
        f"  {runs[2].folder.name}: failed, OSError: disk full",
        f"  {runs[3].folder.name}: not begun; the same command begins it",
    ]
    with locked(runs[2].folder.path):
        assert print_summary(runs[2:3]) == 1
    assert f"{runs[2].folder.name}: running, " in capsys.readouterr().out


class Sweep:
    """`python -m gcond.sweep` on tiny runs, in a process of its own."""

    def __init__(self, folder: Path, *options: str, program: str = "gcond.sweep") -> None:
        self.folder, self.options, self.program = folder, options, program

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", self.program, *self.options, *TINY, f"runs={self.folder}/runs", *more]
        environment = os.environ | {"PYTHONPATH": f"{ROOT}/tests{os.pathsep}{ROOT}/src", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def runs(self) -> list[Path]:
        return sorted(path.parent for path in self.folder.glob("runs/smoke/*/config.yaml"))

    def wait_for_steps(self, process: subprocess.Popen[str], number: int, runs: int) -> None:
        """Until so many runs have taken so many optimizer steps."""
        deadline = time.monotonic() + 300
        while sum(steps_logged(path / "metrics.jsonl") >= number for path in self.runs()) < runs:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)


def processes(words: str) -> list[int]:
    """Those of a command line that contains `words`, zombies left out."""
    found = subprocess.run(["ps", "-ww", "-eo", "pid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    split = [line.split(maxsplit=2) for line in found.splitlines()]
    return [int(pid) for pid, state, command in split if words in command and state[0] != "Z"]


def logged_steps(run: Path) -> list[int]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if record["kind"] == "step"]


@pytest.mark.slow
def test_a_run_that_fails_stops_no_other_and_only_what_is_missing_is_repeated(tmp_path):
    sweep = Sweep(tmp_path, "--jobs", "2")
    choices = ["seed=1,2", "dataset._target_=engine.tiny.never,engine.tiny.load"]

    process = sweep.start(*choices)
    first, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "Plan: 4 runs, 0 finished, 4 to do (0 begun, 0 failed before)" in first
    reports = list(tmp_path.glob("runs/smoke/*/DONE"))
    assert len(reports) == 2
    before = {path: path.stat().st_mtime_ns for done in reports for path in done.parent.iterdir()}

    process = sweep.start(*choices)
    second, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "Plan: 4 runs, 2 finished, 2 to do (0 begun, 2 failed before)" in second
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for attempt in (first, second):
        summary = attempt.split("Sweep: 2 of 4 runs finished")[1]
        assert summary.count("failed, AssertionError: data was read") == 2


@pytest.mark.slow
def test_a_sweep_that_is_stopped_leaves_no_process_and_goes_on_where_it_was(tmp_path):
    sweep = Sweep(tmp_path, "--jobs", "2")
    process = sweep.start("seed=1,2,3", "scale.epochs=60")
    sweep.wait_for_steps(process, 5, runs=2)
    begun = sweep.runs()
    assert len(processes(str(tmp_path))) > 1
    process.send_signal(signal.SIGTERM)
    shown, _ = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM
    summary = shown.split("Sweep: 0 of 3 runs finished")[1]
    assert summary.count("interrupted, goes on from step") == 2
    assert summary.count("not begun") == 1
    assert processes(str(tmp_path)) == []
    saved = {run: max(int(path.name[:8]) for path in (run / "checkpoints").glob("*.pt")) for run in begun}
    assert [saved[run] for run in begun] == [steps_logged(run / "metrics.jsonl") for run in begun]  # no step is lost

    process = sweep.start("seed=1,2,3", "scale.epochs=60")
    shown, _ = process.communicate(timeout=600)
    assert process.returncode == 0, shown
    assert [logged_steps(run) for run in sweep.runs()] == 3 * [list(range(120))]


@pytest.mark.slow
def test_a_job_that_is_preempted_is_queued_again_and_goes_on(tmp_path):
    """As submitit does it on SLURM: SIGUSR2 to the job's process. Here with its executor for one machine."""
    sweep = Sweep(tmp_path, "--multirun", program="gcond.command")
    process = sweep.start("hydra/launcher=local", "seed=1,2", "scale.epochs=60")
    sweep.wait_for_steps(process, 5, runs=2)
    (job, _) = processes(f"submitit.core._submit {tmp_path}")
    os.kill(job, signal.SIGUSR2)
    shown, _ = process.communicate(timeout=600)
    assert process.returncode == 0, shown
    logs = "".join(path.read_text() for path in tmp_path.glob("runs/sweeps/*/submitit/*/*.err"))
    assert logs.count("this job is preempted") == 1
    assert len(re.findall(r"120 steps, from step [1-9]", logs)) == 1
    assert [logged_steps(run) for run in sweep.runs()] == 2 * [list(range(120))]

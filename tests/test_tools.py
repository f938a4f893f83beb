"""The scripts of tools/: a run tortured, wandb's dashboard, and mutants of the strategies."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
import wandb
import yaml
from engine.runs import CONFIG, TINY, run, tiny_config
from script_files import ROOT, load

from gcond.engine import loggers
from gcond.engine.checkpoint import checkpoints
from gcond.engine.metrics_log import read
from gcond.files import sha256

# Runs that are tortured

torture = load("tools/torture")


def test_a_run_equals_its_repetition_but_for_one_digit_one_bit_and_one_field(tmp_path):
    one, two = (run(tiny_config(tmp_path / name, "seed=3")) for name in ("one", "two"))
    assert json.loads(one.report.read_text())["started"]  # a field that does differ
    assert torture.differences(one, two) == []
    two.metrics.write_text(two.metrics.read_text().replace('"lr": 0.001', '"lr": 0.002', 1))
    newest = checkpoints(two.checkpoints)[0]
    content = torch.load(newest, weights_only=True)
    bits = content["parts"]["model"]["mask_token"].view(torch.int32)
    bits[7] ^= 1
    content["parts"]["conductor"]["steps"] += 1
    torch.save(content, newest)
    newest.rename(newest.with_name(f"{newest.name[:9]}{sha256(newest)}.pt"))
    report = json.loads(two.report.read_text())
    two.report.write_text(json.dumps(report | {"seconds": 1e9, "epochs": 1}))
    assert torture.differences(one, two) == [
        "metrics.jsonl",
        "checkpoint: /parts/model/mask_token",
        "checkpoint: /parts/conductor/steps",
        "report.json: epochs",
    ]


@pytest.mark.slow
def test_killed_runs_end_as_if_nothing_had_happened(tmp_path, capsys):
    tiny = [option for override in TINY if "tiny" in override for option in ("--override", override)]
    chosen = ["-n", "3", "--jobs", "1", "--datasets", "photos", "--strategies", "gcond_stochastic,famo", *tiny]
    assert torture.main([*chosen, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "3 of 3 continuations equal" in printed
    kills, terminations = map(int, re.search(r"(\d+) ends by SIGKILL, (\d+) by SIGTERM", printed).groups())
    assert kills + terminations > 0
    again = torture.main([*chosen, "--out", str(tmp_path)])
    assert again == 0
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 3  # nothing was repeated


# wandb's dashboard

SCRIPT = CONFIG.parent / "tools" / "wandb_dashboard.py"
DEFINITION = yaml.safe_load(SCRIPT.with_suffix(".yaml").read_text(encoding="utf-8"))
FAST = ("gcond_stochastic", "pcgrad")
LISTED = sorted({strategy for figure in DEFINITION["figures"] for strategy in figure["strategies"]})


dashboard = load("tools/wandb_dashboard")


@pytest.fixture
def printed(monkeypatch, capsys):
    """What --print writes: the definition of the figures, for scale mini."""
    monkeypatch.setattr(sys, "argv", ["wandb_dashboard.py", "--scale", "mini", "--print"])
    dashboard.main()
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("strategy", [pytest.param(s, marks=() if s in FAST else pytest.mark.slow) for s in LISTED])
def test_each_strategy_logs_what_its_figures_show(strategy, printed, tmp_path, monkeypatch):
    """Keys as the mirror sends them, tables and pictures included, by a stand-in for wandb's run."""
    folder = run(tiny_config(tmp_path, f"strategy={strategy}"))
    stand_in = MagicMock(summary={}, settings=SimpleNamespace(sync_dir=""))
    monkeypatch.setattr(loggers.WandbLogger, "_begun", lambda self: stand_in)
    logger = loggers.WandbLogger(folder.path, "none")
    logger.open()
    for record in loggers.recorded(folder.path):
        logger.log(record)
    logger.summary(json.loads(folder.report.read_text()))
    logged = {key for call in stand_in.log.call_args_list for key in call.args[0]}
    sent = [record for record in read(folder.metrics) if record["kind"] in ("step", "validation")]
    assert {key for record in sent for key, value in record.items() if value is not None} - {"kind"} <= logged
    assert {"probe/cosine/all", "probe/noise/l1/1", "activations/std", "activations/quantiles/0.5"} <= logged
    shown = {
        panel["key"]
        for figure in printed
        for grid in figure["grids"]
        if f"'strategy:{strategy}'" in grid["filter"]
        for panel in grid["panels"]
    }
    assert shown
    assert shown <= logged


def test_every_run_that_a_figure_asks_for_can_exist(printed):
    for figure in printed:
        for grid in figure["grids"]:
            conditions = [condition.split(" in ") for condition in grid["filter"].split(" and ")]
            assert [name for name, _ in conditions] == ["Tags"] * 4
            for _, values in conditions:
                for tag in yaml.safe_load(values):
                    group, _, option = tag.partition(":")
                    assert (CONFIG / group / f"{option}.yaml").exists(), tag


def test_every_figure_of_the_paper_is_there(printed):
    """The preprint has twelve figures."""
    titles = " ".join(figure["title"] for figure in printed)
    assert [number for number in range(1, 13) if f"Figure {number}:" not in titles] == []


def test_what_is_saved_holds_every_panel_of_the_definition(printed, monkeypatch):
    """The library is not in the environment; a stand-in counts what it is asked to make."""
    library = MagicMock()
    for name in ("wandb_workspaces", "wandb_workspaces.reports", "wandb_workspaces.reports.v2"):
        monkeypatch.setitem(sys.modules, name, library)
    library.reports.v2 = library.v2 = library
    assert dashboard.save(DEFINITION, "mini", "gcond", "somebody") == library.Report.return_value.url
    library.Report.return_value.save.assert_called_once()
    assert [call.args[0] for call in library.H2.call_args_list] == [figure["title"] for figure in printed]
    grids = [grid for figure in printed for grid in figure["grids"]]
    assert [call.kwargs["filters"] for call in library.Runset.call_args_list] == [grid["filter"] for grid in grids]
    made = [len(call.kwargs["panels"]) for call in library.PanelGrid.call_args_list]
    assert made == [len(grid["panels"]) for grid in grids]


def test_without_the_library_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    monkeypatch.setattr(wandb, "Api", lambda: pytest.fail("asked the server"))
    with pytest.raises(SystemExit, match=r"pip install wandb-workspaces"):
        dashboard.save(DEFINITION, "mini", "gcond", None)


# Mutants

mutants = load("tools/mutants")
MUTANTS = mutants.declared(mutants.DECLARATIONS)
PACKAGE = ROOT / "src" / mutants.PACKAGE


def test_every_mutant_applies_and_its_tests_exist():
    assert len(MUTANTS) >= 60
    for mutant in MUTANTS:
        assert mutant.mutated(PACKAGE)
        assert mutant.new != mutant.old
        assert mutant.imitates
        assert mutant.tests, mutant.name
        for test in mutant.tests:
            path, _, function = test.partition("::")
            source = (ROOT / path).read_text()
            assert not function or re.search(rf"^def {function}\(", source, re.MULTILINE), (mutant.name, test)


UNNOTICED = {"file": "update.py", "old": '"""The resolved gradient as it', "new": '"""The gradient as it'}
NOTICED = {"file": "update.py", "old": "parameter_norms / momentum_norms", "new": "momentum_norms / parameter_norms"}
UNUSABLE = {"file": "update.py", "old": "class Raw(Update):", "new": "class Crude(Update):"}
ABOUT = {"imitates": "see above", "tests": ["tests/strategy/test_update.py::test_lion_lars_is_the_twin"]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"old": "return"}, r"mutant 'm': expected `old` exactly once in update.py, found it \d+ times"),
        ({"old": "class Raw(Update):", "new": "class Raw("}, r"mutant 'm': .*update.py"),
    ],
)
def test_mutant_that_no_longer_applies_is_named(changes, reason):
    with pytest.raises(ValueError, match=reason):
        mutants.Mutant(**{"name": "m", "tests": (), **UNNOTICED, **changes}).mutated(PACKAGE)


@pytest.mark.slow
def test_survivors_and_mutants_that_do_not_run_fail_the_check(tmp_path):
    def check(**made):
        tables = [
            f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in {**ABOUT, **mutant}.items())
            for name, mutant in made.items()
        ]
        (tmp_path / "declared.toml").write_text("\n".join(tables))
        command = [sys.executable, ROOT / "tools" / "mutants.py", "--declarations", tmp_path]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, dict(
            re.findall(r"^(\w+)\t(\S*test_lion_lars_is_the_twin|NOT \w+)", done.stdout, re.MULTILINE)
        )

    before = (PACKAGE / "update.py").read_text()
    assert check(noticed=NOTICED) == (0, {"noticed": "strategy/test_update.py::test_lion_lars_is_the_twin"})
    assert check(unnoticed=UNNOTICED, unusable=UNUSABLE) == (1, {"unnoticed": "NOT CAUGHT", "unusable": "NOT RUN"})
    assert (PACKAGE / "update.py").read_text() == before

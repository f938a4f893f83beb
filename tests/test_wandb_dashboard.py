"""The saved dashboard: everything that it shows is something that runs log, and it reaches wandb whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import wandb
import yaml
from engine.runs import CONFIG, run, tiny_config
from script_files import load

from gcond.engine import loggers
from gcond.engine.metrics_log import read

SCRIPT = CONFIG.parent / "tools" / "wandb_dashboard.py"
DEFINITION = yaml.safe_load(SCRIPT.with_suffix(".yaml").read_text(encoding="utf-8"))
FAST = ("gcond_stochastic", "pcgrad")
LISTED = sorted({strategy for figure in DEFINITION["figures"] for strategy in figure["strategies"]})


script = load("tools/wandb_dashboard")


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What --print writes: the definition of the figures, for scale mini."""
    monkeypatch.setattr(sys, "argv", ["wandb_dashboard.py", "--scale", "mini", "--print"])
    script.main()
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("strategy", [pytest.param(s, marks=() if s in FAST else pytest.mark.slow) for s in LISTED])
def test_each_strategy_logs_what_its_figures_show(
    strategy: str, printed: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_every_run_that_a_figure_asks_for_can_exist(printed: list[dict[str, Any]]) -> None:
    for figure in printed:
        for grid in figure["grids"]:
            conditions = [condition.split(" in ") for condition in grid["filter"].split(" and ")]
            assert [name for name, _ in conditions] == ["Tags"] * 4
            for _, values in conditions:
                for tag in yaml.safe_load(values):
                    group, _, option = tag.partition(":")
                    assert (CONFIG / group / f"{option}.yaml").exists(), tag


def test_every_figure_of_the_paper_is_there(printed: list[dict[str, Any]]) -> None:
    """The preprint has twelve figures."""
    titles = " ".join(figure["title"] for figure in printed)
    assert [number for number in range(1, 13) if f"Figure {number}:" not in titles] == []


def test_what_is_saved_holds_every_panel_of_the_definition(
    printed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library is not in the environment; a stand-in keeps what it is asked to make."""
    kinds = ("P", "H2", "TableOfContents", "Layout", "LinePlot", "MediaBrowser", "WeavePanelSummaryTable", "Runset")
    library: Any = ModuleType("wandb_workspaces.reports.v2")
    for kind in (*kinds, "PanelGrid"):
        setattr(library, kind, lambda *text, kind=kind, **content: SimpleNamespace(kind=kind, text=text, **content))
    library.Report = MagicMock()
    parents = {name: ModuleType(name) for name in ("wandb_workspaces", "wandb_workspaces.reports")}
    for name, module in (parents | {library.__name__: library}).items():
        monkeypatch.setitem(sys.modules, name, module)
    parents["wandb_workspaces.reports"].v2 = library  # type: ignore[attr-defined]

    assert script.save(DEFINITION, "mini", "gcond", "somebody") == library.Report.return_value.url
    library.Report.return_value.save.assert_called_once()
    project, entity, title = library.Report.call_args.args
    blocks = library.Report.call_args.kwargs["blocks"]
    assert (project, entity, "mini" in title) == ("gcond", "somebody", True)
    assert [block.text[0] for block in blocks if block.kind == "H2"] == [figure["title"] for figure in printed]
    grids = [block for block in blocks if block.kind == "PanelGrid"]
    expected = [grid for figure in printed for grid in figure["grids"]]
    assert [grid.runsets[0].filters for grid in grids] == [grid["filter"] for grid in expected]
    made = [
        [getattr(p, "y", None) or getattr(p, "media_keys", None) or [p.table_name] for p in g.panels] for g in grids
    ]
    assert made == [[[panel["key"]] for panel in grid["panels"]] for grid in expected]
    for grid in grids:
        assert len({(panel.layout.x, panel.layout.y) for panel in grid.panels}) == len(grid.panels)  # none over another
        assert all(panel.x == "step" for panel in grid.panels if panel.kind == "LinePlot")


def test_without_the_library_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    monkeypatch.setattr(wandb, "Api", lambda: pytest.fail("asked the server"))
    with pytest.raises(SystemExit, match=r"pip install wandb-workspaces"):
        script.save(DEFINITION, "mini", "gcond", None)

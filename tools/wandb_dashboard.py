"""The paper's figures as a saved wandb report: python tools/wandb_dashboard.py --scale mini [--entity NAME]

Its definition is wandb_dashboard.yaml beside this file. Needs `wandb login`, runs in the project, and a library that is
not in requirements.lock: pip install wandb-workspaces. --print writes the definition and needs none of these.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

DEFINITION = Path(__file__).with_name("wandb_dashboard.yaml")
X_AXIS = "step"
WIDTH, HEIGHT = 8, 6  # of a panel, in wandb's grid of 24 columns
PANELS = {"metrics": "line", "pictures": "picture", "tables": "table"}


def figures(definition: dict[str, Any], scale: str) -> list[dict[str, Any]]:
    """The definition written out: title -> grids, each with a name, a filter of runs and panels (kind, key)."""
    written = []
    for figure in definition["figures"]:
        full = definition["defaults"] | figure
        panels = [{"kind": kind, "key": key} for field, kind in PANELS.items() for key in full.get(field, [])]
        grids = [
            {
                "name": f"{' or '.join(datasets)}, {full['model']}, {scale}",
                "filter": _tagged(scale=[scale], model=[full["model"]], dataset=datasets, strategy=full["strategies"]),
                "panels": panels,
            }
            for datasets in full["datasets"]
        ]
        written.append({"title": full["title"], "grids": grids})
    return written


def _tagged(**values: list[str]) -> str:
    """Runs that have, for each name, one of the tags NAME:VALUE (gcond.engine.loggers tags them so)."""
    return " and ".join(f"Tags in {[f'{name}:{value}' for value in options]}" for name, options in values.items())


def save(definition: dict[str, Any], scale: str, project: str, entity: str | None) -> str:
    """Create the report in the account; returns its address. Raises SystemExit without wandb-workspaces."""
    try:
        import wandb_workspaces.reports.v2 as wr
    except ImportError:
        raise SystemExit(
            "wandb-workspaces is not installed (it is not in requirements.lock): .venv/bin/pip install wandb-workspaces"
        ) from None
    import wandb

    entity = entity or wandb.Api().default_entity

    def panel(number: int, kind: str, key: str) -> Any:
        place = wr.Layout(x=number % 3 * WIDTH, y=number // 3 * HEIGHT, w=WIDTH, h=HEIGHT)
        if kind == "line":
            bands = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
            return wr.LinePlot(title=key, x=X_AXIS, y=[key], layout=place, **bands)
        if kind == "picture":
            return wr.MediaBrowser(title=key, media_keys=[key], layout=place)
        return wr.WeavePanelSummaryTable(table_name=key, layout=place)

    def grid(content: dict[str, Any]) -> Any:
        grouped = all(shown["kind"] == "line" for shown in content["panels"])
        runs = wr.Runset(
            entity=entity,
            project=project,
            name=content["name"],
            filters=content["filter"],
            groupby=["config.strategy.name"] if grouped else [],
        )
        return wr.PanelGrid(
            runsets=[runs],
            panels=[panel(number, shown["kind"], shown["key"]) for number, shown in enumerate(content["panels"])],
        )

    blocks = [wr.P(definition["about"]), wr.TableOfContents()]
    for figure in figures(definition, scale):
        blocks += [wr.H2(figure["title"]), *map(grid, figure["grids"])]
    report = wr.Report(project, entity, f"{definition['title']} ({scale})", blocks=blocks, width="fluid")
    report.save()
    return report.url


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--scale", required=True, help="one scale's runs: numbers of two scales are never set together")
    parser.add_argument("--project", default="gcond")
    parser.add_argument("--entity", help="a team or a user (default: the account's)")
    parser.add_argument("--print", action="store_true", help="write the definition as JSON and create nothing")
    arguments = parser.parse_args()
    definition = yaml.safe_load(DEFINITION.read_text(encoding="utf-8"))
    if arguments.print:
        print(json.dumps(figures(definition, arguments.scale), indent=2))
    else:
        print(save(definition, arguments.scale, arguments.project, arguments.entity))
    return 0


if __name__ == "__main__":
    sys.exit(main())

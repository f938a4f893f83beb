"""Recorded runs to wandb, from their folders alone: python -m gcond.engine.wandb_upload [--online] FOLDER…

For runs that were trained with logger=none, or whose mirror failed. Offline, the default, makes below each run what
`wandb sync` sends; --online sends at once. Either replaces what wandb has of the run. Exit status 1 where a run was not
copied; runs that have not ended are listed and left alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from gcond.engine.mirror import NO_EXPERIMENT, report_in
from gcond.engine.wandb_mirror import WandbMirror


def upload(folder: Path, mode: str, project: str, entity: str | None) -> None:
    """The run in `folder`, which has ended, as a wandb run; its group is the experiment that report.json names."""
    report = report_in(folder)
    mirror = WandbMirror(folder, report.get("experiment", NO_EXPERIMENT), mode, project, entity)
    mirror.start()
    mirror.finish(report)


def ended(folder: Path) -> bool:
    return (folder / "DONE").exists() or (folder / "FAILED").exists()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gcond.engine.wandb_upload", description=__doc__.split("\n\n")[0])
    parser.add_argument("--online", action="store_true", help="send now (after `wandb login`) instead of `wandb sync`")
    parser.add_argument("--project", default="gcond")
    parser.add_argument("--entity", help="a team or a user (default: the account's)")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a run's folder, or one of runs: runs")
    arguments = parser.parse_args()
    found = sorted({path.parent for folder in arguments.folders for path in folder.rglob("metrics.jsonl")})
    if not found:
        parser.error(f"no metrics.jsonl in or below {', '.join(map(str, arguments.folders))}; nothing to copy")
    errors = {folder: "not ended; the command that began it continues it" for folder in found if not ended(folder)}
    for folder in tqdm([folder for folder in found if folder not in errors], unit="run", disable=None):
        try:
            upload(folder, "online" if arguments.online else "offline", arguments.project, arguments.entity)
        except Exception as error:
            errors[folder] = f"{type(error).__name__}: {error}"
    print(f"Copied {len(found) - len(errors)} of {len(found)} runs")
    for folder, error in errors.items():
        print(f"  {folder}: {error}")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())

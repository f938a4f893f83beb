"""Recorded runs to wandb, from their folders alone: python -m gcond.engine.wandb_upload [--online] FOLDER…

For runs that were trained with another logger, or whose copy failed. Offline, the default, makes below each run what
`wandb sync` sends; --online sends at once. Either replaces what wandb has of the run. Exit status 1 where a run was not
copied; runs that have not ended are listed and left alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tqdm import tqdm

from gcond.engine.loggers import NO_EXPERIMENT, WandbLogger, recorded, report_in
from gcond.engine.run_state import state_of


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gcond.engine.wandb_upload", description=__doc__.split("\n\n")[0])
    parser.add_argument("--online", action="store_true", help="send now (after `wandb login`) instead of `wandb sync`")
    parser.add_argument("--project", default="gcond")
    parser.add_argument("--entity", help="a team or a user (default: the account's)")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a run's folder, or one of runs: runs")
    arguments = parser.parse_args(words)
    found = sorted({path.parent for folder in arguments.folders for path in folder.rglob("metrics.jsonl")})
    if not found:
        parser.error(f"no metrics.jsonl in or below {', '.join(map(str, arguments.folders))}; nothing to copy")
    errors = {}
    for folder in tqdm(found, unit="run", disable=None):
        state = state_of(folder, time.time())
        if state.state not in ("done", "failed"):
            errors[folder] = f"{state.state}, {state.detail}; the command that began it continues it"
            continue
        try:
            report = report_in(folder)
            experiment, mode = report.get("experiment", NO_EXPERIMENT), "online" if arguments.online else "offline"
            logger = WandbLogger(folder, experiment, mode, arguments.project, arguments.entity)
            logger.open()
            for record in recorded(folder):
                logger.log(record)
            logger.summary(report)
            logger.close(done=report["status"] == "done")
        except Exception as error:
            errors[folder] = f"{type(error).__name__}: {error}"
    print(f"Copied {len(found) - len(errors)} of {len(found)} runs")
    for folder, error in errors.items():
        print(f"  {folder}: {error}")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())

"""`gcond study report` (make report): findings, pages, tables and figures from the recorded runs."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from gcond.study import judge, pages, plots, tables

OF_RECORDS = {"table1": "table1", "table5": "table5", "toy": "toy", "bench": "bench.csv"}  # page -> what it is made of
LAST = ("readme", "experiments")  # they quote the findings and list the other pages
Made = tuple[str, list[Path]]  # a page or figure; its files, none where nothing is recorded for it


def make(results: Path, jobs: int) -> Iterator[Made]:
    """Write every page, and every figure at the largest scale that records its runs, in `jobs` processes."""
    with _processes(jobs) as processes:
        for folder in _scales(results):
            tables.runs(folder, processes.map)
    written = ["claims", *(page for page, records in OF_RECORDS.items() if (results / records).exists())]
    with _processes(jobs) as processes:  # which inherit what was read
        first = processes.map(_written, written, [results] * len(written))
        drawn = processes.map(_drawn, plots.NAMES, [results] * len(plots.NAMES))
        yield from [*first, *drawn]
    yield from (made for page in LAST if (made := _written(page, results))[1])  # a user's results have neither


def _processes(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"))


def _scales(results: Path) -> list[Path]:
    """Folders of recorded runs, the largest scale first."""
    return [results / scale for scale in judge.SCALES if (results / scale / "runs.csv").exists()]


def _written(page: str, results: Path) -> Made:
    return page, pages.make(page, results)


def _drawn(figure: str, results: Path) -> Made:
    if figure in OF_RECORDS:
        return figure, plots.draw(figure, results) if (results / OF_RECORDS[figure]).exists() else []
    for folder in _scales(results):
        try:
            return figure, plots.draw(figure, results, scale=folder.name)
        except ValueError as error:
            if not str(error).startswith("nothing to draw"):
                raise
    return figure, []

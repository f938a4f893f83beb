"""Which pairwise orderings of the paper's Table 2 a table of ours shows. Orderings of means only, no significance."""

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations

from gcond.report.lineup import PAPER_METHODS
from gcond.report.paper import COUNTERPART, table2_column
from gcond.report.table2 import METRIC_TITLES, Table2

CAVEAT = (
    "An ordering is a pair of methods, the lower mean first; it is shown here if the mean of the same method is the "
    "lower one. Only complete cells are compared. Three seeds give no significance: a pair may differ by chance."
)


@dataclass(frozen=True)
class Orderings:
    total: int  # pairs in the paper
    compared: int  # of these, pairs with both means here
    missed: tuple[tuple[str, str], ...]  # compared pairs (lower, higher in the paper) that are not so here


def compare(paper: dict[str, float], ours: dict[str, float]) -> Orderings:
    """Compare the orderings of two columns of means; `ours` may lack methods. A tie here does not show an ordering."""
    ranked = sorted(paper, key=paper.__getitem__)
    pairs = list(combinations(ranked, 2))
    compared = [(lower, higher) for lower, higher in pairs if lower in ours and higher in ours]
    missed = tuple((lower, higher) for lower, higher in compared if not ours[lower] < ours[higher])
    return Orderings(len(pairs), len(compared), missed)


def describe(table: Table2) -> list[str]:
    """One line per dataset, on the first block (the paper's: best validation epoch)."""
    sentences: dict[str, list[str]] = defaultdict(list)
    lines = {line.strategy: line for line in table.blocks[0].lines}
    for index, column in enumerate(table.columns):
        if column.dataset not in COUNTERPART:
            sentences[f"{column.dataset_title} has no counterpart in the paper"] = []
            continue
        cells = {name: lines[name].cells[index] for name in PAPER_METHODS}
        means = {name: cell.mean for name, cell in cells.items() if cell.complete}
        found = compare(table2_column(column.dataset, column.metric), means)
        heading = f"{column.dataset_title}, against the paper's {COUNTERPART[column.dataset]}: "
        sentences[heading].append(f"{METRIC_TITLES[column.metric]}: {_count(found)}")
    return [f"{heading}{'; '.join(columns)}." for heading, columns in sentences.items()]


def _count(found: Orderings) -> str:
    """ "4 of the paper's 6 orderings, not A < {B, C}"."""
    scope = f"the paper's {found.total} orderings"
    if found.compared < found.total:
        scope = f"{found.compared} comparable orderings (the paper has {found.total})"
    above: dict[str, list[str]] = defaultdict(list)
    for lower, higher in found.missed:
        above[PAPER_METHODS[lower]].append(PAPER_METHODS[higher])
    missed = [
        f"{lower} < {{{', '.join(highers)}}}" if len(highers) > 1 else f"{lower} < {highers[0]}"
        for lower, highers in above.items()
    ]
    shown = f"{found.compared - len(found.missed)} of {scope}"
    return f"{shown}, not {', '.join(missed)}" if missed else shown

"""Entries -> groups that may share a plot (scale, data set, model), and in them series: one method, several seeds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from gcond.report.curves import LOOKS
from gcond.report.dashboard.metrics import VALIDATION, bin_means, bin_width, short
from gcond.report.dashboard.read import Entry

Points = dict[int, float]  # bin or step -> value, nan where undefined

# For strategies outside Table 2, in the order of their names.
MORE_COLOURS = ("#8C564B", "#B2182B", "#4D4DBF", "#2CA02C", "#C51B7D", "#17A2B8", "#A6761D", "#6A51A3")
DASHES = {"-": "", "--": "6 3"}
MORE_DASHES = ("", "2 3", "8 3 2 3", "10 4", "4 2")


def groups(entries: list[Entry], points: int) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
    """All groups as the page takes them, and per index of an entry: its group, its series and its points.

    Superseded runs, and damaged ones that do not say what they are, belong to no series.
    """
    members: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for index, entry in enumerate(entries):
        if entry.status != "superseded" and entry.dataset and entry.model and entry.strategy:
            members[entry.scale, entry.dataset, entry.model].append(index)
    content, places = [], {}
    for (scale, dataset, model), indices in sorted(members.items()):
        own = [entries[index] for index in indices]
        steps = max(entry.metrics.reached for entry in own)
        width = bin_width(steps, points)
        drawn = [_binned(entry, width) for entry in own]
        series, position = _series(own, drawn)
        for index, entry, binned, place in zip(indices, own, drawn, position, strict=True):
            places[index] = {"group": len(content), "series": place, "points": _packed(binned)}
            places[index]["validation"] = _validation(entry)
        content.append(
            {
                "scale": scale,
                "dataset": dataset,
                "title": next((entry.dataset_title for entry in own if entry.dataset_title != dataset), dataset),
                "model": model,
                "width": width,
                "x": [_middle(number, width, steps) for number in range(-(-steps // width))],
                "series": series,
                "trivial": _best_trivial(own),
                "notices": _notices(own),
            }
        )
    return content, places


def _middle(number: int, width: int, steps: int) -> float:
    return (number * width + min((number + 1) * width, steps) - 1) / 2


def _binned(entry: Entry, width: int) -> dict[str, Points]:
    return {key: bin_means(at, values, width) for key, (at, values) in entry.metrics.steps.items()}


def _validation(entry: Entry) -> dict[str, list[Any]]:
    records = entry.metrics.validation
    return {key: [short(record[key]) for record in records] for key in ("step", "epoch", *VALIDATION)}


def _series(entries: list[Entry], drawn: list[dict[str, Points]]) -> tuple[list[dict[str, Any]], list[int]]:
    """The group's series with their means, and the series of each entry.

    A run whose variant is not known, since it has not ended, joins the run with the same settings.
    """
    known = {entry.settings: entry.variant for entry in entries if entry.settings and entry.variant is not None}
    keys = [
        (
            entry.strategy,
            entry.variant if entry.variant is not None else known.get(entry.settings, "?"),
            entry.settings,
        )
        for entry in entries
    ]
    order = _strategies_in_order({strategy for strategy, _, _ in keys})
    ordered = sorted(set(keys), key=lambda key: (order[key[0]], key[1], key[2]))
    names = [_name(key, next(e for e, own in zip(entries, keys, strict=True) if own == key)) for key in ordered]
    taken: set[tuple[str, str]] = set()
    content = []
    for key, name in zip(ordered, names, strict=True):
        own = [index for index, other in enumerate(keys) if other == key]
        finished = [index for index in own if entries[index].status == "done"]
        colour, dash = _look(key[0], order, taken)
        content.append(
            {
                "label": f"{name} (settings {key[2] or 'unknown'})" if names.count(name) > 1 else name,
                "colour": colour,
                "dash": dash,
                "seeds": sorted({entries[i].seed for i in finished if entries[i].seed is not None}),
                "n": len(finished),
                "others": len(own) - len(finished),
                "points": _packed(_means([drawn[index] for index in finished])),
                "validation": _mean_validation([entries[index] for index in finished]),
            }
        )
    return content, [ordered.index(key) for key in keys]


def _name(key: tuple[str, str, str], entry: Entry) -> str:
    variant = {"": "", "?": ""}.get(key[1], f" [{key[1]}]")
    return f"{entry.label}{variant}"


def _strategies_in_order(names: set[str]) -> dict[str, int]:
    listed = [name for name in LOOKS if name in names]
    return {name: index for index, name in enumerate([*listed, *sorted(names - set(LOOKS))])}


def _look(strategy: str, order: dict[str, int], taken: set[tuple[str, str]]) -> tuple[str, str]:
    """Colour and dashes of a strategy; where another series has them (a variant), other dashes, then other colours."""
    if strategy in LOOKS:
        colour, line, _ = LOOKS[strategy]
        dash, others = DASHES[line], MORE_COLOURS
    else:
        place = sum(name not in LOOKS and rank < order[strategy] for name, rank in order.items()) % len(MORE_COLOURS)
        others = MORE_COLOURS[place:] + MORE_COLOURS[:place]
        colour, dash = others[0], MORE_DASHES[0]
    wishes = [(colour, dash), *((one, other) for one in (colour, *others) for other in MORE_DASHES)]
    look = next((wish for wish in wishes if wish not in taken), wishes[0])
    taken.add(look)
    return look


def _means(runs: list[dict[str, Points]]) -> dict[str, Points]:
    """Mean over runs, of every quantity at every point that all of them have."""
    if not runs:
        return {}
    keys = [key for key in runs[0] if all(key in run for run in runs)]
    means = {}
    for key in keys:
        shared = [at for at in runs[0][key] if all(at in run[key] for run in runs)]
        if shared:
            means[key] = {at: sum(run[key][at] for run in runs) / len(runs) for at in shared}
    return means


def _mean_validation(entries: list[Entry]) -> dict[str, list[Any]]:
    curves = [
        {
            key: {r["step"]: math.nan if r[key] is None else r[key] for r in entry.metrics.validation}
            for key in VALIDATION
        }
        for entry in entries
    ]
    means = _means(curves)
    steps = list(next(iter(means.values()), {}))
    return {"step": steps, **{key: [short(value) for value in points.values()] for key, points in means.items()}}


def _packed(binned: dict[str, Points]) -> dict[str, Any]:
    """Key -> values from bin 0 on; or {"at": bins, "y": values} where not every bin holds something."""
    packed: dict[str, Any] = {}
    for key, points in sorted(binned.items()):
        values = [short(value) for value in points.values()]
        dense = list(points) == list(range(len(points)))
        packed[key] = values if dense else {"at": list(points), "y": values}
    return packed


def _best_trivial(entries: list[Entry]) -> dict[str, float]:
    """Lowest score of the predictors that need no training, where a run recorded them."""
    trivial = next((entry.trivial for entry in entries if entry.trivial), {})
    return {key: short(min(values[key] for values in trivial.values())) for key in VALIDATION if trivial}


def _notices(entries: list[Entry]) -> list[str]:
    """Why the numbers of this group may not be comparable."""
    ended = [entry for entry in entries if entry.status == "done"]
    notices = []
    for name, what in (("commit", "commits"), ("device", "devices"), ("torch", "versions of torch")):
        counts = _counts(ended, lambda entry, name=name: str(entry.facts.get(name) or "unknown"))
        if len(counts) > 1:
            listed = ", ".join(f"{value[:60] if name != 'commit' else value[:10]} ({n})" for value, n in counts.items())
            notices.append(f"These runs come from several {what}, so their numbers may not be compared: {listed}.")
    if len(lengths := _counts(ended, lambda entry: entry.facts.get("steps"))) > 1:
        listed = ", ".join(f"{steps} ({n})" for steps, n in lengths.items())
        notices.append(f"These runs differ in length, in optimizer steps: {listed}.")
    if dirty := sum(entry.facts.get("dirty") is True for entry in ended):
        notices.append(f"{dirty} of them ran from a working tree with uncommitted changes.")
    return notices


def _counts(entries: list[Entry], value: Callable[[Entry], Any]) -> dict[Any, int]:
    counts: dict[Any, int] = defaultdict(int)
    for entry in entries:
        counts[value(entry)] += 1
    return dict(sorted(counts.items(), key=lambda item: str(item[0])))

"""What a run measured beside its training: rows of probes.csv, activations.csv and groups.csv."""

from collections.abc import Sequence

from gcond.report.logged import Record
from gcond.report.records import QUANTILES

WHEN = ("epoch", "step", "micro_batches", "batch_size")


def probe_rows(records: Sequence[Record]) -> list[dict[str, object]]:
    """One row per number, in long form, since names depend on tasks and parameter groups."""
    return [
        {**{key: probe[key] for key in WHEN}, "name": name, "value": value}
        for probe in records
        if probe["kind"] == "probe"
        for name, value in probe.items()
        if name not in ("kind", *WHEN)
    ]


def group_rows(records: Sequence[Record]) -> list[dict[str, object]]:
    """One row per patient or class of validation and of test: its final scores at the best and at the last epoch."""
    rows: dict[tuple[str, str], dict[str, object]] = {}
    for record in records:
        if record["kind"] != "groups":
            continue
        for group, measured in record["groups"].items():
            row = rows.setdefault((record["split"], group), {"split": record["split"], "group": group})
            row |= {
                name if name.endswith("images") else f"{record['at']}_{name}": value for name, value in measured.items()
            }
    return list(rows.values())


def activation_rows(records: Sequence[Record]) -> list[dict[str, object]]:
    """One row per epoch: moments and quantiles of the last encoder layer's map."""
    return [
        {name: record[name] for name in ("epoch", "step", "mean", "std", "zero_share")}
        | {f"q{quantile}": record["quantiles"][quantile] for quantile in QUANTILES}
        for record in records
        if record["kind"] == "activations"
    ]

"""Tables 3 and 4 of the paper as data. Source: arXiv 2509.07252, Tables 3 and 4, on an RTX 4080 with 16 GB."""

import statistics
from dataclasses import dataclass

ACCUMULATION_STEPS = 24  # K
DEVICE = "RTX 4080, 16 GB"


@dataclass(frozen=True)
class Cost:
    """Images of a micro-batch; peak memory in MB, seconds per epoch, samples per second."""

    micro_batch: int
    peak_mb: float
    epoch_seconds: float
    samples_per_second: float


COSTS: dict[str, dict[str, dict[str, Cost]]] = {  # table -> our data set -> method
    "table3": {
        "imagenet256": {
            "baseline": Cost(256, 6888.98, 901.15, 1421.73),
            "cagrad": Cost(256, 7514.00, 965.23, 1327.33),
            "gradnorm": Cost(256, 7056.58, 965.25, 1327.29),
            "pcgrad": Cost(256, 7515.89, 968.59, 1322.73),
            "gcond_stochastic": Cost(256, 8739.54, 905.10, 1415.66),
        },
        "ct": {
            "baseline": Cost(256, 4257.19, 778.09, 2367.52),
            "cagrad": Cost(256, 4682.19, 989.17, 1861.28),
            "gradnorm": Cost(256, 4319.14, 993.34, 1853.50),
            "pcgrad": Cost(256, 4679.83, 993.24, 1853.72),
            "gcond_stochastic": Cost(256, 4856.77, 822.87, 2237.83),
        },
    },
    "table4": {
        "ct": {
            "baseline": Cost(170, 14510.72, 3198.98, 575.52),
            "cagrad": Cost(96, 14181.52, 4872.46, 377.85),
            "gradnorm": Cost(148, 13958.67, 4992.46, 368.77),
            "pcgrad": Cost(96, 14192.53, 4817.08, 382.20),
            "gcond_stochastic": Cost(162, 14540.23, 3205.20, 574.40),
        },
    },
}


def epoch_images(table: str, dataset: str) -> int:
    """Images of the paper's epoch, which it does not print: the median over methods of s/epoch x samples/s."""
    return round(
        statistics.median(cost.epoch_seconds * cost.samples_per_second for cost in of(table, dataset).values())
    )


def of(table: str, dataset: str) -> dict[str, Cost]:
    """By method. Raises ValueError where the paper's table has no such data set."""
    if dataset not in COSTS[table]:
        raise ValueError(f"`dataset` of {table}: expected one of {', '.join(COSTS[table])}, found {dataset!r}")
    return COSTS[table][dataset]

"""Made-up runs for the pages of the ablations, O1, O6 and O10, with effects that are known; no run behind them.

A run's losses are its arm's `level` of Baseline's .5, by seed: level + SPREAD[seed], so that every paired difference
is the levels' difference exactly, unless `wobble` moves a seed.
"""

from pathlib import Path

from gcond.report import records
from gcond.report.claims.evidence import MODE
from gcond.report.claims.factorial import LEVELS, STRATEGY
from gcond.report.claims.tradeoff import METHODS
from gcond.report.pages.conflict import SWEPT
from gcond.report.pages.o1 import ARMS
from gcond.report.pages.parameters import PARAMETERS

SEEDS = (11, 42, 2025)
SPREAD = {11: -0.01, 42: 0.0, 2025: 0.01}
BINS, EPOCHS = 10, 4
TITLES = {"photos": "photos (scikit-image)", "ct": "CT (public samples, 10 patients)"}
Key = tuple[str, str, int, str]  # dataset, strategy, seed, variant


def run(key: Key, level: float, **more: object) -> dict[str, object]:
    dataset, strategy, seed, variant = key
    losses = {
        f"{block}_{metric}": scale * (level + SPREAD.get(seed, 0.0)) + extra
        for block, extra in (("best_val", 0.0), ("last_val", 0.1), ("best_test", 0.2), ("last_test", 0.3))
        for metric, scale in (("l1", 1.0), ("ssim", 0.5))
    }
    return {
        "dataset": dataset, "dataset_title": TITLES[dataset], "model": "mobilenetv3_small", "strategy": strategy,
        "seed": seed, "variant": variant, "status": "done", "commit": "c0ffee00c0ffee00", "dirty": False,
        "device": "CPU, a made-up machine", "torch": "2.14.1", "started": "2025-03-04T05:06:07+00:00",
        "seconds": 100.0, "steps": 500, "epochs": EPOCHS, **losses, **more,
    }  # fmt: skip


def trivial() -> list[dict[str, object]]:
    blocks = ("best_val", "last_val", "best_test", "last_test")
    losses = {f"{block}_{metric}": value for block in blocks for metric, value in (("l1", 0.49), ("ssim", 0.4))}
    mean = dict.fromkeys(losses, 0.75)
    return [{"dataset": name, "dataset_title": TITLES[name], "strategy": f"trivial:{predictor}", "status": "done"} | own
            for name in TITLES for predictor, own in (("visible_mean", losses), ("dataset_mean", mean))]  # fmt: skip


def steps(key: Key, **columns: object) -> list[dict[str, object]]:
    dataset, strategy, seed, variant = key
    name = {"dataset": dataset, "model": "mobilenetv3_small", "strategy": strategy, "seed": seed, "variant": variant}
    values = {"cosine_steps": 5, "conflicts": 0.0, "grad_norm_l1": 0.8, "grad_norm_ssim": 0.2} | columns
    return [
        name
        | {"bin": place, "first_step": 50 * place + 1, "last_step": 50 * (place + 1)}
        | {column: value(place) if callable(value) else value for column, value in values.items()}
        for place in range(BINS)
    ]


def probes(key: Key, values: dict[str, float]) -> list[dict[str, object]]:
    dataset, strategy, seed, variant = key
    name = {"dataset": dataset, "model": "mobilenetv3_small", "strategy": strategy, "seed": seed, "variant": variant}
    when = [
        {"epoch": epoch, "step": 125 * epoch, "micro_batches": 8, "batch_size": 16} for epoch in range(1, EPOCHS + 1)
    ]
    shift = 3 * SPREAD.get(seed, 0.0)
    return [
        name | each | {"name": what, "value": value + shift + 0.02 * (each["epoch"] - 2.5)}
        for each in when
        for what, value in values.items()
    ]


def windows(key: Key, values: dict[str, float]) -> list[dict[str, object]]:
    """`values` in every group of parameters, at the initial weights and .1 more at the last, moved by seed."""
    dataset, strategy, seed, variant = key
    name = {"dataset": dataset, "model": "mobilenetv3_small", "strategy": strategy, "seed": seed, "variant": variant}
    about = {"mode": "train", "micro_batches": 72, "batch_size": 16, "standard_error": 0.25}
    return [
        name
        | about
        | {"state": state, "step": 500 * (state == "last"), "group": group, "name": what}
        | {"value": value + 3 * SPREAD.get(seed, 0.0) + 0.1 * (state == "last")}
        for state in ("initial", "last")
        for group in ("all", "encoder", "body", "head")
        for what, value in values.items()
    ]


def write(results: Path, scale: str, runs: list, steps: list = (), probes: list = (), windows: list = ()) -> None:
    folder = results / scale
    parts = {
        "runs.csv": ([*trivial(), *runs], records.COLUMNS, records.KEY, 8),
        "steps.csv": (list(steps), records.STEP_COLUMNS, records.STEP_KEY, 6),
        "probes.csv": (list(probes), records.PROBE_COLUMNS, records.PROBE_KEY, 6),
        "windows.csv": (list(windows), records.WINDOW_COLUMNS, records.WINDOW_KEY, 8),
    }
    for name, (rows, columns, key, digits) in parts.items():
        if rows:
            records.write_csv(folder / name, records.frame(rows, columns), key, digits)


def factorial(datasets: tuple[str, ...] = ("photos", "ct"), skip: tuple[str, ...] = ()) -> list[dict[str, object]]:
    """EMA -.05, eval mode +.01, EMA in eval mode another +.02, resolution -.005, per micro-batch +.015."""
    rows = []
    for (mode, *_), own in ARMS:
        resolution, update = next(pair for pair, name in STRATEGY.items() if name == own.strategy)
        level = 0.5 - 0.05 * (update == "ema") + 0.01 * (mode == "eval") + 0.02 * (update == "ema" and mode == "eval")
        level += -0.005 * (resolution != "none") + 0.015 * ("micro_batch" in own.variant)
        rows += [
            run((dataset, own.strategy, seed, own.variant), level)
            for dataset in datasets
            for seed in SEEDS
            if f"{own.strategy} {own.variant}".strip() not in skip
        ]
    assert {mode for (mode, *_), _ in ARMS} == set(LEVELS["mode"])
    assert MODE in ARMS[-1][1].variant
    return rows


FLIPPED = "loss=l1_ssim_flipped,scale.accumulation_steps=6"  # variant of runs with a flipped target


def conflicting(dataset: str = "ct", strengths: tuple[float, ...] = ()) -> tuple[list, list, list]:
    """(runs, steps, probes): Baseline has L1 1, 1 - SSIM .5, flipped .6; the others L1 .9 ± .01, flipped .72. The more
    strength, the more conflict: a cosine of minus the strength."""
    runs, stepped, looked = [], [], []
    for variant, strength, strategies in (
        (FLIPPED, 1.0, METHODS),
        *((f"loss.reconstruction.flip_strength={s},{FLIPPED}", s, SWEPT) for s in strengths),
    ):
        for strategy in strategies:
            for seed in SEEDS:
                key = (dataset, strategy, seed, variant)
                own = strategy != "baseline"
                losses = {"l1": 0.9 + SPREAD[seed] if own else 1.0, "ssim": 0.5, "flipped": 0.72 if own else 0.6}
                blocks = ("best_val", "last_val", "best_test", "last_test")
                numbers = {f"{block}_{task}": value for block in blocks for task, value in losses.items()}
                runs.append(run(key, 0.5, **numbers))
                zones = {"zone_main": 0.5} if strategy.startswith("gcond") else {}
                stepped += steps(key, conflicts=strength, cosine_mean=-strength, **zones)
                looked += probes(key, {"cosine/all": -strength, "cosine_disjoint/all": -strength / 2})
    return runs, stepped, looked


MOVED = {  # parameter's last word -> by how much each of its values but the default is worse
    "thresholds": 0.01,
    "beta": 0.02,
    "projection_max_iters": -0.005,
    "norm_cap": 0.005,
    "remap_power": 0.002,
    "tie_breaking_weights": 0.001,
    "dominance_window": 0.0,
}


def ablated(default: tuple[str, str] = ("gcond_stochastic", ""), reach: float = 0.02) -> tuple[list, list]:
    """(runs, steps) of every value of every parameter on CT; the window's are the default's runs over again."""
    strategy, rest = default
    runs = [run(("ct", strategy, seed, rest), 0.4) for seed in SEEDS]
    own = [row for seed in SEEDS for row in ablated_steps(("ct", strategy, seed, rest), reach)]
    for parameter in PARAMETERS:
        moved = MOVED[parameter.key.split(".")[-1]]
        for place, value in enumerate(value for value in parameter.values if value != parameter.default):
            variant = ",".join(sorted(filter(None, [f"{parameter.key}={value}", rest])))
            for seed in SEEDS:
                wobble = 0.3 * moved * (place + 1) * SPREAD[seed] / 0.01
                key = ("ct", strategy, seed, variant)
                runs.append(run(key, 0.4 + moved * (place + 1) + wobble))
                own += ablated_steps(key, reach)
    return runs, own


def ablated_steps(key: Key, reach: float) -> list[dict[str, object]]:
    return steps(key, zone_weak=0.3, zone_main=reach, zone_critical=reach / 4, resolved=0.25, conflicts=0.25)


def often(strategies: tuple[str, ...], datasets: tuple[str, ...] = ("photos", "ct")) -> tuple[list, list]:
    """(runs, steps) of these strategies: a tenth of the steps in conflict, on CT half of those of the first bins."""
    runs, own = [], []
    for dataset in datasets:
        for place, strategy in enumerate(strategies):
            for seed in SEEDS:
                key = (dataset, strategy, seed, "")
                runs.append(run(key, 0.5 - 0.01 * place))
                early = 0.5 if dataset == "ct" else 0.1
                columns: dict[str, object] = {
                    "conflicts": lambda at, early=early, seed=seed: (early if at < 5 else 0.1) + 2 * SPREAD[seed],
                    "cosine_step_resolved": 0.3 + 0.05 * place + SPREAD[seed],
                }
                if strategy.startswith("gcond"):
                    columns |= {"resolved": 0.2, "correction": 0.01 * (1 + SPREAD[seed])}
                    columns |= {"zone_weak": 0.2, "zone_main": 0.004, "zone_critical": 0.0}
                own += steps(key, **columns)
    return runs, own


WINDOWED = {
    "cosine": 0.4, "cosine_disjoint": 0.1, "self_cosine/l1": 0.05, "self_cosine/ssim": 0.6,
    **{f"noise/{task}/{k}": 8.0 / k for task in ("l1", "ssim") for k in (1, 8, 24)},
    **{f"scaled_noise/{task}/{k}": 1.0 for task in ("l1", "ssim") for k in (8, 24)},
    **{f"sign_agreement/{k}": 0.5 + k / 100 for k in (1, 8, 24)},
    **{f"sign_agreement_disjoint/{k}": 0.4 + k / 100 for k in (1, 8, 24)},
}  # fmt: skip


def windowed() -> list[dict[str, object]]:
    return [row for seed in SEEDS for row in windows(("ct", "baseline", seed, ""), WINDOWED)]


COSINES = {"cosine": 0.4, "cosine_disjoint": 0.1, "self_cosine/l1": 0.05, "self_cosine/ssim": 0.6}


def probed(strategies: tuple[str, ...], datasets: tuple[str, ...] = ("photos", "ct")) -> list[dict[str, object]]:
    """COSINES in every group of parameters; the encoder's are .2 lower."""
    values = {
        f"{what}/{group}": value - 0.2 * (group == "encoder")
        for what, value in COSINES.items()
        for group in ("all", "encoder", "body", "head")
    }
    keys = [(dataset, strategy, seed, "") for dataset in datasets for strategy in strategies for seed in SEEDS]
    return [row for key in keys for row in probes(key, values | {"noise/l1/1": 8.0})]

"""Findings that no contrast of two arms expresses, for the claims of study/claims.yaml that name them.

A function of SPECIAL takes the runs of one scale (`tables.runs`), its folder, and the claim's parameters, and returns
rows with columns of `judge.COLUMNS`. With `scale` among the parameters it looks at what belongs to no scale: it gets no
runs, and the folder of all results. Parameters that say where a number lies if the claim is true read as `wants` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from gcond.study import costs, tables
from gcond.study.costs import BASELINE, SEQUENTIAL, STOCHASTIC, Row, exactly
from gcond.study.judge import LEVEL, by_pair, compare, interval, of_seeds
from gcond.study.methods import PAPER_MODEL

Arms = dict[str, pd.DataFrame]

INTEGRATED = "baseline_integrated"
LOSSES, EPOCHS = ("l1", "ssim"), ("best_val", "last_val", "best_test")
LAMBDAS, WEIGHTS = ["lambda_l1", "lambda_ssim"], ["weight_l1", "weight_ssim"]
RATES = ("paper", "own")


def _groups(runs: pd.DataFrame, rates: Sequence[str] = RATES) -> Iterator[tuple[Row, pd.DataFrame]]:
    """The runs of every data set and model at each rate; the same runs once."""
    seen = set()
    for lr in (tables.rate(runs, each) for each in rates):
        for (dataset, model), own in tables.at_rate(runs, lr).groupby(["dataset", "model"], sort=False):
            if (which := tuple(own.index)) not in seen:
                seen.add(which)
                yield {"dataset": dataset, "model": model, "lr": lr, "mode": "train"}, own


def _arms(runs: pd.DataFrame, setting: str = "", mode: str = "train") -> Arms:
    """Strategy -> its runs, indexed by what the runs of a pair share."""
    own = runs[(runs.setting == setting) & (runs.model_mode == mode)]
    return {str(strategy): by_pair(rows) for strategy, rows in own.groupby("strategy")}


def _common(*arms: pd.DataFrame) -> list[pd.DataFrame]:
    index = arms[0].index
    for arm in arms[1:]:
        index = index.intersection(arm.index)
    return [arm.loc[index] for arm in arms]


def _mean(values: pd.Series, factor: float = 1.0, zero: bool = False) -> Row:
    return interval(of_seeds(values[np.isfinite(values)]), factor, zero)


# Noise.


def noise(runs: pd.DataFrame, results: Path, claim: Mapping[str, Any]) -> list[Row]:
    """K x variance over that at K = 1, and windows whose sign of the conflict is right, less those at the smallest K;
    the largest K decides. As probed in training, and at frozen weights (kind window) where that was measured."""
    arms = [
        (about | {"ours": strategy}, own[strategy])
        for about, group in _groups(runs)
        for own in [_arms(group)]
        for strategy in (BASELINE, SEQUENTIAL, STOCHASTIC)
        if strategy in own
    ]
    measured = [(about | {"label": "in training"}, _probed(arm)) for about, arm in arms]
    measured += [(about | {"label": f"{state} weights"}, table) for about, arm in arms
                 for state, table in _windows(results, arm)]  # fmt: skip
    found = []
    for about, table in measured:
        for measure, own in table.T.groupby(lambda name: name.rpartition("/")[0]):
            by_size = own.set_axis(own.index.map(lambda name: int(name.rpartition("/")[2]))).sort_index()
            signs, smallest = "sign" in measure, by_size.iloc[0]
            if signs and (by_size.iloc[[0, -1]] == 1).all(axis=None):  # nothing can be gained
                continue
            for size, values in by_size.drop(index=1, errors="ignore").iterrows():
                effect = _mean(values - smallest, 100, zero=True) if signs else _mean(values)
                wants = claim["signs" if signs else "variance"] if size == by_size.index[-1] else ""
                about_size = {"label": f"{about['label']}, K = {size}", "measure": measure, "wants": wants}
                found.append(about | about_size | {"unit": "%" if signs else "ratio"} | effect)
    return found


def _windows(results: Path, arm: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """By state of the weights, in train mode and over all parameters: a row a run, NAME/K as columns."""
    logs = [tables.log(results, run.log, "window").assign(pair=run.Index) for run in arm.itertuples()]
    rows = pd.concat(logs)
    if "state" in rows:
        rows = rows[(rows["mode"] == "train") & (rows.group == "all")].set_index("pair")
        for state, own in rows.groupby("state"):
            yield str(state), own.filter(regex=r"^(scaled_noise/\w+|sign_agreement|sign_agreement_disjoint)/\d+$")


def _probed(arm: pd.DataFrame) -> pd.DataFrame:
    probes = arm.filter(regex=r"^probe:(noise/\w+|sign_agreement)/\d+$").rename(
        columns=lambda each: each.removeprefix("probe:")
    )
    for name in probes.filter(regex="^noise/"):
        measure, _, size = name.rpartition("/")
        probes[f"scaled_{name}"] = int(size) * probes[name] / probes[f"{measure}/1"]
    return probes.filter(regex="^(scaled_noise|sign_agreement)/").dropna(axis="columns", how="all")


def gradops(runs: pd.DataFrame, results: Path, claim: Mapping[str, Any]) -> list[Row]:
    """What the tests measure (methods.csv; 1: shown) and the trade-off over alpha on three regressions."""
    found: list[Row] = []
    if (results / "methods.csv").exists():
        shown = pd.read_csv(results / "methods.csv").set_index(["strategy", "name"]).verdict
        for strategy, name in product(
            ("gradops", "gradops_alpha"), ("non_conflicting", "PCGrad for two tasks, alpha 0")
        ):
            tested = exactly(float(shown.get((strategy, name)) == "yes"), "> 0")
            found.append({"ours": strategy, "measure": name, "unit": "number"} | tested)
    path = results / "toy" / "tradeoff.csv"
    if path.exists():
        rows = pd.read_csv(path).query("problem == 'regressions'")
        shares = rows.groupby(["alpha", "task"]).value.mean().unstack("task")
        moves = shares.c.is_monotonic_decreasing and shares.b.is_monotonic_increasing
        on_front = (shares.sum(axis="columns") <= claim["front"]).all()
        moved = exactly(100 * (shares.c.iloc[-1] - shares.c.iloc[0]), "< 0", moves and on_front) | {"n": len(shares)}
        label = f"alpha {shares.index[0]:g} to {shares.index[-1]:g}, weakest of three tasks"
        found.append({"label": label, "ours": "gradops_alpha", "measure": "unexplained_share", "unit": "%"} | moved)
    return found


# Runs.


def larger_network(runs: pd.DataFrame, results: Path, claim: Mapping[str, Any]) -> list[Row]:
    """Share of Baseline's steps after which GCond is below Baseline's last validation L1 (2 where it never is), and the
    spread of activations at the end over Baseline's."""
    found = []
    for about, group in _groups(runs[runs.model.str.startswith("convnextv2")]):
        arms = _arms(group)
        for strategy in (STOCHASTIC, SEQUENTIAL):
            if not {strategy, BASELINE} <= set(arms):
                continue
            ours, theirs = _common(arms[strategy], arms[BASELINE])
            logs = zip(ours.log, theirs.log, strict=True)
            shares = pd.Series([_catches_up(results, *pair) for pair in logs], ours.index)
            never = int((shares == 2).sum())
            row = about | {"ours": strategy, "theirs": BASELINE, "unit": "ratio"}
            label = f"{never} of {len(shares)} runs never reach it" if never else ""
            reached = {"label": label, "measure": "steps_to_its_last_l1", "wants": claim["level"]}
            found.append(row | reached | _mean(shares))
            if "activation_std" in ours:
                spread = {"measure": "activation_std", "wants": claim["spread"]}
                found.append(row | spread | _mean(ours.activation_std / theirs.activation_std))
    return [row for row in found if row["n"]]


def _catches_up(results: Path, ours: str, theirs: str) -> float:
    curve, level = tables.log(results, ours, "validation"), tables.log(results, theirs, "validation").iloc[-1]
    below = curve[curve.val_l1 <= level.val_l1]
    return float(below.step.min() / level.step) if len(below) else 2.0


def linear_probes(runs: pd.DataFrame, results: Path, claim: Mapping[str, Any]) -> list[Row]:
    """Rank correlation (Spearman) of .85 L1 + .15 (1 - SSIM) on test after the last epoch with the probe's score, over
    the runs of a seed, and the score of the trained encoder less that of its initial weights and of pixels."""
    runs = runs[runs.seed != tables.TUNING_SEED]
    logs = [tables.log(results, run.log, "linear_probe").assign(at=run.Index) for run in runs.itertuples()]
    probes = pd.concat(logs) if logs else pd.DataFrame()
    if "task" not in probes:
        return []
    runs = runs.assign(loss=tables.selection_loss(runs, "last_test"))
    probes = probes.join(runs[["dataset", "model", "seed", "loss"]], on="at")
    found: list[Row] = []
    for (dataset, model, task), own in probes.groupby(["dataset", "model", "task"], sort=False):
        about = {"label": task, "dataset": dataset, "model": model, "measure": "linear_probe"}
        ranks = interval(_ranks(own, claim["fewest_runs"]), zero=False)
        found.append(about | {"measure": "correlation_of_loss_and_linear_probe", "unit": "correlation"} | ranks)
        means = own.groupby("seed")[["test_score", "untrained_test", "pixels_test"]].mean()
        for column, them in (("untrained_test", "initial weights"), ("pixels_test", "pixels")):
            difference = (means.test_score - means[column]).dropna()
            found.append(about | {"theirs": them, "unit": "difference"} | interval(difference))
    return [row for row in found if row["n"]]


def _ranks(probes: pd.DataFrame, fewest: int) -> list[float]:
    """A correlation a seed; a seed with too few runs, or whose runs are all alike, has none."""
    enough = probes.groupby("seed").filter(lambda own: len(own) >= fewest)
    return [own.loss.corr(own.test_score, method="spearman") for _, own in enough.groupby("seed")
            if own.test_score.nunique() > 1 and own.loss.nunique() > 1]  # fmt: skip


def against_static(runs: pd.DataFrame, results: Path, claim: Mapping[str, Any]) -> list[Row]:
    """Every method against the nearest of Baseline's static weights, and against runs that train one loss only.

    Methods and static weights have the same learning rates to choose from. The nearest setting is the one over
    which the method's largest gain among the losses is smallest (mean over the seeds that all settings have, best
    validation epoch): the method is ahead of the front if one of the losses is lower. delta_m is the mean of the
    relative changes of L1 and SSIM (Maninis et al. 2019), mean the relative change of their plain mean. `claim`:
    settings that all have (with), losses.
    """
    found: list[Row] = []
    common, losses = tables.setting(claim.get("with", {})), claim.get("losses", LOSSES)
    for about, group in _groups(runs, (*RATES, "best")):
        arms = _arms(group, common)
        settings = [setting for setting in sorted(set(group.setting)) if _without_weights(setting) == common
                    and _sum_to_1(group[group.setting == setting], losses)]  # fmt: skip
        static = {setting: own[BASELINE] for setting in settings if BASELINE in (own := _arms(group, setting))}
        alone = {} if common else {loss: _arms(group, f"loss={loss}").get(BASELINE) for loss in LOSSES}
        for strategy, arm in arms.items():
            row = about | {"ours": strategy, "unit": "%"}
            if len(static) > 1 and strategy != BASELINE and BASELINE in arms:
                found += [row | each for each in _nearest(arm, static, arms[BASELINE], losses)]
            if alone and all(single is not None for single in alone.values()):
                found += [row | {"label": "against single tasks"} | each for each in _deltas(arm, alone)]
    return [row for row in found if row["n"]]


def _sum_to_1(runs: pd.DataFrame, losses: Sequence[str]) -> bool:
    """The lambdas of static weights on the front. Frozen weights need not."""
    return bool(np.isclose(runs.filter([f"lambda_{loss}" for loss in losses]).sum(axis="columns"), 1).all())


def _without_weights(setting: str) -> str:
    return tables.setting({key: value for key, value in tables.overrides(setting).items() if key != "loss.tasks"})


def _nearest(arm: pd.DataFrame, static: Arms, base: pd.DataFrame, losses: Sequence[str] = LOSSES) -> Iterator[Row]:
    arm, base, *points = _common(arm, base, *static.values())
    static = dict(zip(static, points, strict=True))
    gaps = {setting: max(-compare(arm, point, base, loss)["effect"] for loss in losses)
            for setting, point in static.items()}  # fmt: skip
    ahead = pd.Series(gaps).dropna()
    if len(ahead):
        nearest = static[str(ahead.idxmin())]
        named = f"nearest of {len(ahead)} static weights, {_lambdas(nearest, losses)}"
        for loss, epoch in product(losses, EPOCHS):
            row = {"label": named, "theirs": BASELINE, "of": BASELINE, "measure": loss, "epoch": epoch}
            yield row | compare(arm, nearest, base, loss, epoch)


def _deltas(arm: pd.DataFrame, alone: Mapping[str, pd.DataFrame]) -> Iterator[Row]:
    ours, *singles = _common(arm, *alone.values())
    for epoch in EPOCHS:
        columns = [f"{epoch}_{loss}" for loss in LOSSES]
        reference = pd.concat([each[name] for each, name in zip(singles, columns, strict=True)], axis="columns")
        change = ours[columns] - reference
        means = {"delta_m": change / reference.mean(), "mean": change / reference.mean().mean()}
        for measure, relative in means.items():
            effect = _mean(relative.mean(axis="columns", skipna=False), 100, zero=True)
            yield {"measure": measure, "epoch": epoch} | effect


def _lambdas(arm: pd.DataFrame, losses: Sequence[str] = LOSSES) -> str:
    return " ".join(f"{loss}:{arm[f'lambda_{loss}'].iloc[0]:g}" for loss in losses)


# Frozen weights: a method writes d = sum_i w_i lambda_i g_i at every step. The static run has lambda_i times the mean
# of w_i over steps and seeds as its lambdas, and the method's own update. One setting for all seeds: it is what
# somebody would set, no score has chosen it, and an arm needs one name.

UPDATES = {STOCHASTIC: INTEGRATED, SEQUENTIAL: INTEGRATED}  # method -> what has its update and resolves nothing
UPDATES |= dict.fromkeys(["gcond_pure", "cagrad", "gradnorm", "pcgrad"], BASELINE)
DIGITS = 3  # significant, of a static lambda: the same average always gives the same run
NEAR = 0.01  # recorded lambdas that are all so close stand for the average, so that seeds may be added


def _frozen(group: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """(method, strategy, setting) of the static run, recorded or to be made; of methods whose weights are recorded."""
    group = group[group.model_mode == "train"]
    static = group[[not _without_weights(setting) for setting in group.setting]]
    for method, base in UPDATES.items():
        own = group[(group.strategy == method) & (group.setting == "")]
        if own.reindex(columns=WEIGHTS).isna().all().any():
            continue
        wanted = own[LAMBDAS].iloc[0] * own.groupby("seed")[WEIGHTS].mean().mean().to_numpy()
        recorded = static[static.strategy == base]
        distance = (recorded[LAMBDAS] / wanted - 1).abs().max(axis="columns", skipna=False)
        near = distance.groupby(recorded.setting).min()
        text = ",".join(f"{loss}:{value:.{DIGITS}g}" for loss, value in zip(LOSSES, wanted, strict=True))
        yield method, base, str(near.idxmin()) if near.min() <= NEAR else f"loss.tasks={{{text}}}"


def frozen_weights(runs: pd.DataFrame, results: Path, claim: Mapping[str, Any]) -> list[Row]:
    """The frozen run against the method, and the share of the method's difference to Baseline that it has too: 1 if
    nothing is lost, with Fieller's interval, and without one where the method may not differ from Baseline at all."""
    found: list[Row] = []
    for about, group in _groups(runs):
        arms = _arms(group)
        for method, base, setting in _frozen(group):
            static = _arms(group, setting).get(base)
            if static is None or BASELINE not in arms:
                continue
            row = about | {"label": f"frozen at {_lambdas(static)}, {base}", "ours": method}
            baseline, resolved, kept = _common(arms[BASELINE], arms[method], static)
            for loss, epoch in product(LOSSES, EPOCHS):
                name = f"{epoch}_{loss}"
                share = ratio(of_seeds(baseline[name] - kept[name]), of_seeds(baseline[name] - resolved[name]))
                where = {"measure": loss, "epoch": epoch}
                kept_share = {"theirs": BASELINE, "measure": f"share_kept/{loss}", "unit": "ratio"}
                found.append(row | where | kept_share | share)
                differs = compare(static, arms[method], None, loss, epoch)
                found.append(row | where | {"ours": base, "theirs": method, "unit": "%"} | differs)
    return [row for row in found if row["n"]]


def static_weights(runs: pd.DataFrame, datasets: Sequence[str] | None = None) -> list[list[str]]:
    """Hydra overrides for a sweep for each data set and update: the static runs of O9, at the scale's learning rate.

    Raises ValueError where no recorded run has weights.
    """
    found = [
        {"dataset": about["dataset"], "model": about["model"], "base": base, "weights": setting}
        for about, group in _groups(runs, ("own",))
        if not datasets or about["dataset"] in datasets
        for _, base, setting in _frozen(group)
    ]
    if not found:
        raise ValueError("`runs`: found none of a method that weighs the tasks; reproduce-table2 makes them")
    table = pd.DataFrame(found)
    table = table[table.weights != ""].assign(weights=table.weights.str.removeprefix("loss.tasks="))
    return [
        [f"dataset={dataset}", *([f"model={model}"] if model != PAPER_MODEL else []), f"strategy={base}",
         f"loss.tasks={','.join(own.unique())}"]
        for (dataset, model, base), own in table.groupby(["dataset", "model", "base"], sort=False).weights
    ]  # fmt: skip


def ratio(ours: np.ndarray, theirs: np.ndarray) -> Row:
    """mean(ours) / mean(theirs) over seeds, with Fieller's 95 % interval; nan bounds where mean(theirs) may be zero."""
    n = len(ours)
    over, under = (float(np.mean(each)) if n else math.nan for each in (ours, theirs))
    low = high = math.nan
    if n > 1:
        covariance = np.cov(ours, theirs, ddof=1) / n
        square = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) ** 2
        # (over - r under)^2 <= t^2 var(a - r b): a parabola in r, open upwards where `under` is clearly not zero
        x = under**2 - square * covariance[1, 1]
        y = over * under - square * covariance[0, 1]
        z = over**2 - square * covariance[0, 0]
        if x > 0:
            root = math.sqrt(max(0.0, y * y - x * z))
            low, high = (y - root) / x, (y + root) / x
    return {"n": n, "effect": over / under + 0.0 if under else math.nan, "low": low, "high": high}


SPECIAL: dict[str, Callable[[pd.DataFrame, Path, Mapping[str, Any]], list[Row]]] = {
    each.__name__: each
    for each in (costs.step_time, costs.memory_against_window_and_tasks,
                 costs.base_in_16_gb, costs.bfloat16_in_one_step, noise, gradops,
                 larger_network, linear_probes, against_static, frozen_weights)
}  # fmt: skip

"""Findings: the contrasts of study/claims.yaml, measured on recorded runs, and the verdict that they add up to.

A contrast compares two arms run by run: pairs share the seed, the machine, the data and the number of images. The seed
is the unit; a 95 % t-interval over seeds decides, and the sign-flip p stands beside it. With n seeds p is at least
2 / 2^n, so fewer than FEWEST are always undecided. "Equal" needs an equivalence test (TOST) with a stated margin.

    contrast   ours, theirs, of, measure, group, epoch, lr, mode: a name or a list; all combinations are compared
      ours     strategies; `all`: every one that ran
      theirs   none: the mean of ours alone (`as: single`); same: the strategy of ours
      of       percent of this strategy's mean, over the seeds that all have (default: of theirs)
      as       percent (of accuracies: points), log (percent of a ratio, from logs), diff, single, distance (percent, of
               either sign)
      with     overrides that both arms have; ours_with, ours_lr, ours_mode: what only ours has
      theirs_again: overrides of a second training of theirs, with which it is averaged by pair
      dataset  a data set, or its kind: ct, photographs
      over     patients: with the same over patients or classes (group "patients"), where the runs logged them; what it
               says of the contrast stands in its row, and decides no claim
      wants    "< 0", "> 0.9", "in [0.8, 1.25]", "equal within 2"; none for a question
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from gcond.files import write_text
from gcond.study import tables
from gcond.study.methods import PAPER_MODEL, facts, kind, ordered

FEWEST = 6  # seeds of a verdict: 2 / 2^6 = .031
SHOWN = 3  # of the answer to a question, which is a number with its interval
LEVEL = 0.95
MOST, DRAWS = 24, 20_000  # seeds whose 2^n sign flips are all counted; patterns drawn beyond
HOLDS, CONTRADICTED, UNDECIDED, NOT_RUN = "holds", "contradicted", "undecided", "not run"
SCALES = ("paper", "study", "study_gpu", "sample", "sample_gpu", "mini", "smoke")  # the first that decides, decides
DECIDING = ("", "best_val")  # epochs; the others stand beside them

TEXT = ["claim", "label", "scale", "dataset", "model", "ours", "theirs", "of", "mode", "lr", "measure", "group",
        "epoch", "unit"]  # fmt: skip
COLUMNS = [*TEXT, "n", "dropped", "effect", "low", "high", "p", "wants", "verdict", "against"]
DEFAULTS = {"label": "", "theirs": "", "epoch": "", "lr": "own", "mode": "train", "group": ""}
UNITS = {"conflicts": "share", "resolved": "share", "correction": "share", "zone": "number", "probe:": "cosine",
         "cosine": "cosine"}  # fmt: skip
MEANS = ("mean", "mean3", "weighted")  # over the tasks of a run, beside its single losses
TASKS = ("l1", "ssim", "flipped", "class")
ACCURACIES = ("top1", "top5")  # recorded as fractions, told in percent and compared in points

Effect = dict[str, Any]  # n, effect (a mean), low, high, p


# A number with its interval.


def interval(values: Sequence[float] | np.ndarray, factor: float = 1.0, zero: bool = True) -> Effect:
    """Mean over seeds, times `factor`, its 95 % t-interval and the sign-flip p of "it is zero" where that is asked."""
    values = np.asarray(values, dtype=float)
    n = len(values)
    mean, half = (float(values.mean()) if n else math.nan), math.nan
    if n > 1:
        half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    low, high = sorted((factor * (mean - half), factor * (mean + half)))
    return {"n": n, "effect": factor * mean, "low": low, "high": high, "p": sign_flip(values) if zero else math.nan}


def sign_flip(values: Sequence[float] | np.ndarray) -> float:
    """Share of all 2^n sign patterns whose |sum| is at least the observed one; nan without values.

    Beyond MOST values of DRAWS patterns from a fixed seed, the observed one among them, so that the test keeps its
    level (Phipson and Smyth 2010).
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    if not n:
        return math.nan
    observed = abs(values.sum()) - 1e-12 * np.abs(values).sum()
    if n > MOST:
        sums = values @ _signs(n)
        return float((np.count_nonzero(np.abs(sums) >= observed) + 1) / (DRAWS + 1))
    sums = values[:1]  # the first keeps its sign: |sum| is that of the opposite pattern
    for value in values[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= observed))


@lru_cache(maxsize=8)
def _signs(n: int) -> np.ndarray:
    return 1.0 - 2 * np.random.default_rng(0).integers(2, size=(n, DRAWS))


def compare(
    ours: pd.DataFrame,
    theirs: pd.DataFrame | None,
    of: pd.DataFrame | None = None,
    measure: str = "l1",
    epoch: str = "best_val",
    how: str = "percent",
    again: pd.DataFrame | None = None,
) -> Effect:
    """ours - theirs over pairs of runs (rows of `tables.runs`); of ours alone without theirs. Of theirs and `again`,
    a second training of the same, the mean counts. Accuracies differ by points, but for log.

    `dropped`: seeds that both have, but not of one machine, images and length. Several pairs of a seed count as their
    mean. Raises ValueError where an arm has one run twice.
    """
    ours = by_pair(ours)
    if theirs is None:
        return interval(of_seeds(_values(ours, measure, epoch)), zero=False) | {"dropped": 0}
    theirs = by_pair(theirs)
    base = theirs if of is None else by_pair(of)
    common = ours.index.intersection(theirs.index)
    dropped = len(set(ours.seed) & set(theirs.seed)) - common.map(_seed).nunique()
    if measure == "mean3":
        base = base[base.index.isin(common)]
    x, y, z = (_values(rows, measure, epoch, base) for rows in (ours, theirs, base))
    if again is not None:
        y = (y + _values(by_pair(again), measure, epoch, base)).dropna() / 2
    x, y = x.align(y, join="inner")
    z = z[z.index.isin(x.index)]
    if how == "log":
        logs = interval(of_seeds(np.log(x) - np.log(y)))
        return logs | {end: 100 * math.expm1(logs[end]) for end in ("effect", "low", "high")} | {"dropped": dropped}
    factor = 1.0 if unit(measure, how) != "%" else 100 / z.mean() if len(z) else math.nan
    if how == "distance":
        return interval(of_seeds((x - y).abs()), factor, zero=False) | {"dropped": dropped}
    return interval(of_seeds(x - y), factor) | {"dropped": dropped}


def over_patients(ours: pd.DataFrame, theirs: pd.DataFrame, of: pd.DataFrame | None, losses: pd.DataFrame) -> Effect:
    """ours - theirs with the patient (or class) as the unit: each one's mean over pairs of runs, in percent of the mean
    over patients. `losses`: a row a patient, a column a log."""
    arms = [by_pair(each).log for each in (ours, theirs, theirs if of is None else of)]
    common = [pair for pair in arms[0].index.intersection(arms[1].index)
              if arms[0][pair] in losses and arms[1][pair] in losses]  # fmt: skip
    x, y = (losses[logs[common]].to_numpy() for logs in arms[:2])
    difference = pd.DataFrame(x - y).mean(axis="columns").dropna()
    base = losses[[log for pair, log in arms[2].items() if pair in common and log in losses]]
    return interval(difference, 100 / base.mean(axis="columns").mean() if len(difference) else math.nan)


def by_pair(runs: pd.DataFrame) -> pd.DataFrame:
    """Indexed by what the runs of a pair share."""
    if runs.index.name == "pair":
        return runs
    indexed = runs.set_index(pd.Index(runs.pair if "pair" in runs else _pairs(runs), name="pair")).sort_values("seed")
    if indexed.index.has_duplicates:
        twice = indexed[indexed.index.duplicated()].iloc[0]
        raise ValueError(f"`runs`: expected one run a seed, found {twice['name']} and another of seed {twice.seed}")
    return indexed


def _pairs(runs: pd.DataFrame) -> list[str]:
    images = runs.steps * runs.accumulation_steps * runs.micro_batch
    parts = zip(runs.seed, tables.machines(runs), runs.data_checksum, images, strict=True)
    return ["|".join(map(str, each)) for each in parts]


def of_seeds(values: pd.Series) -> np.ndarray:
    seeds = values.index.map(_seed)
    return (values if seeds.is_unique else values.groupby(seeds).mean()).to_numpy(dtype=float)


def _seed(pair: str) -> int:
    return int(pair.split("|", 1)[0])


def _values(runs: pd.DataFrame, measure: str, epoch: str, base: pd.DataFrame | None = None) -> pd.Series:
    """A number a run, accuracies in percent; runs without a finite one are left out. `base`: `mean3` takes percentages
    of its means, and `weighted` adds up with its weights."""

    def column(name: str) -> pd.Series:
        name = f"train_{name}_tail" if epoch == "train_tail" else f"{epoch}_{name}" if epoch else name
        return runs[name].astype(float) if name in runs else pd.Series(math.nan, runs.index)

    if measure not in MEANS:
        values = column(measure) * (100 if measure in ACCURACIES else 1)
    else:
        weights = {task: runs[f"lambda_{task}"] for task in TASKS if runs.get(f"lambda_{task}", pd.Series()).any()}
        losses = {task: column(task) for task in weights}
        if measure == "mean3":
            means = {task: _values(runs if base is None else base, task, epoch).mean() for task in weights}
            losses = {task: loss / means[task] for task, loss in losses.items()}
        if measure == "weighted" and base is not None and len(base):
            weights = {task: float(base[f"lambda_{task}"].iloc[0]) for task in weights}
        if measure != "weighted":
            weights = dict.fromkeys(weights, 1 / max(1, len(weights)))
        values = sum((weights[task] * losses[task] for task in weights), pd.Series(0.0, runs.index))
        values = values if weights else values * math.nan
    return values[np.isfinite(values)]


# What a claim says of it.


def region(wants: str) -> tuple[float, float]:
    """Where the number lies if the claim is true. Raises ValueError for other words than those of the contrast."""
    try:
        if wants.startswith("equal within"):
            margin = float(wants.removeprefix("equal within"))
            return -margin, margin
        if wants.startswith("in"):
            low, high = map(float, wants[2:].strip(" []").split(","))
            return low, high
        bound = float(wants[1:])
        return {"<": (-math.inf, bound), ">": (bound, math.inf)}[wants[0]]
    except (KeyError, ValueError, IndexError):
        raise ValueError(f'`wants`: expected "< x", "> x", "in [a, b]" or "equal within x", found {wants!r}') from None


def verdict(effect: Effect, wants: str) -> str:
    """Does the interval lie within the region (holds), wholly outside (contradicted), or neither? "" without one.

    "equal": two one-sided tests at 5 % each, which is a 90 % interval within the margin.
    """
    if not wants:
        return ""
    (lowest, highest), (low, high) = region(wants), (effect["low"], effect["high"])
    if effect["n"] < FEWEST or math.isnan(low) or math.isnan(high):
        return UNDECIDED
    if low > highest or high < lowest:
        return CONTRADICTED
    if wants.startswith("equal"):
        free = effect["n"] - 1
        half = (high - low) / 2 * stats.t.ppf(LEVEL, free) / stats.t.ppf((1 + LEVEL) / 2, free)
        low, high = effect["effect"] - half, effect["effect"] + half
    return HOLDS if lowest < low and high < highest else UNDECIDED


def against(effect: Effect, wants: str, how: str = "t") -> float:
    """Two-sided p of the mean lying outside the region by chance; 1 where it lies inside, nan without an interval.

    `how`: of the t-test; of one on logs, of which the percentages were made; of the normal with the same interval.
    """
    if not wants:
        return math.nan
    mean, low, high, *bounds = (effect["effect"], effect["low"], effect["high"], *region(wants))
    if how == "log":
        with np.errstate(invalid="ignore", divide="ignore"):
            mean, low, high, *bounds = np.log1p(np.array([mean, low, high, *bounds]) / 100)
    if bounds[0] <= mean <= bounds[1]:
        return 1.0
    if effect["n"] < 2 or math.isnan(low):
        return math.nan
    distribution = stats.norm() if how == "normal" else stats.t(effect["n"] - 1)
    error = (high - low) / 2 / distribution.ppf((1 + LEVEL) / 2)
    distance = abs(mean - bounds[int(mean > bounds[1])])
    return float(2 * distribution.sf(distance / error)) if error else 0.0


def conjunction(found: pd.DataFrame, complete: bool = True) -> str:
    """Holds if every finding holds (intersection-union) and none is missing; contradicted if one is, its p adjusted
    over all of them (Holm), since the more are looked at the sooner one looks bad by chance."""
    tested = found[found.against.notna()].sort_values("against", kind="stable")
    adjusted = (tested.against * np.arange(len(tested), 0, -1)).cummax()
    if ((tested.verdict == CONTRADICTED) & (adjusted <= 1 - LEVEL + 1e-12)).any():
        return CONTRADICTED
    return HOLDS if complete and len(found) and (found.verdict == HOLDS).all() else UNDECIDED


# Contrasts.


def judge(claims: Mapping[str, Mapping[str, Any]], runs: pd.DataFrame, results: Path | None = None) -> pd.DataFrame:
    """The findings of every claim, a row a comparison that ran. `runs`: of `tables.runs`.

    Claims that no contrast expresses have `special: {NAME: parameters}` of gcond.study.special, which reads the logs in
    `results`, the folder of the runs; they are left out without it.
    """
    rows: list[dict[str, Any]] = []
    for scale, own in runs.assign(pair=_pairs(runs)).groupby("scale", sort=False):
        arms = cache(partial(_arms, own))
        patients = partial(_patients, results, tuple(own.log)) if results else None
        for name, claim in claims.items():
            found: list[dict[str, Any]] = []
            for contrast in claim.get("contrasts", ()):
                lr = [tables.rate(own, each) for each in _listed(contrast.get("lr", DEFAULTS["lr"]))]
                found += _contrast(contrast | {"lr": lr}, arms, patients)
            found += _special(claim, own, results) if results else []
            rows += [row | {"claim": name, "scale": scale} for row in found]
    return _table(rows)


def _special(claim: Mapping[str, Any], runs: pd.DataFrame | None, results: Path) -> list[dict[str, Any]]:
    """Of the `runs` of one scale; without them of what belongs to no scale, and names one of its own."""
    from gcond.study.special import SPECIAL

    rows: list[dict[str, Any]] = []
    for name, parameters in claim.get("special", {}).items():
        if name not in SPECIAL:
            raise ValueError(f"`special` of study/claims.yaml: expected one of {', '.join(SPECIAL)}, found {name!r}")
        if ("scale" in parameters) == (runs is None):
            found = SPECIAL[name](pd.DataFrame() if runs is None else runs, results, parameters)
            rows += [{"scale": parameters.get("scale")} | row for row in found]
    return rows


def has_scale(claim: Mapping[str, Any]) -> bool:
    """It is judged on runs, and not on benchmarks or tests alone."""
    return "contrasts" in claim or any("scale" not in each for each in claim.get("special", {}).values())


def _table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """With verdicts where a row brings none."""
    empty = dict.fromkeys([*TEXT, "wants"], "") | {"dropped": 0, "p": math.nan}
    filled = []
    for row in rows:
        row = empty | row
        how = row.pop("how", "t")
        if "verdict" not in row:
            row |= {"verdict": verdict(row, row["wants"]), "against": against(row, row["wants"], how)}
        filled.append(row)
    return pd.DataFrame(filled, columns=COLUMNS)


def _arms(runs: pd.DataFrame, lr: str) -> dict[tuple[str, str], dict[str, Arms]]:
    """(data set, model) -> setting -> the arms at one rate."""
    return {
        place: {str(setting): Arms(same) for setting, same in own.groupby("setting")}
        for place, own in tables.at_rate(runs, lr).groupby(["dataset", "model"], sort=False)
    }


class Arms(dict[tuple[str, str], Callable[[], pd.DataFrame]]):
    """(strategy, model mode) -> its runs by pair, when they are asked for. `rows`: all their places in the table."""

    def __init__(self, runs: pd.DataFrame | None = None) -> None:
        self.rows = frozenset[int]() if runs is None else frozenset(runs.index)
        if runs is not None:
            arms = runs.groupby(["strategy", "model_mode"])
            super().__init__({arm: cache(partial(by_pair, own)) for arm, own in arms})


@lru_cache(maxsize=64)
def _patients(results: Path, logs: tuple[str, ...], measure: str, epoch: str) -> pd.DataFrame:
    """The losses of each patient or class, a column a log; without columns where none has them."""
    rows, (at, split) = _logged_by_patient(results, logs), epoch.split("_")
    if measure not in rows:
        return pd.DataFrame()
    rows = rows[(rows["at"] == at) & (rows["split"] == split)]
    return rows.pivot(index="group", columns="log", values=measure)


@lru_cache(maxsize=4)
def _logged_by_patient(results: Path, logs: tuple[str, ...]) -> pd.DataFrame:
    rows = [tables.log(results, name, "groups").assign(log=name) for name in logs]
    return pd.concat([each for each in rows if len(each)] or [pd.DataFrame()])


def _contrast(
    contrast: Mapping[str, Any],
    arms: Callable[[str], dict[tuple[str, str], dict[str, Arms]]],
    patients: Callable[[str, str], pd.DataFrame] | None,
) -> Iterator[dict[str, Any]]:
    lists = {name: _listed(contrast.get(name, DEFAULTS.get(name))) for name in (*DEFAULTS, "ours", "measure")}
    setting = tables.setting(contrast.get("with", {}))
    changed, repeated = (
        tables.setting(contrast.get("with", {}) | contrast.get(name, {})) for name in ("ours_with", "theirs_again")
    )
    seen: set[frozenset[int]] = set()
    for lr in map(str, lists["lr"]):
        others = arms(str(contrast.get("ours_lr", lr)))
        for (dataset, model), settings in arms(lr).items():
            theirs, ours, again = (settings.get(each, Arms()) for each in (setting, changed, repeated))
            rows = theirs.rows | ours.rows | again.rows
            if not rows or contrast.get("dataset", dataset) not in (dataset, kind(dataset)) or rows in seen:
                continue
            seen.add(rows)  # the same runs under another name of the rate
            about = {"label": contrast.get("label", ""), "dataset": dataset, "model": model, "lr": lr}
            ours = others.get((dataset, model), {}).get(changed, Arms())
            for row in _compared(contrast, lists, ours, theirs, again, patients):
                yield about | row


def _compared(
    contrast: Mapping[str, Any],
    lists: Mapping[str, list[Any]],
    ours: Arms,
    theirs: Arms,
    again: Arms,
    patients: Callable[[str, str], pd.DataFrame] | None,
) -> Iterator[dict[str, Any]]:
    names = ordered({strategy for strategy, _ in ours}) if lists["ours"] == ["all"] else lists["ours"]
    how = contrast.get("as", "percent")
    for mode, us, them in itertools.product(lists["mode"], names, lists["theirs"]):
        them = us if them == "same" else them
        a, b = ours.get((us, contrast.get("ours_mode", mode))), theirs.get((them, mode))
        of = theirs.get((contrast.get("of", ""), "train"))
        c = again.get((them, mode)) if "theirs_again" in contrast else None  # else it is theirs, counted already
        if (
            a is None
            or (them and b is None)
            or ("of" in contrast and of is None)
            or ("theirs_again" in contrast and c is None)
        ):
            continue
        a, b, of, c = (None if arm is None else arm() for arm in (a, b, of, c))
        for measure, group, epoch in itertools.product(lists["measure"], lists["group"], lists["epoch"]):
            effect = compare(a, b, of, f"{measure}/{group}" if group else measure, epoch, how, c)
            about = {"ours": us, "theirs": them, "of": contrast.get("of", ""), "mode": mode, "measure": measure,
                     "group": group, "epoch": epoch, "unit": unit(measure, how)}  # fmt: skip
            about["wants"] = contrast.get("wants", "")
            if effect["n"]:
                yield about | effect | {"how": "log" if how == "log" else "t"}
            if contrast.get("over") == "patients" and patients and epoch.startswith(("best", "last")) and b is not None:
                held = over_patients(a, b, of, patients(measure, epoch))
                if held["n"]:
                    yield about | held | {"group": "patients", "wants": ""}  # which decides nothing


def unit(measure: str, how: str) -> str:
    if measure in ACCURACIES and how != "log":
        return "share" if how == "single" else "points"
    if how in ("percent", "log", "distance"):
        return "%"
    return next((unit for start, unit in UNITS.items() if measure.startswith(start)), "number")


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


# Verdicts.


def verdicts(claims: Mapping[str, Mapping[str, Any]], findings: pd.DataFrame) -> pd.DataFrame:
    """A row a claim: claim, verdict (holds, contradicted, undecided, not run; "" of a question), scale, and the other
    columns of the finding that decides it: of a claim the weakest, of a question that which its `shows` names."""
    return pd.DataFrame([_verdict(name, claim, findings[findings.claim == name]) for name, claim in claims.items()],
                        columns=["claim", *(name for name in COLUMNS if name != "claim")])  # fmt: skip


def _verdict(name: str, claim: Mapping[str, Any], found: pd.DataFrame) -> dict[str, Any]:
    empty = dict.fromkeys([*TEXT, "wants"], "") | {"claim": name, "verdict": NOT_RUN, "n": 0, "dropped": 0}
    decisive = found[found.epoch.isin(DECIDING) & (found.group != "patients")]
    if PAPER_MODEL in set(decisive.model):  # benchmarks and plans have no scale, and are of several models
        decisive = decisive[decisive.model.isin([PAPER_MODEL, ""]) | ~decisive.scale.isin(SCALES)]
    if not len(decisive):
        return empty
    if not decisive.wants.any():  # a question
        kinds = decisive.assign(dataset=decisive.dataset.map(kind))
        shows = [kinds[column] == value for column, value in claim.get("shows", {}).items()]
        shown = decisive[np.logical_and.reduce(shows)] if shows else decisive
        shown = shown if len(shown) else decisive
        return dict(shown[shown.scale == _largest_scale(shown, SHOWN)].iloc[0])
    decisive = decisive[decisive.wants != ""]
    if not name.startswith("O") and (decisive.lr == "paper").any():  # a claim of the paper is one at its rate
        decisive = decisive[decisive.lr == "paper"]
    own = decisive[decisive.scale == _largest_scale(decisive, FEWEST)]
    complete = all(_ran(contrast, own) for contrast in claim.get("contrasts", ()) if contrast.get("wants"))
    return dict(_weakest(own)) | {"verdict": conjunction(own, complete)}


def _largest_scale(found: pd.DataFrame, seeds: int) -> str:
    """The largest with a comparison of so many seeds, else the largest; what belongs to no scale comes last."""
    scales = sorted(set(found.scale), key=lambda scale: SCALES.index(scale) if scale in SCALES else len(SCALES))
    enough = [scale for scale in scales if (found[found.scale == scale].n >= seeds).any()]
    return str((enough or scales)[0])


def _ran(contrast: Mapping[str, Any], found: pd.DataFrame) -> bool:
    """Every comparison of the contrast, on both kinds of images where it names none."""
    kinds = [kind(contrast["dataset"])] if "dataset" in contrast else ["ct", "photographs"]
    names = [_listed(contrast.get(name, DEFAULTS.get(name))) for name in ("ours", "theirs", "measure", "label")]
    there = set(zip(found.dataset.map(kind), found.ours, found.theirs, found.measure, found.label, strict=True))
    asked = itertools.product(kinds, *names)
    return {(a, ours, ours if them == "same" else them, *rest) for a, ours, them, *rest in asked} <= there


def _weakest(found: pd.DataFrame) -> pd.Series:
    """That whose interval sticks out of its region furthest, of those with the worst verdict."""
    lowest, highest = (pd.Series(ends, found.index) for ends in zip(*found.wants.map(region), strict=True))
    slack = np.maximum(found.high.fillna(found.effect) - highest, lowest - found.low.fillna(found.effect))
    worst = found.verdict.map([CONTRADICTED, UNDECIDED, HOLDS].index)
    return found.assign(worst=worst, slack=-slack).sort_values(["worst", "slack"], kind="stable").iloc[0][found.columns]


# All scales of a folder.


def findings(results: Path, names: Sequence[str] = (), scale: str = "*", seeds: Sequence[int] = ()) -> pd.DataFrame:
    """Of every scale recorded below `results` (or of one), and of what belongs to no scale; all claims or `names`, of
    all seeds or `seeds`."""
    claims = {name: claim for name, claim in facts("claims").items() if not names or name in names}
    folders = sorted(path.parent for path in results.glob(f"{scale}/runs.csv"))
    recorded = {folder: tables.runs(folder) for folder in folders}
    found = [judge(claims, runs[runs.seed.isin(seeds or runs.seed)], folder) for folder, runs in recorded.items()]
    rows = [row | {"claim": name} for name, claim in claims.items() for row in _special(claim, None, results)]
    found = [each for each in (*found, _table(rows)) if len(each)] or [_table([])]
    order = {name: place for place, name in enumerate(claims)}
    return pd.concat(found).sort_values("claim", key=lambda own: own.map(order), kind="stable").reset_index(drop=True)


def read(path: Path) -> pd.DataFrame:
    """findings.csv as `findings` returned it. Raises ValueError where there is none."""
    if not path.exists():
        raise ValueError(f"expected {path}, which does not exist; `gcond study report` makes it")
    return pd.read_csv(path, dtype=dict.fromkeys([*TEXT, "wants", "verdict"], str), keep_default_na=False,
                       na_values=dict.fromkeys(["effect", "low", "high", "p", "against"], ""))  # fmt: skip


def write(results: Path) -> Path:
    """results/findings.csv."""
    path = results / "findings.csv"
    write_text(path, findings(results).to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return path

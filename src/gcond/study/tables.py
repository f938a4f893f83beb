"""Recorded runs: a folder of results has a row a run, and what each run logged.

    runs.csv           a row a run: what it is, its settings as columns, what it cost, and its numbers
    pictures/NAME.npz  what its last weights make of four photographs, of Table 2's runs of seed 11
    logs/NAME.parquet  all that the run logged, a row a record; `kind` is step, validation, probe, activations, final,
                       groups (one patient or class at the best or last epoch) or trivial (a predictor without
                       training), and, measured on its weights afterwards, window or linear_probe

results/study is one such folder, results/<scale> and the user's reproduced/<scale> are others. NAME ends in the
fingerprint of the machine's arithmetic, so that a run and its repetition elsewhere stand side by side; older runs have
none, and logged bins of steps (`first_step` to `last_step`, see `steps`) instead of single ones.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from gcond.engine import metrics_log
from gcond.engine.run_folder import flat, read_report, read_yaml
from gcond.engine.run_state import PAPER_WEIGHTS
from gcond.files import write_atomically, write_text
from gcond.study.methods import PAPER_MODEL, facts, kind

ABOUT = ("name", "arithmetic", "status", "hash", "data_checksum", "commit", "dirty", "device", "torch", "python",
         "started")  # fmt: skip
SETTINGS = {  # column -> where config.yaml has it
    **{name: f"{name}.name" for name in ("scale", "dataset", "model", "strategy")},
    "seed": "seed",
    "lr": "optimizer.lr",
    "lr_scale": "strategy.lr_scale",
    "model_mode": "strategy.model_mode",
    **{name: f"scale.{name}" for name in ("accumulation_steps", "micro_batch", "image_size")},
    **{f"lambda_{task}": f"loss.tasks.{task}" for task in ("l1", "ssim", "flipped", "class")},
    "flip_strength": "loss.reconstruction.flip_strength",
    "labels": "loss.labels",
    "precision": "precision",
}
COST = ("seconds", "cpu_seconds", "load_start", "load_end", "peak_memory_mb", "steps", "skipped_steps", "epochs")
TITLES = ("dataset_title", "error")  # that younger tables have
TEXT = (*ABOUT, "variant", "dataset", "model", "strategy", "scale", "model_mode", "labels", "precision", *TITLES)
KEY = ["dataset", "seed", "strategy", "lr", "name"]
DONE, FAILED, UNFINISHED = "done", "failed", "unfinished"
AFTERWARDS = ("window", "linear_probe")  # kinds that scripts add to a recorded log

BINS = 50
MINIMA = {  # of `steps`: the smallest of a bin; every other number is a mean
    "cosine_min": "cosine/all",
    "cosine_resolved_min": "cosine_resolved/all",
    "published_cosine": "gcond/min_cosine_as_published",  # what the published code would have logged
}
MEANS = ("resolved_norm", "norm_jump", "cosine_min", "cosine_resolved_min", "published_cosine", "cosine_step_resolved",
         "clipped", "zone/weak", "zone/main", "zone/critical")  # fmt: skip
PERCENT = ("resolved", "correction")
PLACES = ("step", "first_step", "last_step")
EARLY, PLATEAU = 0.2, 0.8  # shares of the steps: the early phase ends, the plateau begins
BESIDE = ("optimizer.lr", "strategy.model_mode", "scale.steps_per_epoch")  # not of a `setting`: columns tell them
FULL_STRENGTH = ("loss.reconstruction.flip_strength", "1.0")  # is the loss's own
ARM = ["dataset", "model", "strategy", "model_mode", "setting"]
PAPER_LR = 2e-4
PICTURED = 11  # the seed whose pictures are recorded
TUNING_SEED = 101  # of study/queue.yaml: learning rates are chosen on it, so it stands in no table
OTHER_IMAGES = ("dataset.", "loss.reconstruction.", "loss=l1_ssim_class", "loss.labels=", "scale.image_size=")
OTHER_IMAGES += ("scale.patch_size=", "scale.mask_ratio=", "scale.eval_images=")


# Reading.


def read(results: Path) -> pd.DataFrame:
    """All rows of runs.csv, none where there is no such file. Raises ValueError for a broken one."""
    path = results / "runs.csv"
    if not path.exists():
        return pd.DataFrame(columns=[*ABOUT, *SETTINGS, "variant", *COST])
    try:
        runs = pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values=[""])
    except (pd.errors.ParserError, UnicodeDecodeError) as broken:
        raise ValueError(f"{path}: expected a table, found {broken}; restore it with git") from None
    if lacking := [name for name in (*ABOUT, *SETTINGS) if name not in runs]:
        raise ValueError(f"{path}: expected the columns {', '.join(lacking)}, found none; restore it with git")
    return runs


def read_csv(path: Path, artefact: str, **how: Any) -> pd.DataFrame:
    """A table of an artefact. Raises ValueError, naming the command that makes it, where there is none."""
    if not path.exists():
        raise ValueError(f"expected {path}, which does not exist; `gcond study run {artefact}` makes it")
    return pd.read_csv(path, **how)


def finished(results: Path) -> pd.DataFrame:
    """The finished runs, with what their overrides say:

    `own_lr`: at the scale's learning rate; `tuned_lr`: of `tuned`; `setting`: all but learning rate, model mode and
    length, as `setting` writes them; `log`: the name of the log.
    Of runs that differ in nothing but the version of the code, the one started last counts.
    """
    table = read(results)
    table = table[table.status == DONE].reset_index(drop=True)
    text = ["arithmetic", "data_checksum", "variant", "device", "commit", "labels"]
    table[text] = table[text].fillna("")
    chosen = table.variant.map(overrides)
    table["own_lr"] = pd.Series(["optimizer.lr" not in each for each in chosen], table.index, dtype=bool)
    table["setting"] = chosen.map(setting)
    table["log"] = [log_name(name, arithmetic) for name, arithmetic in zip(table.name, table.arithmetic, strict=True)]
    same = [*SETTINGS, "setting", "steps", "arithmetic", "data_checksum"]
    table = table.sort_values("started", kind="stable").drop_duplicates(same, keep="last").sort_index()
    return tuned(table.reset_index(drop=True))


_RUNS: dict[Path, tuple[dict[Path, int], pd.DataFrame]] = {}  # folder -> times of its files, and `runs` of it


def runs(results: Path, each: Callable[..., Iterable[Any]] = map) -> pd.DataFrame:
    """The `finished` runs, with the `numbers` of their logs as further columns; read once, until a file changes.

    `each`: what reads the logs, such as the map of several processes.
    """
    results = results.resolve()
    files = (results / "runs.csv", *results.glob("logs/*"))
    changed = {path: path.stat().st_mtime_ns for path in files if path.exists()}
    if results not in _RUNS or _RUNS[results][0] != changed:
        table = finished(results)
        logged = pd.DataFrame(list(each(_numbers, [results] * len(table), table.log)), index=table.index)
        _RUNS[results] = changed, pd.concat([table, logged], axis="columns").copy()  # in one piece: many select rows
    return _RUNS[results][1].copy(deep=False)


def _numbers(results: Path, name: str) -> dict[str, float]:
    """`numbers` of a log, none where it is missing."""
    return numbers(log(results, name)) if (results / "logs" / f"{name}.parquet").exists() else {}


def log(results: Path, name: str, *kinds: str) -> pd.DataFrame:
    """Records of these kinds of the run `name` (all without any), without columns that they lack; floats as float64.

    Raises ValueError, naming the file, where there is no log.
    """
    path = results / "logs" / f"{name}.parquet"
    if not path.exists():
        raise ValueError(f"{path}: expected the log of a run, found none; restore it with git or record it anew")
    if kinds and not set(kinds) & _kinds(path, path.stat().st_mtime_ns):
        return pd.DataFrame()
    found = pq.ParquetFile(path).read(use_threads=False)
    if kinds:
        found = found.filter(pc.is_in(found["kind"], pa.array(kinds)))
    found = found.select([name for name in found.column_names if found[name].null_count < len(found)])
    double = [each.with_type(pa.float64()) if pa.types.is_floating(each.type) else each for each in found.schema]
    return found.cast(pa.schema(double)).to_pandas(use_threads=False)


def pictures(results: Path, log: str) -> Path:
    return results / "pictures" / f"{log}.npz"


@lru_cache(maxsize=4096)
def _kinds(path: Path, changed: int) -> set[str]:
    return set(pq.ParquetFile(path).read(["kind"], use_threads=False)["kind"].to_pylist())


def log_name(name: str, arithmetic: str) -> str:
    return "-".join(filter(None, (name, arithmetic)))


def split(values: str) -> list[str]:
    """At commas, except within brackets."""
    return re.split(r",(?![^{\[]*[}\]])", values) if values else []


def overrides(variant: str) -> dict[str, str]:
    """ "a=1,b=[2,3]" -> {"a": "1", "b": "[2,3]"}."""
    pairs = (part.lstrip("+~").partition("=") for part in split(variant))
    return {key: value for key, _, value in pairs}


def setting(overrides: Mapping[str, Any]) -> str:
    """ "loss=l1,scale.micro_batch=2": overrides other than learning rate, model mode and length; "" for Table 2's."""
    kept = {key: value for key, value in overrides.items() if key not in BESIDE and (key, str(value)) != FULL_STRENGTH}
    return ",".join(f"{key}={value}" for key, value in sorted(kept.items()))


def of_paper_model(runs: pd.DataFrame) -> pd.DataFrame:
    """Those of the paper's encoder where that was run, else all."""
    return runs[runs.model == PAPER_MODEL] if PAPER_MODEL in set(runs.model) else runs


def written(lr: float) -> str:
    """A learning rate as 2e-4."""
    return np.format_float_scientific(lr, trim="-", exp_digits=1)


def tuned(runs: pd.DataFrame) -> pd.DataFrame:
    """With a column `tuned_lr`: the learning rate that the tuning seed chose for a run's method, else nan.

    Of the method's runs in train mode with Table 2's settings, on one machine, it has the lowest validation loss at the
    best epoch, .85 L1 + .15 (1 - SSIM), once all rates are there that another method of the data set was run at.
    Methods that were not tuned borrow the rate of another (study/queue.yaml).
    """
    method = ["dataset", "model", "strategy"]
    grid = runs[(runs.seed == TUNING_SEED) & (runs.setting == "") & (runs.model_mode == "train")]
    rates = grid.groupby([*method, "arithmetic"]).lr.nunique()
    whole = rates[(rates > 1) & (rates == rates.groupby(method[:2]).transform("max"))].index
    on_one = {tuple(key): _lowest(own) for key, own in grid.groupby([*method, "arithmetic"]) if key in whole}
    chosen = {key[:3]: lr for key, lr in reversed(on_one.items())}  # of several machines the first
    lender = facts("queue")["borrowed_rates"]
    keys = [(*each[:2], each[2] if each in chosen else lender.get(each[2]))
            for each in runs[method].itertuples(index=False, name=None)]  # fmt: skip
    return runs.assign(tuned_lr=pd.Series([chosen.get(key, math.nan) for key in keys], runs.index, dtype=float))


def rate(runs: pd.DataFrame, lr: str | float) -> str | float:
    """`lr`, but best for own where learning rates were tuned: there no rate is the scale's."""
    return "best" if lr == "own" and "tuned_lr" in runs and runs.tuned_lr.notna().any() else lr


def machines(runs: pd.DataFrame) -> pd.Series:
    """What rounds alike in each run: the fingerprint of its arithmetic, or the device where none was recorded."""
    return runs.arithmetic.where(runs.arithmetic != "", runs.device)


def at_rate(runs: pd.DataFrame, lr: str | float) -> pd.DataFrame:
    """Rows of `runs` at one learning rate: own (the scale's, or `rate`), paper (2e-4), a number, or best: each arm's.

    best: `tuned_lr`; where nothing was tuned that with the lowest validation loss in the mean over seeds, of the rates
    with the arm's most seeds, on data sets where some arm was run at two. The tuning seed is left out throughout.
    """
    counted, lr = runs[runs.seed != TUNING_SEED], rate(runs, lr)
    if lr == "own":
        return counted[counted.own_lr]
    if lr != "best":
        return counted[np.isclose(counted.lr, PAPER_LR if lr == "paper" else float(lr))]
    known = counted.tuned_lr if "tuned_lr" in counted else pd.Series(math.nan, counted.index)
    others = counted[known.groupby([counted.dataset, counted.model]).transform("count") == 0]
    tried = runs.groupby(ARM).lr.transform("nunique").groupby([runs.dataset, runs.model]).transform("max") > 1
    kept = [_at_best(own) for _, own in others[tried[others.index]].groupby(ARM)]
    return pd.concat([counted[np.isclose(counted.lr, known)], *kept]).sort_index()


def _at_best(arm: pd.DataFrame) -> pd.DataFrame:
    seeds = arm.groupby("lr").seed.transform("nunique")
    return arm[arm.lr == _lowest(arm[seeds == seeds.max()])]


def _lowest(runs: pd.DataFrame) -> float:
    """The learning rate with the lowest validation loss."""
    return float(selection_loss(runs, "best_val").groupby(runs.lr).mean().idxmin())


def selection_loss(rows: pd.DataFrame, of: str) -> pd.Series:
    """.85 L1 + .15 (1 - SSIM), by which learning rates are chosen; `of`: best_val of runs, val of predictors."""
    parts = [weight * rows[f"{of}_{task}"] for task, weight in PAPER_WEIGHTS.items()]
    return sum(parts[1:], parts[0])


def predictors(results: Path) -> pd.DataFrame:
    """Predictors that need no training: a row for each data set, checksum, image size and predictor. Runs of other
    settings score them on other images or masks, and are left out."""
    names = ["dataset", "data_checksum", "image_size"]
    runs = finished(results)
    runs = runs[
        [not any(each.startswith(OTHER_IMAGES) for each in split(variant)) for variant in runs.variant.fillna("")]
    ]
    rows: list[dict[str, Any]] = []
    for about, own in runs.groupby(names, sort=False, dropna=False):
        logged = (log(results, name, "trivial") for name in own.log if (results / "logs" / f"{name}.parquet").exists())
        scores = next((each for each in logged if len(each)), pd.DataFrame())
        rows += [dict(zip(names, about, strict=True)) | each for each in scores.to_dict("records")]
    return pd.DataFrame(rows, columns=None if rows else [*names, "predictor"]).drop(columns="kind", errors="ignore")


# What a log says.


def steps(log: pd.DataFrame, bins: int = BINS) -> pd.DataFrame:
    """At most `bins` rows, each of as many steps: `first_step`, `last_step`, and their means, under the logged names.

    Means are over the steps that have the number; steps that were left out (not finite) count in none. `cosine_steps`
    is the number of steps with a cosine, `conflicts` the share of them where it is negative, `norm_jump` the mean
    |ln(norm_t / norm_t-1)| of the resolved gradient, MINIMA are minima. `log`: all records or those of kind step;
    recorded bins are returned as they are.
    """
    rows = log[log.kind == "step"].drop(columns="kind").dropna(axis="columns", how="all").reset_index(drop=True)
    if rows.empty or "first_step" in rows:
        return rows
    norms = rows.resolved_norm if "resolved_norm" in rows else pd.Series(np.nan, rows.index)
    if "skipped" in rows:
        left_out = rows.skipped.notna()
        rows.loc[left_out, [name for name in rows if name not in PLACES]] = np.nan
        norms = norms.mask(left_out)
    norms = norms.where(norms > 0).astype("float64")
    bin_of = pd.Series(rows.index // math.ceil(len(rows) / bins), rows.index)
    binned = rows.select_dtypes("number").groupby(bin_of).mean()
    binned.insert(0, "first_step", rows.step.groupby(bin_of).first())
    binned.insert(1, "last_step", rows.step.groupby(bin_of).last())
    for column, logged in MINIMA.items():
        if logged in rows:
            binned[column] = rows[logged].groupby(bin_of).min()
    if "cosine/all" in rows:
        cosine = rows["cosine/all"]
        binned["cosine_steps"] = cosine.groupby(bin_of).count()
        binned["conflicts"] = (cosine < 0).astype("float64").where(cosine.notna()).groupby(bin_of).mean()
    binned["norm_jump"] = np.log(norms / norms.shift()).abs().groupby(bin_of).mean()
    return binned.drop(columns="step").dropna(axis="columns", how="all")


def numbers(log: pd.DataFrame) -> dict[str, float]:
    """What the claims and figures ask of a log, a number each.

    Of its bins of steps (`steps`): means, of `cosine_min` also after the early phase and on the plateau less the middle
    (`cosine_min_late`, `cosine_min_plateau`); in percent `conflicts` (of the steps with a cosine), `resolved`,
    `correction`, `correction_median`; `weight_l1`, … of all steps. `probe:NAME`: mean over the
    probes. `activation_std`: at the last epoch. `early_val_l1`: mean over the first third of the epochs.
    """
    bins = steps(log)
    found = _of_bins(bins) if len(bins) else {}
    probes = log[log.kind == "probe"].select_dtypes("number")
    probes = probes.drop(columns=["epoch", "step", "micro_batches", "batch_size"], errors="ignore")
    found |= probes.mean().add_prefix("probe:")
    activations = log[log.kind == "activations"]
    if len(activations) and "std" in activations:
        found["activation_std"] = activations.sort_values("epoch")["std"].iloc[-1]
    curve = log[log.kind == "validation"]
    if len(curve):
        found["early_val_l1"] = curve[curve.epoch <= curve.epoch.max() / 3].val_l1.mean()
    return {name: float(value) for name, value in found.items() if not pd.isna(value)}


def _of_bins(bins: pd.DataFrame) -> dict[str, float]:
    wanted = [*MEANS, *PERCENT, "conflicts", "cosine_steps", "cosine/all"]
    bins = bins.reindex(columns=[*dict.fromkeys([*bins, *wanted])]).astype("float64")
    place = bins.last_step / bins.last_step.max()
    size = bins.last_step - bins.first_step + 1
    middle = (place > EARLY) & (place <= PLATEAU)
    found = dict(bins[[*MEANS]].mean().rename(lambda name: name.replace("/", "_"))) | dict(
        100 * bins[[*PERCENT]].mean()
    )
    found["correction_median"] = 100 * bins.correction.median()
    found["cosine_min_late"] = bins.cosine_min[place > EARLY].mean()
    found["cosine_min_plateau"] = bins.cosine_min[place > PLATEAU].mean() - bins.cosine_min[middle].mean()
    found["conflicts"] = 100 * _weighted(bins.conflicts, bins.cosine_steps)
    found["cosine_mean"] = _weighted(bins["cosine/all"], bins.cosine_steps)
    weights = {name.replace("/", "_"): _weighted(bins[name], size) for name in bins if name.startswith("weight/")}
    return found | weights


def _weighted(values: pd.Series, weights: pd.Series) -> float:
    """Mean over the bins with a number; nan where they weigh nothing."""
    weights = weights.where(values.notna())
    return float((values * weights).sum() / weights.sum()) if weights.sum() else math.nan


# Recording.


def record(folder: Path, results: Path) -> pd.DataFrame:
    """Put the finished run in `folder` into the table and its log beside it; returns the table.

    A run that is recorded already is written again. Raises ValueError, naming the file, where the run is not finished.
    """
    return _write_rows(results, [_record_log(folder, results)], read(results))


def _record_log(folder: Path, results: Path) -> dict[str, Any]:
    """Write the log of a finished run; returns its row."""
    row = row_of(folder)
    name = log_name(row["name"], row["arithmetic"])
    rows = pd.DataFrame([*_records(folder / "metrics.jsonl"), *_trivial(folder / "report.json")])
    if (results / "logs" / f"{name}.parquet").exists():
        before = log(results, name)
        rows = pd.concat([rows, before[before.kind.isin(AFTERWARDS)].dropna(axis="columns", how="all")])
    _write_log(results, name, rows)
    drawn, usual = folder / "final_reconstructions.npz", not setting(overrides(row["variant"]))
    if drawn.exists() and kind(row["dataset"]) != "ct" and row["seed"] == PICTURED and usual:
        content = drawn.read_bytes()
        write_atomically(pictures(results, name), lambda to: to.write_bytes(content))
    return row


def add(results: Path, name: str, kind: str, rows: pd.DataFrame) -> None:
    """Put `rows` into a recorded log, in the place of those of the same kind: what was measured on its weights later.
    `name`: of the log."""
    before = log(results, name)
    kept = before[before.kind != kind].dropna(axis="columns", how="all")
    _write_log(results, name, pd.concat([kept, rows.assign(kind=kind)], ignore_index=True))


def collect(runs: Path, results: Path) -> list[str]:
    """Record every run below `runs` (runs/<scale>) in `results`; returns remarks to print.

    A failed or unfinished run is a row without numbers, so that a table can say how many were asked for; it does not
    replace the same run recorded as finished.
    """
    before = read(results)
    before = before[before.status == DONE]
    remarks, rows = [], []
    for folder in sorted(path for path in runs.glob("*") if (path / "config.yaml").exists()):
        try:
            if (folder / "DONE").exists():
                rows.append(_record_log(folder, results))
            elif folder.name not in set(before.name):
                rows.append(_unfinished(folder))
        except (OSError, ValueError, KeyError) as error:
            remarks.append(f"{folder.name}: unreadable, left out: {' '.join(str(error).split())}")
    if rows or (results / "runs.csv").exists():
        _write_rows(results, rows, before)
    remarks += [": ".join(filter(None, (row["name"], row["status"], row["error"]))) for row in rows if "error" in row]
    count = Counter(row["status"] for row in rows)
    told = f"{count[DONE]} runs recorded, {count[FAILED]} failed, {count[UNFINISHED]} unfinished"
    return [*remarks, f"{results}: {told}"]


def row_of(folder: Path) -> dict[str, Any]:
    """The row of a finished run: columns of ABOUT, SETTINGS, `variant` (its other settings), COST, then numbers.

    Numbers are named as the run logs them, after their epoch: best_val_l1, last_test_body_l1, …, and train_l1_tail, the
    mean over the last tenth of the steps. A run with a validation loss that is not finite counts as failed.
    """
    path = folder / "report.json"
    if not (folder / "DONE").exists() or not path.exists():
        raise ValueError(f"{folder}: expected a finished run, with DONE and report.json")
    report = read_report(folder, "name")
    if not report.get("final"):
        raise ValueError(f"{path}: expected the scores of its best and last epoch (`final`), found none")
    row = {name: report.get(name) for name in ABOUT} | _settings(folder) | {"variant": report["variant"]}
    row |= {name: report.get(name) for name in COST}
    row |= {name: value for name, value in report.items() if name.startswith("train_")}
    for at, values in report["final"].items():
        row |= {f"{at}_{name}": value for name, value in values.items()}
        for name in (f"val_{task}" for task in report.get("tasks") or ("l1", "ssim")):
            if name in values and values[name] is None:
                row |= {"status": FAILED, "error": f"`{name}` is not a finite number at epoch {values['epoch']}"}
    return row | {"dataset_title": report.get("dataset_title")}


def _unfinished(folder: Path) -> dict[str, Any]:
    failure = folder / "FAILED"
    error = " ".join(failure.read_text(encoding="utf-8", errors="replace").split()) if failure.exists() else ""
    status = FAILED if failure.exists() else UNFINISHED
    return {"name": folder.name, "status": status, "error": error} | _settings(folder)


def _settings(folder: Path) -> dict[str, Any]:
    config: Any = OmegaConf.to_container(read_yaml(folder / "config.yaml"))
    stated = flat(config)
    return {name: stated.get(where) for name, where in SETTINGS.items()}


def _write_rows(results: Path, rows: list[dict[str, Any]], before: pd.DataFrame) -> pd.DataFrame:
    """`rows` beside those of `before`, in the place of the same run on the same arithmetic."""
    both = pd.concat([each for each in (before, pd.DataFrame(rows)) if len(each)] or [before])
    run = [both.name, both.arithmetic.fillna("")]
    both = both[~pd.MultiIndex.from_arrays(run).duplicated(keep="last")].sort_values(KEY, kind="stable")
    write_text(results / "runs.csv", both.to_csv(index=False, float_format="%.8g", lineterminator="\n"))
    return read(results)


def _write_log(results: Path, name: str, rows: pd.DataFrame) -> None:
    floats = rows.select_dtypes("float64").columns
    content = pa.Table.from_pandas(rows.astype(dict.fromkeys(floats, "float32")), preserve_index=False)
    small = {"compression": "zstd", "use_dictionary": ["kind"], "write_statistics": False, "store_schema": False}
    write_atomically(
        results / "logs" / f"{name}.parquet",
        lambda to: pq.write_table(content.replace_schema_metadata(None), to, **small),
    )


def _trivial(path: Path) -> Iterator[dict[str, Any]]:
    report = json.loads(path.read_text(encoding="utf-8"))
    for predictor, scores in report["trivial"].items():
        yield {"kind": "trivial", "predictor": predictor, **scores}


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Of metrics.jsonl; a record of groups is one for each group."""
    for content in metrics_log.read(path):
        for group, scores in content.pop("groups", {"": {}}).items():
            flat = content | scores | ({"group": group} if group else {})
            yield pd.json_normalize(flat).iloc[0].to_dict() if any(isinstance(v, dict) for v in flat.values()) else flat

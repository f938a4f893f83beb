"""D1 to D4: norms, conflicts and noise during training. From steps.csv and probes.csv."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from gcond.report.claims.evidence import METRICS, Arm, Evidence, per_run
from gcond.report.claims.judge import Answer, Claim, Finding, compare, judge
from gcond.report.claims.reconstruction import BASELINE, CAGRAD, GRADNORM, PCGRAD, SEQUENTIAL, STOCHASTIC
from gcond.report.records import read_table
from gcond.report.statistics import REGIONS, Effect, paired, single
from gcond.report.toy_tables import COLUMNS, TEXT

AS_PCGRAD = Arm("gcond_as_pcgrad")
NEAR_OPPOSED, NEAR_COLLINEAR = -0.9, 0.9  # cosines that count as near -1 and near 1
EARLY, PLATEAU = 0.2, 0.8  # shares of the steps: the early phase ends, the plateau begins
INVERSE = (0.8, 1.25)  # K x variance at K over variance at 1 that counts as 1
TASKS = ("l1", "ssim")
SAMPLES = {"sign_agreement": "same samples", "sign_agreement_disjoint": "other samples"}
STEPS = "steps.csv"
NEEDS = "two cores, 5 minutes a run; a GPU for the paper's scale"


def norms(evidence: Evidence) -> Answer | None:
    findings, missing = [], []
    parts = [
        (PCGRAD, "norm_jump", "higher"),
        (GRADNORM, "norm_jump", "higher"),
        (CAGRAD, "resolved_norm", "lower"),
        (SEQUENTIAL, "norm_jump", "lower"),
        (STOCHASTIC, "norm_jump", "lower"),
    ]
    names = {"norm_jump": "step-to-step change of the norm", "resolved_norm": "gradient norm"}
    for dataset in _datasets(evidence):
        for arm, column, direction in parts:
            a, b = (per_run(evidence.own(evidence.steps, dataset, each), column) for each in (arm, BASELINE))
            if not len(a) or not len(b):
                missing.append(f"{names[column]} of {arm.label} and Baseline on {dataset}")
                continue
            dropped, remarks = evidence.comparable(dataset, arm, BASELINE)
            kept = [np.log(values[~values.index.isin(dropped)]) for values in (a, b)]
            about = f"{dataset}: {names[column]}, {arm.label} against Baseline"
            findings.append(Finding(about, _percent(paired(*kept)), region=REGIONS[direction], remarks=tuple(remarks)))
    note = "Ratios of means over the run, as percent. CAGrad's update is a mean and Baseline's a sum, so half the norm "
    return judge(findings, missing, [note + "is a convention, not suppression."], STEPS)


def _percent(logs: Effect) -> Effect:
    """From the log of a ratio to percent; tests are made on the logs, whose sign is the same."""
    ends = [100 * math.expm1(end) for end in (logs.mean, logs.low, logs.high)]
    return replace(logs, mean=ends[0], low=ends[1], high=ends[2])


def conflict_over_time(evidence: Evidence) -> Answer | None:
    """On CT, as Figures 11 and 12; elsewhere if CT was not run."""
    findings, words, missing = [], [], []
    datasets = _datasets(evidence)
    for dataset in ["ct"] if "ct" in datasets else datasets:
        own = {arm: _phases(evidence.own(evidence.steps, dataset, arm)) for arm in (PCGRAD, STOCHASTIC)}
        missing += [f"{arm.label} on {dataset}" for arm, phases in own.items() if phases.empty]
        if not own[PCGRAD].empty:
            found = single(own[PCGRAD].minimum)
            about = f"{dataset}: minimum cosine of PCGrad, mean over the run"
            findings.append(Finding(about, found, "cosine", (-math.inf, NEAR_OPPOSED)))
        if not (phases := own[STOCHASTIC]).empty:
            after, change = single(phases.late), single(phases.change)
            findings.append(
                Finding(
                    f"{dataset}: minimum cosine of GCond stochastic after the early phase",
                    after,
                    "cosine",
                    (NEAR_COLLINEAR, math.inf),
                )
            )
            findings.append(
                Finding(
                    f"{dataset}: minimum cosine of GCond stochastic, last fifth less the middle",
                    change,
                    "cosine",
                    REGIONS["lower"],
                )
            )
            words.append(
                f"On {dataset} the true minimum cosine of GCond stochastic is {_two(phases.minimum)} before resolution "
                f"and {_two(phases.resolved)} after it; the published logging would have shown "
                f"{_two(phases.published)}."
            )
    words.append(
        f"Minimum over a bin of steps, averaged over bins. Near -1: below {NEAR_OPPOSED}; collinear: above "
        f"{NEAR_COLLINEAR}, after the first {EARLY:.0%} of the steps; plateau: the last {1 - PLATEAU:.0%}. PCGrad's "
        "cosines are of micro-batches, GCond's of windows: not the same quantity."
    )
    return judge(findings, missing, words, STEPS)


def _phases(rows: pd.DataFrame) -> pd.DataFrame:
    """Per seed: mean minimum cosine of the run, after the early phase, its change on the plateau, and as published."""
    if rows.empty or "cosine_min" not in rows:
        return pd.DataFrame()
    place = rows.last_step / rows.groupby("seed").last_step.transform("max")
    late = rows[place > EARLY].groupby("seed").cosine_min.mean()
    middle = rows[(place > EARLY) & (place <= PLATEAU)].groupby("seed").cosine_min.mean()
    end = rows[place > PLATEAU].groupby("seed").cosine_min.mean()
    columns = {"minimum": "cosine_min", "resolved": "cosine_resolved_min", "published": "published_cosine"}
    means = {name: per_run(rows, column) for name, column in columns.items()}
    return pd.DataFrame(means | {"late": late, "change": end - middle}).dropna(subset=["minimum"])


def _two(values: pd.Series) -> str:
    return f"{values.mean():+.2f}" if values.notna().any() else "not logged"


def between(evidence: Evidence) -> Answer | None:
    """Fig. 12: GCond below GCond-as-PCGrad below PCGrad in both losses, on CT."""
    findings, missing = [], []
    for dataset in ["ct"] if "ct" in evidence.datasets else evidence.datasets:
        for ours, theirs in ((AS_PCGRAD, PCGRAD), (STOCHASTIC, AS_PCGRAD)):
            if not evidence.ran(dataset, ours, theirs):
                missing.append(f"{ours.label} and {theirs.label} on {dataset}")
                continue
            findings += [
                compare(evidence, dataset, ours, theirs, metric, "lower", block=block)
                for metric in METRICS
                for block in ("best_val", "last_val", "best_test")
            ]
    return judge(findings, missing, [], "claims.csv")


def noise(evidence: Evidence) -> Answer | None:
    """From what was measured at frozen weights; from the runs' own probes, which are smaller, where that was not."""
    return _noise_of_windows(evidence) if len(evidence.windows) else _noise_of_probes(evidence)


def _noise_of_windows(evidence: Evidence) -> Answer | None:
    """In train mode, all parameters, at the smallest and the largest K."""
    findings, known = [], []
    for dataset in _datasets(evidence, evidence.windows):
        for arm in (BASELINE, SEQUENTIAL, STOCHASTIC):
            rows = evidence.own(evidence.windows, dataset, arm)
            rows = rows[(rows["mode"] == "train") & (rows.group == "all")]
            for state, own in rows.groupby("state"):
                about = f"{dataset}, {arm.label}, {state} weights: {{}}"
                table = own.pivot(index="seed", columns="name", values="value")
                for task in TASKS:
                    if found := _at(table, f"scaled_noise/{task}"):
                        words = about.format(f"K x variance of {task} at K = {found[-1]} against K = 1")
                        findings.append(
                            Finding(words, single(table[f"scaled_noise/{task}/{found[-1]}"]), "ratio", INVERSE)
                        )
                for kind, samples in SAMPLES.items():
                    if not (found := _at(table, kind)):
                        continue
                    few, many = (100 * table[f"{kind}/{k}"] for k in (found[0], found[-1]))
                    words = about.format(f"windows whose sign is right, {samples}, K = {found[-1]} less K = {found[0]}")
                    if (few == 100).all() and (many == 100).all():
                        known.append(about.format(samples))
                    else:
                        findings.append(Finding(words, paired(many, few), "%", REGIONS["higher"]))
    words = [
        f"1/K: K x variance at K over that at K = 1 within {INVERSE[0]} to {INVERSE[1]}. Train mode, all parameters."
    ]
    words.append("Right is a sign that is that over all micro-batches; tables/windows.md says where that one is known.")
    if known:
        words.append(f"Right in every window, at K = 1 already, so that nothing can be gained: {'; '.join(known)}.")
    return judge(findings, (), words, "tables/windows.md")


def _at(table: pd.DataFrame, kind: str) -> list[int]:
    """K of the columns KIND/K."""
    return sorted(int(k) for name, _, k in (column.rpartition("/") for column in table.columns) if name == kind)


def _noise_of_probes(evidence: Evidence) -> Answer | None:
    findings, missing = [], []
    for dataset in _datasets(evidence, evidence.probes):
        for arm in (BASELINE, SEQUENTIAL, STOCHASTIC):
            probes = evidence.own(evidence.probes, dataset, arm)
            names = probes.name.str.extract(r"^(noise/.+|sign_agreement)/(\d+)$") if len(probes) else pd.DataFrame()
            if names.empty or names[0].isna().all():
                continue
            rows = probes.assign(kind=names[0], window=names[1].astype(float)).dropna(subset=["kind"])
            largest = rows.window.max()
            table = rows.groupby(["seed", "kind", "window"]).value.mean().unstack("window")
            for kind, own in table.groupby("kind"):
                own = own.droplevel("kind")
                about = f"{dataset}, {arm.label}: {{}} at K = {largest:g} against K = 1"
                if kind == "sign_agreement":
                    effect = single(100 * (own[largest] - own[1.0]))
                    about = about.format("windows whose sign is right")
                    findings.append(Finding(about, effect, "%", REGIONS["higher"]))
                else:
                    about = about.format(f"K x variance of {kind.removeprefix('noise/')}")
                    findings.append(Finding(about, single(largest * own[largest] / own[1.0]), "ratio", INVERSE))
    note = f"1/K: K x variance at K over that at K = 1 within {INVERSE[0]} to {INVERSE[1]}. At fixed weights."
    return judge(findings, missing, [note], "probes.csv")


def noise_of_the_quadratic(results: Path) -> Answer | None:
    path = results / "toy" / "noise.csv"
    if not path.exists():
        return None
    table = read_table(path, TEXT, COLUMNS["noise.csv"])
    rows = table[table.estimator == "sequential"]
    findings, worse, wrong = [], [], []
    for (rho, tau, cosine), own in rows.groupby(["rho", "tau", "cosine"]):
        own = own.set_index("micro_batches")
        if not {1, 24} <= set(own.index):
            continue
        first, last = own.loc[1], own.loc[24]
        kind = f"cosine {cosine:+g}, shared noise {tau:g}, correlation of micro-batches {rho:g}"
        scaled = Effect(int(last.trials), 24 * last.variance, 24 * last.variance_low, 24 * last.variance_high, math.nan)
        if rho == 0:
            findings.append(Finding(f"K x variance at K = 24 ({kind})", scaled, "ratio", INVERSE))
        if rho == 0 and cosine < 0:
            # Two Wilson intervals: the difference of their ends is at least as wide as an interval of the difference.
            fall = Effect(
                int(last.trials),
                100 * (last.wrong - first.wrong),
                100 * (last.wrong_low - first.wrong_high),
                100 * (last.wrong_high - first.wrong_low),
                math.nan,
            )
            findings.append(Finding(f"wrong signs at K = 24 less K = 1 ({kind})", fall, "%", REGIONS["lower"]))
            wrong.append(f"{100 * last.wrong:.0f} % ({kind})")
        if rho:
            worse.append(f"{scaled.mean:.2f}")
    words = [
        "On a quadratic with made noise, K = 1 against 24; n counts trials. Micro-batches drawn independently. "
        "Become reliable is read as: fewer are wrong at K = 24."
    ]
    if wrong:
        words.append(f"Signs of a conflict that are still wrong at K = 24: {'; '.join(wrong)}.")
    if worse:
        words.append(f"With correlated micro-batches K x variance at K = 24 is {max(worse)}: it stops falling as 1/K.")
    found = judge(findings, (), words, "../toy/toy.md")
    return found and replace(found, source="toy problem")


def _datasets(evidence: Evidence, table: pd.DataFrame | None = None) -> list[str]:
    rows = evidence.steps if table is None else table
    return [] if rows.empty else sorted(set(rows.dataset), reverse=True)


CLAIMS = (
    Claim(
        "D1",
        "The gradient norm of PCGrad and GradNorm swings, CAGrad's is suppressed, GCond's is smooth",
        "norm and its mean step-to-step change, as ratios to Baseline",
        "make reproduce-figure3 SCALE=sample SEEDS=10",
        NEEDS,
        norms,
    ),
    Claim(
        "D2",
        "PCGrad stays in conflict (minimum cosine near -1); GCond turns collinear after an early phase; conflict "
        "returns on the plateau",
        "the true minimum cosine, before and after resolution",
        "make reproduce-figure11 SCALE=sample SEEDS=10",
        NEEDS,
        conflict_over_time,
    ),
    Claim(
        "D3",
        "GCond-as-PCGrad lies between PCGrad and GCond",
        "L1 and SSIM loss of Figure 12's runs, on CT",
        "make reproduce-figure12 SCALE=sample SEEDS=10",
        NEEDS,
        between,
    ),
    Claim(
        "D4",
        "Accumulated gradients have variance 1/K; conflict signs become reliable",
        "sampled variance and sign agreement against K, at frozen weights (or in training) and on a quadratic",
        "make reproduce-table2 reproduce-windows SCALE=sample SEEDS=10; make reproduce-toy",
        f"runs, then a minute for each of them; {NEEDS}",
        noise,
        noise_of_the_quadratic,
    ),
)

"""How much GCond has to do (O6), and how strong the conflict is against noise (O10)."""

from collections.abc import Mapping, Sequence
from itertools import product

import pandas as pd

from gcond.report.claims.conflict import GROUPS, cosines, frequencies
from gcond.report.claims.dynamics import EARLY
from gcond.report.claims.evidence import Arm, Evidence
from gcond.report.claims.judge import Finding, number, upper
from gcond.report.claims.rates import AtRate, at_rates
from gcond.report.claims.reconstruction import BASELINE, SEQUENTIAL, STOCHASTIC
from gcond.report.pages.o10 import GROUP_TITLES
from gcond.report.render import grid
from gcond.report.statistics import paired
from gcond.report.summary.say import ABOVE, BELOW, enough, place, settings_and_seeds, span, whether, with_n
from gcond.report.summary.section import Section, dataset_title, not_run

WORK, NOISE = "How much GCond has to do", "How strong the conflict is, against noise"
ARMS = (BASELINE, SEQUENTIAL, STOCHASTIC, Arm("gcond_pure"))
WORK_COMMAND = "make reproduce-o6 SCALE=sample SEEDS=10"
NOISE_COMMAND = "make reproduce-o10 SCALE=sample SEEDS=10"
COLUMNS = {
    "steps with a conflict": "steps with a conflict",
    "mean correction": "correction of the gradient",
    "times in the weak zone": "mild zone",
    "times in the main zone": "main zone",
    "times in the critical zone": "critical zone",
}
BETWEEN, APART = "between tasks, shared samples", "between tasks, disjoint samples"
SELF_L1, SELF_SSIM = "l1 with itself on other samples", "ssim with itself on other samples"


Place = tuple[Evidence, str, AtRate]


def work(evidence: Sequence[Evidence]) -> Section:
    own = [place for place in _places(evidence) if any(_often(place[2], place[1]).values())]
    if not own:
        return not_run(WORK, "no run at a scale that is evidence has its steps recorded", WORK_COMMAND)
    return Section(
        WORK, _work_answers(own), [_explained(own[0][0]), *(part for place in own for part in _work_table(*place))]
    )


def _places(evidence: Sequence[Evidence]) -> list[Place]:
    return [(each, *place) for each in evidence for place in product(reversed(each.datasets), at_rates(each))]


def _caption(evidence: Evidence, dataset: str, at: AtRate) -> str:
    return f"*{dataset_title(evidence, dataset)}, {at.words}, scale {evidence.scale}*"


def _often(at: AtRate, dataset: str) -> dict[Arm, dict[str, Finding]]:
    if at.evidence.steps.empty:
        return {}
    return {arm: found for arm in ARMS if (found := frequencies(at.evidence, dataset, arm))}


def _explained(evidence: Evidence) -> str:
    return (
        "A conflict is a negative cosine between the two tasks' gradients, accumulated over the window. Baseline and "
        "GCond sequential compute both on the same images, whose common noise raises the cosine; stochastic GCond on "
        "different images. Zones: times a step in which GCond arbitrated there (in the mild zone, cosine -.5 to 0, it "
        "cannot matter who wins). Correction: length of what resolution changed, in percent of the plain sum, mean "
        "over steps. "
        f"All methods: [{evidence.scale}/tables/o6.md]({evidence.scale}/tables/o6.md)."
    )


def _work_table(evidence: Evidence, dataset: str, at: AtRate) -> list[str]:
    lines = [["method", "n", *COLUMNS.values()], []]
    for arm, found in _often(at, dataset).items():
        n = max(each.effect.n for each in found.values())
        shown = [number(found[key].effect, found[key].unit) if key in found else "-" for key in COLUMNS]
        lines.append([arm.label, str(n), *shown])
    return [_caption(evidence, dataset, at), grid(lines), *_early(dataset, at)]


def _early(dataset: str, at: AtRate) -> list[str]:
    said = []
    for arm in (BASELINE, STOCHASTIC):
        found = early_less_late(at.evidence, dataset, arm)
        if found:
            said.append(f"{arm.label} {whether(found.effect, ABOVE)} ({with_n(found)})")
    question = f"Are conflicts more frequent in the first {EARLY:.0%} of the steps than after them (percentage points)?"
    return [f"{question} {'; '.join(said)}."] if said else []


def early_less_late(evidence: Evidence, dataset: str, arm: Arm) -> Finding | None:
    """Share of steps with a conflict, early less late, in percentage points; paired by seed."""
    rows = evidence.own(evidence.steps, dataset, arm)
    if rows.empty or not rows.conflicts.notna().any():
        return None
    early = rows.last_step / rows.groupby("seed").last_step.transform("max") <= EARLY
    parts = []
    for own in (rows[early], rows[~early]):
        weights = own.cosine_steps.astype(float).where(own.conflicts.notna(), 0.0)
        hits = (own.conflicts.fillna(0.0) * weights).groupby(own.seed).sum()
        parts.append(100 * hits / weights.groupby(own.seed).sum())
    about = f"{dataset}, {arm.label}: steps with a conflict, first fifth less the rest"
    return Finding(about, paired(*parts), "%")


def _work_answers(own: Sequence[Place]) -> list[str]:
    found = [_often(at, dataset).get(STOCHASTIC) or {} for _, dataset, at in own]
    words = arbitrating([each for each in found if enough(each.values())])
    return [f"**How much is there to resolve?** GCond stochastic {words}."] if words else []


ARBITRATED = {"main": "below -.5", "critical": "below -.8"}


def arbitrating(found: Sequence[Mapping[str, Finding]]) -> str:
    """What `frequencies` found in one or more settings, as the rest of a sentence about the method; "" where it was
    not recorded."""

    def own(key: str) -> list[Finding]:
        return [each[key] for each in found if key in each]

    often, correction = own("steps with a conflict"), own("mean correction")
    if not often:
        return ""
    words = f"finds a conflict in {span(often)} of its steps ({settings_and_seeds(often)})"
    zones = [
        f"{where}: {span(times)}" for zone, where in ARBITRATED.items() if (times := own(f"times in the {zone} zone"))
    ]
    words += f"; arbitrations a step at a cosine {', '.join(zones)}" if zones else ""
    return words + (f"; what it changes of the gradient: {span(correction)}" if correction else "")


def noise(evidence: Sequence[Evidence]) -> Section:
    own = [place for place in _places(evidence) if _probed(place[2], place[1])]
    if not own:
        return not_run(NOISE, "no run at a scale that is evidence has probes recorded", NOISE_COMMAND)
    return Section(
        NOISE, _noise_answers(own), [_reliability(own[0][0]), *(part for place in own for part in _noise_table(*place))]
    )


def _probed(at: AtRate, dataset: str) -> dict[str, dict[str, Finding]]:
    """Baseline's cosines by group of parameters."""
    if at.evidence.probes.empty:
        return {}
    return {group: found for group in GROUPS if (found := cosines(at.evidence, dataset, BASELINE, group))}


def _reliability(evidence: Evidence) -> str:
    return (
        "Cosines of Baseline's task gradients after each epoch, at its own weights: between the tasks, on the same "
        "images and on disjoint halves of them, and of each task with itself on the other half. The last says how much "
        "of a gradient is signal: 1 is no noise, 0 nothing but noise; a cosine between tasks cannot be seen where it "
        f"is near 0. All methods: [{evidence.scale}/tables/o10.md]({evidence.scale}/tables/o10.md)."
    )


def _noise_table(evidence: Evidence, dataset: str, at: AtRate) -> list[str]:
    found = _probed(at, dataset)
    titles = {BETWEEN: "L1 with SSIM, same images", APART: "L1 with SSIM, other images",
              SELF_L1: "L1 with itself, other images", SELF_SSIM: "SSIM with itself, other images"}  # fmt: skip
    lines = [["parameters", "n", *titles.values()], []]
    for group, own in found.items():
        n = max(each.effect.n for each in own.values())
        cells = [number(own[title].effect, "cosine") if title in own else "-" for title in titles]
        lines.append([GROUP_TITLES[group], str(n), *cells])
    return [_caption(evidence, dataset, at), grid(lines), *_groups(dataset, at)]


def _groups(dataset: str, at: AtRate) -> list[str]:
    found = body_less_encoder(at.evidence, dataset)
    question = "Is the cosine between the tasks, on the same images, lower in the decoder body than in the encoder?"
    return [f"{question} {upper(whether(found.effect, BELOW))} ({with_n(found)})."] if found else []


def by_seed(evidence: Evidence, dataset: str, arm: Arm, name: str) -> pd.Series:
    """Mean over a run's probes."""
    rows = evidence.own(evidence.probes, dataset, arm)
    if rows.empty:
        return pd.Series(dtype=float)
    return rows[rows.name == name].groupby("seed").value.mean()


def body_less_encoder(evidence: Evidence, dataset: str) -> Finding | None:
    body, encoder = (by_seed(evidence, dataset, BASELINE, f"cosine/{group}") for group in ("body", "encoder"))
    if body.empty or encoder.empty:
        return None
    about = f"{dataset}, Baseline: cosine between tasks on shared samples, decoder body less encoder"
    return Finding(about, paired(body, encoder), "cosine")


AGREE = {ABOVE: "They agree", BELOW: "They conflict"}


def _noise_answers(own: Sequence[Place]) -> list[str]:
    cosines_of = [found for _, dataset, at in own if enough((found := _probed(at, dataset).get("all", {})).values())]
    between, apart, itself = (
        [found[title] for found in cosines_of if title in found] for title in (BETWEEN, APART, SELF_L1)
    )
    if not between or not itself:
        return []
    places = {place(found.effect) for found in between}
    said = "It depends" if len(places) > 1 else AGREE.get(places.pop(), "Neither")
    return [
        f"**Do the tasks conflict?** {said}, on average and with nothing resolved: cosine of the accumulated gradients "
        f"{span(between)} on the same images ({settings_and_seeds(between)})"
        + (f", {span(apart)} on other ones" if apart else "")
        + f". L1's gradient with itself on other images has {span(itself)}, where 1 would be no noise."
    ]

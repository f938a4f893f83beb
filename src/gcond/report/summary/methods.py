"""Table 2's methods against Baseline, and GCond against its peers, at each learning rate where a peer ran."""

from collections.abc import Sequence

from gcond.report.claims.evidence import METRICS, Arm, Evidence
from gcond.report.claims.judge import compare, number
from gcond.report.claims.rates import AtRate, at_rates
from gcond.report.claims.reconstruction import BASELINE, CAGRAD, GRADNORM, PCGRAD, SEQUENTIAL, STOCHASTIC
from gcond.report.render import grid
from gcond.report.statistics import FEWEST
from gcond.report.summary.gap import CONTROL
from gcond.report.summary.say import ABOVE, BELOW, FEW, OPEN, bold, data, listed, papers, place
from gcond.report.summary.section import Section, dataset_title, not_run

TITLE = "The methods of Table 2"
PEERS = (PCGRAD, CAGRAD, GRADNORM, Arm("graddrop"))
ROWS = (*PEERS, SEQUENTIAL, STOCHASTIC, Arm("gcond_pure"), Arm("gcond_lion"), CONTROL)
COMMAND = "make reproduce-table2 SCALE=sample SEEDS=10"


def methods(evidence: Sequence[Evidence]) -> Section:
    for each in evidence:
        own = [
            (dataset, setting)
            for dataset in reversed(each.datasets)
            for setting in at_rates(each)
            if setting.evidence.ran(dataset, BASELINE) and _ran(setting, dataset, PEERS)
        ]
        if own:
            heads = [line for dataset, setting in own for line in _headlines(setting, dataset)]
            return Section(TITLE, heads, [READING, *(part for place in own for part in _table(each, *place))])
    return not_run(TITLE, "no peer of GCond at a scale that is evidence", COMMAND)


READING = (
    "Rows: a method against Baseline, and against Baseline integrated, which smooths the gradient as GCond does and "
    "resolves nothing; same seed, images, masks and learning rate, in percent of the other's loss, negative is better. "
    "Bold: the interval excludes zero, n is at least 6. Validation, best epoch."
)


def _ran(setting: AtRate, dataset: str, arms: Sequence[Arm]) -> list[Arm]:
    return [arm for arm in arms if setting.evidence.ran(dataset, arm)]


def _headlines(setting: AtRate, dataset: str) -> list[str]:
    peers = _ran(setting, dataset, PEERS)
    where = f"{data(dataset)}, {setting.words}{papers(setting.rate)}"
    lines = [
        f"**{where}: the peers against Baseline.** "
        + " ".join(_grouped(setting, dataset, [(peer, BASELINE) for peer in peers], metric) for metric in METRICS)
    ]
    for ours in _ran(setting, dataset, (SEQUENTIAL, STOCHASTIC)):
        pairs = [(ours, theirs) for theirs in (*peers, CONTROL) if setting.evidence.ran(dataset, theirs)]
        lines.append(
            f"**{where}: {ours.label} against the others.** "
            + " ".join(_grouped(setting, dataset, pairs, metric) for metric in METRICS)
        )
    return lines


def _grouped(setting: AtRate, dataset: str, pairs: Sequence[tuple[Arm, Arm]], metric: str) -> str:
    """ "L1: lower than PCGrad's (-3.1 % [-4.0, -2.2]); not told apart from CAGrad's (…)." """
    one_other = len({theirs for _, theirs in pairs}) == 1
    found: dict[str, list[str]] = {}
    ns = []
    for ours, theirs in pairs:
        finding = compare(setting.evidence, dataset, ours, theirs, metric)
        ns.append(finding.effect.n)
        label = (ours if one_other else theirs).label
        found.setdefault(place(finding.effect), []).append(f"{label} ({number(finding.effect, '%')})")
    said = [f"{words}: {listed(found[where])}" for where, words in WORDS.items() if where in found]
    return f"{METRICS[metric]} {'; '.join(said)} (n = {' to '.join(map(str, sorted({min(ns), max(ns)})))})."


WORDS = {
    BELOW: "is lower",
    ABOVE: "is higher",
    OPEN: "cannot be told apart",
    FEW: f"has fewer than {FEWEST} seeds",
}


def _table(evidence: Evidence, dataset: str, setting: AtRate) -> list[str]:
    others = [other for other in (BASELINE, CONTROL) if setting.evidence.ran(dataset, other)]
    heads = [f"{title} against {other.label}" for other in others for title in METRICS.values()]
    lines = [["method", *heads, "n"], []]
    for arm in _ran(setting, dataset, ROWS):
        found = [
            [compare(setting.evidence, dataset, arm, other, metric) for metric in METRICS] if arm != other else None
            for other in others
        ]
        cells = [cell for pair in found for cell in (map(bold, pair) if pair else ("-", "-"))]
        assert found[0]
        lines.append([arm.label, *cells, str(found[0][0].effect.n)])
    return [f"*{dataset_title(evidence, dataset)}, {setting.words}*", grid(lines)]

"""Table 2's methods against Baseline, and GCond against its peers, at each learning rate where a peer ran."""

from collections.abc import Sequence
from itertools import product

from gcond.report.claims.evidence import METRICS, Arm, Evidence
from gcond.report.claims.judge import compare, number
from gcond.report.claims.rates import AtRate, at_rates
from gcond.report.claims.reconstruction import BASELINE, CAGRAD, GRADNORM, PCGRAD, SEQUENTIAL, STOCHASTIC
from gcond.report.render import bullets, grid
from gcond.report.statistics import FEWEST
from gcond.report.summary.gap import CONTROL
from gcond.report.summary.say import ABOVE, BELOW, FEW, OPEN, bold, enough, listed, place
from gcond.report.summary.section import Section, dataset_title, not_run

TITLE = "The methods of Table 2"
PEERS = (PCGRAD, CAGRAD, GRADNORM, Arm("graddrop"))
GCOND = (SEQUENTIAL, STOCHASTIC)
ROWS = (*PEERS, *GCOND, Arm("gcond_pure"), Arm("gcond_lion"), CONTROL)
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
            return Section(TITLE, [_answer(own)], [READING, *(part for where in own for part in _table(each, *where))])
    return not_run(TITLE, "no peer of GCond at a scale that is evidence", COMMAND)


READING = (
    "Rows: a method against Baseline, and against Baseline integrated, which smooths the gradient as GCond does and "
    "resolves nothing; same seed, images, masks and learning rate, in percent of the other's loss, negative is better. "
    "Bold: the interval excludes zero, n is at least 6. Validation, best epoch."
)


def _ran(setting: AtRate, dataset: str, arms: Sequence[Arm]) -> list[Arm]:
    return [arm for arm in arms if setting.evidence.ran(dataset, arm)]


def _answer(own: Sequence[tuple[str, AtRate]]) -> str:
    """Counts over settings, both losses and pairs of methods."""
    names = [peer.label for peer in PEERS if any(setting.evidence.ran(dataset, peer) for dataset, setting in own)]
    parts = []
    for title, ours, theirs in (
        (f"{listed(names)} against Baseline", PEERS, (BASELINE,)),
        ("GCond against them", GCOND, PEERS),
        ("GCond against Baseline integrated, which smooths alike and resolves nothing", GCOND, (CONTROL,)),
    ):
        found = enough(
            compare(setting.evidence, dataset, *pair, metric)
            for dataset, setting in own
            for pair in _pairs(setting, dataset, ours, theirs)
            for metric in METRICS
        )
        places = [place(each.effect) for each in found]
        if places:
            parts.append(
                f"{title}: a lower loss in {places.count(BELOW)} and a higher one in {places.count(ABOVE)} of "
                f"{len(places)} comparisons."
            )
    return f"**And the peers?** {' '.join(parts) or 'Too few seeds for a conclusion.'}"


def _pairs(setting: AtRate, dataset: str, ours: Sequence[Arm], theirs: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    return [*product(_ran(setting, dataset, ours), _ran(setting, dataset, theirs))]


def _against_peers(setting: AtRate, dataset: str) -> list[str]:
    lines = []
    for ours in _ran(setting, dataset, GCOND):
        pairs = _pairs(setting, dataset, (ours,), PEERS)
        said = " ".join(_grouped(setting, dataset, pairs, metric) for metric in METRICS)
        lines.append(f"**{ours.label} against the peers.** {said}")
    return [bullets(lines)] if lines else []


def _grouped(setting: AtRate, dataset: str, pairs: Sequence[tuple[Arm, Arm]], metric: str) -> str:
    """ "L1: lower than PCGrad's (-3.1 % [-4.0, -2.2]); not told apart from CAGrad's (…)." """
    found: dict[str, list[str]] = {}
    ns = []
    for ours, theirs in pairs:
        finding = compare(setting.evidence, dataset, ours, theirs, metric)
        ns.append(finding.effect.n)
        found.setdefault(place(finding.effect), []).append(f"{theirs.label} ({number(finding.effect, '%')})")
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
    caption = f"*{dataset_title(evidence, dataset)}, {setting.words}*"
    return [caption, grid(lines), *_against_peers(setting, dataset)]

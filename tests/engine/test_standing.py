"""A finished run counts for the data that it was made with, here and where it is recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data.test_checksums import write_photos
from engine.attempts import contents
from engine.runs import config
from omegaconf import DictConfig

from gcond.command import main
from gcond.data.checksums import checksum_of, of_photographs
from gcond.engine.run_folder import RunFolder
from gcond.engine.run_state import recorded_by_data, standing
from gcond.report.collect import collect
from gcond.sweep.__main__ import print_summary
from gcond.sweep.plan import estimate, looked_at_again, plan, print_plan

SMALL = (
    "scale=smoke", "dataset=imagenet256", "model=mobilenetv3_small_050", "model.width=32",
    "model.depth=1", "strategy=baseline", "device=cpu", "progress=quiet",
)  # fmt: skip


@pytest.fixture(scope="module")
def two_roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of other photographs under the same names."""
    place = tmp_path_factory.mktemp("photos")
    return write_photos(place / "a", 1), write_photos(place / "b", 2)


def described(runs: Path, root: Path, *more: str) -> DictConfig:
    return config(*SMALL, f"runs={runs}", f"dataset.root={root}", *more)


@pytest.fixture(scope="module")
def trained_on_a(tmp_path_factory: pytest.TempPathFactory, two_roots: tuple[Path, Path]) -> Path:
    runs = tmp_path_factory.mktemp("finished") / "runs"
    main(described(runs, two_roots[0]))
    return runs


def test_other_data_under_the_same_name_are_refused_and_the_run_is_left_as_it_is(
    trained_on_a: Path, two_roots: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    a, b = (described(trained_on_a, root) for root in two_roots)
    folder = RunFolder(a)
    assert RunFolder(b).path == folder.path
    before = contents(folder.path)
    main(a)
    assert f"finished earlier, see {folder.path}\n" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"finished with data of the checksum") as refused:
        main(b)
    checksums = {root: checksum_of(cfg.dataset)[:10] for root, cfg in (("a", a), ("b", b))}
    for part in (
        str(folder.path),
        checksums["a"],
        f"today's {checksums['b']}",
        f"another `runs` or `name`, or move the folder out of {folder.path.parent}",
    ):
        assert part in str(refused.value)
    assert contents(folder.path) == before
    elsewhere = described(tmp_path / "elsewhere", two_roots[1])
    main(elsewhere)
    assert RunFolder(elsewhere).finished()["data_checksum"] == checksum_of(b.dataset)


def test_a_plan_counts_runs_of_other_data_apart_and_the_sweep_ends_with_their_sentence(
    trained_on_a: Path, two_roots: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    overrides = [*SMALL, f"runs={trained_on_a}", "seed=42,43"]
    runs = plan([*overrides, f"dataset.root={two_roots[1]}"])
    assert [(run.refused, run.done, run.left) for run in runs] == [(True, False, False), (False, False, True)]
    print_plan(runs, 1, estimate(runs, tmp_path))
    said = capsys.readouterr().out
    assert "Plan: 2 runs, 0 finished, 1 refused, 1 to do" in said
    assert f"refused: {runs[0].folder.path}: finished with data of the checksum" in said
    assert print_summary(runs) == 1
    assert f"{runs[0].folder.name}: {runs[0].folder.path}: finished with data of" in capsys.readouterr().out
    runs = plan([*overrides, f"dataset.root={two_roots[0]}"])
    assert [(run.refused, run.done, run.left) for run in runs] == [(False, True, False), (False, False, True)]


def test_without_its_data_a_finished_run_is_finished_and_said_to_be_unchecked(
    trained_on_a: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    runs = plan([*SMALL, f"runs={trained_on_a}", "seed=42,43", f"dataset.root={tmp_path / 'gone'}"])
    assert [run.done for run in runs] == [True, False]
    print_plan(runs, 1, estimate(runs, tmp_path))
    assert f"1 finished or recorded runs were not compared with their data, which are not there: `root`: no folder of "\
        f"photographs at {tmp_path / 'gone'}" in capsys.readouterr().out  # fmt: skip
    main(runs[0].cfg)
    assert "not compared with its data" in capsys.readouterr().out


def test_what_is_recorded_counts_for_its_data_only(
    trained_on_a: Path, two_roots: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    results, here = tmp_path / "results", tmp_path / "here"
    collect(trained_on_a / "smoke", results / "smoke")
    a, b = (described(here, root, f"recorded={results}") for root in two_roots)
    folder = RunFolder(a)
    assert set(recorded_by_data(results, "smoke", folder.hash)) == {checksum_of(a.dataset)}
    assert standing(folder, a).state == "recorded"
    other = standing(folder, b)
    assert (other.state, "for other data" in other.said) == ("to do", True)

    table = results / "smoke" / "runs.csv"  # as it was before checksums were recorded
    table.write_text(table.read_text().replace(checksum_of(a.dataset), ""))
    assert set(recorded_by_data(results, "smoke", folder.hash)) == {""}
    unknown = standing(folder, a)
    assert (unknown.state, "without the checksum of its data" in unknown.said) == ("to do", True)
    runs = plan([*SMALL, f"runs={here}", f"dataset.root={two_roots[0]}", f"recorded={results}", "seed=42,43"])
    assert [run.left for run in runs] == [True, True]
    print_plan(runs, 1, estimate(runs, results))
    said = capsys.readouterr().out
    assert "Plan: 2 runs, 0 finished, 2 to do" in said
    assert "1 of those to do: recorded in " in said


@pytest.mark.parametrize("report", [None, "", '{"schema": 1, "status": "done", "data_', '["done"]', '{"schema": 1}'])
def test_done_without_a_sound_report_is_not_finished(report: str | None, tmp_path: Path) -> None:
    cfg = config("dataset=photos", "scale=smoke", f"runs={tmp_path}")
    folder = RunFolder(cfg)
    folder.path.mkdir(parents=True)
    folder.finish()
    if report is not None:
        folder.report.write_text(report)
    assert folder.finished() is None
    assert standing(folder, cfg).state == "to do"


def test_the_report_of_another_version_is_refused(tmp_path: Path) -> None:
    cfg = config("dataset=photos", "scale=smoke", f"runs={tmp_path}")
    folder = RunFolder(cfg)
    folder.path.mkdir(parents=True)
    folder.finish()
    folder.report.write_text('{"schema": 7, "status": "done", "data_checksum": "0"}')
    assert standing(folder, cfg).state == "refused"
    with pytest.raises(ValueError, match="expected schema 1, found 7"):
        main(cfg)


def test_a_name_is_for_one_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`name`: expected it for one run, found mine for several"):
        plan(["scale=smoke", "dataset=photos", f"runs={tmp_path}", "name=mine", "seed=1,2"])


def test_a_finished_run_of_another_config_under_the_same_name_is_refused(tmp_path: Path) -> None:
    first, other = (
        config("scale=smoke", "dataset=photos", f"runs={tmp_path}", "name=mine", f"seed={seed}") for seed in (1, 2)
    )
    folder = RunFolder(first)
    with folder.open(first):
        folder.report.write_text(json.dumps({"schema": 1, "status": "done", "data_checksum": of_photographs()}))
    assert standing(folder, first).state == "finished"
    found = standing(RunFolder(other), other)
    assert found.state == "refused"
    assert "seed 1 there, 2 here" in found.said


def test_two_roots_in_one_sweep_are_refused_where_they_would_share_a_folder(
    two_roots: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = two_roots
    with pytest.raises(ValueError, match=r"`dataset.root`: two runs of this sweep"):
        plan([*SMALL, f"runs={tmp_path}", f"dataset.root={a},{b}"])
    (tmp_path / "link").symlink_to(a)
    assert len(plan([*SMALL, f"runs={tmp_path}", f"dataset.root={a},{tmp_path / 'link'}"])) == 2


def test_what_became_finished_for_other_data_meanwhile_is_seen_at_the_end(
    two_roots: tuple[Path, Path], tmp_path: Path
) -> None:
    runs = plan([*SMALL, f"runs={tmp_path}", f"dataset.root={two_roots[1]}"])
    main(described(tmp_path, two_roots[0]))
    assert [run.refused for run in looked_at_again(runs)] == [True]
    assert print_summary(looked_at_again(runs)) == 1


def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config("dataset=photos", "scale=smoke", f"runs={tmp_path}")

    def forbidden(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", forbidden)
    found = standing(RunFolder(cfg), cfg)
    assert (found.state, str(RunFolder(cfg).path) in found.said) == ("refused", True)


def test_what_the_queue_of_the_study_has_recorded_counts_too(tmp_path: Path) -> None:
    """Its table has finished runs alone, and no column that says so."""
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "runs.csv").write_text("name,hash,data_checksum,seconds\na,0123,abc,1\n")
    assert recorded_by_data(tmp_path, "study", "0123").keys() == {"abc"}

"""Processes that die: the file that kills is found, the others are worked on, nothing is lost."""

import json

import pytest
from archive import listing
from archive.run import Job, run_stage
from prepare import deadly


@pytest.fixture
def jobs(tmp_path):
    """Four shards of about 5 files each; two files kill."""
    archive = tmp_path / "archive"
    archive.mkdir()
    for name in [*(f"{i:02}" for i in range(18)), "kill-a", "kill-b"]:
        (archive / name).write_bytes(b"")
    path = tmp_path / "ct" / ".building" / "listing.parquet"
    shards = listing.write_listing(path, {"ich": archive}, shard_files=5)
    return [Job(tmp_path / "ct", i, {"ich": archive}) for i in range(shards)]


def test_files_that_kill_are_quarantined_and_all_others_done(jobs, capsys):
    done = []
    run_stage(deadly.DEADLY, jobs, 2, done.append)
    assert sum(done) == 20
    written = [name for job in jobs for name in job.headers.read_text().split()]
    assert sorted(written) == [f"{i:02}" for i in range(18)]
    found = [json.loads(job.quarantine("deadly").read_text()) for job in jobs if job.quarantine("deadly").exists()]
    assert sorted(path for killers in found for path, _ in killers) == ["kill-a", "kill-b"]
    assert "looking for the file" in capsys.readouterr().err


def test_a_shard_that_dies_without_a_culprit_is_an_error(jobs):
    with pytest.raises(RuntimeError, match=r"none of its files kills one alone.*fewer --workers"):
        run_stage(deadly.TOGETHER, jobs[:1], 2, lambda files: None)


def test_an_error_of_the_work_itself_is_passed_on(jobs):
    with pytest.raises(OSError, match="No space left"):
        run_stage(deadly.REFUSING, jobs, 2, lambda files: None)

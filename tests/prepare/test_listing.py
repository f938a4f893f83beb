"""The walk over made folders: every file once, odd ones by name, shards by names alone; files that kill a process."""

import json
import os
import zipfile

import pytest
from archive import listing
from archive.listing import Entry, open_entry, read_shard, shard_sizes, walk, write_listing
from archive.run import Job, run_stage
from prepare import deadly


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "archive"
    (root / "b" / "c").mkdir(parents=True)
    (root / "b" / "c" / "2.dcm").write_bytes(b"two")
    (root / "b" / "10").write_bytes(b"ten!")
    (root / "a.csv").write_bytes(b"")
    with zipfile.ZipFile(root / "z.ZIP", "w") as archive:
        archive.writestr("inside/1.dcm", b"zipped")
        archive.mkdir("inside/empty")
    return root


def named(entries):
    return {(entry.path, entry.member): (entry.size, entry.problem) for entry in entries}


def test_every_file_and_every_member_once(root):
    entries = list(walk("ich", root))
    assert named(entries) == {
        ("a.csv", ""): (0, ""),
        ("b/10", ""): (4, ""),
        ("b/c/2.dcm", ""): (3, ""),
        ("z.ZIP", "inside/1.dcm"): (6, ""),
    }
    assert {entry.source for entry in entries} == {"ich"}
    contents = []
    for entry in entries:
        with open_entry(root, entry) as file:
            contents.append(file.read())
    assert contents == [b"", b"ten!", b"two", b"zipped"]


def test_what_cannot_be_read_is_named_and_links_are_followed(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "3.dcm").write_bytes(b"3")
    links = {"linked": tmp_path / "elsewhere", "circle": root, "broken": root / "nowhere", "itself": "itself"}
    for name, target in links.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "pipe")
    (root / "bad.zip").write_bytes(b"PK\x03\x04 and no more")
    (root / "._bad.zip").write_bytes(b"\x00\x05\x16\x07")
    (root / os.fsdecode(b"caf\xe9.dcm")).write_bytes(b"x")
    zipfile.ZipFile(root / "empty.zip", "w").close()
    found = named(walk("radcure", root))
    assert len(found) == 4 + 9
    assert found["linked/3.dcm", ""] == (1, "")
    assert found["._bad.zip", ""] == (4, "")
    assert {path: problem for (path, _), (_, problem) in found.items() if problem} == {
        "circle": "symlink loop",
        "broken": "broken link",
        "itself": "symlink loop",
        "pipe": "not a regular file",
        "bad.zip": "damaged zip",
        "empty.zip": "empty zip",
        r"caf\udce9.dcm": "file name is not text",
    }


def test_a_path_that_is_too_long_is_named(root):
    here = os.open(root, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert [problem for _, problem in named(walk("ich", root)).values() if problem] == ["path too long"]


def test_entries_of_a_zip_that_cannot_be_read_are_named(root):
    outside = ("../evil.dcm", "/evil.dcm", "a/../../evil.dcm", "C:/evil.dcm")
    with zipfile.ZipFile(root / "odd.zip", "w") as archive:
        for name in ("secret.dcm", *outside):
            archive.writestr(name, b"x" * 8)
        archive.writestr("twice.dcm", b"first")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("twice.dcm", b"second, longer")
        archive.writestr("imploded.dcm", b"y" * 8)
    content = (root / "odd.zip").read_bytes()
    for name, field, value in ((b"secret.dcm", 8, 1), (b"imploded.dcm", 10, 6)):  # of the central directory
        place = content.rindex(name) - 46 + field
        content = content[:place] + bytes([value]) + content[place + 1 :]
    (root / "odd.zip").write_bytes(content)
    found = named(walk("radcure", root))
    assert {member: facts for (path, member), facts in found.items() if path == "odd.zip"} == {
        "secret.dcm": (8, "encrypted zip"),
        **dict.fromkeys(outside, (8, "zip entry leaves its folder")),
        "twice.dcm": (14, ""),
        "twice.dcm (2)": (14, "zip entry again"),
        "imploded.dcm": (8, "zip method that is not known"),
    }
    with open_entry(root, Entry("radcure", "odd.zip", "twice.dcm", 14)) as file:
        assert file.read() == b"second, longer"


def test_shards_hold_every_file_once_and_depend_on_names_alone(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    names = [f"{i:04}.dcm" for i in range(2500)]
    for folder, order in ((first, names), (second, names[::-1])):
        folder.mkdir()
        for name in order:
            (folder / name).write_bytes(b"")
    listings = [tmp_path / "1.parquet", tmp_path / "2.parquet"]
    assert [write_listing(path, {"ich": root}) for path, root in zip(listings, (first, second), strict=True)] == [3, 3]
    assert listings[0].read_bytes() == listings[1].read_bytes()
    assert sum(shard_sizes(listings[0])) == 2500
    shards = [read_shard(listings[0], i) for i in range(3)]
    assert sorted(entry.path for shard in shards for entry in shard) == names
    assert all(len(shard) == pytest.approx(2500 / 3, abs=6 * (2500 * 2 / 9) ** 0.5) for shard in shards)
    assert [entry.path for entry in shards[0]] != sorted(entry.path for entry in shards[0])
    assert shards[0][0] == Entry("ich", shards[0][0].path, "", 0)


def test_nothing_to_list(tmp_path):
    with pytest.raises(ValueError, match="no file below"):
        write_listing(tmp_path / "listing.parquet", {"ich": tmp_path})


# Processes that die: the file that kills is found, the others are worked on, nothing is lost


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

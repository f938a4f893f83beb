"""The machine: its devices, fingerprint, time, commit and memory."""

import re
import resource
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from engine.attempts import Attempt
from engine.runs import tiny_config

from gcond.engine.device import (
    OutOfMemory,
    commit,
    cpu_seconds,
    describe,
    find,
    fingerprint,
    is_out_of_memory,
    out_of_memory_hint,
    pick,
    processor,
    tf32,
)
from gcond.engine.run_folder import RunFolder


def test_a_run_on_the_cpu_uses_the_threads_it_was_given():
    before = torch.get_num_threads()
    try:
        device = pick("cpu", threads=2)
        assert torch.get_num_threads() == 2
        assert describe(device).startswith("CPU, ")
        assert describe(device).endswith("2 thread(s) a run")
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:x", "cuda:99"])
def test_a_device_that_is_none_here_is_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"`device`: .*found '{name}'"):
        find(name)


def test_float32_is_float32_on_cuda_too():
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    assert tf32()
    pick("cpu", threads=torch.get_num_threads())
    assert not tf32()
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_processor_s_seconds_of_children_that_have_ended_count():
    before = cpu_seconds()
    code = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert 0.28 <= cpu_seconds() - before < 5  # counted in hundredths


def test_processors_of_one_name_are_told_apart():
    listed = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: {}\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel\t: 99\n"
    vectors = torch.backends.cpu.get_cpu_capability()
    assert processor(listed.format(1)) == f"AMD EPYC (family 25, model 1, {vectors})"
    assert processor(listed.format(17)) == f"AMD EPYC (family 25, model 17, {vectors})"
    assert processor("Hardware: a board without names\n") == ""


@pytest.fixture
def checkout(tmp_path):
    """A repository with one commit of one source file."""
    (tmp_path / "src").mkdir()
    (tmp_path / "conf").mkdir()
    (tmp_path / "src" / "a.py").write_text("1\n")
    commit = ["-c", "user.name=n", "-c", "user.email=e", "commit", "-m", "first"]
    for words in (["init"], ["add", "."], commit, ["config", "status.showUntrackedFiles", "no"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True)
    return tmp_path


@pytest.mark.parametrize("changed", ["src/a.py", "src/new.py", "conf/new.yaml", "src/package/new.py"])
def test_a_changed_or_new_source_file_makes_a_run_dirty(changed, checkout):
    number, dirty = commit(checkout)
    assert (len(number), dirty) == (40, False)
    (checkout / "notes.txt").touch()
    assert commit(checkout) == (number, False)
    (checkout / changed).parent.mkdir(exist_ok=True)
    (checkout / changed).write_text("2\n")
    assert commit(checkout) == (number, True)


def test_the_repository_around_an_installed_package_is_not_its_own(checkout):
    (checkout / "lib").mkdir()
    assert commit(checkout / "lib") == ("unknown", False)


CPU = torch.device("cpu")


def test_a_fingerprint_draws_nothing_and_is_another_where_convolutions_round_otherwise():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = fingerprint(CPU)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert fingerprint(CPU) == found
    with torch.backends.mkldnn.flags(enabled=False):
        assert fingerprint(CPU) != found


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


@pytest.mark.parametrize(("tried", "expected"), [((12, 4), (6, 8)), ((9, 2), (3, 6)), ((1, 4), None)])
def test_a_run_out_of_memory_is_told_a_smaller_micro_batch(tried, expected):
    """The CPU allocator's own error; other errors pass."""
    with pytest.raises(OutOfMemory, match=f"at scale.micro_batch={tried[0]}") as caught, out_of_memory_hint(*tried):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert isinstance(caught.value.__cause__, RuntimeError)
    found = re.search(r"scale.micro_batch=(\d+) scale.accumulation_steps=(\d+)", str(caught.value))
    assert (found and tuple(map(int, found.groups()))) == expected
    with pytest.raises(FloatingPointError), out_of_memory_hint(*tried):
        raise FloatingPointError("nan")


def test_what_a_failed_step_held_is_let_go_of():
    held = []

    def step():
        activations = torch.zeros(3)
        held.append(weakref.ref(activations))
        raise MemoryError(str(activations))

    with pytest.raises(OutOfMemory) as caught, out_of_memory_hint(2, 2):
        step()
    assert held[0]() is None
    assert caught.value.__cause__ is not None


def test_a_run_out_of_memory_says_so_in_its_report(tmp_path):
    """Under a limit on the address space of 300 MB more than there is when everything is imported."""

    def limit():
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 300_000_000, size + 300_000_000))

    large = ("+dataset.train=256", "scale.micro_batch=256", "scale.image_size=128", "scale.probe_micro_batches=0")
    cfg = tiny_config(tmp_path / "runs", *large)
    assert Attempt(cfg, tmp_path / "log", prepare=limit).status() == 1
    error = RunFolder(cfg).error
    assert error is not None
    assert error.startswith("OutOfMemory: out of memory at scale.micro_batch=256. Try scale.micro_batch=128 ")

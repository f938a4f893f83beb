"""The device of a run: its name in a table, how it rounds, the precision of the model, and what a full one says."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import subprocess
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import nn

from gcond.files import ROOT
from gcond.schema import Device, validate


def pick(name: str, threads: int) -> torch.device:
    """`auto` takes CUDA where there is one. On the CPU a run uses `threads` threads.

    TF32, which CUDA's convolutions use unless told otherwise, is switched off. Raises ValueError as `find` does.
    """
    device = find(name)
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    if device.type == "cpu":
        torch.set_num_threads(threads)
    return device


def find(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N`. Raises ValueError for others, and for one that this machine does not have."""
    validate(TypeAdapter(Device), name, "device")
    device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= there:
        raise ValueError(f"`device`: found {name!r}, but PyTorch sees {there} CUDA devices here; expected cpu or auto")
    return device


def tf32() -> bool:
    """Does CUDA shorten float32 to 10 bits of mantissa in matrix products or convolutions?"""
    return bool(torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)


def cpu_seconds() -> float:
    """Of this process, all threads, and of those of its children that have ended."""
    return sum(os.times()[:4])


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    model = processor(info.read_text() if info.exists() else "") or platform.processor() or platform.machine()
    return f"CPU, {model}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s) a run"


def processor(listed: str) -> str:
    """Of the text of /proc/cpuinfo: name, family and model, and the vector instructions that PyTorch uses, since
    processors of one name may differ in these, and then round differently. "" where no name is listed."""
    first = [line.partition(":") for line in listed.split("\n\n")[0].splitlines()]
    found = {key.strip(): value.strip() for key, _, value in first}
    if "model name" not in found:
        return ""
    kind = [f"{key.split()[-1]} {found[key]}" for key in ("cpu family", "model") if key in found]
    return f"{found['model name']} ({', '.join([*kind, torch.backends.cpu.get_cpu_capability()])})"


def peak_memory_mb(device: torch.device) -> float:
    """CUDA: the most that tensors held. CPU: the most that the process held, libraries and earlier runs included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def commit(root: Path = ROOT) -> tuple[str, bool]:
    """The checkout's commit, and whether source files differ from it or are new; ("unknown", False) outside of one."""

    def git(*words: str) -> str:
        return subprocess.check_output(["git", "-C", root, *words], text=True, stderr=subprocess.DEVNULL).strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root.resolve():  # installed inside a repository of another kind
            return "unknown", False
        changed = git("status", "--porcelain", "--untracked-files=normal", "--", "src", "conf", "data_prep")
        return git("rev-parse", "HEAD"), bool(changed)
    except (subprocess.CalledProcessError, FileNotFoundError):
        return "unknown", False


def fingerprint(device: torch.device) -> str:
    """Eight hexadecimal digits of the weights of a small network after three steps of AdamW on made images.

    The network has the kinds of layers that the models have (convolutions of both kinds, BatchNorm, attention). Runs
    of one config, seed and number of threads give the same numbers to the bit where fingerprints are equal, and
    differ as seeds do where they are not.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Hardswish()),
            *(nn.Conv2d(16, 16, 5, 2, 2, groups=16), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 64, 1), nn.Flatten(2), nn.Linear(64, 64)),
            nn.TransformerEncoderLayer(64, 4, 256, 0.0, batch_first=True),
            nn.Linear(64, 256),
        ).to(device)
        images, targets = torch.randn(16, 3, 32, 32).to(device), torch.randn(16, 64, 256).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (network(images) - targets).abs().mean().backward()
        optimizer.step()
    weights = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    return hashlib.sha256(weights.cpu().numpy().tobytes()).hexdigest()[:8]


PRECISION = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: str, precision: str) -> torch.autocast:
    """Autocast of the model on this type of device; one that does nothing for fp32."""
    low = precision != "fp32"
    return torch.autocast(device, PRECISION[precision] if low else None, enabled=low)


MESSAGES = (  # of RuntimeErrors; what PyTorch has no class for
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "could not create a primitive",  # oneDNN, of its code or scratch memory
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


class OutOfMemory(RuntimeError):
    """The run does not fit; the message says what to try."""


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


@contextmanager
def out_of_memory_hint(micro_batch: int, accumulation_steps: int) -> Iterator[None]:
    """Turn what the allocators raise inside into `OutOfMemory`; other errors pass."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # lets go of the step's activations: a report follows
        halves = [size for size in range(1, micro_batch // 2 + 1) if micro_batch % size == 0]
        advice = "a smaller model or scale.image_size"
        if halves:
            more = accumulation_steps * micro_batch // halves[-1]
            advice = f"scale.micro_batch={halves[-1]} scale.accumulation_steps={more}, the same effective batch"
        raise OutOfMemory(
            f"out of memory at scale.micro_batch={micro_batch}. Try {advice}; `gcond plan-memory` says what fits. "
            "Another micro-batch is another run, with masks and BatchNorm statistics of its own: give it to every "
            "strategy that you compare."
        ) from error

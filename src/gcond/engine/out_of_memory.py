"""What a run that ran out of memory says: which micro-batch to try next."""

from __future__ import annotations

import resource
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from gcond.engine.memory import Planner
from gcond.engine.passes import state_of
from gcond.model import MaskedAutoencoder
from gcond.strategy import Sequential

MESSAGES = (  # of RuntimeErrors; what PyTorch has no class for
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


class OutOfMemory(RuntimeError):
    """The run does not fit; the message says what to try."""


@contextmanager
def out_of_memory_hint(cfg: DictConfig, model: MaskedAutoencoder, device: torch.device) -> Iterator[None]:
    """Turn what the allocators raise inside into `OutOfMemory`; other errors pass."""
    before = process_bytes() - sum(tensor.nbytes for tensor in state_of(model)) if device.type == "cpu" else 0
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # lets go of the step's activations
        raise OutOfMemory(advice(cfg, model, device, before)) from error


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


def advice(cfg: DictConfig, model: MaskedAutoencoder, device: torch.device, before: int = 0) -> str:
    """The largest smaller micro-batch of the same effective batch that is planned to fit; half where planning fails.

    `before`: bytes of this process (CPU) that are not the run's.
    """
    failed = f"out of memory at scale.micro_batch={cfg.scale.micro_batch} on {device.type}."
    try:
        return f"{failed} {_planned(cfg, Planner(cfg, model, device), room(device, before))} {_caution(cfg, model)}"
    except Exception as error:  # out of memory again, or a model or machine that cannot be counted
        what = f"a halving, not a plan: planning failed with {type(error).__name__}: {error}"
        return f"{failed} {_halved(cfg)} ({what}). {_caution(cfg, model)}"


def _planned(cfg: DictConfig, planner: Planner, available: int) -> str:
    """What to try, and the numbers that it rests on."""
    scale = cfg.scale
    failed = planner.plan(scale.micro_batch, scale.accumulation_steps)
    surprise = failed.fits(available)
    below = scale.micro_batch // 2 + 1 if surprise else scale.micro_batch
    verdict = "although the plan fits" if surprise else "the plan"
    numbers = f"({verdict}: {_gb(failed.peak)} at the peak, {_gb(available)} for it)"
    found = planner.largest(available, below)
    if found is None:
        least = planner.plan(*planner.choices()[0])
        why = "no micro-batch is smaller" if scale.micro_batch == 1 else f"even 1 is planned at {_gb(least.peak)}"
        return f"No micro-batch fits: {why} {numbers}. What would help: {'; '.join(_remedies(planner))}."
    return (
        f"Try scale.micro_batch={found.micro_batch} scale.accumulation_steps={found.accumulation_steps}: the same "
        f"effective batch of {scale.micro_batch * scale.accumulation_steps}, planned at {_gb(found.peak)} {numbers}."
    )


def _halved(cfg: DictConfig) -> str:
    micro_batch, steps = cfg.scale.micro_batch, cfg.scale.accumulation_steps
    smaller = max((size for size in range(1, micro_batch // 2 + 1) if micro_batch % size == 0), default=None)
    if smaller is None:
        return "No micro-batch is smaller; try a smaller model or scale.image_size"
    return f"Try scale.micro_batch={smaller} scale.accumulation_steps={steps * micro_batch // smaller}"


def _remedies(planner: Planner) -> list[str]:
    conductor = planner.conductor
    remedies = ["a smaller model", "a smaller scale.image_size"]
    if isinstance(conductor.estimator, Sequential) and conductor.estimator.forward == "shared":
        remedies.append("strategy.conductor.estimator.forward=per_task")
    if conductor.gradients.rows.element_size() > 2:
        remedies.append("rows in bfloat16, +strategy.conductor.buffer_dtype=bfloat16")
    return remedies


def _caution(cfg: DictConfig, model: nn.Module) -> str:
    normalised = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    reasons = ["masks are drawn per micro-batch"]
    if normalised and cfg.strategy.model_mode == "train":
        reasons.append("BatchNorm's statistics are a micro-batch's")
    if OmegaConf.select(cfg, "strategy.conductor.estimator.resolve_every") == "micro_batch":
        reasons.append("conflicts are resolved in each micro-batch")
    return (
        f"Another micro-batch is another run, from its start and with other numbers ({', '.join(reasons)}): give it to "
        "every strategy that you compare."
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


def room(device: torch.device, before: int = 0) -> int:
    """Bytes that the tensors of a run may take: what is free, and what this process holds, less `before` on the CPU.

    CUDA: what the driver calls free, and PyTorch's cache. CPU: the least of the machine's available memory, of what
    control groups leave, and of the limit on the address space. Raises OSError where there is no /proc.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    fields = _fields("/proc/meminfo")
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    free = [fields["MemAvailable"] * 1024, *_left_by_control_groups()]
    if limit != resource.RLIM_INFINITY:
        free.append(limit - _fields("/proc/self/status")["VmSize"] * 1024)
    return max(0, min(free)) + process_bytes() - before


def process_bytes() -> int:
    """Resident memory of this process; 0 where there is no /proc."""
    return _fields("/proc/self/status")["VmRSS"] * 1024 if Path("/proc/self/status").exists() else 0


def _left_by_control_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Limit less use, page cache not counted as use, of every group (versions 1 and 2) that this process is in."""
    left = []
    for line in own.read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        version1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
        limit, use, cache = version1 if controllers else ("memory.max", "memory.current", "file")
        mount = root / controllers
        inside = mount / group.strip("/")
        for folder in [inside, *inside.parents]:
            if folder.is_relative_to(mount) and (folder / limit).exists():
                most = (folder / limit).read_text().strip()
                if most != "max":
                    held = int((folder / use).read_text()) - _fields(folder / "memory.stat").get(cache, 0)
                    left.append(int(most) - held)
    return left


def _fields(path: str | Path) -> dict[str, int]:
    """The numbers of a file of lines "name: number ..." or "name number"."""
    pairs = (line.replace(":", " ").split()[:2] for line in Path(path).read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}

"""A device that is simulated, for tests on machines without one: it counts what would stop a GPU, and refuses the rest.

A far tensor holds its numbers in ordinary memory and says that it is on the device "meta", which autograd serves
without a driver. Every operation on it runs on the numbers, so that results are those of the CPU to the bit, and is
looked at first, as CUDA would:

- reading a number (`item`, `bool`, `float`, `tolist`), copying to the host, and operations whose result has a size or a
  value that the host must know are synchronisations;
- copying from the host is a transfer, for which PyTorch waits too, unless it is `non_blocking`: then it is queued;
- operands on both sides are refused, but for host scalars (0 dimensions) in elementwise operations.
"""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
FAR = torch.device("meta")
COPIES = (aten._to_copy, aten.copy_)
KNOWN_TO_THE_HOST = (  # a value, or the size of the result
    aten._local_scalar_dense,
    aten.equal,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.bincount,
)


class FarTensor(Tensor):
    """`held` are its numbers, an ordinary tensor of the same shape and strides."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> FarTensor:
        far = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=FAR
        )
        far.held = held
        return far

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self) -> Any:
        return self.cpu().tolist()  # PyTorch's own refuses subclasses

    def __repr__(self) -> str:  # type: ignore[override]
        return f"FarTensor({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on a far tensor outside `with FarDevice()`")


class _Literals(TorchFunctionMode):
    """`torch.tensor(values, device=…)` is made without a dispatch; it is made on the host here and then copied."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


class FarDevice(TorchDispatchMode):
    """While open, "meta" is the simulated device.

    `counts` has "synchronisations", "transfers" and "queued transfers"; `log` names the operation and shapes of each.
    """

    device = FAR

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.log: list[str] = []
        self._literals = _Literals()

    def __enter__(self) -> FarDevice:
        self._literals.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._literals.__exit__(*error)

    def clear(self) -> None:
        self.counts.clear()
        self.log.clear()

    def put(self, tensor: Tensor) -> FarTensor:
        """A copy of `tensor` on the device, not counted."""
        return FarTensor(tensor.detach().clone(memory_format=torch.preserve_format))

    def put_module(self, module: nn.Module) -> nn.Module:
        """`module`, its parameters and buffers replaced by copies on the device."""
        with self:
            for part in module.modules():
                for name, parameter in list(part.named_parameters(recurse=False)):
                    part.register_parameter(name, nn.Parameter(self.put(parameter), parameter.requires_grad))
                for name, buffer in list(part.named_buffers(recurse=False)):
                    part.register_buffer(name, self.put(buffer))
        return module

    def held(self, tensor: Tensor) -> Tensor:
        """The numbers of a far tensor, not counted."""
        assert isinstance(tensor, FarTensor)
        return tensor.held

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        far = [operand for operand in operands if operand.device == FAR]
        lost = [operand for operand in far if not isinstance(operand, FarTensor)]
        assert not lost, f"{func}: a tensor on the device that was made outside `with FarDevice()`"
        goal = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if not far and goal != FAR:
            return func(*args, **kwargs)
        if what := _waits(func, args, kwargs, operands, goal):
            self.counts[what] += 1
            self.log.append(f"{what}: {func} {[tuple(operand.shape) for operand in operands]}")
        if func.overloadpacket not in COPIES:
            _refuse_mixture(func, args, operands, far)
        if goal == FAR:
            kwargs["device"] = torch.device("cpu")
            if kwargs.pop("pin_memory", False):
                raise RuntimeError(f"{func}: only memory of the host can be pinned")
        made = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        known = {id(_held(operand)): operand for operand in operands}  # what is written in place is returned as it was
        to_host = goal is not None and goal != FAR

        def wrap(value: Any) -> Any:
            if id(value) in known:
                return known[id(value)]
            return FarTensor(value) if isinstance(value, Tensor) and not to_host else value

        return tree_map(wrap, made)


def _waits(func: Any, args: Any, kwargs: dict[str, Any], operands: list[Tensor], goal: Any) -> str:
    """What a GPU's driver would do for this operation; empty where it would go on at once."""
    kind = func.overloadpacket
    source = target = True
    if kind is aten.copy_:
        target, source = args[0].device == FAR, args[1].device == FAR
    elif operands:
        source = operands[0].device == FAR
        target = source if goal is None else goal == FAR
    masked = kind is aten.index and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    if (source and not target) or (source == target and (kind in KNOWN_TO_THE_HOST or masked)):
        return "synchronisations"
    if target and not source and kind in COPIES:
        queued = kwargs.get("non_blocking", args[2] if kind is aten.copy_ and len(args) > 2 else False)
        return "queued transfers" if queued else "transfers"
    return ""


def _refuse_mixture(func: Any, args: Any, operands: list[Tensor], far: list[Tensor]) -> None:
    near = [operand for operand in operands if operand.device != FAR]
    scalars = torch.Tag.pointwise in func.tags and all(operand.dim() == 0 for operand in near)
    in_place = isinstance(args[0], Tensor) and args[0].device != FAR and func._schema.is_mutable if args else False
    if near and far and (not scalars or in_place):
        shapes = ", ".join(f"{tuple(o.shape)} {'device' if o.device == FAR else 'host'}" for o in operands)
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {shapes}")


def _held(value: Any) -> Any:
    return value.held if isinstance(value, FarTensor) else value


class CudaDevice:
    """As `FarDevice`, on a GPU: "synchronisations" are what PyTorch says it waits for, reads and transfers alike."""

    device = torch.device("cuda")

    def __init__(self) -> None:
        self.log: list[str] = []

    def __enter__(self) -> CudaDevice:
        self._catcher = warnings.catch_warnings(record=True)
        self._caught = self._catcher.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *error: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self._catcher.__exit__(*error)

    @property
    def counts(self) -> Counter[str]:
        self.log = [str(each.message) for each in self._caught if "synchronizing CUDA" in str(each.message)]
        return Counter(synchronisations=len(self.log))

    def clear(self) -> None:
        self._caught.clear()

    def put(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.device, copy=True)

    def put_module(self, module: nn.Module) -> nn.Module:
        return module.to(self.device)

    def held(self, tensor: Tensor) -> Tensor:
        return tensor.cpu()


class FarQueue:
    """In place of `gcond.engine.batches.SideStream`: copies in the one queue of a device that has no streams."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensor.to(self._device, non_blocking=True) for tensor in tensors)

    def finish(self, copies: tuple[Tensor, ...]) -> None:
        pass

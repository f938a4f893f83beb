"""Parameters laid out one after the other in a flat buffer of P numbers.

A view into the buffer carries the parameter's own strides; a contiguous view of a channels_last weight makes a fused
optimizer update the wrong elements without an error. Of a parameter that is sharded over processes (DTensor, as FSDP2
makes them) the buffer holds this process's part.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.functional import pad
from torch.nn.parameter import is_lazy

from gcond.strategy.arguments import expect

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Named = Tensor | tuple[str, Tensor]
Parameters = nn.Module | Iterable[Named] | Mapping[str, nn.Module | Iterable[Named]]
"""Parameters, (name, parameter) pairs, or a module; or a mapping from group names to such."""
T = TypeVar("T")
COMPILED = "_orig_mod."  # what torch.compile adds to names; without it states of both kinds are alike


@dataclass(frozen=True)
class Slot:
    """A parameter's range of the buffer: `shape` and `stride` of the view that autograd and optimizers see."""

    name: str
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def view(self, flat: Tensor) -> Tensor:
        """This parameter's part of `flat` [..., P], as [..., *shape]."""
        rows = flat.shape[:-1]
        return flat.as_strided(
            (*rows, *self.shape),
            (*flat.stride()[: len(rows)], *self.stride),
            flat.storage_offset() + self.start,
        )


Layout = tuple[Slot, ...]


def lay_out(entries: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> Layout:
    """Parameters of such names, shapes and strides, one after the other."""
    slots, start = [], 0
    for name, shape, stride in entries:
        slots.append(Slot(name, start, tuple(shape), tuple(stride)))
        start += prod(shape)
    return tuple(slots)


def size(layout: Layout) -> int:
    """P."""
    return sum(prod(slot.shape) for slot in layout)


def described(layout: Layout) -> list[list[Any]]:
    """The layout as lists of strings and integers, for a checkpoint; `lay_out` takes them."""
    return [[slot.name, list(slot.shape), list(slot.stride)] for slot in layout]


class Move:
    """The way of numbers that outlive a step from one layout to another; a parameter that is new in it begins at 0."""

    def __init__(self, old: Layout, new: Layout, dtype: torch.dtype) -> None:
        self._old, self._new, self.dtype = old, new, dtype
        before = {slot.name: slot for slot in old}
        self._pairs = [(before[slot.name], slot) for slot in new if slot.name in before]

    def check(self) -> None:
        """Raise ValueError where a parameter has another shape than before."""
        for was, now in self._pairs:
            expected = f"{now.name} of shape {was.shape}, for which momentum or previous gradients are kept"
            expect(was.shape == now.shape, "parameters", expected, f"{now.shape}; build another conductor")

    def numbers(self, kept: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """`kept` [..., P before] as [..., P now], in `dtype`. What `kept` lacks at its end is 0.

        Raises:
            ValueError: a parameter has another shape than before, or `dtype` holds fewer digits.
        """
        self.check()
        if dtype is not None and torch.promote_types(kept.dtype, dtype) != dtype:
            raise ValueError(
                f"`parameters`: momentum or previous gradients are kept as {kept.dtype}, which {dtype} would round; "
                "build another conductor after changing the dtype of the parameters, or set `buffer_dtype`"
            )
        kept = kept.to(dtype or kept.dtype)
        if self._old == self._new:
            return kept
        whole = pad(kept, (0, size(self._old) - kept.shape[-1]))
        moved = whole.new_zeros(*whole.shape[:-1], size(self._new))
        for was, now in self._pairs:
            now.view(moved).copy_(was.view(whole))
        return moved

    def each(self, values: Sequence[T], new: T) -> list[T]:
        """One value a parameter, as before; `new` for a parameter that is new."""
        before = {slot.name: value for slot, value in zip(self._old, values, strict=True)}
        return [before.get(slot.name, new) for slot in self._new]


class FlatParameters:
    """The trainable parameters among `parameters`, in order, each once.

    Args:
        parameters: a tied or repeated parameter counts in the first group that names it. Without names of their own,
            parameters are called by group and place. Frozen parameters are left out.
        dtype: of the buffer; None is the parameters' own.
        held: names of parameters that are laid out even while they are frozen.

    Raises:
        ValueError: something that is no parameter, or that no real gradient can be kept for; no trainable parameter;
            parameters on several devices or of several dtypes; or only some that are sharded, or sharded in another way
            than over one mesh dimension.
    """

    def __init__(self, parameters: Parameters, dtype: torch.dtype | None = None, held: Collection[str] = ()) -> None:
        self._members = _members(parameters)
        self.all_names = [name for _, name, _ in self._members]  # of frozen parameters too
        laid = [each for each in self._members if each[2].requires_grad or each[1] in held]
        none = "none; a generator such as model.parameters() can be read only once"
        expect(bool(laid), "parameters", "at least one that requires a gradient", none)
        self.groups = [group for group, _, _ in laid]
        self.names = [name for _, name, _ in laid]
        self.parameters = [parameter for _, _, parameter in laid]
        self.device, self.parameter_dtype = _one_kind(self.names, self.parameters)
        self.dtype = dtype or self.parameter_dtype
        self.mesh = _mesh(self.parameters, self.names)
        self.sharded = self.mesh is not None
        own = [local(parameter) for parameter in self.parameters]
        self.layout = lay_out((n, p.shape, _dense_stride(p)) for n, p in zip(self.names, own, strict=True))
        self.size = size(self.layout)  # P (of this process)
        self.bounds = [*(slot.start for slot in self.layout), self.size]
        self._looks = self._look()

    def changed(self) -> bool:
        """Whether a parameter's shape, strides, dtype, device or `requires_grad` is another than at construction."""
        return self._look() != self._looks

    def renew(self) -> None:
        """What has `changed` does not matter."""
        self._looks = self._look()

    def _look(self) -> list[tuple[Any, ...]]:
        return [(p.shape, p.stride(), p.dtype, p.device, p.requires_grad) for _, _, p in self._members]

    def laid_out_like(self, other: FlatParameters) -> bool:
        return all(
            getattr(self, what) == getattr(other, what) for what in ("layout", "device", "dtype", "parameter_dtype")
        )

    def views(self, flat: Tensor) -> list[Tensor]:
        """`flat` [P] as one view per parameter, of the parameter's shape and, where it is dense, its strides."""
        return [slot.view(flat) for slot in self.layout]

    def flatten(self) -> Tensor:
        """The parameters' values as a flat copy [P]."""
        flat = torch.empty(self.size, dtype=self.parameter_dtype, device=self.device)
        for parameter, view in zip(self.parameters, self.views(flat), strict=True):
            view.copy_(local(parameter.detach()))
        return flat

    def write(self, flat: Tensor, reached: Sequence[bool]) -> None:
        """Make every `p.grad` a view into `flat` [P]; `None` where no backward pass has reached the parameter."""
        direct = flat.dtype == self.parameter_dtype
        for parameter, view, touched in zip(self.parameters, self.views(flat), reached, strict=True):
            gradient = view if direct else view.to(self.parameter_dtype)
            parameter.grad = _like(parameter, gradient) if touched else None

    def clear_grads(self) -> None:
        """No gradient at all, so that an optimizer leaves every parameter as it is."""
        for parameter in self.parameters:
            parameter.grad = None


def _dense_stride(tensor: Tensor) -> tuple[int, ...]:
    """Its own strides, or, where it has gaps, those of a copy without; a flat range then holds it."""
    return torch.empty_like(tensor, device="meta").stride()


def grouped(parameters: Parameters) -> dict[str, list[Any]]:
    """Group name -> its parameters or pairs, to be read again and again; without groups there is one, "all"."""
    groups = parameters if isinstance(parameters, Mapping) else {"all": parameters}
    return {group: _listed(own, group) for group, own in groups.items()}


def _listed(own: Any, group: str) -> list[Any]:
    if isinstance(own, nn.Module):
        return list(own.named_parameters())
    expected = "a model, model.named_parameters(), or a mapping from group names to such"
    listed = isinstance(own, Iterable) and not isinstance(own, (Tensor, str))
    expect(listed, "parameters", expected, f"{type(own).__name__} for {group!r}")
    return list(own)


def _members(parameters: Parameters) -> list[tuple[str, str, Tensor]]:
    """(group, name, parameter) of every parameter, frozen ones too; each parameter once, and so is each name."""
    members: list[tuple[str, str, Tensor]] = []
    seen: set[int] = set()
    names: set[str] = set()
    for group, own in grouped(parameters).items():
        for place, member in enumerate(own):
            name, parameter = member if isinstance(member, tuple) else (f"{group}[{place}]", member)
            _check(name, parameter)
            name = str(name).replace(COMPILED, "")
            if id(parameter) not in seen:
                name = f"{name} of {group}[{place}]" if name in names else name
                seen.add(id(parameter))
                names.add(name)
                members.append((group, name, parameter))
    return members


def _check(name: Any, parameter: Any) -> None:
    found = f"{type(parameter).__name__} in the place of {name}"
    expect(isinstance(parameter, Tensor), "parameters", "parameters or (name, parameter) pairs", found)
    if not parameter.requires_grad:
        return
    if is_lazy(parameter):
        problem = "of a lazy module; run the model on one batch first"
    elif parameter.is_complex():
        problem = f"of dtype {parameter.dtype}; keep a real one and use torch.view_as_complex of it in the model"
    elif not parameter.is_leaf:
        problem = "computed from another tensor; hand that one over"
    else:
        return
    raise ValueError(f"`parameters`: expected real leaf tensors that have a shape, found {name} {problem}")


def _one_kind(names: list[str], parameters: list[Tensor]) -> tuple[torch.device, torch.dtype]:
    kinds = {(parameter.device, parameter.dtype): name for name, parameter in zip(names, parameters, strict=True)}
    found = ", ".join(sorted(f"{dtype} on {device} ({name})" for (device, dtype), name in kinds.items()))
    if len({device for device, _ in kinds}) > 1:
        way = "move the model to one device, or shard it over processes by fully_shard"
    else:
        way = (
            "make them alike (model.float(), autocast inside losses) or build a conductor for each dtype and "
            "freeze what it does not hold, by requires_grad_(False), during its step: each settles its own conflicts"
        )
    expect(len(kinds) == 1, "parameters", "one device and one dtype", f"{found}; {way}")
    return next(iter(kinds))


def _mesh(parameters: list[Tensor], names: list[str]) -> DeviceMesh | None:
    """The mesh that all parameters are sharded over; None where none is."""
    mesh = next((parameter.device_mesh for parameter in parameters if is_sharded(parameter)), None)
    for name, parameter in zip(names, parameters, strict=True):
        if mesh is not None and not (
            is_sharded(parameter)
            and parameter.device_mesh == mesh
            and [each.is_shard() for each in parameter.placements] == [True]
        ):
            found = f"on {parameter.device_mesh} as {parameter.placements}" if is_sharded(parameter) else "not sharded"
            expected = "none, or all sharded by fully_shard over the same mesh of one dimension"
            raise ValueError(f"`parameters`: expected {expected}, found {name} {found}")
    return mesh


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether `tensor` is a DTensor. Their module takes half a second to import, so it is not imported for that."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def _like(parameter: Tensor, gradient: Tensor) -> Tensor:
    if not is_sharded(parameter):
        return gradient
    return type(parameter).from_local(
        gradient,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )

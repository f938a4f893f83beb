"""Parameters laid out one after the other in a flat buffer of P numbers.

A view into the buffer carries the parameter's own strides; a contiguous view of a channels_last weight makes a fused
optimizer update the wrong elements without an error. Of a parameter that is sharded over processes (DTensor, as FSDP2
makes them) the buffer holds this process's part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

Named = Tensor | tuple[str, Tensor]


class FlatParameters:
    """The trainable parameters among `parameters`, in order, each once.

    Args:
        parameters: tensors or (name, tensor) pairs as `model.named_parameters()` gives them, or a mapping from group
            names to such. Frozen parameters are left out, a tied one counts in the first group that names it. Without
            names of their own, parameters are called by group and place.
        dtype: of the buffer; None is the parameters' own.

    Raises:
        ValueError: no trainable parameter, or parameters on several devices or of several dtypes, or only some that are
            sharded, or sharded in another way than over one mesh dimension.
    """

    def __init__(
        self, parameters: Iterable[Named] | Mapping[str, Iterable[Named]], dtype: torch.dtype | None = None
    ) -> None:
        groups = parameters if isinstance(parameters, Mapping) else {"all": parameters}
        self.parameters: list[Tensor] = []
        self.names: list[str] = []
        self.groups: list[str] = []
        seen: set[int] = set()
        for group, members in groups.items():
            for place, member in enumerate(members):
                name, parameter = member if isinstance(member, tuple) else (f"{group}[{place}]", member)
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    self.parameters.append(parameter)
                    self.names.append(name)
                    self.groups.append(group)
        if not self.parameters:
            raise ValueError("`parameters`: expected at least one that requires a gradient, found none")
        kinds = {(p.device, p.dtype) for p in self.parameters}
        if len(kinds) > 1:
            found = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds))
            raise ValueError(f"`parameters`: expected one device and one dtype, found {found}")
        self.device, self.parameter_dtype = kinds.pop()
        self.dtype = dtype or self.parameter_dtype
        self.mesh = _mesh(self.parameters, self.names)
        self.sharded = self.mesh is not None
        self.bounds = [0]
        for parameter in self.parameters:
            self.bounds.append(self.bounds[-1] + local(parameter).numel())

    @property
    def size(self) -> int:
        """P, the number of scalar parameters (of this process)."""
        return self.bounds[-1]

    def views(self, flat: Tensor) -> list[Tensor]:
        """`flat` [P] as one view per parameter, of the parameter's shape and, where it is dense, its strides."""
        views = []
        for parameter, start in zip(map(local, self.parameters), self.bounds, strict=False):
            if _is_dense(parameter):
                views.append(flat.as_strided(parameter.shape, parameter.stride(), flat.storage_offset() + start))
            else:
                views.append(flat[start : start + parameter.numel()].view(parameter.shape))
        return views

    def flatten(self) -> Tensor:
        """The parameters' values as a flat copy [P]."""
        flat = torch.empty(self.size, dtype=self.parameter_dtype, device=self.device)
        for parameter, view in zip(self.parameters, self.views(flat), strict=True):
            view.copy_(local(parameter.detach()))
        return flat

    def write(self, flat: Tensor, reached: list[bool]) -> None:
        """Make every `p.grad` a view into `flat` [P]; `None` where no backward pass has reached the parameter."""
        direct = flat.dtype == self.parameter_dtype
        for parameter, view, touched in zip(self.parameters, self.views(flat), reached, strict=True):
            gradient = view if direct else view.to(self.parameter_dtype)
            parameter.grad = _like(parameter, gradient) if touched else None

    def forget(self) -> None:
        """No gradient at all, so that an optimizer leaves every parameter as it is."""
        for parameter in self.parameters:
            parameter.grad = None


def _mesh(parameters: list[Tensor], names: list[str]) -> DeviceMesh | None:
    """The mesh that all parameters are sharded over; None where none is."""
    meshes = [parameter.device_mesh for parameter in parameters if isinstance(parameter, DTensor)]
    if not meshes:
        return None
    for name, parameter in zip(names, parameters, strict=True):
        if not isinstance(parameter, DTensor):
            raise ValueError(f"`parameters`: expected all or none sharded by fully_shard, found {name} not sharded")
        if parameter.device_mesh != meshes[0] or [each.is_shard() for each in parameter.placements] != [True]:
            raise ValueError(
                f"`parameters`: expected every parameter sharded over the same mesh of one dimension, found {name} on "
                f"{parameter.device_mesh} as {parameter.placements}"
            )
    return meshes[0]


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(parameter: Tensor, gradient: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return gradient
    return DTensor.from_local(
        gradient,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _is_dense(parameter: Tensor) -> bool:
    """Whether the strides are those of a permuted contiguous tensor, so that a flat range holds it without gaps."""
    expected = 1
    for stride, size in sorted(zip(parameter.stride(), parameter.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True

"""The order of copies and hand-overs on a recorded transfer; contents and waiting on a simulated device and on CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pytest
import torch
from strategy.far_device import CudaDevice, FarDevice
from torch import Tensor

from gcond.data.images import TensorImages
from gcond.data.intensity import Intensity
from gcond.engine import batches
from gcond.engine.batches import Ahead, MicroBatches, SideStream, Tensors, transfer_to


class Recorded:
    """A transfer that writes down what it is asked to do; an item is called by its first number."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def start(self, tensors: Tensors) -> Tensors:
        self.log.append(f"start {int(tensors[0].flatten()[0])}")
        return tuple(tensor.clone() for tensor in tensors)

    def finish(self, copies: Tensors) -> None:
        self.log.append(f"finish {int(copies[0].flatten()[0])}")


def items(numbers: range) -> list[Tensors]:
    return [(torch.tensor(number), torch.tensor([number, -number])) for number in numbers]


def test_the_next_copy_is_under_way_before_an_item_is_used() -> None:
    transfer = Recorded()
    for number, _ in enumerate(Ahead(iter(items(range(3))), transfer)):
        transfer.log.append(f"use {number}")
    assert transfer.log == [  # by hand: an item's own hand-over never waits for the copy that follows
        *("start 0", "finish 0", "start 1", "use 0"),
        *("finish 1", "start 2", "use 1"),
        *("finish 2", "use 2"),
    ]


@pytest.mark.parametrize("transfer", [None, Recorded()], ids=["none", "recorded"])
@pytest.mark.parametrize("length", [0, 1, 5])
def test_all_items_come_in_their_order(transfer: Recorded | None, length: int) -> None:
    expected = items(range(length))
    given = list(Ahead(iter(expected), transfer))
    assert len(given) == length
    for one, other in zip(given, expected, strict=True):
        assert all(map(torch.equal, one, other))


def test_without_a_transfer_nothing_is_taken_before_its_turn() -> None:
    source = iter(items(range(3)))
    assert transfer_to(torch.device("cpu")) is None
    next(Ahead(source, None))
    assert int(next(source)[0]) == 1


# The stream of micro-batches

CPU = torch.device("cpu")
IMAGES = TensorImages(torch.arange(12, dtype=torch.int16)[:, None, None, None].expand(12, 1, 8, 8).contiguous())


def stream(device: torch.device = CPU, position: int = 0, share: tuple[int, ...] = (0,)) -> MicroBatches:
    intensity, window = Intensity(0, 16, (0.5,), (0.25,)), 2 * len(share)  # exact: CUDA multiplies by a rounded 1 / 11
    return MicroBatches(IMAGES, intensity, 4, 64, 0.75, 42, device, position=position, window=window, share=share)


def pairs(found: MicroBatches, number: int) -> list[tuple[Tensor, Tensor]]:
    return [(batch.images.cpu(), batch.hidden.cpu()) for batch in islice(found, number)]


def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return all(all(map(torch.equal, a, b)) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("share", [(0,), (1, 3)], ids=["alone", "one of two"])
def test_the_position_counts_what_was_given_not_what_is_ahead(
    share: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pairs(stream(share=share), 8)
    transfer = Recorded()
    monkeypatch.setattr(batches, "transfer_to", lambda device: transfer)
    ahead = stream(share=share)
    first = pairs(ahead, 2 * len(share))
    assert sum("start" in entry for entry in transfer.log) == 2 * len(share) + 1
    assert ahead.position == 4 * len(share)  # two windows of which this process takes half, by hand
    rest = pairs(stream(position=ahead.position, share=share), 8 - len(first))
    assert same(first + rest, whole)


@pytest.mark.parametrize("device", [FarDevice, pytest.param(CudaDevice, marks=pytest.mark.cuda)])
def test_a_device_gets_the_very_micro_batches_of_the_cpu_and_never_waits_for_them(device: Any) -> None:
    if device is CudaDevice and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = device()
    with device:
        ahead = stream(device.device)
        taken = [next(ahead)]  # the first moves mean and standard deviation
        device.clear()
        taken += [next(ahead) for _ in range(3)]
        assert (device.counts["synchronisations"], device.counts["transfers"]) == (0, 0), device.log
        moved = [(device.held(batch.images), device.held(batch.hidden)) for batch in taken]
    assert same(moved, pairs(stream(), 4))


class Streams:
    """What a `SideStream` asks of CUDA and of a tensor, written down; this is also the tensor."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.inside = "computing"

    @contextmanager
    def stream(self, side: Any) -> Iterator[None]:
        self.inside = "side"
        yield
        self.inside = "computing"

    def wait_stream(self, side: Any) -> None:
        self.log.append(f"computing waits for {side}")

    def is_pinned(self) -> bool:
        return False

    def pin_memory(self) -> Streams:
        self.log.append("pin")
        return self

    def to(self, device: Any, non_blocking: bool) -> Streams:
        self.log.append(f"copy on {self.inside}, {'queued' if non_blocking else 'waited for'}")
        return self

    def record_stream(self, stream: Any) -> None:
        self.log.append("kept for computing" if stream is self else "kept for another")


def test_a_side_stream_pins_copies_beside_and_keeps_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules are those of PyTorch's documentation of CUDA streams and of `Tensor.record_stream`."""
    cuda: Any = Streams()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "side")
    monkeypatch.setattr(torch.cuda, "stream", cuda.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: cuda)
    side = SideStream(torch.device("cuda"))
    side.finish(side.start((cuda,)))
    assert cuda.log == ["pin", "copy on side, queued", "computing waits for side", "kept for computing"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_copy_does_not_wait_for_what_computes() -> None:
    device = torch.device("cuda")
    transfer, host = SideStream(device), torch.ones(1 << 20).pin_memory()
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second of the computing stream
    computing = torch.cuda.Event()
    computing.record()
    (copy,) = transfer.start((host,))
    transfer._stream.synchronize()
    assert not computing.query()  # still at work when the copy is complete
    transfer.finish((copy,))
    assert float(copy.sum()) == 1 << 20

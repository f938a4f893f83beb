"""Images are their own number, so that a batch tells its order."""

import multiprocessing
from itertools import islice
from unittest.mock import MagicMock, call

import pytest
import torch
from strategy.far_device import CudaDevice, FarDevice, FarQueue

from gcond.data.images import TensorImages
from gcond.data.intensity import Intensity
from gcond.engine import batches
from gcond.engine.batches import (
    Batch,
    MicroBatches,
    SideStream,
    Tensors,
    TrainingImages,
    ahead,
    generator,
    seeded,
    subseed,
)
from gcond.strategy import Joint, Sequential, Stochastic

CPU = torch.device("cpu")
COUNT = 10
IMAGES = TensorImages(torch.arange(COUNT, dtype=torch.int16)[:, None, None, None].expand(COUNT, 1, 8, 8).contiguous())
INTENSITY = Intensity(0, 16, (0.5,), (0.25,))  # exact: CUDA multiplies by a rounded 1 / 11


def stream(position=0, share=(0,), window=1, size=4, seed=42, workers=0, device=CPU) -> MicroBatches:
    source = TrainingImages(IMAGES, INTENSITY, size, 64, 0.75, seed, device, workers)
    return MicroBatches(source, position, window, share)


def first(number: int, given: MicroBatches) -> list[Batch]:
    taken = list(islice(given, number))
    given.close()
    return taken


def order(batches: list[Batch]) -> list[int]:
    return [round(16 * (float(image.mean()) / 4 + 0.5)) for batch in batches for image in batch.images]


def same(one: list[Batch], other: list[Batch]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a.images, b.images) and torch.equal(a.hidden, b.hidden) for a, b in pairs)


def test_every_pass_visits_every_image_once_in_an_order_of_its_own():
    seen = order(first(10, stream()))
    passes = [seen[start : start + COUNT] for start in range(0, 40, COUNT)]  # micro-batch 2 spans the first two
    assert all(sorted(one) == list(range(COUNT)) for one in passes)
    assert len(set(map(tuple, [*passes, range(COUNT)]))) == 5


def test_every_image_of_every_micro_batch_has_its_own_mask():
    hidden = torch.cat([batch.hidden for batch in first(20, stream())])
    assert hidden.unique(dim=0).shape == (80, 48)  # 48 of 64 patches


@pytest.mark.parametrize("workers", [0, 1])
def test_the_stream_depends_on_seed_and_position_alone(workers):
    torch.manual_seed(0)
    whole = first(9, stream())
    torch.manual_seed(1)
    rest = first(4, later := stream(5, workers=workers))
    assert same(rest, whole[5:])
    assert later.position == 9  # what a checkpoint remembers: workers may have read ahead
    other = first(9, stream(seed=11))
    assert order(other) != order(whole)
    assert not any(torch.equal(a.hidden, b.hidden) for a, b in zip(other, whole, strict=True))


def test_a_micro_batch_larger_than_the_set_is_refused():
    assert sorted(order(first(1, stream(size=COUNT)))) == list(range(COUNT))
    with pytest.raises(ValueError, match=r"`micro_batch`.*at most the 10 training images, found 11"):
        stream(size=COUNT + 1)


# Several processes

IN_TURN = Sequential(4, resolve_every="micro_batch")


@pytest.mark.parametrize(
    ("estimator", "shares"),
    [
        (Joint(4), [[0, 1], [2, 3]]),
        (Sequential(4), [[0], [1], [2], [3]]),
        (IN_TURN, [[0, 2], [1, 3]]),
        (Stochastic(4), [[0, 2], [1, 3]]),  # tasks have the blocks 0, 1 and 2, 3
        (Stochastic(4), [[0, 1, 2, 3]]),
    ],
    ids=["joint", "sequential", "in turn", "stochastic", "one process"],
)
def test_processes_share_out_the_one_stream(estimator, shares):
    """Two windows from position 12 on are the one process's micro-batches 12 to 19, each once."""
    assert [
        estimator.micro_batch_indices(rank, len(shares), ("l1", "ssim")) for rank in range(len(shares))
    ] == shares  # by hand
    whole = first(20, stream())
    taken: dict[int, Batch] = {}
    for share in shares:
        own = stream(12, share, window=4)
        for start in (12, 16):
            assert own.position == start  # of all processes together
            for place in share:
                assert start + place not in taken
                taken[start + place] = next(own)
        assert own.position == 20
    assert sorted(taken) == list(range(12, 20))
    assert same([taken[number] for number in range(12, 20)], whole[12:])


def test_closing_ends_the_workers():
    before = multiprocessing.active_children()
    batches = stream(workers=1)
    next(batches)
    (worker,) = [each for each in multiprocessing.active_children() if each not in before]
    batches.close()
    assert worker.exitcode == 0


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


def test_the_next_copy_is_under_way_before_an_item_is_used():
    transfer = Recorded()
    for number, _ in enumerate(ahead(items(range(3)), transfer)):
        transfer.log.append(f"use {number}")
    assert transfer.log == [  # by hand: an item's own hand-over never waits for the copy that follows
        *("start 0", "finish 0", "start 1", "use 0"),
        *("finish 1", "start 2", "use 1"),
        *("finish 2", "use 2"),
    ]


@pytest.mark.parametrize("share", [(0,), (1, 3)], ids=["alone", "one of two"])
def test_the_position_counts_what_was_given_not_what_is_ahead(share, monkeypatch):
    window = 2 * len(share)
    whole = first(8, stream(0, share, window))
    transfer = Recorded()
    monkeypatch.setattr(batches, "transfer_to", lambda device: transfer)
    given = stream(0, share, window)
    begun = list(islice(given, 2 * len(share)))
    assert sum("start" in entry for entry in transfer.log) == 2 * len(share) + 1
    assert given.position == 4 * len(share)  # two windows of which this process takes half, by hand
    assert same([*begun, *first(8 - len(begun), stream(given.position, share, window))], whole)


@pytest.mark.parametrize("device", [FarDevice, pytest.param(CudaDevice, marks=pytest.mark.cuda)])
def test_a_device_gets_the_very_micro_batches_of_the_cpu_and_never_waits_for_them(device, monkeypatch):
    if device is FarDevice:
        monkeypatch.setattr(batches, "transfer_to", FarQueue)
    device = device()
    with device:
        given = stream(device=device.device)
        taken = [next(given)]  # the first moves mean and standard deviation
        device.clear()
        taken += [next(given) for _ in range(3)]
        assert (device.counts["synchronisations"], device.counts["transfers"]) == (0, 0), device.log
        moved = [Batch(device.held(batch.images).cpu(), device.held(batch.hidden).cpu()) for batch in taken]
    assert same(moved, first(4, stream()))


def test_a_side_stream_pins_copies_beside_and_keeps_the_memory(monkeypatch):
    """The rules are those of PyTorch's documentation of CUDA streams and of `Tensor.record_stream`."""
    watch = MagicMock()
    watch.tensor.is_pinned.return_value = False
    monkeypatch.setattr(torch, "cuda", watch.cuda)
    side = SideStream(torch.device("cuda"))
    side.finish(side.start((watch.tensor,)))
    computing = call.cuda.current_stream()
    assert watch.mock_calls[3:] == [
        call.tensor.is_pinned(),
        call.tensor.pin_memory(),
        call.tensor.pin_memory().to(torch.device("cuda"), non_blocking=True),
        call.cuda.stream().__exit__(None, None, None),  # copied on the side stream
        call.cuda.current_stream(torch.device("cuda")),
        computing.wait_stream(watch.cuda.Stream.return_value),
        call.tensor.pin_memory().to().record_stream(watch.cuda.current_stream.return_value),
    ]


@pytest.mark.cuda
def test_a_copy_does_not_wait_for_what_computes():
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


def test_a_subseed_is_the_same_on_every_machine():
    # By hand: `printf 42/weights | sha256sum` starts with 21d4511b1dd02ed6, of 42/order/3 with 015437eaf294d2f6;
    # halved, to fit a signed 64-bit number.
    assert subseed(42, "weights") == 0x21D4511B1DD02ED6 // 2
    assert subseed(42, "order", 3) == 0x015437EAF294D2F6 // 2


def test_the_global_generator_is_seeded_inside_and_restored_after():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with seeded(42, "weights"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(inside, torch.rand(3, generator=generator(42, "weights")))

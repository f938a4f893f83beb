"""Images are their own number, so that a batch tells its order."""

import multiprocessing
from itertools import islice

import pytest
import torch
from torch import Tensor

from gcond.data.images import TensorImages
from gcond.data.intensity import Intensity
from gcond.engine.batches import Batch, MicroBatches
from gcond.strategy import Joint, Sequential, Stochastic
from gcond.strategy.estimate import Estimator

COUNT = 10
IMAGES = TensorImages(torch.arange(COUNT, dtype=torch.uint8)[:, None, None, None].expand(COUNT, 1, 8, 8))


def stream(micro_batches: int, seed: int = 42, position: int = 0, size: int = 4, workers: int = 0) -> list[Batch]:
    cpu = torch.device("cpu")
    batches = MicroBatches(IMAGES, Intensity(0, 255, (0.0,), (1.0,)), size, 64, 0.75, seed, cpu, workers, position)
    taken = list(islice(batches, micro_batches))
    assert batches.position == position + micro_batches  # what a checkpoint remembers: workers may have read ahead
    batches.close()
    return taken


def order(batches: list[Batch]) -> list[int]:
    return [round(255 * float(image.mean())) for batch in batches for image in batch.images]


def masks(batches: list[Batch]) -> Tensor:
    return torch.stack([batch.hidden for batch in batches])


def test_every_pass_visits_every_image_once_in_an_order_of_its_own() -> None:
    seen = order(stream(10))
    passes = [seen[start : start + COUNT] for start in range(0, 40, COUNT)]  # micro-batch 2 spans the first two
    assert all(sorted(one) == list(range(COUNT)) for one in passes)
    assert len(set(map(tuple, [*passes, range(COUNT)]))) == 5


def test_every_image_of_every_micro_batch_has_its_own_mask() -> None:
    hidden = masks(stream(20)).flatten(0, 1)
    assert hidden.unique(dim=0).shape == (80, 48)  # 48 of 64 patches


@pytest.mark.parametrize("workers", [0, 1])
def test_the_stream_depends_on_seed_and_position_alone(workers: int) -> None:
    torch.manual_seed(0)
    whole = stream(9)
    torch.manual_seed(1)
    rest = stream(4, position=5, workers=workers)
    assert order(rest) == order(whole[5:])
    assert torch.equal(masks(rest), masks(whole[5:]))


def test_another_seed_gives_another_order_and_other_masks() -> None:
    assert order(stream(9)) != order(stream(9, seed=11))
    assert not torch.equal(masks(stream(9)), masks(stream(9, seed=11)))


def test_a_micro_batch_larger_than_the_set_is_refused() -> None:
    assert sorted(order(stream(1, size=COUNT))) == list(range(COUNT))
    with pytest.raises(ValueError, match=r"`micro_batch`.*at most the 10 training images, found 11"):
        stream(1, size=COUNT + 1)


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
def test_processes_share_out_the_one_stream(estimator: Estimator, shares: list[list[int]]) -> None:
    """Two windows from position 12 on are the one process's micro-batches 12 to 19, each once."""
    assert [
        estimator.micro_batch_indices(rank, len(shares), ("l1", "ssim")) for rank in range(len(shares))
    ] == shares  # by hand
    whole = stream(20)
    taken: dict[int, Batch] = {}
    for share in shares:
        own = share_of_stream(share)
        for start in (12, 16):
            assert own.position == start  # of all processes together
            for place in share:
                assert start + place not in taken
                taken[start + place] = next(own)
        assert own.position == 20
    assert sorted(taken) == list(range(12, 20))
    for number, batch in taken.items():
        assert order([batch]) == order([whole[number]])
        assert torch.equal(batch.hidden, whole[number].hidden)


def test_a_process_with_workers_takes_its_share_alike() -> None:
    alone, with_worker = share_of_stream([1, 3]), share_of_stream([1, 3], workers=1)
    for one, other in zip(islice(alone, 5), with_worker, strict=False):
        assert order([one]) == order([other])
        assert torch.equal(one.hidden, other.hidden)
    with_worker.close()


def test_closing_ends_the_workers() -> None:
    before = multiprocessing.active_children()
    batches = share_of_stream([0], workers=1)
    next(batches)
    (worker,) = [each for each in multiprocessing.active_children() if each not in before]
    batches.close()
    assert worker.exitcode == 0


def share_of_stream(share: list[int], workers: int = 0) -> MicroBatches:
    """From position 12 on, of windows of 4."""
    cpu, intensity = torch.device("cpu"), Intensity(0, 255, (0.0,), (1.0,))
    return MicroBatches(IMAGES, intensity, 4, 64, 0.75, 42, cpu, workers, 12, window=4, share=share)

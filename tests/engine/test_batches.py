"""Images are their own number, so that a batch tells its order."""

from itertools import islice

import pytest
import torch
from torch import Tensor

from gcond.data.images import TensorImages
from gcond.data.intensity import Intensity
from gcond.engine.batches import Batch, MicroBatches

COUNT = 10
IMAGES = TensorImages(torch.arange(COUNT, dtype=torch.uint8)[:, None, None, None].expand(COUNT, 1, 8, 8))


def stream(micro_batches: int, seed: int = 42, position: int = 0, size: int = 4, workers: int = 0) -> list[Batch]:
    cpu = torch.device("cpu")
    batches = MicroBatches(IMAGES, Intensity(0, 255, (0.0,), (1.0,)), size, 64, 0.75, seed, cpu, workers, position)
    taken = list(islice(batches, micro_batches))
    assert batches.position == position + micro_batches  # what a checkpoint remembers: workers may have read ahead
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

"""Settings that all tests of the strategy share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Bit-equality holds for a fixed number of threads only."""
    torch.set_num_threads(1)


@pytest.fixture
def one_of_one() -> Iterator[None]:
    """torch.distributed with this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()

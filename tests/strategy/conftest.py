"""Settings that all tests of the strategy share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Bit-equality holds for a fixed number of threads only."""
    torch.set_num_threads(1)

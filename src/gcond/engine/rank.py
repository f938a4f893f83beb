"""Which of several processes this one is; without PyTorch, which a finished run does not need."""

import os


def rank() -> int:
    """Of this process among those that torchrun started; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))

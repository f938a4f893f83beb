"""How a process of a pool begins: it leaves Ctrl-C to its parent, and never outlives it."""

import multiprocessing
import os
import signal
import threading


def begin() -> None:
    """The initializer of a pool: a parent that is killed leaves nobody behind, one that is stopped is not interrupted
    in what its workers have begun."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)

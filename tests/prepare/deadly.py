"""Work on a shard that dies of some files: what a decoder does that is not robust. Imported by processes of a pool."""

import os
import signal

from archive.listing import Entry, read_shard
from archive.run import Job, Stage


def work(job: Job) -> int:
    """Write the names of a shard's files, less those in quarantine, to where the headers belong."""
    killers = {path for path, _ in job.killers("deadly")}
    entries = read_shard(job.listing, job.shard)
    for entry in entries:
        if entry.path not in killers:
            attempt(job, entry)
    job.headers.parent.mkdir(parents=True, exist_ok=True)
    job.headers.write_text("\n".join(entry.path for entry in entries if entry.path not in killers))
    return len(entries)


def attempt(job: Job, entry: Entry) -> None:
    if entry.path == "kill-a":
        os.kill(os.getpid(), signal.SIGKILL)
    if entry.path == "kill-b":
        raise MemoryError


def die_together(job: Job) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def survive(job: Job, entry: Entry) -> None:
    pass


def refuse(job: Job) -> int:
    raise OSError(28, "No space left on device")


DEADLY = Stage("deadly", work, attempt)
TOGETHER = Stage("deadly", die_together, survive)
REFUSING = Stage("deadly", refuse, survive)

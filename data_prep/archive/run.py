"""One pass over many shards in several processes, which may be killed at any moment, by a user or by a file.

A process that dies takes the pool with it; one that runs out of memory counts as dead. The shards that were under way
are then gone through file by file, in processes that may die, so that the file that kills is found, put in quarantine
and counted as rejected.
"""

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import worker

from archive.listing import Entry, read_shard
from archive.shard import Job
from gcond.files import write_json

CONTEXT = get_context("spawn")  # not forked: this process has used threads (Arrow)
TASKS_PER_PROCESS = 64  # a decoder that leaks is replaced
DEATHS = (BrokenProcessPool, MemoryError)


class Pass:
    """A stage of the work: `work` on a shard, `attempt` on one of its files, and where files that kill are noted."""

    def __init__(
        self, stage: str, work: Callable[[Job], int], attempt: Callable[[Job, Entry], None], workers: int
    ) -> None:
        self.stage = stage
        self.work = work
        self.attempt = attempt
        self.workers = workers

    def over(self, jobs: Iterable[Job], done: Callable[[int], object]) -> None:
        """Work on every job; `done` gets the number of files of each that is finished."""
        suspects: list[Job] = []
        todo = list(jobs)[::-1]
        while todo:
            suspects += self._until_broken(todo, done)
        for job in suspects:
            self._one(job, done)

    def _until_broken(self, todo: list[Job], done: Callable[[int], object]) -> list[Job]:
        """Take jobs off the end of `todo`, no more at a time than there are workers; returns those that were under way
        when a process died."""
        with self._pool(self.workers) as pool:
            running: dict[Future, Job] = {}
            while todo or running:
                while todo and len(running) < self.workers:
                    running[pool.submit(self.work, todo[-1])] = todo[-1]
                    todo.pop()
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    try:
                        done(future.result())
                    except DEATHS:
                        return list(running.values())
                    del running[future]
        return []

    def _one(self, job: Job, done: Callable[[int], object]) -> None:
        try:
            with self._pool(1) as pool:
                done(pool.submit(self.work, job).result())
            return
        except DEATHS:
            print(f"a process died in shard {job.shard}: looking for the file", file=sys.stderr)
        killers = list(self._deadly(job, read_shard(job.listing, job.shard)))
        if not killers:
            raise RuntimeError(
                f"the process that works on shard {job.shard} dies, but none of its files kills one alone; "
                "expected enough memory for every worker: try fewer --workers"
            )
        write_json(job.quarantine(self.stage), [[entry.path, entry.member] for entry in killers])
        with self._pool(1) as pool:
            done(pool.submit(self.work, job).result())

    def _deadly(self, job: Job, entries: list[Entry]) -> Iterable[Entry]:
        """The files that kill a process twice, each time alone."""
        left = list(entries)
        while left:
            try:
                with self._pool(1) as pool:
                    while left:
                        pool.submit(self.attempt, job, left[0]).result()
                        left.pop(0)
            except DEATHS:
                suspect = left.pop(0)
                if not self._survives(job, suspect):
                    yield suspect

    def _survives(self, job: Job, entry: Entry) -> bool:
        try:
            with self._pool(1) as pool:
                pool.submit(self.attempt, job, entry).result()
        except DEATHS:
            return False
        return True

    def _pool(self, workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            workers,
            mp_context=CONTEXT,
            initializer=worker.begin,
            max_tasks_per_child=TASKS_PER_PROCESS,
        )

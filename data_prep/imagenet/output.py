"""The folder that is made: begun beside its place, gone on with, then renamed; or found there and compared."""

import fcntl
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from gcond.files import write_json
from imagenet import report, source
from imagenet.subset import keep_of_each_file
from imagenet.work import Job, Outcome, matches, process_all

FORMAT_VERSION = 1


def prepare(
    root: Path,
    out: Path,
    subset: int | None = None,
    subset_validation: int | None = None,
    seed: int = 0,
    workers: int = 1,
    allow_partial: bool = False,
    size: int = 256,
) -> dict | None:
    """Check `root` and make `out`; the facts of `out`, or None where something is wrong, after a table of it.

    Every image must have `size` x `size` pixels; the published counts are expected of 256 alone.

    Work happens in a folder beside `out`, whose content is renamed to `out` when complete. Raises ValueError for a
    layout that is another one and for an `out` that is something else.
    """
    files, findings = source.read_listing(root)
    differing = source.deviations(files, published=size == 256)
    findings += source.bad_labels(files)
    if not allow_partial and differing:
        print("\n".join(differing))
        print("These counts are not those of the published copy; `--allow-partial` accepts them.")
    if findings or (differing and not allow_partial):
        report.print_table(findings)
        print("No image has been looked at yet, nothing was written.")
        return None

    settings = {
        "format_version": FORMAT_VERSION,
        "size": size,
        "source": {"listing_sha256": source.listing_checksum(files), "images": source.count_by_split(files)},
        "subset": subset,
        "subset_validation": subset_validation,
        "seed": None if subset is None else seed,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "pillow", "pyarrow")},
    }
    if out.exists():
        return check_existing(out, settings)
    if subset is not None:
        files = [file for file in files if file.split != "test"]
    work = out.parent / f".{out.name}.work"
    with locked(work):
        tree = work / "tree"
        _start_or_go_on(work, settings)
        data, done = tree / "data", work / "done"
        jobs = [
            Job(file.path, data / file.path.name, done / f"{file.path.name}.json", file.split, keep, size)
            for file, keep in zip(files, keep_of_each_file(files, subset, subset_validation, seed), strict=True)
        ]
        outcomes = process_all(jobs, {file.path: len(file.labels) for file in files}, workers)
        findings = [finding for job in jobs for finding in outcomes[job.source].findings]
        if findings:
            report.print_table(findings)
            print(f"{out} was not made; the files without a fault need not be checked again ({work}).")
            return None
        facts = _facts(settings, differing, [job for job in jobs if outcomes[job.source].rows], outcomes)
        write_json(tree / "facts.json", facts)
        _remove_strays(tree / "data", {job.target for job in jobs})
        os.rename(tree, out)
        shutil.rmtree(work)
    report.print_made(out, facts, list(outcomes.values()))
    return facts


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Raises ValueError where another process works in `folder`; the lock ends with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"`--out`: another process works in {folder}; wait for it or end it") from None
        yield


def _start_or_go_on(work: Path, settings: dict) -> None:
    """What was begun with other settings, sources or versions is removed: its files would not be the same."""
    path = work / "settings.json"
    if not path.is_file() or json.loads(path.read_text()) != settings:
        for folder in ("tree", "done"):
            shutil.rmtree(work / folder, ignore_errors=True)
    write_json(path, settings)


def _remove_strays(folder: Path, wanted: set[Path]) -> None:
    """Temporary files of a call that was killed."""
    for path in set(folder.iterdir()) - wanted:
        path.unlink()


def _facts(settings: dict, differing: list[str], jobs: list[Job], outcomes: Mapping[Path, Outcome]) -> dict:
    labels: dict[str, list[np.ndarray]] = {job.split: [] for job in jobs}
    for job in jobs:
        labels[job.split].append(source.labels_of(pq.read_table(job.target, columns=["label"])))
    joined = {split: np.concatenate(parts) for split, parts in labels.items()}
    for split, wanted in (("train", settings["subset"]), ("validation", settings["subset_validation"])):
        if wanted and (fewer := int((np.bincount(joined[split], minlength=source.CLASSES) < wanted).sum())):
            differing = [*differing, f"{split}: {fewer} classes have fewer than {wanted} images, all of them kept"]
    return {
        **settings,
        "counts": {split: len(found) for split, found in joined.items()},
        "classes": {split: len(np.unique(source.valid(found))) for split, found in joined.items()},
        "deviations": differing,
        "files": {
            f"data/{job.target.name}": {
                "images": outcomes[job.source].rows,
                "bytes": outcomes[job.source].bytes,
                "sha256": outcomes[job.source].sha256,
            }
            for job in jobs
        },
    }


def check_existing(out: Path, settings: dict) -> dict:
    """The facts of a finished `out`, its checksums compared. Raises ValueError where it is another or damaged."""
    path = out / "facts.json"
    facts = {"size": 256} | (json.loads(path.read_text()) if path.is_file() else {})  # older facts name no size
    for key, wanted in settings.items():
        if key != "versions" and facts.get(key) != wanted:
            raise ValueError(
                f"`--out`: {out} exists and was not made by this command ({key}: wanted {wanted}, found "
                f"{facts.get(key)}); remove it or name another folder"
            )
    for name, file in tqdm(facts["files"].items(), unit="file", desc="comparing checksums"):
        if not matches(out / name, file["sha256"]):
            raise ValueError(f"`--out`: {out / name} does not match the checksum in facts.json; remove {out}")
    print(f"{out} is there and its checksums match")
    return facts

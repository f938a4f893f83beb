"""The CT archives on disk -> a checked store for dataset=ct.

    python data_prep/ct.py --ich DIR --cspine DIR --radcure DIR --out data/ct [--workers N] [--dry-run]
    python data_prep/ct.py --ich DIR ... --out data/ct --part I --parts N     one of N independent parts, I = 0 .. N-1
    python data_prep/ct.py merge data/ct                                      joins them
    python data_prep/ct.py verify data/ct                                     every byte against its checksum

Stop it whenever you like, the same command goes on; the store is the same, whoever did which part of it when.
What is stored, what is refused and how long it takes: docs/data.md. Exit status: 0 done, 1 not done, 2 bad usage.
"""

import argparse
import itertools
import json
import os
import shutil
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from archive import header, identity, labels, listing, merge, report
from archive.run import HEADERS, PIXELS, Job, Stage, building, run_stage
from tqdm import tqdm

from gcond.data import store
from gcond.files import sha256, write_atomically, write_json
from gcond.output import output_may_be_lost

GO_ON = "run the same command again: it goes on where it stopped"


def prepare(out: Path, jobs: list[Job], workers: int, whole: bool) -> None:
    """Headers, then pixels, of those shards that are not done yet; `whole` says that there are no other shards."""
    todo = [job for job in jobs if not job.headers.exists()]
    sizes = listing.shard_sizes(jobs[0].listing) if todo else []
    _pass(HEADERS, todo, len(jobs), workers, sum(sizes[job.shard] for job in todo), "file")
    if whole:
        check_labels(out, jobs)
    todo = merge.missing(jobs)
    images = [count_images(job) for job in todo]
    check_space(out, sum(count * store.stored_bytes(job.size) for count, job in zip(images, todo, strict=True)))
    _pass(PIXELS, todo, len(jobs), workers, sum(images), "slice")


def _pass(stage: Stage, todo: list[Job], shards: int, workers: int, files: int, unit: str) -> None:
    print(f"{stage.name}: {shards - len(todo)} of {shards} shards are done")
    with tqdm(total=files, desc=stage.name, unit=unit, mininterval=1, disable=not todo) as bar:
        run_stage(stage, todo, workers, bar.update)


def plan(out: Path, roots: dict[str, Path], shard_files: int, size: int, reuse: bool) -> list[Job]:
    """The listing, made anew and compared with the one that the store was begun with, or reused; a job per shard."""
    path, begun = building(out) / "listing.parquet", building(out) / "begun.json"
    asked = {"sources": sorted(roots), "shard_files": shard_files, "size": size, "reader": header.VERSION}
    if not begun.exists():
        write_json(begun, asked)
    if (found := _begun(out)) != asked:
        raise ValueError(
            f"`--out`: {out} was begun with {found}, this call asks for {asked}; repeat that, or take another"
        )
    if not (path.exists() and reuse):
        anew = path.with_name(f"listing-{uuid.uuid4().hex}.parquet")  # parts may do this at the same time
        with tqdm(desc="listing", unit="file", mininterval=1) as bar:
            shards = listing.write_listing(anew, roots, shard_files, bar.update)
        if path.exists() and sha256(anew) != sha256(path):
            anew.unlink()
            raise ValueError(
                f"the archives are not what they were when {out} was begun (files came, went or changed their size); "
                f"put them back, or remove {out} and start anew"
            )
        if "ich" in roots:
            listed = (entry for i in range(shards) for entry in listing.read_shard(anew, i))
            table = labels.read_labels(roots["ich"], (entry for entry in listed if entry.source == "ich"), print)
            if table.num_rows:
                write_atomically(path.with_name("labels.parquet"), lambda to: pq.write_table(table, to))
        os.replace(anew, path)
    return _jobs(out, roots)


def _begun(out: Path) -> dict:
    """What a store was begun with."""
    return {"size": store.STORED_SIZE} | json.loads((building(out) / "begun.json").read_text())  # older ones name none


def _jobs(out: Path, roots: dict[str, Path]) -> list[Job]:
    shards = len(listing.shard_sizes(building(out) / "listing.parquet"))
    return [Job(out, i, roots, _begun(out)["size"]) for i in range(shards)]


def count_images(job: Job) -> int:
    return pq.read_table(job.headers, columns=["status"]).column("status").to_pylist().count("image")


def check_space(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out).free
    if free < needed:
        raise ValueError(
            f"`--out`: expected {needed / 1e9:.1f} GB free at {out} for what is left, found {free / 1e9:.1f}"
        )


def check_labels(out: Path, jobs: Sequence[Job]) -> None:
    """Before hours of decoding: a table of labels of which nothing fits is an error."""
    path = building(out) / "labels.parquet"
    if not path.exists():
        return
    headers = pa.concat_tables(pq.read_table(job.headers, columns=["source", "status", "sop"]) for job in jobs)
    rows = zip(*(column.to_pylist() for column in headers.columns), strict=True)
    slices = (sop for source, status, sop in rows if (source, status) == ("ich", header.IMAGE) and sop)
    labels.check_fit(pq.read_table(path), slices)


def join(out: Path, jobs: Sequence[Job], choices: merge.Choices) -> int:
    try:
        lines = report.of_store(merge.merge(out, jobs, choices))
    except merge.Unusable as unusable:
        print("\n".join([*report.of_files(unusable.facts), *report.rejected_examples(out)]))
        print(f"error: {unusable}", file=sys.stderr)
        return 1
    print("\n".join([*lines, *report.rejected_examples(out)]))
    return 0


def already(out: Path, facts: dict, choices: merge.Choices) -> int:
    made = {"seed": facts["seed"], "shares": facts["shares"]}
    if made != (asked := {"seed": choices.seed, "shares": list(choices.shares)}):
        raise ValueError(
            f"`--out`: {out} was made with {made}, this call asks for {asked}; other splits need a new folder"
        )
    shutil.rmtree(building(out), ignore_errors=True)  # left where the last call was killed in its last moment
    print("\n".join([*report.of_store(facts), *report.rejected_examples(out)]))
    print(f"{out} is complete: nothing was done. `python data_prep/ct.py verify {out}` checks it.")
    return 0


def check(root: Path) -> int:
    """`verify`."""
    facts = store.verify(root)
    if "manifest_sha256" in facts:
        merge.verify_manifest(root, facts)
    counts = ", ".join(f"{split} {count}" for split, count in facts["counts"].items())
    print(f"{root}: format {facts['format_version']}, {len(facts['shards'])} shards, slices: {counts}")
    print("checksums, counts and places match; no patient is in two splits")
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog="also: merge DIR, verify DIR")
    for source, words in report.TITLES.items():
        made.add_argument(f"--{source}", type=Path, metavar="DIR", help=f"{words}, unpacked or (RADCURE) zipped")
    made.add_argument("--out", type=Path, required=True, help="the store's folder")
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    made.add_argument("--part", type=int, metavar="I", help="only this part, counted from 0; then `merge`")
    made.add_argument("--parts", type=int, metavar="N", help="into how many parts the work is cut")
    made.add_argument(
        "--shard-files", type=int, default=listing.SHARD_FILES, help="files per shard (default: 1000, 131 MB)"
    )
    made.add_argument("--size", type=int, default=store.STORED_SIZE, help="pixels of a side (default: 256)")
    made.add_argument("--dry-run", action="store_true", help="say what is there and how long it would take")
    add_choices(made)
    return made


def add_choices(made: argparse.ArgumentParser) -> None:
    default = merge.Choices()
    made.add_argument("--seed", type=int, default=default.seed, help="of the split by patient")
    made.add_argument(
        "--shares",
        type=lambda text: tuple(float(part) for part in text.split(",")),
        default=identity.DEFAULT_SHARES,
        help="of training, validation and test (default: .84,.08,.08)",
    )
    made.add_argument(
        "--max-bad-share", type=float, default=default.max_bad_share, help="of images that may be bad (default: 0.001)"
    )


@output_may_be_lost()
def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if words and words[0] in ("merge", "verify"):
            return _command(words)
        return _prepare(parser().parse_args(words))
    except KeyboardInterrupt:
        print(f"\nstopped; {GO_ON}", file=sys.stderr)
        return 1
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (MemoryError, OSError) as error:
        print(f"error: {error or 'the memory is full: take fewer --workers'}; mend that, then {GO_ON}", file=sys.stderr)
        return 1


def _command(words: list[str]) -> int:
    made = argparse.ArgumentParser(prog=f"ct.py {words[0]}")
    made.add_argument("root", type=Path, help="the store's folder")
    if words[0] == "merge":
        add_choices(made)
    options = made.parse_args(words[1:])
    if words[0] == "verify":
        return check(options.root)
    if (options.root / "facts.json").exists():
        return already(options.root, store.read_facts(options.root), _choices(options))
    path = building(options.root) / "listing.parquet"
    if not path.exists():
        raise ValueError(f"{options.root} holds no parts to merge; expected the --out of the parts")
    return join(options.root, _jobs(options.root, {}), _choices(options))


def _prepare(options: argparse.Namespace) -> int:
    roots = {source: root for source in listing.SOURCES if (root := getattr(options, source)) is not None}
    choices = _choices(options)
    _check(options, roots)
    if options.dry_run:
        print("\n".join(report.estimate(roots, options.workers, options.size)))
        return 0
    if (options.out / "facts.json").exists():
        facts = store.read_facts(options.out)
        if (sorted(facts.get("sources", ())), facts["size"]) != (sorted(roots), options.size):
            raise ValueError(f"`--out`: {options.out} is a store of something else; name another, or remove it")
        return already(options.out, facts, choices)
    jobs = plan(options.out, roots, options.shard_files, options.size, reuse=options.part is not None)
    if options.part is None:
        prepare(options.out, jobs, options.workers, whole=True)
        return join(options.out, jobs, choices)
    prepare(options.out, jobs[options.part :: options.parts], options.workers, whole=False)
    print(f"part {options.part} of {options.parts} is done. When all are: python data_prep/ct.py merge {options.out}")
    return 0


def _check(options: argparse.Namespace, roots: dict[str, Path]) -> None:
    if not roots:
        raise ValueError("name at least one archive: --ich DIR, --cspine DIR, --radcure DIR")
    places = [root.resolve() for root in roots.values()]
    if any(one.is_relative_to(other) for one, other in itertools.permutations(places, 2)):
        raise ValueError(f"expected folders apart from each other, found {', '.join(map(str, roots.values()))}")
    for source, root in roots.items():
        if not root.is_dir():
            raise ValueError(f"`--{source}`: expected a folder, found none at {root}")
        if options.out.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"`--out`: {options.out} lies inside `--{source}` {root}; expected a folder of its own")
    if (options.part is None) != (options.parts is None):
        raise ValueError("`--part` and `--parts` go together")
    if options.parts is not None and not 0 <= options.part < options.parts:
        raise ValueError(f"`--part`: expected 0 .. {options.parts - 1}, found {options.part}")
    for name in ("workers", "shard_files", "size"):
        if getattr(options, name) < 1:
            raise ValueError(f"`--{name.replace('_', '-')}`: expected at least 1, found {getattr(options, name)}")
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"`--out`: {options.out} is a file; expected a folder")
    found = {item.name for item in options.out.iterdir()} if options.out.is_dir() else set()
    if (
        found
        and "facts.json" not in found
        and not found <= {".building", "shards", "index.parquet", "manifest.parquet", report.REJECTED_CSV}
    ):
        raise ValueError(f"`--out`: {options.out} is not empty ({', '.join(sorted(found)[:3])}); expected a new folder")


def _choices(options: argparse.Namespace) -> merge.Choices:
    identity.check_shares(options.shares)
    return merge.Choices(options.seed, options.shares, options.max_bad_share)


if __name__ == "__main__":
    sys.exit(main())

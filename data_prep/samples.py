"""A catalogue's CT -> a store that dataset=ct or dataset=headneck reads.

    python data_prep/samples.py --out data/ct [--allow-missing] [--with-debian]
    python data_prep/samples.py --catalogue headneck --folder open-kbp=DIR --out data/headneck

samples: public packages, half a minute and 111 MB of downloads, kept in `downloads` beside the store. headneck: DIR is
a clone of open-kbp, or holds its patients as PATIENT.nii.gz, already converted to HU; a minute, 1.6 GB. A second call
checks the store and changes nothing. Sources, terms and the reasons for the splits: docs/data.md. No patient's name and
no picture is written.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import catalogue
from catalogue import Catalogue, Entry
from fetch import Source, SourceMissing, check_files, opened
from readers import READERS, Volume
from slices import BODY_RULE, has_body, to_stored
from tqdm import tqdm
from write_store import write

from gcond.data import store
from gcond.output import output_may_be_lost

COLUMNS = ("pixels", "source", "patient", "z", "rows", "cols", "spacing_z_mm", "spacing_xy_mm")


def prepare(out: Path, cache: Path, made_of: Catalogue, folders: Mapping[str, Path], allow_missing: bool) -> dict:
    """Fetch, convert, write; returns the facts. `folders`: source -> the user's folder.

    Raises SourceMissing unless `allow_missing`, and ValueError where a folder does not hold what the catalogue names.
    """
    rows = {split: {column: [] for column in COLUMNS} for split in store.SPLITS}
    patients: dict[str, dict] = {}
    missing: list[str] = []
    with tqdm(total=len(made_of.volumes), desc="converting", unit="volume", disable=None) as bar:
        for source in made_of.sources:
            tqdm.write(f"{source}: licence {source.licence}")
            own = [entry for entry in made_of.volumes if entry.source == source.name]
            try:
                with opened(source, cache, folders.get(source.name)) as folder:
                    if source.form == "folder":
                        _check_folder(source, own, folder)
                    for entry in own:
                        patients[entry.patient] = _convert(entry, folder, rows[entry.split])
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
    return write(out, rows, about)


def _check_folder(source: Source, entries: list[Entry], folder: Path) -> None:
    absent = [path for path in (_converted(entry, folder) for entry in entries) if not path.is_file()]
    if len(absent) == len(entries):
        check_files(source, folder)
    elif absent:
        raise ValueError(f"{absent[0]} is absent (and {len(absent) - 1} more of {len(entries)} converted volumes)")


def _converted(entry: Entry, folder: Path) -> Path:
    """Where a volume is that the user has converted already."""
    return folder / f"{entry.patient}.nii.gz"


def read_volume(entry: Entry, folder: Path) -> Volume:
    """Raises ValueError for another number of slices than the catalogue's."""
    reader, path = entry.reader, folder / entry.path
    if _converted(entry, folder).is_file():
        reader, path = "nifti", _converted(entry, folder)
    volume = READERS[reader](path)
    if len(volume.hu) != entry.slices:
        raise ValueError(f"{entry.source}: {path} holds {len(volume.hu)} slices, expected {entry.slices}")
    return volume


def _convert(entry: Entry, folder: Path, columns: dict[str, list]) -> dict:
    """Append the slices of a volume to the columns of its split; returns what the facts say of the patient."""
    volume = read_volume(entry, folder)
    kept = 0
    for z, hu in enumerate(volume.hu):
        stored = to_stored(hu)
        if not has_body(stored):
            continue
        kept += 1
        row = {
            "pixels": stored.tobytes(),
            "source": entry.source,
            "patient": entry.patient,
            "z": z,
            "rows": hu.shape[0],
            "cols": hu.shape[1],
            "spacing_z_mm": volume.spacing_z_mm,
            "spacing_xy_mm": volume.spacing_xy_mm,
        }
        for column, value in row.items():
            columns[column].append(value)
    return {
        "split": entry.split,
        "source": entry.source,
        "path": entry.path,
        "anatomy": entry.anatomy,
        "slices_read": len(volume.hu),
        "slices_without_body": len(volume.hu) - kept,
        "files_passed_over": dict(volume.passed_over),
    }


def report(facts: dict, expected: str) -> Iterator[str]:
    """The counts of a store per source and split, and whether its checksum is the `expected` one, line by line."""
    yield f"{'source':20} {'split':10} {'patients':>8} {'read':>6} {'kept':>6}  no image (by kind)"
    groups: dict[tuple[str, str], list[dict]] = {}
    for patient in facts["patients"].values():
        groups.setdefault((patient["source"], patient["split"]), []).append(patient)
    for (source, split), own in groups.items():
        read = sum(patient["slices_read"] for patient in own)
        kept = read - sum(patient["slices_without_body"] for patient in own)
        others = sum((Counter(patient["files_passed_over"]) for patient in own), Counter())
        passed_over = ", ".join(f"{count} {kind}" for kind, count in others.items())
        yield f"{source:20} {split:10} {len(own):8} {read:6} {kept:6}  {passed_over}".rstrip()
    in_split = Counter(patient["split"] for patient in facts["patients"].values())
    yield "splits: " + ", ".join(f"{s} {facts['counts'][s]} slices of {in_split[s]} patients" for s in store.SPLITS)
    without = sum(patient["slices_without_body"] for patient in facts["patients"].values())
    yield f"left out: {without} slices without body ({facts['body_rule']})"
    yield from (f"left out: {len(those)} patients: {reason}" for reason, those in facts["left_out"].items())
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
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    with tqdm(total=size, desc=f"checking {out}", unit="B", unit_scale=True, disable=None) as bar:
        facts = store.verify(out, bar.update)
    lacking = sorted(wanted - {patient["source"] for patient in facts["patients"].values()})
    if lacking and not allow_missing:
        raise SourceMissing(f"the store at {out} lacks {', '.join(lacking)}: remove that folder to build it anew")
    print(f"{out} is there and its checksums match")
    return facts


@output_may_be_lost()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--catalogue", choices=catalogue.names(), default="samples", help="default: samples")
    parser.add_argument("--out", type=Path, required=True, help="the store's folder")
    parser.add_argument("--folder", action="append", default=[], metavar="SOURCE=DIR", help="a clone that you made")
    parser.add_argument("--allow-missing", action="store_true", help="go on without sources that cannot be had")
    parser.add_argument("--with-debian", action="store_true", help="also Debian packages, through apt-get")
    arguments = parser.parse_args()
    made_of = catalogue.read(arguments.catalogue, with_debian=arguments.with_debian)
    try:
        folders = _folders(arguments.folder, made_of.sources)
        if arguments.out.exists():
            wanted = {source.name for source in made_of.sources}
            facts = _check_there(arguments.out, wanted, arguments.allow_missing)
        else:
            cache = arguments.out.parent / "downloads"
            facts = prepare(arguments.out, cache, made_of, folders, arguments.allow_missing)
    except (SourceMissing, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(report(facts, made_of.checksum)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

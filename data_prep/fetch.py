"""Bring what a source holds into a folder, trusting neither the network nor an archive nor a clone."""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from gcond.data.store import sha256


class SourceMissing(Exception):
    """A source cannot be had; the message names it and says why."""


@dataclass(frozen=True)
class Source:
    """`form`: wheel or sdist (through pip), deb (through apt), folder (the user's clone of `url`, at a commit).

    `sha256` of the archive; None: whatever apt brings. `files`: what sha256sum prints of a folder's files.
    """

    name: str
    form: str
    licence: str
    version: str = ""
    sha256: str | None = None
    url: str = ""
    files: Path | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


@contextmanager
def opened(source: Source, cache: Path, folder: Path | None) -> Iterator[Path]:
    """The folder that holds the source's files: `folder`, the user's, or one that is gone afterwards. Raises
    SourceMissing."""
    if source.form != "folder":
        archive = fetch(source, cache)
        with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=cache) as unpacked:
            unpack(source, archive, Path(unpacked))
            yield Path(unpacked)
    elif folder is None:
        raise SourceMissing(f"{source.name}: clone {source.url} and name the folder: `--folder {source.name}=DIR`")
    else:
        yield folder


def check_files(source: Source, folder: Path) -> None:
    """Raises ValueError, naming the first of them, where files of the source's listing are absent or not the same."""
    listed = [line.split("  ", 1) for line in source.files.read_text(encoding="utf-8").splitlines()]
    absent = [path for _, path in listed if not (folder / path).is_file()]
    if not absent:
        bar = tqdm(listed, desc=f"checking {folder}", unit="file", disable=None)
        others = [path for digest, path in bar if sha256(folder / path) != digest]
    for kind, paths in (("absent", absent), ("not the expected file", [] if absent else others)):
        if paths:
            raise ValueError(
                f"{folder / paths[0]} is {kind} (and {len(paths) - 1} more of {len(listed)} files): expected a clone "
                f"of {source.url} at the commit {source.version}"
            )


def fetch(source: Source, cache: Path) -> Path:
    """The source's archive in `cache`, downloaded unless it is there. Raises SourceMissing."""
    archive = _cached(source, cache)
    if archive is None:
        cache.mkdir(parents=True, exist_ok=True)
        _run(source, _command(source), cache)
        archive = _cached(source, cache)
    if archive is None:
        raise SourceMissing(f"{source}: the download left no {source.form} in {cache}")
    found = sha256(archive)
    if source.sha256 not in (None, found):
        raise SourceMissing(f"{source}: {archive} has SHA-256 {found}, expected {source.sha256}; remove it")
    return archive


def unpack(source: Source, archive: Path, folder: Path) -> None:
    """Raises ValueError, before anything is written, for an entry that would leave `folder`."""
    if source.form == "wheel":
        with zipfile.ZipFile(archive) as wheel:
            _refuse_escapes(archive, wheel.namelist())
            wheel.extractall(folder)
    elif source.form == "sdist":
        with tarfile.open(archive) as sdist:
            _refuse_escapes(archive, sdist.getnames())
            try:
                sdist.extractall(folder, filter="data")
            except tarfile.FilterError as error:  # links that lead outside
                raise ValueError(f"{archive}: {error}") from error
    else:
        _run(source, ["dpkg-deb", "-x", str(archive.resolve()), str(folder.resolve())], folder)


def _refuse_escapes(archive: Path, names: list[str]) -> None:
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise ValueError(f"{archive}: the entry {name!r} leaves the folder")


def _cached(source: Source, cache: Path) -> Path | None:
    pattern = {
        "wheel": f"{source.name}-{source.version}-*.whl",
        "sdist": f"{source.name}-{source.version}.tar.gz",
        "deb": f"{source.name}_*.deb",
    }[source.form]
    return next(iter(sorted(cache.glob(pattern))), None)


def _command(source: Source) -> list[str]:
    if source.form == "deb":
        return ["apt-get", "download", source.name]
    from_source = ["--no-binary", source.name] if source.form == "sdist" else []
    requirement = f"{source.name}=={source.version}"
    return [sys.executable, "-m", "pip", "download", "--no-deps", *from_source, requirement]


def _run(source: Source, command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise SourceMissing(f"{source}: this machine has no {command[0]}") from error
    if done.returncode:
        raise SourceMissing(f"{source}: `{' '.join(command)}` failed:\n{(done.stderr or done.stdout)[-1500:].strip()}")

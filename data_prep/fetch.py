"""Bring a package's archive into the cache and unpack it, trusting neither the network nor the archive."""

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


class PackageMissing(Exception):
    """A package cannot be had; the message names it and says why."""


@dataclass(frozen=True)
class Package:
    """`form`: wheel or sdist (through pip), deb (through apt). `sha256` of the archive; None: whatever apt brings."""

    name: str
    version: str
    form: str
    licence: str
    sha256: str | None

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


def fetch(package: Package, cache: Path) -> Path:
    """The package's archive in `cache`, downloaded unless it is there. Raises PackageMissing."""
    archive = _cached(package, cache)
    if archive is None:
        cache.mkdir(parents=True, exist_ok=True)
        _run(package, _command(package), cache)
        archive = _cached(package, cache)
    if archive is None:
        raise PackageMissing(f"{package}: the download left no {package.form} in {cache}")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if package.sha256 not in (None, found):
        raise PackageMissing(f"{package}: {archive} has SHA-256 {found}, expected {package.sha256}; remove it")
    return archive


def unpack(package: Package, archive: Path, folder: Path) -> None:
    """Raises ValueError, before anything is written, for an entry that would leave `folder`."""
    if package.form == "wheel":
        with zipfile.ZipFile(archive) as wheel:
            _refuse_escapes(archive, wheel.namelist())
            wheel.extractall(folder)
    elif package.form == "sdist":
        with tarfile.open(archive) as sdist:
            _refuse_escapes(archive, sdist.getnames())
            try:
                sdist.extractall(folder, filter="data")
            except tarfile.FilterError as error:  # links that lead outside
                raise ValueError(f"{archive}: {error}") from error
    else:
        _run(package, ["dpkg-deb", "-x", str(archive.resolve()), str(folder.resolve())], folder)


def _refuse_escapes(archive: Path, names: list[str]) -> None:
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise ValueError(f"{archive}: the entry {name!r} leaves the folder")


def _cached(package: Package, cache: Path) -> Path | None:
    pattern = {
        "wheel": f"{package.name}-{package.version}-*.whl",
        "sdist": f"{package.name}-{package.version}.tar.gz",
        "deb": f"{package.name}_*.deb",
    }[package.form]
    return next(iter(sorted(cache.glob(pattern))), None)


def _command(package: Package) -> list[str]:
    if package.form == "deb":
        return ["apt-get", "download", package.name]
    from_source = ["--no-binary", package.name] if package.form == "sdist" else []
    requirement = f"{package.name}=={package.version}"
    return [sys.executable, "-m", "pip", "download", "--no-deps", *from_source, requirement]


def _run(package: Package, command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise PackageMissing(f"{package}: this machine has no {command[0]}") from error
    if done.returncode:
        raise PackageMissing(
            f"{package}: `{' '.join(command)}` failed:\n{(done.stderr or done.stdout)[-1500:].strip()}"
        )

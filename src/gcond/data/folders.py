"""A folder of JPEG files: which of them are read, and which split and class each belongs to. Without PyTorch.

    train/CLASS/x.jpg  val/CLASS/x.jpg  [test/CLASS/x.jpg]                    Imagenette and its like
    train/CLASS/images/x.JPEG  val/images/x.JPEG  val/val_annotations.txt     Tiny ImageNet, whose test/ has no labels
    any other without a folder called train, val or test                      split by a hash of each path, 84/8/8

Links are followed.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".jpg", ".jpeg")
SPLITS = ("train", "val", "test")
ALIKE = {*SPLITS, "training", "valid", "validation", "testing"}
VAL_SHARE, TEST_SHARE = 0.08, 0.08
ANNOTATIONS = Path("val", "val_annotations.txt")


@dataclass(frozen=True)
class JpegFolder:
    """The files of each split, in the order of their paths.

    `classes` holds the class of each of them; None where not every file has one. `passed_over` counts the files that
    are not read, by suffix or by what they are.
    """

    splits: dict[str, list[Path]]
    classes: dict[str, list[str]] | None
    passed_over: dict[str, int]

    @property
    def files(self) -> list[Path]:
        return sorted({path for own in self.splits.values() for path in own})


def read(root: Path) -> JpegFolder:
    """Raises ValueError where there is no JPEG file, a split is empty, a file belongs to none or to two of them, the
    folders of the splits lie deeper, and where something cannot be read."""
    passed_over: Counter[str] = Counter()
    files = sorted(_jpegs(root, passed_over))
    if not files:
        raise ValueError(
            f"`root`: {root} holds neither data/*.parquet nor a JPEG file; found {counted(passed_over) or 'nothing'}"
        )
    annotated = (root / ANNOTATIONS).is_file()
    if annotated:
        used = [path for path in files if path.relative_to(root).parts[0] != "test"]
        passed_over["JPEG of test/ (no labels)"] += len(files) - len(used)
        files = used
    splits = _split(root, files)
    if not splits["test"]:
        splits |= {"val": splits["val"][0::2], "test": splits["val"][1::2]}
    for split, own in splits.items():
        if not own:
            raise ValueError(f"`root`: {root} gives no image for {split}; expected folders train and val, or neither")
    _expect_disjoint(splits)
    return JpegFolder(splits, _classes(root, splits, annotated), {what: n for what, n in passed_over.items() if n})


def _jpegs(folder: Path, passed_over: Counter[str], inside: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Those below `folder`, which lies in the folders `inside`: a link back to one of these leads nowhere new."""
    try:
        state = folder.stat()
        if (state.st_dev, state.st_ino) in inside:
            return
        for entry in os.scandir(folder):
            suffix = Path(entry.name).suffix.lower()
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                passed_over["hidden"] += 1
            elif entry.is_dir():
                yield from _jpegs(Path(entry.path), passed_over, (*inside, (state.st_dev, state.st_ino)))
            elif suffix not in SUFFIXES:
                passed_over[suffix or "no suffix"] += 1
            elif entry.is_file():
                yield Path(entry.path)
            else:
                raise ValueError(f"`root`: {entry.path} is no file, or a link to nothing; mend it or take it away")
    except OSError as error:
        raise ValueError(f"`root`: {error.filename} cannot be read: {error.strerror}") from error


def _split(root: Path, files: list[Path]) -> dict[str, list[Path]]:
    parts = {path: path.relative_to(root).parts for path in files}
    if any((root / folder).is_dir() for folder in SPLITS):
        split_of = {path: own[0] for path, own in parts.items()}
        if outside := [path for path in files if split_of[path] not in SPLITS]:
            raise ValueError(
                f"`root`: {len(outside)} JPEG files of {root} lie outside train, val and test: {outside[0]} ..."
            )
    else:
        for own in parts.values():
            for depth, folder in enumerate(own[:-1]):
                if folder.lower() in ALIKE:
                    above = root.joinpath(*own[:depth])
                    raise ValueError(
                        f"`root`: expected folders train, val and test in {root}, or none of the kind anywhere below, "
                        f"found {above / folder}: if that is a split, call it so and give `dataset.root={above}`, "
                        "else rename it"
                    )
        split_of = {path: _hash_split("/".join(own)) for path, own in parts.items()}
    return {split: [path for path in files if split_of[path] == split] for split in SPLITS}


def _hash_split(relative: str) -> str:
    """A file keeps its split whatever other files come or go."""
    digest = hashlib.sha256(relative.encode(errors="surrogateescape")).digest()
    drawn = int.from_bytes(digest[:8]) / 2**64
    if drawn < TEST_SHARE:
        return "test"
    return "val" if drawn < TEST_SHARE + VAL_SHARE else "train"


def _expect_disjoint(splits: Mapping[str, list[Path]]) -> None:
    """Raises ValueError for a file that links bring into two splits."""
    seen: dict[tuple[int, int], tuple[str, Path]] = {}
    for split, own in splits.items():
        for path in own:
            state = path.stat()
            other, first = seen.setdefault((state.st_dev, state.st_ino), (split, path))
            if other != split:
                raise ValueError(f"`root`: {path} is the same file as {first}: splits must be disjoint")


def _classes(root: Path, splits: Mapping[str, list[Path]], annotated: bool) -> dict[str, list[str]] | None:
    named = _annotations(root / ANNOTATIONS) if annotated else {}
    found = {split: [_class(path.relative_to(root).parts, named) for path in own] for split, own in splits.items()}
    if any(name is None for own in found.values() for name in own):
        return None
    return {split: [str(name) for name in own] for split, own in found.items()}


def _annotations(path: Path) -> dict[str, str]:
    """Tiny ImageNet's: file, class and a box on each line, between tabs."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {name: label for name, label, *_ in (line.split("\t") for line in lines if "\t" in line)}


def _class(parts: tuple[str, ...], annotated: Mapping[str, str]) -> str | None:
    match parts:
        case ["val", "images", name] if annotated:
            return annotated.get(name)
        case [_, label, _] | [_, label, "images", _]:
            return label
    return None


def counted(passed_over: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in sorted(passed_over.items()))

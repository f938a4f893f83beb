"""A clone of a repository of photographs -> Parquet files, as those of benjamin-paine/imagenet-1k-256x256.

    train/CLASS/x.jpg, val/CLASS/x.jpg    the rows of a split are shuffled, so that any stretch of them has all classes
    CLASS_name.JPEG                       no split of its own: validation where MD5(CLASS_name.jpg) is a multiple of 9

CLASS is one of ImageNet's 1000 WordNet ids, and the label is its place among them.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features
from datasets import Image as ImageFeature
from PIL import Image
from timm.data import ImageNetInfo
from tqdm import tqdm

from gcond.data.images import naming, opened
from gcond.files import folder_atomically, read_object, sha256, write_json

FORMAT_VERSION = 1
SUFFIXES = (".jpg", ".jpeg")
SPLITS = {"train": "train", "validation": "val"}  # split -> its folder
FILE_ROWS, GROUP_ROWS = 8000, 1000
QUALITY = 92  # of JPEG, where a photograph is made smaller
CLASSES = list(ImageNetInfo().label_names())
SCHEMA = Features({"image": ImageFeature(), "label": ClassLabel(names=CLASSES)}).arrow_schema


def convert(
    root: Path,
    out: Path,
    size: int,
    subset: int | None = None,
    subset_validation: int | None = None,
    seed: int = 0,
) -> dict:
    """Make `out` from the clone at `root`; the facts of `out`.

    A photograph of `size` x `size` pixels keeps its bytes, a larger one is made smaller, a smaller one is left out.
    Raises ValueError for another layout, a class that is not ImageNet's, a photograph that cannot be decoded, and an
    `out` that is something else.
    """
    paths = _chosen(root, subset, subset_validation, seed)
    listing = [f"{split} {path.relative_to(root).as_posix()}" for split, own in paths.items() for path in own]
    settings = {
        "format_version": FORMAT_VERSION,
        "size": size,
        "source": {"listing_sha256": hashlib.sha256("\n".join(listing).encode()).hexdigest(), "images": len(listing)},
        "subset": subset,
        "subset_validation": subset_validation,
        "seed": seed,
    }
    if out.exists():
        return check_existing(out, settings)
    with folder_atomically(out) as building:
        made: Counter[str] = Counter()
        content = hashlib.sha256()
        files: dict[str, dict] = {}
        counts = {}
        for split, own in paths.items():
            rows = []
            for path in tqdm(own, desc=split, unit="image", disable=None):
                encoded, how = fitted(path, size)
                made[how] += 1
                if encoded is None:
                    continue
                name, label = path.relative_to(root).as_posix(), CLASSES.index(class_of(path, root))
                rows.append({"image": {"bytes": encoded, "path": name}, "label": label})
                content.update(f"{split} {label} {hashlib.sha256(encoded).hexdigest()}\n".encode())
            if not rows:
                raise ValueError(f"`--from`: no {split} photograph of {root} has {size} x {size} pixels or more")
            counts[split] = len(rows)
            files |= _write(pa.Table.from_pylist(rows, SCHEMA), building / "data", split)
        facts = settings | {"counts": counts, "made": dict(made), "images_sha256": content.hexdigest(), "files": files}
        write_json(building / "facts.json", facts)
    return facts


def class_of(path: Path, root: Path) -> str:
    """The folder below train/ or val/; of a file beside the root, the beginning of its name."""
    parts = path.relative_to(root).parts
    return parts[1] if len(parts) > 1 else parts[0].partition("_")[0]


def fitted(path: Path, size: int) -> tuple[bytes | None, str]:
    """JPEG of size x size pixels, and what was done: bytes "kept", "made smaller", or None, "left out (too small)".

    Made smaller: the short side first, then the centre. No EXIF orientation is applied, as ImageNet is usually read.
    """
    encoded = path.read_bytes()
    with naming(str(path)), opened(io.BytesIO(encoded), turn=False) as photo:
        photo.load()
        if (photo.format, photo.mode, photo.size) == ("JPEG", "RGB", (size, size)):
            return encoded, "kept"
        side = min(photo.size)
        if side < size:
            return None, "left out (too small)"
        width, height = (round(length * size / side) for length in photo.size)
        smaller = photo.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        left, top = (width - size) // 2, (height - size) // 2
        made = io.BytesIO()
        smaller.crop((left, top, left + size, top + size)).save(made, "JPEG", quality=QUALITY)
    return made.getvalue(), "made smaller"


def _chosen(root: Path, subset: int | None, subset_validation: int | None, seed: int) -> dict[str, list[Path]]:
    """The photographs of each split, in the order of their rows. A larger subset contains a smaller one."""
    if not any((root / folder).is_dir() for folder in SPLITS.values()):
        return _without_split(root, subset)
    classes = sorted({path.name for folder in SPLITS.values() for path in (root / folder).iterdir() if path.is_dir()})
    _check(root, classes)
    draw = random.Random(seed)
    found: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for wnid in classes:
        for split, count in (("train", subset), ("validation", subset_validation)):
            own = _jpegs(root / SPLITS[split] / wnid)
            draw.shuffle(own)
            found[split] += own[:count]
    for own in found.values():
        draw.shuffle(own)
    return found


def _without_split(root: Path, subset: int | None) -> dict[str, list[Path]]:
    if subset is not None:
        raise ValueError(f"`--subset` has no effect on {root}, which has no folder for each class")
    paths = _jpegs(root)
    _check(root, sorted({class_of(path, root) for path in paths}))
    validates = [int(hashlib.md5(f"{path.stem}.jpg".encode()).hexdigest(), 16) % 9 == 0 for path in paths]
    return {
        split: [path for path, held in zip(paths, validates, strict=True) if held == (split == "validation")]
        for split in SPLITS
    }


def _jpegs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)


def _check(root: Path, classes: list[str]) -> None:
    if strangers := [name for name in classes if name not in CLASSES]:
        raise ValueError(
            f"`--from`: expected names of ImageNet's 1000 classes such as n01440764 in {root}, found {strangers[0]!r}"
        )
    if not classes:
        raise ValueError(f"`--from`: {root} holds neither data/*.parquet nor photographs by class; see docs/data.md")


def _write(table: pa.Table, folder: Path, split: str) -> dict[str, dict]:
    """What the facts say of the files made, by name."""
    folder.mkdir(exist_ok=True)
    parts = [table.slice(start, FILE_ROWS) for start in range(0, len(table), FILE_ROWS)]
    files = {}
    for i, part in enumerate(parts):
        path = folder / f"{split}-{i:05}-of-{len(parts):05}.parquet"
        pq.write_table(part, path, row_group_size=GROUP_ROWS, compression="none")
        files[f"data/{path.name}"] = {"images": len(part), "bytes": path.stat().st_size, "sha256": sha256(path)}
    return files


def check_existing(out: Path, settings: dict) -> dict:
    """The facts of a finished `out`, its checksums compared. Raises ValueError where it is another or damaged."""
    path = out / "facts.json"
    facts = read_object(path) if path.is_file() else {}
    for key, wanted in settings.items():
        if facts.get(key) != wanted:
            raise ValueError(
                f"`--out`: {out} exists and was not made by this command ({key}: wanted {wanted}, found "
                f"{facts.get(key)}); remove it or name another folder"
            )
    for name, file in tqdm(facts["files"].items(), unit="file", desc="comparing checksums"):
        if not (out / name).is_file() or sha256(out / name) != file["sha256"]:
            raise ValueError(f"`--out`: {out / name} does not match the checksum in facts.json; remove {out}")
    print(f"{out} is there and its checksums match")
    return facts


def print_converted(out: Path, facts: dict) -> None:
    for split, count in facts["counts"].items():
        print(f"{split}: {count:,} images")
    print(", ".join(f"{count:,} {how}" for how, count in sorted(facts["made"].items())))
    print(f"SHA-256 of the images: {facts['images_sha256']}")
    dataset = "imagenet84" if facts["size"] == 84 else "imagenet256"
    print(f"train on it: gcond-train dataset={dataset} dataset.root={out}")

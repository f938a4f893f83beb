"""Photographs of ImageNet's classes -> the folder that dataset=imagenet256 reads; or such a folder, checked.

    python data_prep/imagenet256.py --from CLONE --out data/imagenet84 --size 84 [--subset N --seed S]
    python data_prep/imagenet256.py --from DIR                                    every image of a copy is decoded

CLONE holds JPEG files: train/CLASS/x.jpg and val/CLASS/x.jpg, or CLASS_name.JPEG, where CLASS is a WordNet id such as
n01440764. They are written as Parquet, at --size pixels (docs/data.md).

DIR is laid out as benjamin-paine/imagenet-1k-256x256, data/train-*.parquet and validation-*.parquet, and is trained on
as it is. The check takes about a quarter of an hour for the 1,331,167 labelled images. Nothing is downloaded;
ImageNet's terms (non-commercial research) are yours to accept.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gcond.data import imagenet256
from gcond.data.checksums import parquet_files
from gcond.output import at_least_one, output_may_be_lost

TRAIN, VALIDATION, PER_CLASS = 1_281_167, 50_000, 50
"""Images of the published copy, and those of each class of validation."""


@output_may_be_lost()
def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="root", type=Path, required=True, help="the clone, or the folder above data/")
    parser.add_argument("--out", type=Path, help="the folder to make of a clone")
    parser.add_argument("--size", type=at_least_one, default=256, help="pixels of a side (default 256)")
    parser.add_argument("--subset", type=at_least_one, metavar="N", help="N training images of each class")
    parser.add_argument("--subset-validation", type=at_least_one, metavar="M", help="M validation images of each class")
    parser.add_argument("--seed", type=int, help="which images (default 0); a larger N contains a smaller one")
    arguments = parser.parse_args(words)
    if arguments.subset is None and (arguments.subset_validation is not None or arguments.seed is not None):
        parser.error("--subset-validation and --seed have no effect without --subset")
    try:
        if not parquet_files(arguments.root):
            _convert(**vars(arguments) | {"seed": arguments.seed or 0})
        elif arguments.out is None and arguments.subset is None:
            check(arguments.root, arguments.size)
        else:
            raise ValueError(
                f"`--from`: {arguments.root} holds Parquet already, which dataset.root={arguments.root} reads as it "
                "is; without `--out` and `--subset` it is checked"
            )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _convert(out: Path | None, **options: Any) -> None:
    if out is None:
        raise ValueError("`--out`: expected the folder to make of a clone")
    from clone import convert, print_converted  # takes seconds, since it imports timm

    print_converted(out, convert(out=out, **options))


def check(root: Path, size: int) -> None:
    """Decode every image as a run does, and count. Raises ValueError for the first that cannot be decoded or has
    fewer than `size` pixels, and, at 256 pixels, for other numbers than the published ones."""
    splits = imagenet256.load(root, size)
    for images in (splits.train, splits.val, splits.test):
        for index in tqdm(range(len(images)), desc="checking", unit="image", disable=None):
            images[index]
    counts = len(splits.train), len(splits.val) + len(splits.test)
    print(f"train: {counts[0]:,} images, validation: {counts[1]:,}")
    groups = splits.groups or {"val": [], "test": []}
    per_class = set(Counter(groups["val"] + groups["test"]).values())
    if size == 256 and (counts, per_class) != ((TRAIN, VALIDATION), {PER_CLASS}):
        raise ValueError(
            f"`--from`: every image is sound, but {root} is not the published copy of {TRAIN:,} and {VALIDATION:,} "
            f"images, {PER_CLASS} of each class of validation"
        )


if __name__ == "__main__":
    sys.exit(main())

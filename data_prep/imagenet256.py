"""A local copy of ImageNet-256, checked image by image -> the folder that dataset=imagenet256 reads.

    python data_prep/imagenet256.py --from DIR --out data/imagenet256 [--subset N --seed S]
    python data_prep/imagenet256.py --from CLONE --out data/imagenet84 --size 84 [--subset N ...]

DIR is laid out as benjamin-paine/imagenet-1k-256x256: data/train-*.parquet, validation-*.parquet and, if you like,
test-*.parquet, with the columns image = struct{bytes, path} and label. Nothing is downloaded. The whole is linked (hard
links; a copy where the file system refuses), a subset is written anew, without the test split, which nothing reads.

CLONE holds JPEG files: train/CLASS/x.jpg and val/CLASS/x.jpg, or CLASS_name.JPEG, where CLASS is a WordNet id such as
n01440764. They are written as Parquet, at --size pixels (docs/data.md).

About a quarter of an hour for the 1,331,167 labelled images. ImageNet's terms (non-commercial research) are yours to
accept.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from imagenet.output import prepare

from gcond.output import output_may_be_lost


@output_may_be_lost()
def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="root", type=Path, required=True, help="the local copy: the folder above data/")
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument("--size", type=int, default=256, help="pixels of a side (default 256)")
    parser.add_argument("--subset", type=int, metavar="N", help="N training images of each class")
    parser.add_argument("--subset-validation", type=int, metavar="M", help="M validation images of each class")
    parser.add_argument("--seed", type=int, help="which images (default 0); a larger N contains a smaller one")
    parser.add_argument("--allow-partial", action="store_true", help="accept other counts, and report them")
    arguments = parser.parse_args(words)
    for name in ("size", "subset", "subset_validation"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, found {value}")
    if arguments.subset is None and (arguments.subset_validation is not None or arguments.seed is not None):
        parser.error("--subset-validation and --seed have no effect without --subset")
    options = vars(arguments) | {"seed": arguments.seed or 0}
    try:
        prepare(**options) if any((arguments.root / "data").glob("*.parquet")) else converted(**options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def converted(allow_partial: bool, **options: Any) -> None:
    from imagenet.clone import convert, print_converted  # takes seconds, since it imports timm

    facts = convert(**options)
    print_converted(options["out"], facts)


if __name__ == "__main__":
    sys.exit(main())

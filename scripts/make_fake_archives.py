"""Made CT archives: made heads in the layouts of RSNA ICH, RSNA cervical spine and RADCURE, for trials and benchmarks.

    python scripts/make_fake_archives.py --patients 10 --out /tmp/fake [--size 256] [--duplicates 2] [--defects]

A patient of each collection makes about 165 files in all; at the default size of 512, 65 MB and 1.3 s. What the
archives hold is printed and written to OUT/expected.json, so that what a store says of them can be compared.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data_prep"))

from fake import write_cspine, write_defects, write_ich, write_radcure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patients", type=int, required=True, help="of each collection")
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist or is empty")
    parser.add_argument("--size", type=int, default=512, help="rows and columns of most slices")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slices", type=int, nargs=2, metavar=("FEWEST", "MOST"), help="of a scan")
    parser.add_argument("--duplicates", type=int, default=0, help="slices that two patients of ICH share")
    parser.add_argument("--defects", action="store_true", help="add a folder of faulty files to each collection")
    arguments = parser.parse_args()
    if arguments.patients < 1:
        parser.error(f"--patients must be at least 1; found {arguments.patients}")
    out = arguments.out
    if out.exists() and any(out.iterdir()):
        parser.error(f"--out must be a folder that does not exist or is empty; found files in {out}")
    slices = {"slices": tuple(arguments.slices)} if arguments.slices else {}
    writers = {"ich": write_ich, "cspine": write_cspine, "radcure": write_radcure}
    more = {"ich": {"duplicates": arguments.duplicates}}

    # Write
    start, counts, defects = time.perf_counter(), {}, {}
    with tqdm(total=len(writers) * arguments.patients, unit="patient") as bar:
        for source, write in writers.items():
            bar.set_description(source)
            keywords = {**slices, **more.get(source, {}), "done": bar.update}
            counts[source] = write(out / source, arguments.patients, arguments.seed, arguments.size, **keywords)
    if arguments.defects:
        for source in writers:
            found = write_defects(out / source / "defects", source, arguments.seed, arguments.size)
            defects[source] = {f"defects/{path}": fate for path, fate in found.items()}
    seconds = time.perf_counter() - start

    # Report
    expected = {source: {**made.as_dict(), "defects": defects.get(source, {})} for source, made in counts.items()}
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    print(f"{'source':8} {'files':>8} {'images':>8} {'patients':>8}  others; flags")
    for source, made in counts.items():
        odd = "; ".join(
            ", ".join(f"{n} {what}" for what, n in (+counter).items()) for counter in (made.others, made.flags)
        )
        print(f"{source:8} {made.files:8} {made.images:8} {made.patients:8}  {odd}")
    total = sum(made.files for made in counts.values())
    print(f"{total} files in {seconds:.1f} s, {total / seconds:.0f}/s; see {out / 'expected.json'}")
    if arguments.defects:
        print(f"and {sum(map(len, defects.values()))} faulty or odd files, more than ct.py puts up with by default")
    roots = " ".join(f"--{source} {out / source}" for source in writers)
    print(f"python data_prep/ct.py {roots} --out data/ct-fake")
    return 0


if __name__ == "__main__":
    sys.exit(main())

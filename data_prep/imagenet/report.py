"""What was found and made, in words and tables."""

from pathlib import Path

from imagenet.source import Finding
from imagenet.work import Outcome


def print_table(findings: list[Finding]) -> None:
    if not findings:
        return
    grouped: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        grouped.setdefault((finding.split, finding.what), []).append(finding.place)
    print(f"{'split':12}{'what is wrong':24}{'count':>9}  first")
    for (split, what), places in sorted(grouped.items()):
        print(f"{split:12}{what:24}{len(places):9,}  {places[0]}")


def print_made(out: Path, facts: dict, outcomes: list[Outcome]) -> None:
    for line in facts["deviations"]:
        print(line)
    for split, count in facts["counts"].items():
        print(f"{split}: {count:,} images of {facts['classes'][split] or 'unknown'} classes")
    made = {
        how: sum(outcome.made == how for outcome in outcomes)
        for how in ("linked", "copied", "written", "left out", "kept")
    }
    print("files: " + ", ".join(f"{count} {how}" for how, count in made.items() if count))
    if made["linked"]:
        print("A linked file is the source's own file under a second name: it takes no room; edit neither.")
    if made["copied"]:
        print("Copied, because the file system refused a hard link: these files take room twice.")
    print_hint(out, facts)


def print_converted(out: Path, facts: dict) -> None:
    for split, count in facts["counts"].items():
        print(f"{split}: {count:,} images")
    print(", ".join(f"{count:,} {how}" for how, count in sorted(facts["made"].items())))
    print(f"SHA-256 of the images: {facts['images_sha256']}")
    print_hint(out, facts)


def print_hint(out: Path, facts: dict) -> None:
    dataset = "imagenet84" if facts["size"] == 84 else "imagenet256"
    print(f"train on it: gcond-train dataset={dataset} dataset.root={out}")

"""What became of every file, in words and tables."""

from collections.abc import Iterator

from archive.merge import PAPER_FILES, TITLES
from gcond.data import store
from gcond.data.ct import PAPER_MEAN, PAPER_STD

FREE = (
    "This store shows patients. It is not de-identified: a face can be rebuilt from a head CT. Do not redistribute it."
)


def lines(facts: dict) -> Iterator[str]:
    """The counts of a store that was made from the archives."""
    yield from files(facts)
    yield from reasons(facts)
    if facts["flags"]:
        yield ""
        yield "flags of stored slices: " + ", ".join(f"{flag} {count}" for flag, count in facts["flags"].items())
        if ambiguous := facts["pixels_that_mends_place_differently"]:
            yield f"wrapped 12-bit group: {ambiguous} pixels that the usual mend would have placed differently"
    yield ""
    yield f"{'split':12}{'slices':>10}{'share':>8}{'patients':>10}  by source"
    total = sum(facts["counts"].values())
    for split in store.SPLITS:
        own = facts["by_split"][split]
        by_source = ", ".join(f"{source} {found['slices']}" for source, found in own.items())
        patients = sum(found["patients"] for found in own.values())
        yield f"{split:12}{facts['counts'][split]:10}{facts['counts'][split] / total:8.1%}{patients:10}  {by_source}"
    if facts["linked_patients"]:
        yield (
            f"{facts['linked_patients']} patients share a picture or a study with another one and stay on one side; "
            f"{len(facts['patients_moved_by_links'])} of them moved for it"
        )
    if labels := facts.get("labels"):
        yield (
            f"labels of ICH: {labels['labelled_slices']} slices, {labels['positive']['any']} with haemorrhage; "
            f"{labels['labels_without_slice']} slices have labels and are not here; "
            f"{labels['repeated_rows']} repeated rows dropped, {labels['contradicted']} contradicted labels left empty"
        )
    elif "ich" in facts["sources"]:
        yield "labels of ICH: none were found, so every label is empty"
    yield ""
    yield f"{'window':12}{'mean':>10}{'std':>10}  of the training split; the paper: {PAPER_MEAN}, {PAPER_STD}"
    for window, found in facts["train_statistics"].items():
        yield f"{window:12}{found['mean']:10.6f}{found['std']:10.6f}"
    yield ""
    yield FREE


def files(facts: dict) -> Iterator[str]:
    """Found beside expected; a difference is what the table of reasons and the download have to explain."""
    columns = ("files", "stored", "duplicate", "rejected", "other", "patients", "expected", "missing")
    yield f"{'source':20}" + "".join(f"{name:>10}" for name in columns)
    images = 0
    for source, own in facts["sources"].items():
        found = own["stored"] + own["duplicate"] + own["rejected"]
        images += found
        numbers = [own[name] for name in columns[:-2]] + [
            own["images_of_the_whole"],
            own["images_of_the_whole"] - found,
        ]
        yield f"{TITLES[source]:20}" + "".join(f"{number:10}" for number in numbers)
    yield f"images found: {images:,}; the paper names {PAPER_FILES:,} files of all three collections"


def reasons(facts: dict) -> Iterator[str]:
    if not facts["reasons"]:
        return
    yield ""
    yield f"{'source':10}{'status':12}{'files':>8}  reason"
    for row in facts["reasons"]:
        yield f"{row['source']:10}{row['status']:12}{row['files']:8}  {row['reason']}"
    yield f"bad (rejected, or under another patient's SOPInstanceUID) among images: {facts['bad_share']:.3%}"

"""A drawn figure as PNG and PDF, without a date: the same records give the same bytes."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from gcond.files import write_atomically

DPI = 150  # of the PNG


def save(figure: Figure, base: Path) -> list[Path]:
    """Write `base`.png and `base`.pdf; returns both. Titles hold names, of which a $ makes no formula."""
    for axes in figure.axes:
        axes.title.set_parse_math(False)
    png, pdf = base.with_name(f"{base.name}.png"), base.with_name(f"{base.name}.pdf")
    write_atomically(png, lambda to: figure.savefig(to, dpi=DPI, metadata={"Software": None}))
    with matplotlib.rc_context({"pdf.fonttype": 42}):  # text that can be searched
        write_atomically(pdf, lambda to: figure.savefig(to, metadata={"CreationDate": None}))
    return [png, pdf]

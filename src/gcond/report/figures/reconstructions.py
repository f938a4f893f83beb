"""Figure 10: held-out photographs as original, masked, and as each method fills them in. Never of patients.

n images, C channels, S image size, H hidden patches; `hidden` [n, H] are places of patches, row-major.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from gcond.report.figures import style
from gcond.report.figures.lineup import PHOTOS
from gcond.report.figures.select import Selection
from gcond.report.lineup import PAPER_SEEDS

FILE = "final_reconstructions.npz"
GREEN = "#00C000"
SHOWN = (
    "Photographs of the validation split, which no run has trained on, after the last epoch. Green: patches that the "
    "model saw; it fills in the others. Values outside [0, 1] are clamped for the picture."
)


@dataclass(frozen=True)
class Pictures:
    original: NDArray[np.uint8]  # [n, C, S, S]
    masked: NDArray[np.uint8]
    pasted: NDArray[np.uint8]
    hidden: NDArray[np.int64]  # [n, H]
    patch_size: int

    def error(self) -> float:
        """Mean absolute error over the hidden pixels of these images, in [0, 1]."""
        shares = self.hidden.shape[1] * self.patch_size**2 / self.original.shape[-1] ** 2
        return float(np.abs(self.pasted.astype(float) - self.original).mean() / 255 / shares)


def read(path: Path) -> Pictures:
    """Raises ValueError that names the file if it is not what a run leaves."""
    with np.load(path, allow_pickle=False) as file:
        if missing := {"original", "masked", "pasted", "hidden", "patch_size"} - set(file.files):
            raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")
        return Pictures(
            file["original"], file["masked"], file["pasted"], file["hidden"].astype(np.int64), int(file["patch_size"])
        )


def check_datasets(datasets: tuple[str, ...]) -> None:
    if patients := [name for name in datasets if name not in PHOTOS]:
        raise ValueError(f"`--datasets`: expected {' or '.join(PHOTOS)}, found {', '.join(patients)}; "
                         "reconstructions of patients are never drawn")  # fmt: skip


def choose_seed(found: dict[tuple[str, int], Path]) -> int:
    """The seed that most methods have; of equal ones the paper's first, then the smallest."""
    seeds = {seed for _, seed in found}
    order = [*PAPER_SEEDS, *sorted(seeds - set(PAPER_SEEDS))]
    return max(seeds, key=lambda seed: (sum(own == seed for _, own in found), -order.index(seed)))


def load(selection: Selection, found: dict[tuple[str, int], Path], seed: int) -> dict[str, Pictures]:
    """The pictures of each drawn strategy. Raises ValueError if they do not show the same images and masks."""
    pictures = {name: read(found[name, seed]) for name in selection.strategies if (name, seed) in found}
    first, reference = next(iter(pictures.items()))
    for name, own in pictures.items():
        for part in ("original", "masked", "hidden"):
            if not np.array_equal(getattr(own, part), getattr(reference, part)):
                raise ValueError(
                    f"{found[name, seed]} and {found[first, seed]} differ in `{part}`: they did not see the same "
                    "images or masks, so remove the outdated runs"
                )
    return pictures


def draw(selection: Selection, pictures: dict[str, Pictures]) -> Figure:
    """A row per image; columns original, masked, each method."""
    reference = next(iter(pictures.values()))
    columns = {"original": reference.original, "masked": reference.masked}
    columns |= {style.label(name): own.pasted for name, own in pictures.items()}
    images = len(reference.original)
    figure = Figure(figsize=(1.7 * len(columns), 1.72 * images + 0.9), layout="constrained")
    panels = figure.subplots(images, len(columns), squeeze=False)
    for title, axes in zip(columns, panels[0], strict=True):
        axes.set_title(title.replace("GCond ", "GCond\n"), fontsize=10)
    for index, row in enumerate(panels):
        for axes, (title, cells) in zip(row, columns.items(), strict=True):
            _cell(axes, cells[index])
            if title != "original":
                _outline(axes, reference, index)
    style.finish(figure, selection, "Green: patches that the model saw", False)
    return figure


def _cell(axes: Axes, pixels: NDArray[np.uint8]) -> None:
    image = np.moveaxis(pixels, 0, -1)
    axes.imshow(np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _outline(axes: Axes, pictures: Pictures, index: int) -> None:
    size = pictures.patch_size
    across = pictures.original.shape[-1] // size
    for place in sorted(set(range(across**2)) - set(pictures.hidden[index].tolist())):
        row, column = divmod(place, across)
        corner = (column * size - 0.5, row * size - 0.5)
        axes.add_patch(Rectangle(corner, size, size, fill=False, edgecolor=GREEN, linewidth=1.3))


def error_table(pictures: dict[str, Pictures]) -> list[list[str]]:
    rows = [["method", "mean absolute error of the hidden pixels shown, in [0, 1]"], []]
    return rows + [[style.label(name), f"{own.error():.4f}"] for name, own in pictures.items()]

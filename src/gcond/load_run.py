"""The data, model and objective of a config or of a finished run, as it began and as it ended. Nothing is written."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from gcond.config import build
from gcond.data.checksums import short
from gcond.data.splits import Splits
from gcond.engine.batches import TrainingImages, labelling_of, seeded
from gcond.engine.checkpoint import Checkpoint, checkpoints
from gcond.engine.run_folder import finished_report, read_config, read_report
from gcond.engine.trainer import Objective
from gcond.files import OWN
from gcond.model import MaskedAutoencoder

STATES = ("initial", "last")
STORES = ("ct", "headneck", "imagenet84")  # data sets that stand below data/


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that measures the weights of finished runs and adds to their recorded logs."""
    parser.add_argument("--scale", default="mini", help="folder below --runs and --results (default: mini)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of local runs, only read")
    parser.add_argument("--results", type=Path, default=OWN, help=f"folder of records (default: {OWN})")
    parser.add_argument("--datasets", type=lambda text: text.split(","), help="comma-separated (default: all)")
    for name in STORES:
        parser.add_argument(f"--{name}", type=Path, default=Path("data", name), help=f"default: data/{name}")
    parser.add_argument("--imagenet", type=Path, help="the ImageNet-256 of the runs")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help="a package of your own, whose "
                        "classes and data sets a run's config may name; its code is run")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def roots(options: argparse.Namespace) -> dict[str, Path | None]:
    """Data set -> its folder, by the options."""
    return {name: getattr(options, name) for name in STORES} | {"imagenet256": options.imagenet}


class Configured:
    """What a config describes. `trusted` are packages that it may name classes of, beside this one (`gcond.config`)."""

    def __init__(self, cfg: DictConfig, trusted: Sequence[str] | None = None) -> None:
        self.cfg, self._trusted = cfg, trusted

    def data(self) -> Splits:
        splits: Splits = build(self.cfg.dataset, self._trusted)
        return splits

    def model(self, state: str, data: Splits) -> tuple[MaskedAutoencoder, int]:
        """The model as it begins, and its step, 0. Raises ValueError for another `state` than "initial"."""
        if state != "initial":
            raise ValueError(f"`state`: expected initial, since nothing is trained yet, found {state!r}")
        labelling = labelling_of(self.cfg)
        late = {"channels": data.intensity.channels, "classes": labelling.classes if labelling else None}
        with seeded(self.cfg.seed, "weights"):
            return build(self.cfg.model, self._trusted, **late), 0

    def objective(self, model: MaskedAutoencoder, data: Splits) -> Objective:
        patch = self.cfg.scale.patch_size
        loss = build(self.cfg.loss.reconstruction, self._trusted)(patch_size=patch, intensity=data.intensity)
        return Objective(model, loss, self.cfg.precision)

    @property
    def tasks(self) -> dict[str, float]:
        """Name -> lambda."""
        return {str(name): float(weight) for name, weight in self.cfg.loss.tasks.items()}

    @property
    def patches(self) -> int:
        across: int = self.cfg.scale.image_size // self.cfg.scale.patch_size
        return across**2

    def images(self, data: Splits, device: torch.device) -> TrainingImages:
        scale, how = self.cfg.scale, {"device": device, "labelling": labelling_of(self.cfg)}
        micro_batch, ratio, seed = scale.micro_batch, scale.mask_ratio, self.cfg.seed
        return TrainingImages(data.train, data.intensity, micro_batch, self.patches, ratio, seed, **how)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(device.type, enabled=self.cfg.precision == "fp16")


class LoadedRun(Configured):
    """A finished run below runs/.

    Args:
        path: the run's folder, which holds DONE.
        roots: data set -> where its data are, which a run's config does not keep.
        trusted: packages that its config may name classes and data sets of, beside this one (`gcond.config`).

    Raises:
        ValueError: the run is not finished, its data set's folder is not among `roots`, its report or config is
            damaged, or its config names what may not be built.
    """

    def __init__(self, path: Path, roots: Mapping[str, Path | str | None], trusted: Sequence[str] = ()) -> None:
        if finished_report(path) is None:
            raise ValueError(f"{path}: expected a finished run, found no DONE in it, or no whole report.json")
        self.path = path
        self.report = read_report(path, "hash", "steps", "data_checksum")
        super().__init__(cfg := read_config(path), tuple(trusted))
        if cfg.dataset.name in roots:
            if (root := roots[cfg.dataset.name]) is None:
                raise ValueError(f"{path}: expected the folder of its {cfg.dataset.name} (--imagenet DIR), found none")
            cfg.dataset.root = str(root)

    def data(self) -> Splits:
        """Raises ValueError where these are not the data that the run has seen."""
        splits = super().data()
        self.expect(splits)
        return splits

    def expect(self, data: Splits) -> None:
        """Raise ValueError where `data` are not those that the run has seen."""
        seen, found = self.report["data_checksum"], data.facts["checksum"]
        if found != seen:
            raise ValueError(
                f"{self.path}: trained on data with the checksum {short(seen)}, found {short(found)}; name the run's "
                "own data, or make the run again"
            )

    def model(self, state: str, data: Splits) -> tuple[MaskedAutoencoder, int]:
        """The model as it began ("initial") or in the last checkpoint ("last"), and its step.

        Raises ValueError where the last checkpoint is gone, or of another step.
        """
        if state not in STATES:
            raise ValueError(f"`state`: expected one of {', '.join(STATES)}, found {state!r}")
        model, _ = super().model("initial", data)
        if state == "initial":
            return model, 0
        checksum, folder = data.facts["checksum"], self.path / "checkpoints"
        if not checkpoints(folder):
            raise ValueError(f"{folder}: expected the run's last checkpoint, found none; the run must be made again")
        step = Checkpoint(folder, self.report["hash"], checksum, {"model": model}, writes=False).load().step
        if step != (last := self.report["steps"]):
            raise ValueError(f"{folder}: expected a checkpoint of step {last}, found one of step {step}")
        return model, step

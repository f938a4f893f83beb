"""The data, model and objective of a config or of a finished run, as it began and as it ended. Nothing is written."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig

from gcond.config import build
from gcond.data.checksums import short
from gcond.data.intensity import Intensity
from gcond.data.splits import Splits
from gcond.engine.batches import Labelling, TrainingImages, labelling_of, seeded
from gcond.engine.checkpoint import Checkpoint, checkpoints
from gcond.engine.evaluate import Best, EvaluationSet
from gcond.engine.run_folder import finished_report, read_config, read_report
from gcond.engine.trainer import Objective
from gcond.files import OWN
from gcond.loss import ReconstructionLoss
from gcond.model import MaskedAutoencoder

STATES = ("initial", "last")
WEIGHTS = ("last", "best")  # that a finished run may keep
STORES = ("ct", "headneck", "imagenet84")  # data sets that stand below data/
LOADERS = ("gcond.data.ct.load", "gcond.data.imagenet256.load")  # of what lies in a folder


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that measures the weights of finished runs and adds to their recorded logs."""
    parser.add_argument("--scale", default="mini", help="folder below --runs and --results (default: mini)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of local runs, only read")
    parser.add_argument("--results", type=Path, default=OWN, help=f"folder of records (default: {OWN})")
    parser.add_argument("--datasets", type=lambda text: text.split(","), help="comma-separated (default: all)")
    for name in STORES:
        parser.add_argument(f"--{name}", type=Path, default=Path("data", name), help=f"default: data/{name}")
    parser.add_argument("--imagenet", type=Path, help="the ImageNet-256 of the runs")
    _add_trust_and_device(parser)


def add_options_of_one(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that looks at one run."""
    parser.add_argument("--data", type=Path, help="folder of a run's data (default: data/ and the data set's name)")
    _add_trust_and_device(parser)


def _add_trust_and_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help="a package of your own, whose "
                        "classes and data sets a run's config may name; its code is run")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def roots(options: argparse.Namespace | None = None) -> dict[str, Path | None]:
    """Data set -> its folder, by the options; without them, by its name below data/."""
    found: dict[str, Path | None] = {name: getattr(options, name, Path("data", name)) for name in STORES}
    return found | {"ich": found["ct"], "imagenet256": getattr(options, "imagenet", None)}


def file_to_write(text: str) -> Path:
    """The type of an option, which a folder cannot be."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"expected a file, found the folder {text}")
    return Path(text)


class Configured:
    """What a config describes. `trusted` are packages that it may name classes of, beside this one (`gcond.config`)."""

    def __init__(self, cfg: DictConfig, trusted: Sequence[str] | None = None) -> None:
        self.cfg, self._trusted = cfg, trusted

    def data(self) -> Splits:
        splits: Splits = build(self.cfg.dataset, self._trusted)
        return splits

    def model(self, state: str, channels: int) -> tuple[MaskedAutoencoder, int]:
        """The model as it begins, and its step, 0. Raises ValueError for another `state` than "initial"."""
        if state != "initial":
            raise ValueError(f"`state`: expected initial, since nothing is trained yet, found {state!r}")
        late = {"channels": channels, "classes": self.labelling.classes if self.labelling else None}
        with seeded(self.cfg.seed, "weights"):
            return build(self.cfg.model, self._trusted, **late), 0

    def loss(self, data: Splits) -> ReconstructionLoss:
        of_patches = build(self.cfg.loss.reconstruction, self._trusted)
        loss: ReconstructionLoss = of_patches(patch_size=self.cfg.scale.patch_size, intensity=data.intensity)
        return loss

    def objective(self, model: MaskedAutoencoder, data: Splits) -> Objective:
        return Objective(model, self.loss(data), self.cfg.precision)

    @property
    def tasks(self) -> dict[str, float]:
        """Name -> lambda."""
        return {str(name): float(weight) for name, weight in self.cfg.loss.tasks.items()}

    @property
    def patches(self) -> int:
        across: int = self.cfg.scale.image_size // self.cfg.scale.patch_size
        return across**2

    @functools.cached_property
    def labelling(self) -> Labelling | None:
        return labelling_of(self.cfg)

    def images(self, data: Splits, device: torch.device, workers: int = 0) -> TrainingImages:
        scale, how = self.cfg.scale, {"workers": workers, "labelling": self.labelling}
        micro_batch, ratio, seed = scale.micro_batch, scale.mask_ratio, self.cfg.seed
        return TrainingImages(data.train, data.intensity, micro_batch, self.patches, ratio, seed, device, **how)

    def evaluation_set(self, data: Splits, split: str) -> EvaluationSet:
        scale = self.cfg.scale
        return EvaluationSet.of(data, split, scale.eval_images, self.patches, scale.mask_ratio, self.labelling)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(device.type, enabled=self.cfg.precision == "fp16")


class LoadedRun(Configured):
    """A finished run below runs/.

    Args:
        path: the run's folder, which holds DONE.
        roots: where its data are, which a run's config does not keep: their folder, or data set -> folder.
        trusted: packages that its config may name classes and data sets of, beside this one (`gcond.config`).

    Raises:
        ValueError: the run is not finished, its report or config is damaged, or its config names what may not be built.
    """

    def __init__(self, path: Path, roots: Path | Mapping[str, Path | str | None], trusted: Sequence[str] = ()) -> None:
        if finished_report(path) is None:
            raise ValueError(f"{path}: expected a finished run, found no DONE in it, or no whole report.json")
        self.path = path
        self.report = read_report(path, "hash", "steps", "data_checksum")
        super().__init__(cfg := read_config(path), tuple(trusted))
        named = {cfg.dataset.name: roots} if isinstance(roots, Path) else roots
        root = named.get(cfg.dataset.name)
        self._homeless = root is None and (cfg.dataset.name in named or cfg.dataset._target_ in LOADERS)
        if root is not None:
            cfg.dataset.root = str(root)

    def data(self) -> Splits:
        """Raises ValueError where these are not the data that the run has seen, or their folder is not known."""
        self._expect_root()
        splits = super().data()
        self.expect(splits)
        return splits

    def _expect_root(self) -> None:
        if self._homeless:
            name = self.cfg.dataset.name
            raise ValueError(f"{self.path}: expected the folder of its {name} (--data or --imagenet DIR), found none")

    @property
    def intensity(self) -> Intensity:
        """How its images are normalised. Of a run whose report does not say that, its data are read."""
        if (seen := self.report.get("intensity")) is None:
            return self.data().intensity
        return Intensity(seen["raw_min"], seen["raw_max"], tuple(seen["mean"]), tuple(seen["std"]))

    def expect(self, data: Splits) -> None:
        """Raise ValueError where `data` are not those that the run has seen."""
        seen, found = self.report["data_checksum"], data.checksum
        if found != seen:
            raise ValueError(
                f"{self.path}: trained on data with the checksum {short(seen)}, found {short(found)}; name the run's "
                "own data, or make the run again"
            )

    def model(self, state: str, channels: int) -> tuple[MaskedAutoencoder, int]:
        """The model as it began ("initial"), in the last checkpoint ("last") or after the best epoch, and its step.

        Raises ValueError where the last checkpoint is gone or of another step, or the best weights were not kept.
        """
        if state not in (known := dict.fromkeys((*STATES, *WEIGHTS))):
            raise ValueError(f"`state`: expected one of {', '.join(known)}, found {state!r}")
        if self.cfg.loss.get("labels") == "dataset":
            self._expect_root()
        model, _ = super().model("initial", channels)
        if state == "initial":
            return model, 0
        folder, last, best = self.path / "checkpoints", self.report["steps"], Best(model, {})
        if not checkpoints(folder):
            raise ValueError(
                f"{folder}: expected the run's last checkpoint, found none; a finished run keeps its last weights "
                "there (finished_keeps=weights), or its last two checkpoints, which have the best weights too "
                "(finished_keeps=checkpoints); put them back, or make the run again"
            )
        parts = {"model": model, "best": best} if state == "best" else {"model": model}
        identity = self.report["hash"], self.report["data_checksum"]
        step = Checkpoint(folder, *identity, parts, writes=False).load(last).step
        if step != last:
            raise ValueError(f"{folder}: expected a checkpoint of step {last}, found one of step {step}")
        at = read_report(self.path, "final")["final"]["best"]["step"] if state == "best" else last
        if at == last:
            return model, last
        if not best.step:
            raise ValueError(
                f"{folder}: expected the best weights, of step {at}, found the last ones alone, of step {last}, which "
                "finished_keeps=weights keeps; take those (--weights last), or make the run again with "
                "finished_keeps=checkpoints"
            )
        model.load_state_dict(best.state_dict()["model"])
        return model, at

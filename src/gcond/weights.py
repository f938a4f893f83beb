"""The weights of a finished run in use: exported for timm, drawn on images of one's own, evaluated again."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gcond.data import ct
from gcond.data.images import Encoded, Photographs
from gcond.data.windows import HU_OFFSET
from gcond.engine import device as devices
from gcond.engine.evaluate import evaluate, means
from gcond.engine.reconstructions import COLUMNS, cells, write_sheet
from gcond.engine.run_folder import read_report
from gcond.files import write_atomically
from gcond.load_run import WEIGHTS, LoadedRun, add_options_of_one, file_to_write, roots
from gcond.model.encoders import Encoder
from gcond.model.masking import fixed_hidden
from gcond.output import status_of

SLICE = re.compile(r"(train|val|test):(\d+)")
TOLERANCE = 1e-4  # relative, between machines; on one the numbers are the same


def main(words: Sequence[str] | None = None) -> int:
    """`gcond export`, `reconstruct`, `evaluate`. Exit status 1: a loss is not the recorded one; 2: bad input."""
    options = _parser().parse_args(words)
    return status_of(lambda: options.act(options, LoadedRun(options.run, options.data or roots(), options.trust)))


def export(options: argparse.Namespace, run: LoadedRun) -> None:
    """Write the encoder's weights with what is needed to use them: see `docs/running.md`."""
    from safetensors.torch import save

    seen = run.intensity
    model, step = run.model(options.weights, seen.channels)
    arguments, state = of_timm(model.encoder, run.cfg.scale.image_size)
    zero, unit = (HU_OFFSET, "HU") if _shows_ct(run) else (0, "0 to 255")
    pixels = {"channels": seen.channels, "size": run.cfg.scale.image_size, "unit": unit}
    pixels |= {"min": seen.raw_min - zero, "max": seen.raw_max - zero, "mean": seen.mean, "std": seen.std}
    came = {"name": run.report["name"], "config_hash": run.report["hash"], "weights": options.weights, "step": step}
    about = {"timm": arguments, "input": pixels, "run": came}
    metadata = {"format": "pt", "encoder": run.cfg.model.encoder} | {key: json.dumps(own) for key, own in about.items()}
    write_atomically(options.timm, lambda temporary: temporary.write_bytes(save(state, metadata)))
    shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    print(f"written: {options.timm}\ntimm.create_model({shown}, checkpoint_path={str(options.timm)!r})")


def of_timm(encoder: Encoder, image_size: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments of timm.create_model, and weights that the network which it then makes loads with `strict=True`.

    Raises ValueError where that network gives another map than `encoder`.
    """
    import timm

    arguments, state = dict(encoder.arguments), encoder.net.state_dict()
    with torch.device("meta"):
        whole = timm.create_model(**arguments).state_dict()
    if whole.keys() != state.keys():  # timm cuts a MobileNet in its other wrapper alone
        arguments["feature_cls"] = "getter"
        state = {f"model.{name}": value for name, value in state.items()}
    net = timm.create_model(**arguments)
    net.load_state_dict(state, strict=True)
    images = torch.randn(1, arguments["in_chans"], image_size, image_size)
    with torch.no_grad():
        found, expected = Encoder(net.eval(), arguments)(images), encoder.eval()(images)
    if (found - expected).norm() > 1e-3 * expected.norm():
        raise ValueError(
            f"timm's {arguments['model_name']}: expected the encoder's map of the same weights, found another"
        )
    return arguments, {name: value.contiguous() for name, value in state.items()}


def reconstruct(options: argparse.Namespace, run: LoadedRun) -> None:
    """Draw a row an image: original, masked, prediction, pasted."""
    device = devices.pick(options.device, run.cfg.threads)
    places = [SLICE.fullmatch(name) for name in options.images]
    data = run.data() if any(places) else None
    raw = []
    for name, place in zip(options.images, places, strict=True):
        if place is None:
            raw.append(_read(Path(name), run))
            continue
        split = getattr(data, place[1])
        if int(place[2]) >= len(split):
            raise ValueError(f"{name}: expected an image from {place[1]}:0 to {place[1]}:{len(split) - 1}")
        raw.append(split[int(place[2])])
    seen = data.intensity if data else run.intensity
    model, _ = run.model(options.weights, seen.channels)
    ratio = run.cfg.scale.mask_ratio if options.mask_ratio is None else options.mask_ratio
    numbers = [int(place[2]) if place else 0 for place in places]
    hidden = fixed_hidden(numbers, run.patches, ratio, options.seed)
    write_sheet(options.out, cells(model.to(device), torch.stack(raw), hidden, seen, device))
    print(f"written: {options.out}\ncolumns: {', '.join(COLUMNS)}\nrows: {', '.join(options.images)}")


def _read(path: Path, run: LoadedRun) -> Tensor:
    """Raw [C, S, S], as the run's data set gives it."""
    size = run.cfg.scale.image_size
    if not path.is_file():
        raise ValueError(f"{path}: expected an image file, or an image of the run's data such as test:0; found neither")
    return ct.read_dicom(path, size) if _shows_ct(run) else Photographs(Encoded([path]), range(1), size)[0]


def _shows_ct(run: LoadedRun) -> bool:
    return run.cfg.dataset._target_ == "gcond.data.ct.load"


def again(options: argparse.Namespace, run: LoadedRun) -> int:
    """Print the losses of a split beside those that the run recorded; 1 where they differ."""
    device, scale = devices.pick(options.device, run.cfg.threads), run.cfg.scale
    data = run.data()
    model, step = run.model(options.weights, data.intensity.channels)
    loss, images = run.loss(data), run.evaluation_set(data, options.split)
    recorded = read_report(run.path, "final")["final"][options.weights]
    print(f"{options.split}, {len(images.images)} images, {options.weights} weights, of step {step}")
    differ = 0
    for name, found in means(evaluate(model.to(device), loss, images, loss.tasks, device, scale.workers)).items():
        was = recorded.get(f"{options.split}_{name}")
        was = math.nan if was is None else was
        same = math.isclose(found, was, rel_tol=TOLERANCE) or (math.isnan(found) and math.isnan(was))
        differ += not same
        print(f"{name:12} {found:.6f}  recorded {was:.6f}{'' if same else '  differs'}")
    return int(differ > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gcond", description="The weights of a finished run in use.")
    commands = parser.add_subparsers(required=True)
    of = argparse.ArgumentParser(add_help=False)
    of.add_argument("run", type=Path, metavar="RUN", help="a finished run's folder, runs/SCALE/NAME")
    of.add_argument("--weights", choices=WEIGHTS, default="last", help="best: of a run with finished_keeps=checkpoints")
    add_options_of_one(of)
    one = commands.add_parser("export", parents=[of], help="the encoder's weights, for timm")
    one.add_argument("--timm", type=file_to_write, required=True, metavar="FILE", help="a .safetensors file to write")
    one.set_defaults(act=export)
    one = commands.add_parser("reconstruct", parents=[of], help="what the model makes of images")
    one.add_argument("images", nargs="+", metavar="IMAGE", help="a photograph; of a CT run a DICOM file; or test:0")
    one.add_argument("--mask-ratio", type=float, help="share of hidden patches (default: the run's)")
    one.add_argument("--seed", type=int, default=0, help="of the masks (default: 0, that of the run's own pictures)")
    one.add_argument("--out", type=file_to_write, default=Path("reconstructed.png"), help="default: reconstructed.png")
    one.set_defaults(act=reconstruct)
    one = commands.add_parser("evaluate", parents=[of], help="the losses again, beside the recorded ones")
    one.add_argument("--split", choices=("val", "test"), default="test", help="default: test")
    one.set_defaults(act=again)
    return parser

"""Profile the conflict of a finished run's tasks, or of a config at its initial weights (docs/profiler.md).

    gcond profile runs/mini/NAME [--state initial]
    gcond profile dataset=photos model=mobilenetv3_small strategy=gcond_stochastic scale=mini

The model is in the mode that the strategy trains it in; precision, lambdas and the size of micro-batches are the run's.
Micro-batches are drawn independently of each other from the training images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from gcond.config import compose
from gcond.engine import device as devices
from gcond.engine.probes import ProbeGradients
from gcond.load_run import STATES, Configured, LoadedRun, add_options_of_one, file_to_write, roots
from gcond.output import status_of
from gcond.schema import check
from gcond.strategy import profile


def main(words: Sequence[str] | None = None) -> int:
    about = (__doc__ or "").partition("\n\n")
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="gcond profile", description=about[0], epilog=about[2], formatter_class=form)
    parser.add_argument("what", nargs="+", metavar="RUN|CHOICE", help="a finished run's folder, or choices")
    parser.add_argument("--state", choices=STATES, help="weights of a run (default: last)")
    parser.add_argument("--micro-batches", type=int, default=64, help="32, 64, 128 … (default: 64)")
    parser.add_argument(
        "--out", type=file_to_write, default=Path("profile.html"), help="the page (default: profile.html)"
    )
    add_options_of_one(parser)
    options = parser.parse_intermixed_args(words)
    return status_of(lambda: _profile(options))


def _profile(options: argparse.Namespace) -> None:
    path, n = Path(options.what[0]), options.micro_batches
    run: Configured
    if path.is_dir():
        if more := options.what[1:]:
            raise ValueError(f"{path}: expected no choices beside a run, which has its own, found {' '.join(more)}")
        run, state = LoadedRun(path, options.data or roots(), options.trust), options.state or "last"
    else:
        cfg = compose(options.what)
        if options.data:
            cfg.dataset.root = str(options.data)
        check(cfg)
        run, state = Configured(cfg), options.state or "initial"
    device = devices.pick(options.device, run.cfg.threads)
    data = run.data()
    model, step = run.model(state, data.intensity.channels)
    training = run.cfg.strategy.model_mode == "train"
    images, scaler = run.images(data, device), run.scaler(device)
    source = ProbeGradients(
        model.to(device).train(training), run.objective(model, data), run.tasks, images, n, training, scaler
    )
    groups, batches = model.parameter_groups(), source.independent()
    report = profile(model, source.losses, batches, source.tasks, n, groups, scaler=scaler)
    print(f"{' '.join(options.what)}, step {step}, micro-batches of {images.micro_batch}\n\n{report}")
    report.save(options.out)
    print(f"\nwritten: {options.out}")

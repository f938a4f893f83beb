"""Everything in conf/ composes and is valid (strategies and Table 5: strategy/test_configs.py)."""

from itertools import product

import pytest
from engine.runs import CONFIG, config
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import zeros
from torch.nn import Parameter

from gcond.engine.run_folder import config_hash
from gcond.engine.settings import Settings
from gcond.sweep.plan import planned, prove

GROUPS = ("dataset", "loss", "model", "optimizer", "strategy")  # beside scale and experiment


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG / group).glob("*.yaml"))


def test_every_option_is_called_what_its_file_is_called():
    found = {path.name for path in CONFIG.iterdir() if path.is_dir()}
    assert found == {*GROUPS, "scale", "experiment", "logger", "hydra"}
    for group in ("dataset", "model", "scale", "strategy"):
        for option in options(group):
            content = OmegaConf.load(CONFIG / group / f"{option}.yaml")
            assert content.get("strategy", content).name == option


@pytest.mark.parametrize("turn", range(max(len(options(group)) for group in GROUPS if group != "strategy")))
@pytest.mark.parametrize("scale", options("scale"))
def test_every_option_of_every_group_composes_with_every_scale(scale, turn):
    """Strategies take turns, since strategy/test_configs.py tries all of them."""
    choice = {group: options(group)[turn % len(options(group))] for group in GROUPS}
    cfg = config(f"scale={scale}", *(f"{group}={option}" for group, option in choice.items()))
    assert (cfg.scale.name, cfg.dataset.name, cfg.model.name) == (scale, choice["dataset"], choice["model"])
    OmegaConf.to_container(cfg, resolve=True)  # every interpolation has something to point at
    assert cfg.optimizer.lr == cfg.scale.lr
    assert cfg.model.image_size == cfg.dataset.image_size == cfg.scale.image_size
    Settings(cfg)


@pytest.mark.parametrize("optimizer", options("optimizer"))
def test_every_optimizer_builds_without_knowing_a_strategy(optimizer):
    """On the command line an optimizer wins over the one that a strategy chooses."""
    for strategy in ("baseline", "gcond_lion"):
        cfg = config(f"optimizer={optimizer}", f"strategy={strategy}")
        built = instantiate(cfg.optimizer.build)([Parameter(zeros(1))], lr=0.5)
        assert type(built).__name__.lower() == optimizer
        assert built.param_groups[0]["lr"] == 0.5


NUMBERS = ("seed", "optimizer.lr", "optimizer.build.weight_decay")


def runs_of(experiment: str, once: tuple[str, ...] = ()) -> list[list[str]]:
    """Overrides of every run, but with the first value only of each key in `once`."""
    params = OmegaConf.load(CONFIG / "experiment" / f"{experiment}.yaml").hydra.sweeper.params
    swept = OverridesParser.create().parse_overrides([f"{key}={values}" for key, values in params.items()])
    values = {
        override.get_key_element(): [*override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [override.get_value_element_as_str()]
        for override in swept
    }
    values = {key: found[:1] if key in once else found for key, found in values.items()}
    return [[f"{key}={value}" for key, value in zip(values, run, strict=True)] for run in product(*values.values())]


def scales_between_are_slow(scale: str):
    return pytest.param(scale, marks=[] if scale in ("mini", "paper") else [pytest.mark.slow])


@pytest.mark.parametrize("scale", [scales_between_are_slow(scale) for scale in options("scale")])
@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_run_of_an_experiment_is_valid(scale, experiment):
    """At the paper's scale, where a mistake costs days, all combinations of one data set, but of seeds and numbers, and
    every data set once; one run elsewhere."""
    runs = runs_of(experiment, NUMBERS)
    if scale == "paper":
        datasets = {override for choice in runs for override in choice if override.startswith("dataset=")}
        firsts = [next(choice for choice in runs if dataset in choice) for dataset in datasets]
        chosen = [*runs_of(experiment, (*NUMBERS, "dataset")), *firsts]
    else:
        chosen = runs[:1]
    prove(planned([[f"experiment={experiment}", f"scale={scale}", *choice] for choice in chosen]), here=False)


@pytest.mark.parametrize("experiment", options("experiment"))
def test_an_experiment_changes_a_run_by_what_names_its_variant_alone(experiment):
    """A setting beside the sweep would be no override: two different runs would be recorded under one name."""
    assert set(OmegaConf.load(CONFIG / "experiment" / f"{experiment}.yaml")) == {"hydra"}
    for choice in runs_of(experiment)[:1]:
        alone, within = config("scale=mini", *choice), config("scale=mini", f"experiment={experiment}", *choice)
        assert config_hash(alone) == config_hash(within)


def test_the_lambdas_of_the_flipped_target():
    """What conf/loss/l1_ssim_flipped.yaml says of them: Table 2's sum without a conflict, a draw with one."""
    flipped, plain = (config(f"loss={name}").loss.tasks for name in ("l1_ssim_flipped", "l1_ssim"))
    assert flipped.l1 + flipped.flipped == pytest.approx(plain.l1)
    assert flipped.flipped - flipped.l1 == pytest.approx(flipped.ssim)
    assert flipped.ssim == plain.ssim

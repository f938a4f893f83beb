"""What a config may build, and what each of its settings may be."""

import ast
import copy
import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import tiny
from engine.runs import CONFIG, config, run, tiny_config
from omegaconf import DictConfig, OmegaConf

from gcond.config import build
from gcond.engine.run_folder import flat
from gcond.engine.settings import Settings
from gcond.load_run import LoadedRun
from gcond.strategy import EMA, PCGrad, SingleProcess

NUMBER = {"_target_": "gcond.strategy.EMA", "beta": 0.5}
CT = {"_target_": "gcond.data.ct.load", "root": "nowhere", "image_size": 64}

ESCAPES = (  # what a recorded config might name to run something else
    "os.system",
    "builtins.eval",
    "pandas.read_pickle",
    "torch.load",
    "torch.hub.load",
    "subprocess.Popen",
    "gcond.files.os.system",  # a module that this package imports
    "gcond.files.write_text",  # this package's own, but neither a class of HOMES nor a data set
    "gcond.sweep.launch.launch",
    "gcond.data.checksums.of_photographs",  # a function of HOMES that is no data set
    "gcond.model.encoders.build",
    "gcond.data.ct.np.load",
    "gcond.data.ct.Path",
    "gcond.strategy.resolve.torchjd.inspect.getsource",
    "gcond.strategy.conductor.islice",
    "gcond.loss.ReconstructionLoss.__init__.__globals__",
    "gcond.model.mae.torch.load",
    "torch.optim.adam.torch.load",
    "hydra.utils.get_method",
    "hydra.utils.instantiate",
    "functools.partial",
)


@pytest.mark.parametrize("target", ESCAPES)
def test_a_recorded_config_builds_nothing_else(target):
    """As it is, within another part, or within a list."""
    escape = {"_target_": target, "_partial_": True}
    for recorded in ({"_target_": target}, NUMBER | {"beta": escape}, NUMBER | {"beta": [escape]}):
        with pytest.raises(ValueError, match=rf"_target_`: found '{target}' in a recorded config"):
            build(recorded, trusted=())


@pytest.mark.parametrize(
    ("part", "read"),
    [
        ("dataset", lambda altered: altered.data()),
        ("model", lambda altered: altered.model("initial", 3)),
        ("loss.reconstruction", lambda altered: altered.objective(None, tiny.load(64))),
    ],
)
def test_a_run_s_parts_are_recorded_ones(part, read, tmp_path):
    folder = run(tiny_config(tmp_path, "strategy=baseline")).path
    cfg = OmegaConf.load(folder / "config.yaml")
    OmegaConf.update(cfg, f"{part}._target_", "os.system")
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    with pytest.raises(ValueError, match=rf"`{part}\._target_`: found 'os.system' in a recorded config"):
        read(LoadedRun(folder, {}, ["engine"]))


@pytest.mark.parametrize("target", ["os.system", "antigravity.anything", "torch.hub.load", "gcond_evil.load"])
def test_a_package_that_is_not_trusted_is_not_even_imported(target, monkeypatch):
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"{name} was imported"))
    with pytest.raises(ValueError, match=r"`_target_`: found .* in a recorded config"):
        build({"_target_": target}, trusted=())


def test_nested_parts_of_a_recorded_config_are_held_to_the_same():
    conductor = {"_target_": "gcond.strategy.GradientConductor", "_partial_": True}
    resolver = {"_target_": "gcond.strategy.resolve.torchjd.TorchJD", "method": {"_target_": "builtins.eval"}}
    with pytest.raises(ValueError, match=r"`resolver\.method\._target_`: found 'builtins\.eval'"):
        build(conductor | {"resolver": resolver}, trusted=())
    parameter = torch.nn.Parameter(torch.zeros(1))
    built = build(conductor | {"resolver": {"_target_": "gcond.strategy.PCGrad"}, "update": NUMBER}, trusted=())
    assert type(built([parameter], {"a": 1.0, "b": 1.0}).resolver) is PCGrad
    adam = build({"_target_": "torch.optim.AdamW", "_partial_": True}, trusted=())([parameter], lr=0.5)
    assert type(adam) is torch.optim.AdamW


def test_a_package_of_ones_own_is_built_once_it_is_trusted(tmp_path, monkeypatch):
    (tmp_path / "own_method.py").write_text(
        "class Own:\n    def __init__(self, share: float = 0.5):\n        self.share = share\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = {"_target_": "own_method.Own", "share": 0.25}
    with pytest.raises(ValueError, match="own_method"):
        build(own, trusted=())
    assert "own_method" not in sys.modules
    assert build(own, trusted=["own_method"]).share == build(own).share == 0.25
    with pytest.raises(ValueError, match=r"`share`: expected a valid number, found 'x'"):
        build(own | {"share": "x"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (NUMBER | {"beta": "x"}, "`beta`: expected a valid number, found 'x'"),
        (NUMBER | {"beta": True}, "`beta`: expected a valid number, found true"),
        (NUMBER | {"beta": 1}, r"`beta`: expected a number in \[0, 1\), found 1"),
        (CT | {"window": "brain"}, "`window`: expected 'c600w2800', .* or '12bit' or a valid array, found 'brain'"),
        (NUMBER | {"bta": 0.5}, "`bta`: there is no such setting; expected one of beta"),
        (NUMBER | {"_args_": [0.5]}, "`_args_`: there is no such setting"),
        (NUMBER | {"_recursive_": False}, "`_recursive_`: there is no such setting"),
        (NUMBER | {"_partial_": "yes"}, "`_partial_`: expected a valid boolean"),
        ({"_target_": "gcond.strategy.Nobody"}, "`_target_`: expected what can be imported"),
        ({"_target_": "gcond.nowhere.Nobody"}, "`_target_`: expected what can be imported"),
        ({"_target_": "gcond.strategy.conflict"}, "`_target_`: expected a class or a function"),
        ({"_target_": "torch.optim.SGD", "momentum": 1e30}, "`momentum`: expected numbers from -1e"),
    ],
)
def test_a_setting_that_its_class_does_not_take_is_refused_by_name(config, message):
    with pytest.raises(ValueError, match=message):
        build(config)


def test_a_setting_that_the_program_decides_is_refused():
    with pytest.raises(ValueError, match="`lr`: expected nothing"):
        build({"_target_": "torch.optim.SGD", "lr": 1.0, "_partial_": True})([], lr=0.5)


def test_lists_interpolations_and_what_is_still_missing():
    cfg = OmegaConf.create({"b": 0.25, "part": {"_target_": "gcond.strategy.EMA", "beta": "${b}"}})
    assert build(cfg.part).beta == 0.25
    assert build(OmegaConf.create({"_target_": "gcond.strategy.EMA", "beta": "???"}), beta=0.75).beta == 0.75
    gcond = build({"_target_": "gcond.strategy.GCond", "thresholds": [-0.9, -0.4, 0.1]})
    assert (gcond.critical, gcond.main, gcond.weak) == (-0.9, -0.4, 0.1)
    assert isinstance(build([NUMBER])[0], EMA)


SAFELY = {"torch.load": "weights_only=True", "yaml.load": "SafeLoader"}
NEVER = {"eval", "exec", "instantiate", "hydra.utils.instantiate", "pickle.load", "pickle.loads", "pd.read_pickle"}
NEVER |= {"yaml.unsafe_load", "yaml.full_load", "joblib.load", "torch.jit.load"}
ANNOTATIONS = ("config.py", "eval(annotation, names)")  # which a module of ours, or one that is trusted, has written


def test_files_are_read_by_what_runs_no_code():
    root = Path(__file__).parents[2]
    for path in (path for part in ("src", "bench", "tools", "data_prep") for path in (root / part).rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name, text = ast.unparse(call.func), ast.unparse(call)
            assert name not in NEVER or (path.name, text) == ANNOTATIONS, (path, text)
            assert SAFELY.get(name, "") in text, (path, text)
            assert "allow_pickle=True" not in text, (path, text)


# Settings


def test_an_epoch_is_what_the_scale_says_or_one_pass_without_the_incomplete_window():
    one_pass = Settings(config("scale=smoke", "scale.steps_per_epoch=null"))  # windows of 2 x 2 images
    assert [one_pass.steps_per_epoch(images) for images in (4, 7, 8, 13)] == [1, 1, 2, 3]
    with pytest.raises(ValueError, match=r"`scale.steps_per_epoch`: .*3 images do not fill a window of 4"):
        one_pass.steps_per_epoch(3)
    assert Settings(config("scale=smoke", "scale.steps_per_epoch=5")).steps_per_epoch(3) == 5


def test_micro_batches_that_cannot_be_shared_out_are_refused():
    two = SingleProcess()
    two.size = 2
    with pytest.raises(ValueError, match="accumulation_steps`: expected a multiple of 2, so that each of 2 processes"):
        Settings(config("scale=smoke", "strategy=baseline", "scale.accumulation_steps=3"), two)


@pytest.mark.parametrize(("strategy", "peak"), [("baseline", 2e-4), ("gcond_lion", 1e-5)])  # the paper's Table 5
def test_the_paper_schedule(strategy, peak):
    rate = Settings(config("scale=paper", f"strategy={strategy}")).schedule(steps_per_epoch=100)
    assert rate(199) == pytest.approx(peak)  # the end of 2 epochs of warm-up
    assert rate(198) == pytest.approx(peak * 199 / 200)
    assert rate(524) == pytest.approx(1e-6 + (peak - 1e-6) * (1 + 0.5**0.5) / 2)  # a quarter of the other 13
    assert rate(849) == pytest.approx((peak + 1e-6) / 2)  # half of them
    assert rate(1499) == pytest.approx(1e-6)  # the last step of 15


UGLY = [None, True, "x", -1, 0, 1.5, math.nan, math.inf, 1e30, [], {}]


def refusal(cfg: DictConfig) -> str | None:
    try:
        Settings(cfg)
    except ValueError as error:
        return str(error)
    return None


def accepted(cfg: DictConfig, keys: Iterable[str]) -> dict[str, list[Any]]:
    """Those of UGLY that each key takes. Every other one is refused by a ValueError that names the key."""
    found: dict[str, list[Any]] = {}
    OmegaConf.set_struct(cfg, False)
    for key in keys:
        changed = copy.deepcopy(cfg)
        found[key] = []
        for value in UGLY:
            OmegaConf.update(changed, key, value, merge=False)
            if (message := refusal(changed)) is None:
                found[key].append(value)
            else:
                assert re.search(rf"`{re.escape(key)}\b", message), (key, value, message)
    return found


def may_be_taken(key: str, plain: Any, value: Any) -> bool:
    """By the value that stands in conf: nothing may take a number that is not finite, nor 1e30, nor -1 …"""
    if value is None or isinstance(value, list | dict):
        return plain is None or key in OTHERS[type(value)] or (value is None and key.startswith("paths."))
    if isinstance(value, bool):
        return isinstance(plain, bool)
    if isinstance(value, str):
        return plain is None or isinstance(plain, str)
    if value == -1:
        return key == "strategy.conductor.resolver.alpha"  # GradOPS
    if value == 1.5:
        return isinstance(plain, float | None) or key in OTHERS[float]
    return value == 0 and (isinstance(plain, int | float | None) and not isinstance(plain, bool))


OTHERS: dict[type, tuple[str, ...]] = {
    type(None): ("scale.steps_per_epoch", "scale.eval_images", "strategy.conductor.clip_norm", "dataset.root"),
    list: (),
    dict: ("strategy.conductor.resolver.leak",),
    float: ("checkpoint_minutes", "scale.warmup_epochs"),
}


def test_each_setting_takes_what_it_can_mean_or_is_refused_by_name():
    cfg = config("strategy=gcond_stochastic", "logger=wandb")
    plain = flat(OmegaConf.to_container(cfg, resolve=True))
    for key, values in accepted(cfg, plain).items():
        assert all(may_be_taken(key, plain[key], value) for value in values), (key, values)


def test_each_setting_of_a_method_takes_what_it_can_mean_or_is_refused_by_name():
    cfg = config("strategy=baseline")
    OmegaConf.set_struct(cfg, False)
    known, shared = set(), OmegaConf.load(CONFIG / "train.yaml").strategy
    for path in sorted((CONFIG / "strategy").glob("*.yaml")):
        cfg.strategy = OmegaConf.merge(shared, OmegaConf.load(path).strategy)
        plain_cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))  # resolved once, for speed
        for part in ("resolver", "update"):
            plain = {f"strategy.conductor.{part}.{name}": value for name, value in cfg.strategy.conductor[part].items()}
            if str(plain) in known:
                continue
            known.add(str(plain))
            for key, values in accepted(plain_cfg, [key for key in plain if "._" not in key]).items():
                assert all(may_be_taken(key, plain[key], value) for value in values), (key, values)

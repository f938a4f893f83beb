from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from engine.runs import CONFIG, config
from omegaconf import DictConfig, OmegaConf

from gcond.engine.settings import Settings
from gcond.strategy import SingleProcess


def test_an_epoch_is_what_the_scale_says_or_one_pass_without_the_incomplete_window() -> None:
    one_pass = Settings(config("scale=smoke", "scale.steps_per_epoch=null"))  # windows of 2 x 2 images
    assert [one_pass.steps_per_epoch(images) for images in (4, 7, 8, 13)] == [1, 1, 2, 3]
    with pytest.raises(ValueError, match=r"`scale.steps_per_epoch`: .*3 images do not fill a window of 4"):
        one_pass.steps_per_epoch(3)
    assert Settings(config("scale=smoke", "scale.steps_per_epoch=5")).steps_per_epoch(3) == 5


def test_micro_batches_that_cannot_be_shared_out_are_refused() -> None:
    two = SingleProcess()
    two.size = 2
    with pytest.raises(ValueError, match="accumulation_steps`: expected a multiple of 2, so that each of 2 processes"):
        Settings(config("scale=smoke", "strategy=baseline", "scale.accumulation_steps=3"), two)


@pytest.mark.parametrize(("strategy", "peak"), [("baseline", 2e-4), ("gcond_lion", 1e-5)])  # the paper's Table 5
def test_the_paper_schedule(strategy: str, peak: float) -> None:
    rate = Settings(config("scale=paper", f"strategy={strategy}")).schedule(steps_per_epoch=100)
    assert rate(199) == pytest.approx(peak)  # the end of 2 epochs of warm-up
    assert rate(198) == pytest.approx(peak * 199 / 200)
    assert rate(849) == pytest.approx((peak + 1e-6) / 2)  # half of the remaining 13
    assert rate(1499) == pytest.approx(1e-6)  # the last step of 15


def test_patches_follow_from_the_sizes() -> None:
    assert Settings(config("scale=paper")).patches == 64
    assert Settings(config("scale=smoke", "scale.patch_size=32")).patches == 4


UGLY = [None, True, "x", -1, 0, 1.5, math.nan, math.inf, 1e30, [], {}]


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


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


def test_each_setting_takes_what_it_can_mean_or_is_refused_by_name() -> None:
    cfg = config("strategy=gcond_stochastic", "logger=wandb")
    plain = dict(leaves(OmegaConf.to_container(cfg, resolve=True)))
    for key, values in accepted(cfg, plain).items():
        assert all(may_be_taken(key, plain[key], value) for value in values), (key, values)


def test_each_setting_of_a_method_takes_what_it_can_mean_or_is_refused_by_name() -> None:
    cfg = config("strategy=baseline")
    OmegaConf.set_struct(cfg, False)
    known = set()
    for path in sorted((CONFIG / "strategy").glob("*.yaml")):
        cfg.strategy = OmegaConf.load(path).strategy
        plain_cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))  # resolved once, for speed
        for part in ("resolver", "update"):
            plain = {f"strategy.conductor.{part}.{name}": value for name, value in cfg.strategy.conductor[part].items()}
            if str(plain) in known:
                continue
            known.add(str(plain))
            for key, values in accepted(plain_cfg, [key for key in plain if "._" not in key]).items():
                assert all(may_be_taken(key, plain[key], value) for value in values), (key, values)

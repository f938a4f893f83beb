"""Configs: composed from conf/, and built by `_target_`, the one place where text from a file decides which code runs.

A config that a person composes may name any class or function that Python can import, so that a resolver, an optimizer
or a data set of one's own needs no registry. A config that was recorded, in a run's folder that may come from anywhere,
builds this package's classes, PyTorch's optimizers and this package's data sets, and nothing else.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, StrictBool, TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic_core import SchemaError

from gcond.files import ROOT
from gcond.schema import Dotted, validate

CONFIG = ROOT / "conf"
OmegaConf.register_new_resolver("shared_group", lambda labels: "encoder" if labels else "head", replace=True)

KEYWORDS: dict[str, TypeAdapter[Any]] = {
    "_target_": TypeAdapter(Dotted),
    "_partial_": TypeAdapter(StrictBool),
    "_convert_": TypeAdapter(Literal["all"]),
}
HOMES = ("gcond.classification", "gcond.data", "gcond.loss", "gcond.model", "gcond.strategy", "torch.optim")
LARGEST = 1e6  # of a number that a constructor is given; a larger one means nothing, or overflows in training
STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)


def conf() -> AbstractContextManager[None]:
    """While open, Hydra composes from conf/, also in a process that Hydra began in."""
    import hydra

    if hydra.core.global_hydra.GlobalHydra.instance().is_initialized():
        return nullcontext()
    return hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIG))


def compose(overrides: Sequence[str]) -> DictConfig:
    """The config of `gcond-train OVERRIDES`."""
    import hydra

    with conf():
        return hydra.compose("train", list(overrides))


def build(config: Any, trusted: Sequence[str] | None = None, **late: Any) -> Any:
    """The object of a config's `_target_`, built with its other settings and `late`, parts within it first.

    With `_partial_: true` a function of the arguments that are still missing. A dataset's or model's `name`, which is
    for people, is left out.

    Args:
        config: a DictConfig, or a mapping with interpolations filled in.
        trusted: of a recorded config, the top-level packages that it may name beside those of this module's docstring;
            None is a config that the user has composed.

    Raises:
        ValueError: a target that may not be built or cannot be imported, a setting that it does not have, of the wrong
            type, or refused by it; the message names the key.
    """
    key = ""
    if isinstance(config, DictConfig):
        key, config = config._get_full_key(None), OmegaConf.to_container(config, resolve=True)
    return _build(config, key, trusted, late)


def check_settings(config: DictConfig, later: Sequence[str] = ()) -> None:
    """Raise ValueError where `build` would before it calls the target; the settings in `later` are left out."""
    content: Any = OmegaConf.to_container(config, resolve=True)
    key, own = config._get_full_key(None), {name: value for name, value in content.items() if name not in later}
    _check(_target(own, key, None), _settings(own), key, {})


def _build(node: Any, key: str, trusted: Sequence[str] | None, late: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_build(each, _at(key, place), trusted, {}) for place, each in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    if "_target_" not in node:
        return {name: _build(each, _at(key, name), trusted, {}) for name, each in node.items()}
    target = _target(node, key, trusted)
    settings = _check(target, _settings(node), key, late)
    settings = {name: _build(each, _at(key, name), trusted, {}) for name, each in settings.items()}

    def finish(*arguments: Any, **more: Any) -> Any:
        _refuse_both(settings, more, key)
        with _naming(key, node):
            return target(*arguments, **settings, **more)

    return functools.partial(finish, **late) if node.get("_partial_") else finish(**late)


def _target(node: Mapping[str, Any], key: str, trusted: Sequence[str] | None) -> Callable[..., Any]:
    name, where = node["_target_"], f"`{_at(key, '_target_')}`"
    for keyword, kind in KEYWORDS.items():
        if keyword in node:
            validate(kind, node[keyword], _at(key, keyword))
    if trusted is not None and not _within(name, (*HOMES, *trusted)):  # before it is imported
        raise _foreign(name, where)
    found = _imported(name, where)
    if trusted is not None and not _recordable(found, trusted):
        raise _foreign(name, where)
    if not callable(found):
        raise ValueError(f"{where}: expected a class or a function, found {name}, a {type(found).__name__}")
    return found


def _at(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _foreign(name: str, where: str) -> ValueError:
    return ValueError(
        f"{where}: found {name!r} in a recorded config; expected a class of {', '.join(HOMES)} or a data set's `load`, "
        "since a run's folder may come from anybody; name a package of your own that you trust with --trust"
    )


def _imported(name: str, where: str) -> Any:
    """The object at a dotted name: the longest part of it that is a module, then attributes."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and module.startswith(error.name):  # there is no such module: an attribute, perhaps
                continue
            raise ValueError(f"{where}: {module} cannot be imported: {error}") from error
        except Exception as error:
            raise ValueError(f"{where}: {module} cannot be imported: {type(error).__name__}: {error}") from error
        try:
            return functools.reduce(getattr, parts[length:], found)
        except AttributeError:
            break
    raise ValueError(f"{where}: expected what can be imported, found {name!r}")


def _recordable(found: Any, trusted: Sequence[str]) -> bool:
    """May a recorded config build it? That depends on where it is defined, not on the name that led to it."""
    home = getattr(found, "__module__", None) or ""
    if _within(home, trusted) or (inspect.isclass(found) and _within(home, HOMES)):
        return True
    return inspect.isfunction(found) and found.__qualname__ == "load" and _within(home, ("gcond.data",))


def _within(name: str, homes: Sequence[str]) -> bool:
    return any(name == home or name.startswith(f"{home}.") for home in homes)


def _settings(node: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in node.items() if name not in KEYWORDS and value != "???"}


def _check(target: Callable[..., Any], settings: dict[str, Any], key: str, late: Mapping[str, Any]) -> dict[str, Any]:
    """`settings`, where `target` has them all and each is of its type."""
    kinds, open_ended = _signature(target)
    if open_ended and hasattr(target, "passes_settings_to"):  # what takes those that it does not know itself
        with _naming(key, settings):
            others, open_ended = _signature(target.passes_settings_to(settings))
        kinds = others | kinds
    if "." not in key and "name" not in kinds:
        settings = {name: value for name, value in settings.items() if name != "name"}
    _refuse_both(settings, late, key)
    for name, value in settings.items():
        where = _at(key, name)
        if name.startswith("_") or (name not in kinds and not open_ended):
            raise ValueError(f"`{where}`: there is no such setting; expected one of {', '.join(kinds)}")
        if "_target_" in json.dumps(value):
            continue
        validate(kinds.get(name, ANYTHING), value, where)
        if not _ordinary(value):
            raise ValueError(f"`{where}`: expected numbers from -{LARGEST:g} to {LARGEST:g}, found {value!r}")
    return settings


def _refuse_both(settings: Mapping[str, Any], late: Mapping[str, Any], key: str) -> None:
    if both := sorted(settings.keys() & late.keys()):
        raise ValueError(f"`{_at(key, both[0])}`: expected nothing, since other settings and the data decide it")


@functools.cache
def _signature(target: Callable[..., Any]) -> tuple[dict[str, TypeAdapter[Any]], bool]:
    """The type of each setting, and whether others are taken too."""
    parameters = inspect.signature(target).parameters.values()
    function: Any = target.__init__ if inspect.isclass(target) else target  # type: ignore[misc]
    names = getattr(function, "__globals__", {})
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    kinds = {each.name: _kind(each.annotation, names) for each in parameters if each.kind not in variable}
    return kinds, any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _kind(annotation: Any, names: dict[str, Any]) -> TypeAdapter[Any]:
    """Of anything, where an annotation is missing, is a protocol, or names an import for type checkers alone."""
    try:
        hint = eval(annotation, names) if isinstance(annotation, str) else annotation
        return ANYTHING if hint is inspect.Parameter.empty else TypeAdapter(hint, config=STRICT)
    except (NameError, PydanticUserError, SchemaError):
        return ANYTHING


def _ordinary(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_ordinary, value.values()))
    if isinstance(value, list):
        return all(map(_ordinary, value))
    return not isinstance(value, int | float) or abs(value) <= LARGEST  # not so of nan


@contextmanager
def _naming(key: str, node: Mapping[str, Any]) -> Iterator[None]:
    """What a constructor refuses becomes a ValueError with the key of the config: "`beta`: …" with `update.beta`."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        for word in re.findall(r"\w+", said)[:2]:  # "`beta`: expected …", "Invalid weight_decay value: …"
            if full := next(_places(node, word, key), None):
                raise ValueError(f"`{full}`: {said}" if said[0] != "`" else said.replace(word, full, 1)) from error
        raise ValueError(said if said.startswith("`") or not key else f"`{key}`: {said}") from error


def _places(node: Mapping[str, Any], name: str, key: str) -> Iterator[str]:
    """Full keys of the settings called `name`, in this part first, then in those within it."""
    if name in node:
        yield _at(key, name)
    for inner, value in node.items():
        if isinstance(value, Mapping):
            yield from _places(value, name, _at(key, inner))

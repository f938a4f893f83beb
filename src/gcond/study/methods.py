"""Labels, looks and groups of methods (study/methods.yaml), and the paper's numbers (study/paper.yaml)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from gcond.files import ROOT

STUDY = ROOT / "study"
PAPER_MODEL = "mobilenetv3_small"
NOT_EVIDENCE = ("smoke", "mini")  # scales that show that the machinery works
RATES = {
    "own": "the scale's learning rate",
    "paper": "the paper's rate 2e-4",
    "best": "each method's best rate",
    "all": "every learning rate tried",
}
PREDICTOR = "trivial:"  # prefix of a predictor without training where it stands among strategies


@cache
def facts(name: str) -> dict[str, Any]:
    """The content of study/NAME.yaml."""
    return {key: value for key, value in read_yaml(STUDY / f"{name}.yaml").items() if not key.startswith("x-")}


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping. Raises ValueError, naming the file, where there is none."""
    import yaml  # here, so that a core install can show `gcond --help`

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: expected YAML, found {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected settings by name, found {type(content).__name__}")
    return content


def label(strategy: str) -> str:
    known = facts("methods")
    if strategy.startswith(PREDICTOR):
        return str(known["predictors"].get(strategy.removeprefix(PREDICTOR), strategy))
    return str(known["methods"][strategy]["label"]) if strategy in known["methods"] else strategy


def dataset_label(dataset: str) -> str:
    return str(facts("methods")["datasets"].get(dataset, {}).get("label", dataset))


def ordered_datasets(datasets: Iterable[str]) -> list[str]:
    """As in methods.yaml; those that it does not know come last."""
    known = list(facts("methods")["datasets"])
    return sorted(set(datasets), key=lambda one: (known.index(one) if one in known else len(known), one))


def kind(dataset: str) -> str:
    """ct or photographs; of a user's own data set its name."""
    paper = facts("methods")["datasets"].get(dataset, {}).get("paper", dataset)
    return {"imagenet": "photographs"}.get(paper, str(paper))


def group(strategy: str) -> str:
    """Of Table 2: a key of `groups`. An unknown strategy is the user's."""
    if strategy.startswith(PREDICTOR):
        return "predictor"
    known = facts("methods")["methods"].get(strategy, {"group": "yours"})
    return str(known.get("group", "other"))


def ordered(strategies: Iterable[str]) -> list[str]:
    """As in methods.yaml; strategies that it does not know follow by name, then predictors."""
    known = list(facts("methods")["methods"])
    place = {name: index for index, name in enumerate(known)}
    found = set(strategies)
    return sorted(found, key=lambda name: (name.startswith(PREDICTOR), place.get(name, len(known)), name))


def look(strategy: str, among: Iterable[str] = ()) -> dict[str, Any]:
    """Its `colour`, `dash` and `marker`. Unknown strategies take turns, by their order among those of `among`."""
    known = facts("methods")
    if strategy in known["methods"]:
        return {key: known["methods"][strategy][key] for key in ("colour", "dash", "marker")}
    unknown = [name for name in ordered([*among, strategy]) if name not in known["methods"]]
    return dict(known["other"][unknown.index(strategy) % len(known["other"])])


class PaperLoss(NamedTuple):
    """`gap`: to its Baseline, in percent."""

    mean: float
    sd: float
    gap: float


def paper_table2(dataset: str, measure: str) -> dict[str, PaperLoss]:
    """Method -> its loss in the paper's Table 2 for our `dataset` and l1 or ssim; empty where it has none."""
    table = facts("paper")["table2"]
    column = f"{facts('methods')['datasets'].get(dataset, {}).get('paper')}/{measure}"
    if column not in table["columns"]:
        return {}
    index = table["columns"].index(column)
    base, _ = table["rows"]["baseline"][index]
    losses = {method: values[index] for method, values in table["rows"].items()}
    return {method: PaperLoss(mean, sd, 100 * (mean / base - 1)) for method, (mean, sd) in losses.items()}

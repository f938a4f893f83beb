"""The study's tables, figures and questions, and the sweeps that each needs (study/artefacts.yaml, figures.yaml)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcond.files import ROOT
from gcond.study.methods import STUDY, kind, read_yaml

EXPERIMENTS = ROOT / "conf" / "experiment"
PAPER_SEEDS = (11, 42, 2025)
MORE_SEEDS = (1, 2, 3, 4, 5, 6, 7)  # `--seeds 10` are the paper's and these


@dataclass(frozen=True)
class Artefact:
    """A table, a figure or a question.

    Args:
        trains: experiments of conf/experiment, in order; at_mini: instead, where mini runs several artefacts.
        strategy, dataset: the arms and the data sets that it needs of them; all where it is empty.
        then: what is measured on the finished runs: linear_probe, static_weights or window_noise.
        claims: rows of claims.yaml that its runs decide.
    """

    name: str
    asks: str
    trains: tuple[str, ...] = ()
    at_mini: tuple[str, ...] = ()
    strategy: tuple[str, ...] = ()
    dataset: tuple[str, ...] = ()
    then: str | None = None
    claims: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choices:
    """What a user narrows or adds: the runs of an artefact at one scale."""

    scale: str = "mini"
    seeds: tuple[int, ...] = PAPER_SEEDS
    datasets: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()  # Hydra's, for every run
    photos: str | None = None  # the data set that stands for the photographs, where the user has one


class Catalogue:
    """study/artefacts.yaml and the figures of study/figures.yaml."""

    def __init__(self, study: Path = STUDY) -> None:
        content, drawn = read_yaml(study / "artefacts.yaml"), read_yaml(study / "figures.yaml")["figures"]
        known: dict[str, Any] = content["artefacts"]
        beside = {name: {"asks": figure["title"], "trains": known[figure["artefact"]]["trains"]}
                  for name, figure in drawn.items() if figure.get("artefact") in known}  # fmt: skip
        figures = {name: _of_figure(figure) for name, figure in drawn.items() if name.startswith("figure")}
        self._datasets: Mapping[str, Mapping[str, str]] = content["datasets"]
        self._settings: Mapping[str, Mapping[str, Sequence[str]]] = content["settings"]
        self._all = [each for name in content["all"] for each in (figures if name == "figures" else [name])]
        self.artefacts = {name: Artefact(name, **{key: tuple(value) if isinstance(value, list) else value
                                                  for key, value in own.items()})
                          for name, own in (known | beside | figures).items()}  # fmt: skip

    def find(self, names: Sequence[str]) -> list[Artefact]:
        """`all` is the whole study. Raises ValueError for an unknown name."""
        names = [each for name in names for each in (self._all if name == "all" else [name])]
        if unknown := [name for name in names if name not in self.artefacts]:
            raise ValueError(f"expected {', '.join([*self.artefacts, 'all'])}; found {', '.join(unknown)}")
        return [self.artefacts[name] for name in names]

    def sweeps(self, artefacts: Sequence[Artefact], choices: Choices) -> list[list[str]]:
        """The overrides of each sweep that the artefacts need. An artefact that needs a part of an experiment adds no
        sweep where another needs the whole.

        Raises ValueError where none of them has the data sets asked for.
        """
        small = len(artefacts) > 1 and choices.scale == "mini"
        parts: dict[tuple[str, tuple[str, ...], tuple[str, ...]], None] = {}
        for artefact in artefacts:
            for experiment in (small and artefact.at_mini) or artefact.trains:
                arms = experiment_lists(experiment)["strategy"]
                all_of_them = len(arms) == 1 or set(artefact.strategy) >= set(arms)
                parts[experiment, () if all_of_them else artefact.strategy, artefact.dataset] = None
        needed = [part for part in parts if not any(part[1:]) or (part[0], (), ()) not in parts]
        sweeps = [sweep for part in needed if (sweep := self._sweep(*part, choices))]
        if needed and not sweeps:
            experiments, found = ", ".join(part[0] for part in needed), ", ".join(choices.datasets)
            raise ValueError(f"`datasets`: expected one of the kind that {experiments} trains on, found {found}")
        return sweeps

    def _sweep(self, experiment: str, arms: tuple[str, ...], datasets: tuple[str, ...], choices: Choices) -> list[str]:
        """Empty where no data set is asked for that the experiment trains on."""
        stand_ins = dict(self._datasets.get(choices.scale, {})) | ({"photos": choices.photos} if choices.photos else {})
        own = [stand_ins.get(name, name) for name in datasets or experiment_lists(experiment)["dataset"]]
        kinds = {kind(name) == "photographs" for name in own}
        chosen = [name for name in choices.datasets or own if (kind(name) == "photographs") in kinds]
        sweep = [f"experiment={experiment}", f"scale={choices.scale}", f"dataset={','.join(chosen)}",
                 f"seed={','.join(map(str, choices.seeds))}"]  # fmt: skip
        if strategies := choices.strategies or arms:
            sweep.append(f"strategy={','.join(strategies)}")
        settings = self._settings.get(experiment, {}).get(choices.scale, ())
        return [*sweep, *settings, *choices.overrides] if chosen else []


def _of_figure(figure: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a figure that trains the arms which it draws."""
    datasets = ["photos" if each == "photographs" else each for each in figure.get("datasets", ())]
    return {"asks": figure["title"].split(". ", 1)[-1], "trains": [figure.get("experiment", "table2")],
            "strategy": figure["arms"], "dataset": datasets}  # fmt: skip


def experiment_lists(experiment: str) -> dict[str, list[str]]:
    """What an experiment sweeps over: key -> values, `dataset` and `strategy` among them."""
    params = read_yaml(EXPERIMENTS / f"{experiment}.yaml")["hydra"]["sweeper"]["params"]
    lists = {key: str(value).split(",") for key, value in params.items() if key in ("dataset", "strategy", "seed")}
    return {"dataset": ["ct"], "strategy": ["baseline"], **lists}

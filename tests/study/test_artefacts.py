"""Which sweeps an artefact starts, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from gcond.study.artefacts import EXPERIMENTS, Catalogue, Choices, experiment_lists

FIGURES = """
figures:
  figure3: {title: Figure 3. All methods, arms: [baseline, cagrad]}
  figure5: {title: Figure 5. ConvNeXt V2, experiment: figure5, arms: [gcond_stochastic, baseline]}
  figure10: {title: Figure 10. Reconstructions, arms: [baseline], datasets: [photographs]}
  figure11: {title: Figure 11. Cosines, arms: [pcgrad], datasets: [ct]}
  o6: {title: Conflicts, arms: [baseline]}
"""
STUDY = Path(__file__).resolve().parents[2] / "study"


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    (tmp_path / "artefacts.yaml").write_text((STUDY / "artefacts.yaml").read_text())
    (tmp_path / "figures.yaml").write_text(FIGURES)
    return Catalogue(tmp_path)


def sweeps(catalogue: Catalogue, *names: str, **choices: object) -> list[str]:
    chosen = Choices(**{"seeds": (11,), **choices})  # type: ignore[arg-type]
    return [" ".join(sweep) for sweep in catalogue.sweeps(catalogue.find(names), chosen)]


@pytest.mark.parametrize(("names", "choices", "sweep"), [
    ("figure3", {}, "table2 scale=mini dataset=photos,ct seed=11 strategy=baseline,cagrad"),
    ("figure11", {}, "table2 scale=mini dataset=ct seed=11 strategy=pcgrad"),
    ("figure5", {}, "figure5 scale=mini dataset=ct seed=11"),
    ("figure3 o6 figure11 table2", {}, "table2 scale=mini dataset=photos,ct seed=11"),  # which needs all of table2
    ("table2", {"strategies": ("baseline", "mine"), "overrides": ("optimizer.lr=2e-4",)},
     "table2 scale=mini dataset=photos,ct seed=11 strategy=baseline,mine optimizer.lr=2e-4"),
    ("table2", {"scale": "study"}, "table2 scale=study dataset=imagenet84,headneck seed=11"),
    ("table2", {"scale": "paper"}, "table2 scale=paper dataset=imagenet256,ct seed=11"),
    ("table2", {"photos": "imagenet256"}, "table2 scale=mini dataset=imagenet256,ct seed=11"),
    ("figure10 figure11", {"datasets": ("headneck",)}, "table2 scale=mini dataset=headneck seed=11 strategy=pcgrad"),
])  # fmt: skip
def test_a_sweep_trains_what_is_needed_as_it_was_chosen(catalogue, names, choices, sweep):
    assert sweeps(catalogue, *names.split(), **choices) == [f"experiment={sweep}"]


def test_parts_of_an_experiment_are_sweeps_of_their_own(catalogue: Catalogue) -> None:
    assert len(sweeps(catalogue, "figure3", "figure11")) == 2


def test_a_figure_without_data_and_an_unknown_name_are_refused(catalogue: Catalogue) -> None:
    with pytest.raises(ValueError, match=r"figure11.*found figure13"):
        catalogue.find(["table2", "figure13"])
    with pytest.raises(ValueError, match="datasets"):
        sweeps(catalogue, "figure10", datasets=("ct",))


def test_the_whole_study_takes_the_small_grid_at_mini_alone(catalogue: Catalogue) -> None:
    mini, sample = sweeps(catalogue, "all"), sweeps(catalogue, "all", scale="sample")
    assert any("=o2_part " in sweep for sweep in mini)
    assert not any("=o2 " in sweep for sweep in mini)
    assert any("=o2 " in sweep for sweep in sample)
    assert sum("=table2 " in sweep for sweep in mini) == 1
    assert any("=o2 " in sweep for sweep in sweeps(catalogue, "o2"))


def test_every_experiment_belongs_to_an_artefact_and_every_artefact_to_experiments_that_exist() -> None:
    catalogue = Catalogue()
    trained = {name for artefact in catalogue.artefacts.values() for name in artefact.trains}
    there = {path.stem for path in EXPERIMENTS.glob("*.yaml")}
    assert trained <= there
    assert there - trained <= {"table1", "table3", "table4", "table5", "o2_part"}  # lists of settings, not trained
    for artefact in catalogue.artefacts.values():  # an arm that its experiment does not have would be a misprint
        for experiment in artefact.trains:
            arms = experiment_lists(experiment)["strategy"]
            assert len(arms) == 1 or set(artefact.strategy) <= set(arms), (artefact.name, experiment)

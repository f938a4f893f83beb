from pathlib import Path

import pytest
import yaml

from gcond.study.methods import facts, group, label, look, ordered, paper_table2

CONF = Path(__file__).parents[2] / "conf" / "strategy"


def test_methods_are_those_of_conf_strategy_with_its_labels():
    labels = {path.stem: yaml.safe_load(path.read_text())["strategy"]["label"] for path in CONF.glob("*.yaml")}
    methods = facts("methods")["methods"]
    assert methods.keys() == labels.keys()
    for name in methods:  # what a control isolates stands first in the study's pages
        own = f"({labels[name].split(' (')[0].split(',')[0]})" if group(name) == "control" else labels[name]
        assert label(name).endswith(own)


def test_no_two_methods_look_alike():
    looks = [(m["colour"], tuple(m["dash"]), m["marker"]) for m in facts("methods")["methods"].values()]
    assert len(set(looks)) == len(looks)


def test_an_unknown_strategy_is_the_users():
    assert (label("mine"), group("mine")) == ("mine", "yours")
    assert ordered(["trivial:x", "mine", "pcgrad", "baseline"]) == ["baseline", "pcgrad", "mine", "trivial:x"]
    assert look("mine", ["mine", "other"])["colour"] != look("other", ["mine", "other"])["colour"]


def test_groups_are_declared():
    known = facts("methods")
    assert {method["group"] for method in known["methods"].values() if "group" in method} <= set(known["groups"])


@pytest.mark.parametrize(("dataset", "measure", "method", "percent"), [
    ("headneck", "l1", "gcond_sequential", -21.4), ("ct", "ssim", "gcond_sequential", -18.7),
    ("photos", "l1", "gcond_stochastic", -23.8)])  # fmt: skip
def test_the_papers_gap(dataset, measure, method, percent):
    table = paper_table2(dataset, measure)
    assert 100 * (table[method][0] / table["baseline"][0] - 1) == pytest.approx(percent, abs=0.05)
    assert paper_table2("mine", measure) == {}

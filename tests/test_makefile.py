"""What the Makefile's targets ask of `gcond`; nothing is run."""

import shlex
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from gcond import cli
from gcond.files import OWN
from gcond.study.artefacts import Catalogue
from gcond.study.methods import facts
from gcond.sweep.plan import with_paths_quoted

ROOT = Path(__file__).resolve().parents[1]


def lines(target: str, *variables: str) -> list[list[str]]:
    """The words of each command line."""
    shown = subprocess.run(["make", "-n", target, *variables], cwd=ROOT, capture_output=True, text=True, check=True)
    return [shlex.split(line) for line in shown.stdout.splitlines()]


def asked(target: str, *variables: str) -> list[str]:
    """The words after `gcond` of the one line that calls it for the target."""
    found = [words[words.index("gcond.cli") + 1 :] for words in lines(target, *variables) if "gcond.cli" in words]
    return next(words for words in found if words[:1] != ["data"])


def test_variables_become_options_that_the_command_understands():
    given = "SCALE=sample SEEDS=10 DATASETS=ct STRATEGIES=baseline,mine LR=2e-4 OUT=there JOBS=3 DEVICE=cpu"
    given += " LAUNCHER=slurm MISSING=1"
    words = asked("reproduce-table2", *given.split(), "MORE=optimizer.lr=2e-4 scale.epochs=1")
    options = cli._parser().parse_args(words[1:])
    assert (options.name, options.scale, options.datasets) == (["table2"], "sample", ("ct",))
    assert options.seeds == (11, 42, 2025, 1, 2, 3, 4, 5, 6, 7)
    assert (options.strategies, options.lr, options.out) == (("baseline", "mine"), 2e-4, Path("there"))
    assert (options.jobs, options.device, options.launcher, options.missing) == (3, "cpu", "slurm", True)
    assert options.overrides == ["optimizer.lr=2e-4", "scale.epochs=1"]
    options = cli._parser().parse_args(asked("reproduce-table2")[1:])
    assert (options.out, options.scale, options.missing) == (OWN, "mini", False)
    assert cli._choices(options).seeds == (11, 42, 2025)
    assert f"/{OWN}/" in (ROOT / ".gitignore").read_text().splitlines()  # what is run here stays out of git


PATHS = ("/data/my ct", "/data/a=b", "/data/a,b", "/data/(copy)/ü", "/data/it's", '/data/"x"', "/data/{a}[b]: c & d; e")


@pytest.mark.parametrize("path", PATHS)
def test_a_path_reaches_hydra_whole_whatever_is_in_it(path):
    words = asked("reproduce-o1", f"CT={path}", f"HEADNECK={path}", f"IMAGENET={path}", f"OUT={path}")
    options = cli._parser().parse_args([*words[1:], "--runs", path])
    assert options.out == Path(path)
    overrides = with_paths_quoted(cli._choices(options).overrides)
    parsed = OverridesParser.create().parse_overrides(overrides)
    found = {each.key_or_group: each.value() for each in parsed if not each.is_sweep_override()}
    assert found == {"paths.ct": path, "paths.headneck": path, "paths.imagenet": path, "runs": path}


def test_the_public_patients_are_fetched_only_where_they_are_trained_on():
    def fetches(*words):
        return any("samples" in line for line in lines(*words))

    assert fetches("reproduce-table2")
    assert not fetches("reproduce-table2", "CT=/d")
    assert not fetches("reproduce-table2", "SCALE=study")
    assert not fetches("reproduce-table5")


def test_every_command_that_a_claim_names_exists():
    commands = [shlex.split(each)[1:] for claim in facts("claims").values() for each in claim["run"].split(";")]
    targets = {word for words in commands for word in words if "=" not in word}
    artefacts = {f"reproduce-{name}" for name in Catalogue().artefacts}
    assert {target for target in targets if target.startswith("reproduce-")} <= artefacts
    for target in targets - artefacts:
        lines(target)


def test_the_papers_scale_asks_for_its_data(capsys):
    assert cli.main(["study", "plan", "figure1", "--scale", "paper"]) == 2
    assert "--imagenet" in capsys.readouterr().err

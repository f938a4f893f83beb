"""Options and fixtures that several test folders share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

DEFAULT_GOLDEN = Path(__file__).parent / "golden" / "arbitration.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", type=Path, default=DEFAULT_GOLDEN, help="file of arbitration reference numbers")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `golden_case` runs once per case of the file."""
    if "golden_case" in metafunc.fixturenames:
        cases = json.loads(metafunc.config.getoption("--golden").read_text())
        metafunc.parametrize("golden_case", cases, ids=[case["name"] for case in cases])


@pytest.fixture(scope="session")
def golden_cases(request: pytest.FixtureRequest) -> list[dict]:
    """All cases of the golden file, as described in tests/golden/README.md."""
    return json.loads(request.config.getoption("--golden").read_text())

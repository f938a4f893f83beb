"""Options and fixtures that several test folders share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

OUTCOMES = pytest.StashKey[dict[tuple[str, str], bool]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--methods-table", type=Path, help="write methods.md here, methods.csv beside it")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from, or left in, the cache of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GCOND_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_configure(config: pytest.Config) -> None:
    config.stash[OUTCOMES] = {}


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") is None:
        return
    import torch  # here, since it takes seconds

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Note what each marked test says about a method: {(method, oracle or property): passed}."""
    report = yield
    outcomes = item.config.stash[OUTCOMES]
    for marker in (*item.iter_markers("oracle"), *item.iter_markers("measures")):
        for name in marker.args[0].split():
            key = (name, marker.args[1])
            if report.when == "call" or report.failed:
                outcomes[key] = outcomes.get(key, True) and report.passed
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--methods-table")
    if path is not None:
        from methods.table import as_csv, render, rows

        measured = rows(session.config.stash[OUTCOMES])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".csv").write_text(as_csv(measured))
        path.write_text(render(measured))

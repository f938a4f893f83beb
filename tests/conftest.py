"""Fixtures and skips that several test folders share."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from, or left in, the cache of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GCOND_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") is None:
        return
    import torch  # here, since it takes seconds

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")

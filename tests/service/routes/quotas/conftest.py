"""One service for all tests of a file, and clients of it."""

from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from service.settings import ServiceSettings
from tests.service.callers import admit
from tests.service.conftest import serve
from tests.service.routes.quotas.asking import KEYS, Call
from tests.story import Story


@pytest.fixture(scope="module")
def module_settings(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> ServiceSettings:
    folder = tmp_path_factory.mktemp("usage")
    return ServiceSettings(
        redis_url=valkey,
        store_url=(folder / "store").as_uri(),
        work_dir=folder / "work",
        reconcile_interval_s=0.2,
    )


@pytest.fixture(scope="module")
def address(module_settings: ServiceSettings) -> Iterator[str]:
    """One service for all tests here, each of which begins with an empty queue server."""
    with serve(module_settings, lambda app: admit(app, KEYS)) as url:
        yield url


@pytest.fixture
def call(address: str, story: Story) -> Iterator[Call]:
    """A client with one of the keys, or none."""
    with ExitStack() as opened:

        def open_client(key: str) -> httpx.Client:
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            return opened.enter_context(httpx.Client(base_url=address, timeout=30, headers=headers))

        yield open_client

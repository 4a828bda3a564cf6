"""A process that delivers, a receiver, and an API, for all tests of a file."""

from collections.abc import Iterator

import httpx
import pytest

from service.settings import ServiceSettings
from tests.service.conftest import serve
from tests.service.webhooks.receiver import (
    DeliveryProcess,
    Receiver,
    receive,
)


@pytest.fixture(scope="module")
def process(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeliveryProcess]:
    """One for all tests; each begins with an empty server."""
    log = tmp_path_factory.mktemp("webhooks") / "log"
    settings = {"CHORALE_WEBHOOK_NETWORKS": "127.0.0.0/8", "CHORALE_WEBHOOK_TIMEOUT_S": "1.5"}
    process = DeliveryProcess(valkey, str(log), **settings)
    try:
        yield process
    finally:
        process.process.terminate()
        assert process.process.wait(20) == 0


@pytest.fixture
def receiver(process: DeliveryProcess) -> Iterator[Receiver]:
    with receive() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def api(valkey: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("api")
    (folder / "store").mkdir()
    given = {
        "store_url": (folder / "store").as_uri(),
        "work_dir": folder / "work",
        "reconcile_interval_s": 0.2,
    }
    settings = ServiceSettings.model_validate(
        given | {"redis_url": valkey, "webhook_networks": "127.0.0.0/8"}
    )
    with serve(settings) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client

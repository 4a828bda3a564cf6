"""Fixtures of tests with OpenAI's client."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.settings import ServiceSettings
from tests.service.conftest import Serve


@pytest.fixture
def brisk(settings: ServiceSettings, serve_with: Serve) -> str:
    """A server whose answers are begun after 0.15 s, and that works on one request at a time."""
    return serve_with(settings.model_copy(update={"ping_interval_s": 0.05, "max_requests": 1}))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool

"""One stack for all tests of the client."""

from collections.abc import Iterator

import pytest

from chorale.client import Client
from chorale.local import LocalStack
from tests.local_stack import toy_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    with toy_stack(tmp_path_factory.mktemp("stack"), delay_ms=20) as stack:
        yield stack


@pytest.fixture
def client(stack: LocalStack) -> Iterator[Client]:
    with Client(stack.url) as client:
        yield client

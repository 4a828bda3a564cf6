"""One stack for all tests of the client."""

from collections.abc import Iterator

import pytest

from chorale.allow_list import AllowListFile
from chorale.client import Client
from chorale.data_folder import DataFolder
from chorale.local import LocalStack
from tests.local_stack import toy_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    folder = tmp_path_factory.mktemp("stack")
    weights = folder / "weights.safetensors"
    weights.write_bytes(b"the toy does not read them")
    allow_list = AllowListFile(DataFolder(folder).models_file)
    for name, kind in (("ink", "lora"), ("face", "ip_adapter")):
        allow_list.add(name, weights, kind, "toy")
    with toy_stack(folder, "toy:delay_ms=20") as stack:
        yield stack


@pytest.fixture
def client(stack: LocalStack) -> Iterator[Client]:
    with Client(stack.url) as client:
        yield client

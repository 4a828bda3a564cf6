"""The two clients say the same."""

from tests.chorale.blocking_client import TARGET, generate


def test_the_blocking_client_is_what_the_asyncio_client_says() -> None:
    assert TARGET.read_text() == generate(), "run: python -m tests.chorale.blocking_client"

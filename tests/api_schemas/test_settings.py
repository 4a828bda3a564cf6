"""Service and worker of one environment meet at one queue and one store."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from api_schemas.settings import SharedSettings, spare_loopback
from service.settings import ServiceSettings
from worker.settings import WorkerSettings

BOTH = pytest.mark.parametrize("kind", [ServiceSettings, WorkerSettings])


def read(kind: type[ServiceSettings | WorkerSettings], folder: Path, **values: str) -> SharedSettings:
    """Settings from CHORALE_* variables, as docker-compose passes them."""
    file = folder / "environment"
    file.write_text("".join(f"CHORALE_{name.upper()}={value}\n" for name, value in values.items()))
    return kind(_env_file=file)


@BOTH
def test_one_environment_names_one_queue_and_one_store(
    kind: type[ServiceSettings | WorkerSettings], tmp_path: Path
) -> None:
    settings = read(
        kind, tmp_path, redis_url="redis://valkey:6379/0", store_url="s3://chorale/pictures",
        store_endpoint="http://store:8333", store_access_key_id="id", store_secret_access_key="hush",
        store_region="eu-west-1",
    )  # fmt: skip
    assert (settings.redis_url, settings.store_url) == ("redis://valkey:6379/0", "s3://chorale/pictures")
    assert settings.s3_config() == {
        "region": "eu-west-1",
        "endpoint": "http://store:8333",
        "access_key_id": "id",
        "secret_access_key": "hush",
    }
    assert "hush" not in repr(settings)


@BOTH
def test_an_empty_variable_is_one_that_is_not_set(
    kind: type[ServiceSettings | WorkerSettings], tmp_path: Path
) -> None:
    shared = set(SharedSettings.model_fields)
    empty = read(kind, tmp_path, **dict.fromkeys(shared, ""))
    assert empty.model_dump(include=shared) == read(kind, tmp_path).model_dump(include=shared)
    assert read(kind, tmp_path).s3_config() == {"region": "us-east-1"}


@BOTH
@pytest.mark.parametrize("url", ["ftp://store/x", "store", "file://relative", "s3://"])
def test_another_kind_of_store_is_refused(
    kind: type[ServiceSettings | WorkerSettings], url: str, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match="store_url"):
        read(kind, tmp_path, store_url=url)


@BOTH
@pytest.mark.parametrize("url", ["garbage", "http://x", "redis://"])
def test_another_kind_of_queue_is_refused(
    kind: type[ServiceSettings | WorkerSettings], url: str, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match="redis_url"):
        read(kind, tmp_path, redis_url=url)


@pytest.mark.parametrize("given", [{}, {"NO_PROXY": "a.example"}, {"no_proxy": "a.example"}])
def test_this_machine_is_never_behind_a_proxy(given: dict[str, str]) -> None:
    environment = {"HTTP_PROXY": "http://p"} | given
    spare_loopback(environment)
    words = environment["NO_PROXY"].split(",")
    assert environment["no_proxy"] == environment["NO_PROXY"]
    assert words == [*given.values(), "localhost", "127.0.0.0/8", "::1"]


@BOTH
def test_an_address_set_to_nothing_is_not_set_and_that_is_told(
    kind: type[ServiceSettings | WorkerSettings], tmp_path: Path
) -> None:
    settings = read(kind, tmp_path, redis_url="", store_url="s3://chorale")
    said = settings.list_doubts({"CHORALE_REDIS_URL": "", "CHORALE_STORE_URL": "s3://chorale"})
    assert said == [f"CHORALE_REDIS_URL is set to nothing and so not set: {settings.redis_url}"]
    assert settings.list_doubts({}) == []


def test_a_secret_that_can_be_guessed_is_told_without_it() -> None:
    (said,) = ServiceSettings(link_secret="zy").list_doubts({})
    assert said.startswith("CHORALE_LINK_SECRET has 2 characters and can be guessed")
    assert "zy" not in said
    assert ServiceSettings(link_secret="z" * 16).list_doubts({}) == []

"""Service and worker of one environment meet at one queue and one store."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from redis import ConnectionPool

from api_schemas.settings import (
    SharedSettings,
    describe_refused,
    find_doubts,
    find_store_fault,
    spare_loopback,
)
from api_schemas.variables import KNOWN
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
@pytest.mark.parametrize(
    "url",
    [
        "ftp://store/x",
        "store",
        "file://relative",
        "s3://",
        "s3://[x",
        "s3://b:9/x",
        "s3://b?x",
        "file:///a#b",
    ],
)
def test_another_kind_of_store_is_refused(
    kind: type[ServiceSettings | WorkerSettings], url: str, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match="store_url"):
        read(kind, tmp_path, store_url=url)


@BOTH
@pytest.mark.parametrize(
    "url",
    [
        "garbage",
        "http://x",
        "redis://",
        "redis://h:x/0",
        "redis://h:99999/0",
        "redis://h:0",
        "redis://:6379/0",
        "redis://[::1/0",
        "redis://::1:6379/0",
        "rediss://h/words",
        "redis://h/-1",
        "redis://h/1/2",
        "redis://h?db=x",
        "unix://relative",
        "unix:///",
    ],
)
def test_another_kind_of_queue_is_refused(
    kind: type[ServiceSettings | WorkerSettings], url: str, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match="redis_url"):
        read(kind, tmp_path, redis_url=url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h:6380/3",
        "redis://u:p%40@[::1]:6379/0",
        "rediss://h/?ssl_ca_certs=/ca.pem",
        "unix:///run/valkey.sock",
        "unix://u:p@/run/valkey.sock?db=2",
    ],
)
def test_what_redis_connects_to_is_taken(url: str) -> None:
    assert ServiceSettings(redis_url=url).redis_url == url
    ConnectionPool.from_url(url).make_connection()


BAD_PLACES = ["h:1", "http://", "http://h:x", "http://h:99999", "http://h:0", "http://:80", "http://[::1"]


@pytest.mark.parametrize("url", BAD_PLACES)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ServiceSettings, "store_endpoint"),
        (WorkerSettings, "store_endpoint"),
        (ServiceSettings, "store_public_endpoint"),
        (ServiceSettings, "public_url"),
        (ServiceSettings, "allowed_origins"),
        (WorkerSettings, "provenance_timestamp_url"),
    ],
)
def test_an_address_has_a_host_and_a_port_that_can_be(
    kind: type[ServiceSettings | WorkerSettings], name: str, url: str, tmp_path: Path
) -> None:
    """An S3 client panics at the first of them, long after the start."""
    with pytest.raises(ValidationError) as refused:
        read(kind, tmp_path, **{name: url})
    assert describe_refused(refused.value, kind)[0].startswith(f'CHORALE_{name.upper()}="{url}": ')
    read(kind, tmp_path, **{name: "http://[::1]:8333"})


def test_a_refused_address_is_told_without_its_password() -> None:
    for url in ("redis://:hush@h:x/0", "redis://ann:hu@sh@h:x", "http://h?password=hush"):
        with pytest.raises(ValidationError) as refused:
            ServiceSettings(redis_url=url)
        (said,) = describe_refused(refused.value, ServiceSettings)
        assert "…" in said
        assert "hush" not in said
        assert "sh@" not in said


@pytest.mark.parametrize("path", ["x", "//", "/a//b", "/a//", "/a/../b", "/..", "/./a", "/a b"])
def test_a_root_path_is_one_as_browsers_send_it(path: str) -> None:
    with pytest.raises(ValidationError, match="a path that begins with /"):
        ServiceSettings(root_path=path)
    assert [ServiceSettings(root_path=each).root_path for each in ("/", "/a/", "/a/...b")] == [
        "",
        "/a",
        "/a/...b",
    ]


def test_an_allow_list_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="no folder"):
        WorkerSettings(models_file=tmp_path)
    assert WorkerSettings(models_file=tmp_path / "not-yet.json").models_file


def test_all_names_that_are_read_are_known() -> None:
    read = {name.upper() for kind in (ServiceSettings, WorkerSettings) for name in kind.model_fields}
    assert read == KNOWN - {"API_KEY", "URL", "REFUSAL_FILE", "TEST_BROWSER"}


def test_a_name_that_nothing_reads_is_told_with_the_nearest(tmp_path: Path) -> None:
    given = {"CHORALE_RETENTION_DAY": "3", "CHORALE_XYZZY": "1", "CHORALE_HOST": "h", "HOME": "/"}
    assert find_doubts(ServiceSettings(store_url=tmp_path.as_uri()), given) == [
        "CHORALE_RETENTION_DAY is no setting, and changes nothing: is CHORALE_RETENTION_DAYS meant?",
        "CHORALE_XYZZY is no setting, and changes nothing",
    ]


def test_a_store_that_takes_nothing_is_told(tmp_path: Path) -> None:
    (file := tmp_path / "file").touch()
    url = (file / "store").as_uri()
    assert (
        find_store_fault(url)
        == f"CHORALE_STORE_URL={url} cannot be written: Not a directory; jobs wait until it can"
    )
    assert find_store_fault((tmp_path / "store").as_uri()) is None
    assert find_store_fault("s3://chorale") is None


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

"""Where the queue and the object store are: settings that service and worker need alike."""

import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from api_schemas.addresses import RedisAddress, WebAddress
from api_schemas.refused_values import list_refused
from api_schemas.variables import list_unknown

_log = logging.getLogger("chorale")
_PASSWORD = re.compile(r"(?<=://)[^\s\"]*(?=@)|(?<=password=)[^&\"]*")


def _default_store_url() -> str:
    return (Path.cwd() / "chorale-data" / "store").as_uri()


class SharedSettings(BaseModel):
    """Part of the settings of a process, which read it from the environment."""

    model_config = ConfigDict(frozen=True)

    redis_url: RedisAddress = "redis://127.0.0.1:6379/0"
    store_url: str = Field(
        default_factory=_default_store_url,
        pattern="^(file:///[^?#]*|s3://[A-Za-z0-9._-]+(/[^?#]*)?)$",
        description="file:///folder or s3://bucket/prefix",
    )
    store_endpoint: WebAddress | None = None
    store_access_key_id: str | None = None
    store_secret_access_key: SecretStr | None = None
    store_region: str = "us-east-1"
    disk_reserve_mb: int = Field(
        default=512,
        ge=0,
        description="Space that jobs leave free on disks: the queue server's log often lies on the same one.",
    )

    def list_doubts(self, environment: Mapping[str, str]) -> list[str]:
        """What is allowed and probably not meant: an address that is set to nothing is not set, as docker-compose has it."""
        return [
            f"{name} is set to nothing and so not set: {used}"
            for name, used in (("CHORALE_REDIS_URL", self.redis_url), ("CHORALE_STORE_URL", self.store_url))
            if environment.get(name) == ""
        ]

    @property
    def disk_reserve_bytes(self) -> int:
        return self.disk_reserve_mb << 20

    def s3_config(self) -> dict[str, str]:
        """Options of an S3 client by the names that object stores give them; what is not set is left out."""
        secret = self.store_secret_access_key
        given = {
            "region": self.store_region,
            "endpoint": self.store_endpoint,
            "access_key_id": self.store_access_key_id,
            "secret_access_key": secret.get_secret_value() if secret else None,
        }
        return {name: value for name, value in given.items() if value}


def spare_loopback(environment: MutableMapping[str, str]) -> None:
    """Keep connections to this machine, such as to its object store, off the proxy that the environment names."""
    given = environment.get("no_proxy") or environment.get("NO_PROXY")
    words = ",".join(filter(None, (given, "localhost,127.0.0.0/8,::1")))
    environment["NO_PROXY"] = environment["no_proxy"] = words


def find_doubts(settings: SharedSettings, environment: Mapping[str, str]) -> list[str]:
    """What is probably not meant: in the settings, and in names that nothing reads."""
    return [*settings.list_doubts(environment), *list_unknown(environment)]


def find_store_fault(url: str) -> str | None:
    """Why a folder takes nothing now; it may later. An object store is asked when it is used. It may hang, as disks do."""
    folder = urlsplit(url)
    if folder.scheme == "file":
        try:
            (path := Path(unquote(folder.path))).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path).close()
        except OSError as error:
            return f"CHORALE_STORE_URL={url} cannot be written: {error.strerror}; jobs wait until it can"
    return None


def tell_doubts(settings: SharedSettings) -> None:
    """Warn in the log of what is doubtful, and of a store that takes nothing."""
    for doubt in find_doubts(settings, os.environ):
        _log.warning("%s", doubt)
    Thread(target=_tell_store_fault, args=(settings.store_url,), daemon=True).start()


def _tell_store_fault(url: str) -> None:
    if fault := find_store_fault(url):
        _log.warning("%s", fault)


REFUSED_EXIT = 2  # exit code of a process that a restart would not help


class RefusedSettingsError(Exception):
    """Settings with which a part cannot start: an argument for each, with its value and what is allowed."""

    def __str__(self) -> str:
        return "; ".join(map(str, self.args))


def print_refusal(read: Callable[[], SharedSettings]) -> int:
    """For whoever is about to start a part: why its settings are refused, or else what is doubtful in them, a line each.

    Returns:
        `REFUSED_EXIT`, or 0.
    """
    try:
        settings = read()
    except RefusedSettingsError as error:
        print(*error.args, sep="\n")
        return REFUSED_EXIT
    for doubt in (*find_doubts(settings, os.environ), find_store_fault(settings.store_url)):
        print(doubt or "", flush=True)
    return 0


def refuse(why: str) -> int:
    """Say why this process cannot start, also in the file that CHORALE_REFUSAL_FILE names, for whoever started it.

    Returns:
        `REFUSED_EXIT`.
    """
    _log.error("%s", why)
    if path := os.environ.get("CHORALE_REFUSAL_FILE"):
        with suppress(OSError):  # a full disk: the log may have it
            Path(path).write_text(why, errors="backslashreplace")
    return REFUSED_EXIT


def describe_refused(error: ValidationError, settings: type[SharedSettings]) -> list[str]:
    """Each variable with its value, without passwords of addresses, and what is allowed."""
    return [
        f"CHORALE_{each.field.upper()}={_PASSWORD.sub('…', each.value)}: {each.allowed}"
        for each in list_refused(error, settings)
    ]

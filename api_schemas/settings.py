"""Where the queue and the object store are: settings that service and worker need alike."""

import logging
import os
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from api_schemas.refused_values import list_refused


def _default_store_url() -> str:
    return (Path.cwd() / "chorale-data" / "store").as_uri()


class SharedSettings(BaseModel):
    """Part of the settings of a process, which read it from the environment."""

    model_config = ConfigDict(frozen=True)

    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0",
        pattern="^(redis|rediss|unix)://.",
        description="redis://host:port/number, rediss://… or unix:///path",
    )
    store_url: str = Field(
        default_factory=_default_store_url,
        pattern="^(file:///|s3://[^/])",
        description="file:///folder or s3://bucket/prefix",
    )
    store_endpoint: str | None = None
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


def tell_doubts(settings: SharedSettings) -> None:
    """Warn of them in the log."""
    for doubt in settings.list_doubts(os.environ):
        logging.getLogger("chorale").warning("%s", doubt)


REFUSED_EXIT = 2  # exit code of a process that a restart would not help


def refuse(why: str) -> int:
    """Say why this process cannot start, also in the file that CHORALE_REFUSAL_FILE names, for whoever started it.

    Returns:
        `REFUSED_EXIT`.
    """
    logging.getLogger("chorale").error("%s", why)
    if path := os.environ.get("CHORALE_REFUSAL_FILE"):
        with suppress(OSError):  # a full disk: the log may have it
            Path(path).write_text(why, errors="backslashreplace")
    return REFUSED_EXIT


def describe_refused(error: ValidationError, settings: type[SharedSettings]) -> str:
    """Each variable with its value and what is allowed."""
    return "; ".join(
        f"CHORALE_{each.field.upper()}={each.value}: {each.allowed}" for each in list_refused(error, settings)
    )

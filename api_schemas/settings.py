"""Where the queue and the object store are: settings that service and worker need alike."""

import logging
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError


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


REFUSED_EXIT = 2  # exit code of a process that a restart would not help


def refuse(why: str) -> int:
    """Say why this process cannot start, also in the file that CHORALE_REFUSAL_FILE names, for whoever started it.

    Returns:
        `REFUSED_EXIT`.
    """
    logging.getLogger("chorale").error("%s", why)
    if path := os.environ.get("CHORALE_REFUSAL_FILE"):
        Path(path).write_text(why)
    return REFUSED_EXIT


def describe_refused(error: ValidationError) -> str:
    """Each variable with its value and what is allowed."""
    return "; ".join(
        f"CHORALE_{'.'.join(map(str, each['loc'])).upper()}={each['input']!r}: "
        f"{each['msg'].removeprefix('Value error, ')}"
        for each in error.errors()
    )

"""Settings, read once from the environment (prefix CHORALE_)."""

import ipaddress
import secrets

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from api_schemas.settings import SharedSettings


def _draw_secret() -> SecretStr:
    return SecretStr(secrets.token_hex(32))


class ServiceSettings(SharedSettings, BaseSettings):
    """All settings of the API process."""

    # docker-compose passes unset variables on as empty strings.
    model_config = SettingsConfigDict(env_prefix="CHORALE_", env_ignore_empty=True, extra="ignore")

    store_public_endpoint: str | None = Field(
        default=None, description="Endpoint of the S3 store for clients, if it differs from store_endpoint."
    )
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    allow_open_bind: bool = False
    max_queued: int = Field(default=1000, ge=1)
    max_requests: int = Field(
        default=200, ge=1, description="Requests answered at the same time; more are refused at once."
    )
    max_body_bytes: int = Field(default=256 * 1024, ge=1024)
    max_picture_bytes: int = Field(
        default=32 << 20, ge=1024, description="Limit for each picture sent with a job."
    )
    max_picture_megapixels: float = Field(default=64.0, gt=0, allow_inf_nan=False)
    link_secret: SecretStr = Field(
        default_factory=_draw_secret,
        description="Key that signs download links; if not given, drawn at start, and links end with the process.",
    )
    link_lifetime_s: int = Field(default=3600, ge=1)
    job_timeout_s: int = Field(default=86_400, ge=1, description="Time limit of one execution of a job.")
    job_retries: int = Field(
        default=50, ge=0, description="Executions that a job may lose to workers that die."
    )
    retention_days: float = Field(
        default=30.0,
        ge=0,
        le=36_500,
        description="How long ended jobs and their pictures are kept; 0 keeps them for ever.",
    )
    reconcile_interval_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    ping_interval_s: float = Field(default=15.0, gt=0, allow_inf_nan=False)
    send_timeout_s: float = Field(
        default=30.0,
        gt=0,
        allow_inf_nan=False,
        description="A client that receives nothing for so long is disconnected.",
    )

    def is_loopback(self) -> bool:
        """Whether the bound address is a loopback address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

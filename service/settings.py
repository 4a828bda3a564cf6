"""Settings, read once from the environment (prefix CHORALE_)."""

import ipaddress
import re
import secrets
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final, cast

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from api_schemas.addresses import WebAddress, has_place
from api_schemas.settings import SharedSettings

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_SAFE_LENGTH: Final = 16
_ORIGIN: Final = re.compile(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


def _draw_secret() -> SecretStr:
    return SecretStr(secrets.token_hex(32))


def _default_work_dir() -> Path:
    return Path(tempfile.gettempdir()) / "chorale-work"


def _split_words(value: object) -> object:
    """`a, b` as it stands in the environment."""
    return [word for word in re.split(r"[,\s]+", value) if word] if isinstance(value, str) else value


def _check_origin(text: str) -> str:
    """As browsers write it: lower case, and no port where it is the scheme's own."""
    match = _ORIGIN.fullmatch(text.lower().rstrip("/"))
    if match is None or not has_place(text):
        raise ValueError(f"{text!r} is no origin; allowed is scheme and host, as in https://viewer.example")
    scheme, host, port = match.groups()
    return f"{scheme}://{host}{'' if port == _DEFAULT_PORTS[scheme] else port or ''}"


def _check_host(text: str) -> str:
    if not re.fullmatch(r"\*|(\*\.)?[A-Za-z0-9._-]+", text):
        raise ValueError(
            "names of hosts without scheme, port and path, as in pictures.example or *.a.example, or *"
        )
    return text


def _check_proxy(text: str) -> str:
    try:
        if text != "*":
            ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise ValueError("addresses and networks, as in 10.0.0.7 or 10.0.0.0/8, or *") from error
    return text


def _check_root_path(text: str) -> str:
    path = text.removesuffix("/")
    if not re.fullmatch(r"(/(?!\.\.?(/|$))[A-Za-z0-9._~-]+)*", path):
        raise ValueError(
            "a path that begins with /, as in /chorale, of letters, digits and -._~, without . and .. and //"
        )
    return path


def _check_secret(secret: SecretStr) -> SecretStr:
    if not secret.get_secret_value().strip():
        raise ValueError("anyone could sign with an empty secret: give one, or leave the variable unset")
    return secret


def _check_networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    try:
        return tuple(map(ipaddress.ip_network, texts))
    except ValueError as error:
        raise ValueError(f"{error}; allowed are networks, as in 10.0.0.0/8 or fd00::/8") from error


def _check_public_url(text: str | None) -> str | None:
    if text is not None and not (has_place(text) and re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", text)):
        raise ValueError("scheme, host and path, as in https://pictures.example/chorale")
    return text and text.rstrip("/")


def _each(check: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(lambda words: tuple(map(check, cast(tuple[str, ...], words))))


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_words)]
Networks = Annotated[
    tuple[Network, ...],
    NoDecode,
    BeforeValidator(lambda value: _check_networks(cast(tuple[str, ...], _split_words(value)))),
]
Origins = Annotated[
    tuple[str, ...],
    NoDecode,
    BeforeValidator(_split_words),
    _each(_check_origin),
]


class ServiceSettings(SharedSettings, BaseSettings):
    """All settings of the API process."""

    model_config = SettingsConfigDict(env_prefix="CHORALE_", extra="ignore")

    store_public_endpoint: WebAddress | None = Field(
        default=None, description="Endpoint of the S3 store for clients, if it differs from store_endpoint."
    )
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    allowed_hosts: Annotated[Words, _each(_check_host)] = Field(
        default=(),
        description="Names in URLs of this server beside addresses, localhost and the machine's name; *.a.example for all below.",
    )
    allowed_origins: Origins = Field(
        default=(), description="Other sites whose pages may use this server, as in https://viewer.example."
    )
    forwarded_allow_ips: Annotated[Words, _each(_check_proxy)] = Field(
        default=("127.0.0.1", "::1"),
        description="Proxies whose X-Forwarded-Host, -Proto and -For are trusted: addresses, networks, or *.",
    )
    root_path: Annotated[str, AfterValidator(_check_root_path)] = Field(
        default="", description="Path below which a proxy serves all this, as in /chorale."
    )
    max_queued: int = Field(default=1000, ge=1)
    max_requests: int = Field(
        default=200, ge=1, description="Requests answered at the same time; more are refused at once."
    )
    max_body_bytes: int = Field(default=256 * 1024, ge=1024)
    max_picture_bytes: int = Field(
        default=32 << 20, ge=1024, description="Limit for each picture sent with a job."
    )
    max_upload_bytes_at_once: int = Field(
        default=1 << 30,
        ge=1024,
        description="Limit for the sum of all uploads that are being taken in; they lie in work_dir.",
    )
    work_dir: Path = Field(default_factory=_default_work_dir, description="Scratch space for uploads.")
    max_connections: int = Field(
        default=4096, ge=1, description="Fewer where the limit of file descriptors requires it."
    )
    receive_timeout_s: float = Field(
        default=20.0,
        gt=0,
        allow_inf_nan=False,
        description="How long the head of a request, or a pause in its body, may take.",
    )
    max_picture_megapixels: float = Field(default=64.0, gt=0, allow_inf_nan=False)
    link_secret: Annotated[SecretStr, AfterValidator(_check_secret)] = Field(
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

    webhook_networks: Networks = Field(
        default=(),
        description="Networks to which webhooks may go beside public addresses, and without TLS: 10.0.0.0/8, fd00::/8.",
    )
    webhook_timeout_s: float = Field(
        default=15.0, gt=0, le=60, description="How long one delivery of a webhook may take."
    )
    public_url: Annotated[str | None, AfterValidator(_check_public_url)] = Field(
        default=None,
        description="Address of this server for others, with its path, if any: URLs in webhooks begin with it.",
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out_empty(cls, values: object) -> object:
        """docker-compose passes unset variables on as empty strings; a secret is never taken for unset."""
        given = cast(dict[str, object], values)
        return {name: value for name, value in given.items() if value != "" or name == "link_secret"}

    def list_doubts(self, environment: Mapping[str, str]) -> list[str]:
        """Also a secret that can be guessed, with which anyone could sign links."""
        length = len(self.link_secret.get_secret_value())
        short = [
            f"CHORALE_LINK_SECRET has {length} characters and can be guessed: give {_SAFE_LENGTH} or more"
        ]
        return super().list_doubts(environment) + (short if length < _SAFE_LENGTH else [])

    def is_loopback(self) -> bool:
        """Whether the bound address is a loopback address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

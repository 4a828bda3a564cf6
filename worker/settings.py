"""What an operator can set, as CHORALE_* in the environment."""

import re
import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from api_schemas.addresses import WebAddress
from api_schemas.catalog import Dtype
from api_schemas.settings import SharedSettings


def _check_devices(text: str) -> str:
    return ",".join(parse_devices(text))


def _check_file(path: Path) -> Path:
    if path.is_dir():
        raise ValueError("a file, as `chorale models add` writes it, and no folder")
    return path


Devices = Annotated[str, AfterValidator(_check_devices)]


def _bundled_model() -> str:
    return str(Path(__file__).parent / "bundled")


def _default_work_dir() -> Path:
    return Path(tempfile.gettempdir()) / "chorale-work"


class WorkerSettings(SharedSettings, BaseSettings):
    """Read once, in main."""

    # docker-compose passes unset variables on as empty strings.
    model_config = SettingsConfigDict(env_prefix="CHORALE_", env_ignore_empty=True, extra="ignore")

    model: str = Field(
        default_factory=_bundled_model,
        description="Name on the allow-list, folder, name on the hub, or `toy`.",
    )
    models_file: Annotated[Path, AfterValidator(_check_file)] | None = Field(
        default=None, description="The allow-list that `chorale models` writes."
    )
    devices: Devices = Field(
        default="auto", description="`cpu`, `cuda:0`, or several: `0,1`; auto takes a GPU where there is one."
    )
    dtype: Dtype | None = Field(
        default=None, description="Type of weights and predictions; by default, as the model's folder says."
    )
    work_dir: Path = Field(default_factory=_default_work_dir, description="Scratch space for running jobs.")
    decode_memory_mb: int | None = Field(
        default=None,
        ge=64,
        description="Device memory for decoding before it spills; by default, by the memory that is free.",
    )
    provenance_certificate: Path | None = Field(
        default=None,
        description="PEM chain of the certificate that pictures are signed with, C2PA; needs the key.",
    )
    provenance_key: Path | None = Field(
        default=None, validate_default=True, description="PEM file of its private key, without a passphrase."
    )
    provenance_timestamp_url: WebAddress | None = Field(
        default=None,
        description="http:// or https:// address of the authority (RFC 3161) that is asked for the time of signing.",
    )
    watermark: bool = Field(
        default=False,
        description="Mark the pixels of pictures, invisibly; with a side under 256 px they are too small for the mark to be found.",
    )
    lease_s: int = Field(default=15, ge=2, le=60, description="A dead worker's job is taken over after this.")
    stall_timeout_s: float = Field(
        default=300,
        gt=0,
        allow_inf_nan=False,
        description="Seconds without progress after which the engine is killed.",
    )
    max_attempts: int = Field(default=5, ge=1, description="Attempts without progress before a job fails.")
    storage_patience_s: float = Field(
        default=300, ge=0, allow_inf_nan=False, description="How long a job waits for a store or disk."
    )
    checkpoint_interval_s: float = Field(default=2, ge=0, allow_inf_nan=False)
    drain_timeout_s: float = Field(
        default=45,
        ge=0,
        le=45,  # `chorale up` kills after 60 s
        description="How long a stopped worker waits for the end of a step; its job then goes on from the one before.",
    )

    @field_validator("provenance_key")
    @classmethod
    def _check_pair(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if (key is None) != (info.data.get("provenance_certificate") is None):
            raise ValueError("set both or none of CHORALE_PROVENANCE_CERTIFICATE and CHORALE_PROVENANCE_KEY")
        return key


_ALLOWED = "auto, cpu, mps, cuda:N or N; several of one kind with commas between, as in 0,1 or cpu,cpu"


def parse_devices(text: str) -> tuple[str, ...]:
    """One device for each rank, by its name in torch; empty means auto.

    Raises:
        ValueError: no such device can exist; the message says what is allowed.
    """
    devices = tuple(_parse(name.strip(), text) for name in (text or "auto").split(","))
    kinds = {device.partition(":")[0] for device in devices}
    if len(devices) > 1 and kinds not in ({"cpu"}, {"cuda"}):
        raise ValueError(f"{text!r} mixes kinds of devices; allowed: {_ALLOWED}")
    if kinds == {"cuda"} and len(set(devices)) < len(devices):
        raise ValueError(f"{text!r} names a GPU twice; two ranks on one GPU are no faster than one")
    return devices


def _parse(name: str, text: str) -> str:
    if name in ("auto", "cpu", "mps"):
        return name
    if match := re.fullmatch(r"(?:cuda:)?(\d{1,3})", name):
        return f"cuda:{int(match[1])}"
    raise ValueError(f"{text!r} is not a list of devices; allowed: {_ALLOWED}")

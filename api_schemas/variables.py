"""Names of the environment that anything of Chorale reads: a misspelt one is otherwise without effect, and unseen."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Final

_PREFIX: Final = "CHORALE_"
# Of the command line, of the parts of a stack, of tests, and of the settings of service and worker.
KNOWN: Final = frozenset(
    [
        "API_KEY",
        "URL",
        "REFUSAL_FILE",
        "TEST_BROWSER",
        "ALLOWED_HOSTS",
        "ALLOWED_ORIGINS",
        "CHECKPOINT_INTERVAL_S",
        "DECODE_MEMORY_MB",
        "DEVICES",
        "DISK_RESERVE_MB",
        "DRAIN_TIMEOUT_S",
        "DTYPE",
        "FORWARDED_ALLOW_IPS",
        "HOST",
        "JOB_RETRIES",
        "JOB_TIMEOUT_S",
        "LEASE_S",
        "LINK_LIFETIME_S",
        "LINK_SECRET",
        "MAX_ATTEMPTS",
        "MAX_BODY_BYTES",
        "MAX_CONNECTIONS",
        "MAX_PICTURE_BYTES",
        "MAX_PICTURE_MEGAPIXELS",
        "MAX_QUEUED",
        "MAX_REQUESTS",
        "MAX_UPLOAD_BYTES_AT_ONCE",
        "MODEL",
        "MODELS_FILE",
        "PING_INTERVAL_S",
        "PORT",
        "PROVENANCE_CERTIFICATE",
        "PROVENANCE_KEY",
        "PROVENANCE_TIMESTAMP_URL",
        "PUBLIC_URL",
        "RECEIVE_TIMEOUT_S",
        "RECONCILE_INTERVAL_S",
        "REDIS_URL",
        "RETENTION_DAYS",
        "ROOT_PATH",
        "SEND_TIMEOUT_S",
        "STALL_TIMEOUT_S",
        "STORAGE_PATIENCE_S",
        "STORE_ACCESS_KEY_ID",
        "STORE_ENDPOINT",
        "STORE_PUBLIC_ENDPOINT",
        "STORE_REGION",
        "STORE_SECRET_ACCESS_KEY",
        "STORE_URL",
        "WATERMARK",
        "WEBHOOK_NETWORKS",
        "WEBHOOK_TIMEOUT_S",
        "WORK_DIR",
    ]
)


def list_unknown(environment: Mapping[str, str]) -> list[str]:
    """A line for each that nothing reads, with the nearest name that something does."""
    names = sorted(name.removeprefix(_PREFIX) for name in environment if name.startswith(_PREFIX))
    return [_describe(name) for name in names if name.upper() not in KNOWN]


def _describe(name: str) -> str:
    near = get_close_matches(name.upper(), KNOWN, 1)
    meant = f": is {_PREFIX}{near[0]} meant?" if near else ""
    return f"{_PREFIX}{name} is no setting, and changes nothing{meant}"

"""API keys: how one is written, and what is stored of it (deploy/decisions/0008)."""

import hashlib
import re
import secrets
from hmac import compare_digest
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

Scope = Literal["create", "read", "admin"]
TICKET_LIFETIME_S: Final = 30
MAX_FORMER_SECRETS: Final = 5

_KEY = re.compile(r"chorale_([0-9a-f]{12})_([0-9a-f]{64})")
_SECRETS = re.compile(r"(chorale_[0-9a-f]{12}_)[0-9a-zA-Z]+|([?&]ticket=)[^&\s]+")


class Quota(BaseModel):
    """What a key may use; None is unlimited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calls_per_minute: int | None = None
    concurrent_jobs: int | None = None
    queued_jobs: int | None = None
    megapixel_steps_per_day: float | None = None
    store_bytes: int | None = None


class ApiKey(BaseModel):
    """All of a key but its secret."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="12 hex digits, the visible part of the key.")
    name: str
    scopes: frozenset[Scope] = Field(
        description="create: make jobs and cancel them; read: jobs, pictures, events, models; admin: metrics, and the jobs of all keys."
    )
    quota: Quota = Quota()
    created_at: float = Field(description="Unix time in seconds, like `revoked_at`.")
    revoked_at: float | None = None


class FormerSecret(BaseModel):
    """One that was replaced, by its digest; accepted until then, Unix time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    until: float


class StoredKey(BaseModel):
    """A key at rest.

    Args:
        digest: of its secret.
        former: secrets before it that clients may still have.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: ApiKey
    digest: str
    former: tuple[FormerSecret, ...] = ()

    def accepts(self, digest: str, now: float) -> bool:
        """Whether a secret with this digest is the key's."""
        is_present = compare_digest(digest, self.digest)
        is_former = any(
            compare_digest(digest, former.digest) and now < former.until for former in self.former
        )
        return self.key.revoked_at is None and (is_present or is_former)


class Session(BaseModel):
    """Who a browser is signed in as."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys_required: bool = Field(
        description="False where the service has no keys yet and is for this machine alone."
    )
    key: ApiKey | None = Field(description="The key of this request; null if there is none.")


class Ticket(BaseModel):
    """Opens one event stream of one job, once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ticket: str = Field(description="For `?ticket=` of the job's `ws` or `events`.")
    expires_in_s: int = TICKET_LIFETIME_S


def draw_secret() -> str:
    """64 hex digits of 256 random bits."""
    return secrets.token_hex(32)


def draw_key_id() -> str:
    return secrets.token_hex(6)


def write_key(key_id: str, secret: str) -> str:
    """A key as its owner gets it."""
    return f"chorale_{key_id}_{secret}"


def read_key(text: str) -> tuple[str, str] | None:
    """Id and secret of a key; None if it is none."""
    match = _KEY.fullmatch(text)
    return (match[1], match[2]) if match else None


def digest_secret(secret: str) -> str:
    """What is stored of a secret: SHA-256, since nobody guesses 256 random bits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def hide_secrets(text: str) -> str:
    """The text without the secrets of keys and tickets in it."""
    return _SECRETS.sub(lambda match: f"{match[1] or match[2]}...", text)

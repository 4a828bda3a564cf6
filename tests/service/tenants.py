"""The keys of two tenants, and an operator's, each in the hands of a client."""

from dataclasses import dataclass

import httpx

from api_schemas.events import Result
from chorale.key_records import KeyRecords

RESULT = Result(
    image_key="jobs/0/one/image.png", pyramid_key="jobs/0/one", media_type="image/png", width_px=1024, height_px=1024,
    size_bytes=1, sha256="0" * 64, engine_s=1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Tenants:
    """Clients with a key each, and the keys themselves."""

    ann: httpx.Client
    bob: httpx.Client
    operator: httpx.Client
    nobody: httpx.Client
    records: KeyRecords

    def key(self, client: httpx.Client) -> str:
        return client.headers["Authorization"].removeprefix("Bearer ")

    def key_id(self, client: httpx.Client) -> str:
        return self.key(client).split("_")[1]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}

"""Tenants of one stack: each has an API key with a quota and a webhook, and asks for jobs of every kind."""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
from redis import Redis

from api_schemas.answers import JobView, Usage
from api_schemas.derived import ExtendRequest, RerollRequest, VariationsRequest
from api_schemas.generation import GenerationRequest
from api_schemas.quota_text import read_quota
from api_schemas.regions import RectangleShape, Region, RegionShape
from api_schemas.source import SourceMask
from api_schemas.webhook import Webhook
from chorale.client import Client
from chorale.data_folder import DataFolder
from chorale.data_queue import open_data_queue
from chorale.errors import (
    ConflictError,
    JobEndedError,
    NoConnectionError,
    NotFoundError,
    TimedOutError,
    UnavailableError,
)
from chorale.key_records import KeyRecords
from tests.service.tenants import bearer

SEEDS = 2  # different pictures of each kind; jobs repeat them
QUOTA = read_quota("calls=60000/min,concurrent=2,queued=100,megapixel_steps=100000/day,store=10GB")
# What ends by itself: the service is away, or still at the same request, whose answer was lost.
_PASSING = (NoConnectionError, UnavailableError, ConflictError, TimedOutError)
_HALF = RectangleShape(left_px=0, top_px=0, width_px=256, height_px=512)
T = TypeVar("T")


def persist(call: Callable[[], T]) -> T:
    """What it answers at last, through any number of lost connections."""
    while True:
        try:
            return call()
        except _PASSING:
            time.sleep(0.2)


def await_end(client: Client, job_id: str) -> JobView:
    """The job as it has ended, with a picture or without."""
    try:
        return persist(lambda: client.wait(job_id, timeout_s=600))
    except JobEndedError as error:
        return error.job


def draw_request(steps: int, seed: int = 0, *, embed_metadata: bool = True) -> GenerationRequest:
    return GenerationRequest(
        prompt="storm", width_px=512, height_px=512, steps=steps, seed=seed, embed_metadata=embed_metadata
    )


@dataclass(frozen=True)
class Order:
    """What was asked for, and the job that was made of it."""

    kind: str
    seed: int
    job_id: str


@dataclass
class Tenant:
    """
    Args:
        parent: a finished job, of which children are made. Its file tells nothing, and so theirs do not name it.
        orders: that were acknowledged.
    """

    client: Client
    key: str
    hook_path: str
    steps: int
    parent: str = ""
    asked: int = 0
    orders: list[Order] = field(default_factory=list[Order])

    def begin(self, hook: str) -> None:
        persist(lambda: self.client.set_webhook(Webhook(url=hook)))
        request, token = draw_request(self.steps, embed_metadata=False), uuid.uuid4().hex
        self.parent = persist(lambda: self.client.create(request, idempotency_key=token)).id
        assert await_end(self.client, self.parent).status == "succeeded"

    def ask(self) -> None:
        """The next kind in turn, until it is acknowledged."""
        rounds, number = divmod(self.asked, len(KINDS))
        (kind, make), seed, token = list(KINDS.items())[number], rounds % SEEDS, uuid.uuid4().hex
        self.asked += 1
        jobs = persist(lambda: make(self, seed, token))
        self.orders += [Order(kind, seed, job.id) for job in jobs]

    def list_own(self) -> list[str]:
        """All jobs that were acknowledged."""
        return [self.parent, *(order.job_id for order in self.orders)]

    def list_visible(self) -> list[str]:
        page = persist(lambda: self.client.list(limit=100))
        found = list(page.data)
        while cursor := page.next:
            page = persist(lambda cursor=cursor: self.client.list(limit=100, cursor=cursor))
            found += page.data
        return [job.id for job in found]

    def sees(self, job_id: str) -> bool:
        try:
            return bool(persist(lambda: self.client.get(job_id)))
        except NotFoundError:
            return False

    def read_usage(self) -> Usage:
        answer = httpx.get(f"{self.client.url}/v1/usage", headers=bearer(self.key)).raise_for_status()
        return Usage.model_validate_json(answer.content)


def _from_words(tenant: Tenant, seed: int, token: str) -> list[JobView]:
    return [tenant.client.create(draw_request(tenant.steps, seed), idempotency_key=token)]


def _with_regions(tenant: Tenant, seed: int, token: str) -> list[JobView]:
    region = Region(prompt="calm", shape=RegionShape(rectangle=_HALF))
    request = draw_request(tenant.steps, seed).model_copy(update={"regions": [region]})
    return [tenant.client.create(request, idempotency_key=token)]


def _reroll(tenant: Tenant, seed: int, token: str) -> list[JobView]:
    asked = RerollRequest(region=SourceMask(rectangle=_HALF), seed=seed + 10)
    return [tenant.client.reroll(tenant.parent, asked, idempotency_key=token)]


def _extend(tenant: Tenant, seed: int, token: str) -> list[JobView]:
    asked = ExtendRequest(right_px=128, seed=seed)
    return [tenant.client.extend(tenant.parent, asked, idempotency_key=token)]


def _vary(tenant: Tenant, seed: int, token: str) -> list[JobView]:
    """Two at once, with noises that only the token decides."""
    return list(tenant.client.vary(tenant.parent, VariationsRequest(count=2), idempotency_key=token).data)


KINDS: dict[str, Callable[[Tenant, int, str], list[JobView]]] = {
    "words": _from_words, "regions": _with_regions, "re-roll": _reroll, "extend": _extend, "variations": _vary,
}  # fmt: skip


@contextmanager
def open_tenants(folder: Path, url: str, hooks: str, steps: int, *names: str) -> Iterator[list[Tenant]]:
    """One for each name, ready to ask.

    Args:
        hooks: URL of the receiver of all webhooks, which has a path for each.
    """
    with ExitStack() as stack:
        address = stack.enter_context(open_data_queue(DataFolder(folder)))
        records = KeyRecords(stack.enter_context(Redis.from_url(address)))
        keys = [records.create(name, frozenset({"create", "read"}), QUOTA) for name in names]
        tenants = [
            Tenant(stack.enter_context(Client(url, api_key=key)), key, f"/{name}", steps)
            for name, key in zip(names, keys, strict=True)
        ]
        for tenant in tenants:
            tenant.begin(hooks + tenant.hook_path)
        yield tenants

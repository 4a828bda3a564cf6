"""What must hold of the jobs of a storm once it is over."""

import hashlib
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

from api_schemas.answers import JobView
from chorale.client import Client
from tests.chaos.tenants import KINDS, SEEDS, Order, Tenant, await_end, draw_request, persist
from tests.service.webhooks.receiver import Receiver


class Undisturbed:
    """Digests of what was made of the same orders in calm: before the storm, but for variations, whose noise is drawn."""

    def __init__(self, calm: Tenant, folder: Path) -> None:
        self._calm, self._folder = calm, folder
        for _ in range(SEEDS * len(KINDS)):
            calm.ask()
        self._known = {(order.kind, order.seed): self._digest(order.job_id) for order in calm.orders}

    def find(self, order: Order, job: JobView) -> str:
        if order.kind != "variations":
            return self._known[order.kind, order.seed]
        plain = draw_request(self._calm.steps, embed_metadata=False)
        request = plain.model_copy(update={"variations": job.request.variations})
        return self._digest(persist(lambda: self._calm.client.create(request)).id)

    def _digest(self, job_id: str) -> str:
        return digest(self._calm.client, await_end(self._calm.client, job_id).id, self._folder)


def require_made(
    tenant: Tenant, ended: Mapping[str, JobView], undisturbed: Undisturbed, folder: Path
) -> None:
    """Each job succeeded once, with the bytes of an undisturbed one."""
    for order in tenant.orders:
        job = ended[order.job_id]
        assert job.status == "succeeded", (order, job.status, job.error)
        types = [event.type for event in tenant.client.events(job.id)]
        assert types.count("job.succeeded") == 1, (order, types)
        assert digest(tenant.client, job.id, folder) == undisturbed.find(order, job), (
            f"{order} has other bytes"
        )


def require_told(client: Client, receiver: Receiver, jobs: Collection[str], path: str = "/") -> None:
    """Each job's end was told once or more, always by the same id, and no end of other jobs."""
    for job in jobs:
        while [each.status for each in persist(lambda job=job: client.deliveries(job))] != ["delivered"]:
            time.sleep(0.2)
    ids: dict[str, set[str]] = {}
    for call in receiver.find(path):
        ids.setdefault(call.read()["data"]["id"], set()).add(call.id)
    assert {job: len(found) for job, found in ids.items()} == dict.fromkeys(jobs, 1)


def require_private(tenant: Tenant, others: Collection[str]) -> None:
    """A key sees the jobs that were acknowledged to it, those alone, and none of others by their ids."""
    assert sorted(tenant.list_visible()) == sorted(tenant.list_own())
    assert [job for job in others if tenant.sees(job)] == []


def require_counted(tenant: Tenant) -> None:
    """All that ended has given its place back, and has been counted once."""
    usage = tenant.read_usage()
    cost = sum(tenant.client.get(job).cost.megapixel_steps for job in tenant.list_own())
    assert (usage.queued_jobs.used, usage.concurrent_jobs.used) == (0, 0)
    assert usage.megapixel_steps.used == pytest.approx(cost)


def digest(client: Client, job_id: str, folder: Path) -> str:
    """Of the job's picture."""
    path = client.download(job_id, folder / "picture.png")
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""Requests and how their responses are read, shared by both clients."""

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import httpx

from api_schemas.answers import JobPage, JobView, ModelList, Readiness
from api_schemas.catalog import ModelCard
from api_schemas.derived import ExtendRequest, RerollRequest, VariationsRequest
from api_schemas.generation import GenerationRequest, PicturePart
from api_schemas.job import JobStatus
from api_schemas.webhook import Delivery, DeliveryList, Webhook, WebhookView, write_webhook
from chorale.protocol import check, job_path, read, read_readiness

Answer = TypeVar("Answer")
Part = tuple[str | None, bytes, str]  # file name, content, media type


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """One request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[httpx.Response], Answer]
    params: dict[str, str] | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])
    content: bytes | None = None
    files: dict[str, Part] | None = None


def create_job(
    request: GenerationRequest, pictures: Mapping[PicturePart, Path] | None, idempotency_key: str | None
) -> Call[JobView]:
    """JSON, or a multipart form if there are pictures. Every creation has a key, so that it can be retried."""
    body = _write(request)
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    if not pictures:
        headers["Content-Type"] = "application/json"
        return Call("POST", "/v1/jobs", _read_job, headers=headers, content=body)
    files: dict[str, Part] = {"request": (None, body, "application/json")}
    for part, path in pictures.items():
        files[part] = (path.name, path.read_bytes(), "application/octet-stream")
    return Call("POST", "/v1/jobs", _read_job, headers=headers, files=files)


def derive_job(
    job_id: str, asked: RerollRequest | ExtendRequest, idempotency_key: str | None
) -> Call[JobView]:
    what = "reroll" if isinstance(asked, RerollRequest) else "extend"
    headers, body = _derive(asked, idempotency_key)
    return Call("POST", job_path(job_id, what), _read_job, headers=headers, content=body)


def vary_job(job_id: str, asked: VariationsRequest, idempotency_key: str | None) -> Call[JobPage]:
    headers, body = _derive(asked, idempotency_key)
    return Call("POST", job_path(job_id, "variations"), _read_page, headers=headers, content=body)


def _derive(
    asked: RerollRequest | ExtendRequest | VariationsRequest, idempotency_key: str | None
) -> tuple[dict[str, str], bytes]:
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex, "Content-Type": "application/json"}
    return headers, _write(asked)


def _write(asked: GenerationRequest | RerollRequest | ExtendRequest | VariationsRequest) -> bytes:
    """Only the fields that were set: the server chooses the rest. A webhook is in no dump, for its secrets."""
    body = asked.model_dump(mode="json", exclude_unset=True)
    if asked.webhook is not None:
        body["webhook"] = write_webhook(asked.webhook)
    return json.dumps(body).encode()


def get_job(job_id: str) -> Call[JobView]:
    return Call("GET", job_path(job_id), _read_job)


def list_jobs(status: JobStatus | None, limit: int, cursor: str | None) -> Call[JobPage]:
    given = {"status": status, "limit": str(limit), "cursor": cursor}
    params = {name: value for name, value in given.items() if value is not None}
    return Call("GET", "/v1/jobs", _read_page, params)


def cancel_job(job_id: str) -> Call[JobView]:
    return Call("POST", job_path(job_id, "cancel"), _read_job)


def set_webhook(webhook: Webhook) -> Call[WebhookView]:
    headers, body = {"Content-Type": "application/json"}, json.dumps(write_webhook(webhook)).encode()
    return Call(
        "PUT", "/v1/webhook", lambda response: read(response, WebhookView), headers=headers, content=body
    )


def list_deliveries(job_id: str) -> Call[tuple[Delivery, ...]]:
    path = job_path(job_id, "deliveries")
    return Call("GET", path, lambda response: tuple(read(response, DeliveryList).data))


def list_models() -> Call[tuple[ModelCard, ...]]:
    return Call("GET", "/v1/models", lambda response: tuple(read(response, ModelList).data))


def ask_readiness() -> Call[Readiness]:
    return Call("GET", "/readyz", read_readiness)


def fetch(*path: str, job_id: str) -> Call[bytes]:
    """A small file of a job, whole."""
    return Call("GET", job_path(job_id, *path), lambda response: check(response).content)


def _read_job(response: httpx.Response) -> JobView:
    return read(response, JobView)


def _read_page(response: httpx.Response) -> JobPage:
    return read(response, JobPage)

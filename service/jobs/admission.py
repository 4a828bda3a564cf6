"""Checks a request against the model's card and fills in its defaults."""

import math
import secrets
from collections.abc import Mapping
from typing import Final

from anyio import to_thread
from PIL.Image import Image

from api_schemas.catalog import ModelCard
from api_schemas.disk import estimate_disk
from api_schemas.errors import FieldError
from api_schemas.events import QueuedData
from api_schemas.generation import MAX_DRAWN_SEED, GenerationRequest, ResolvedRequest
from api_schemas.regions import MaskPart
from api_schemas.stages import lay_stages
from service.catalog import ModelCatalog, Offer
from service.disk_space import DiskSpace
from service.errors import InvalidRequestError, NoModelError, QueueFullError
from service.job_queue import JobQueue
from service.jobs.query_count import count_queries
from service.jobs.sources import FoundSource
from service.jobs.validation import find_misfits
from service.throughput import Throughput
from service.waiting import WaitingCounts

_NO_MODEL_RETRY_S: Final = 5
_UNMEASURED_JOB_S: Final = 30.0


class Admission:
    """Resolves a request, unless it is invalid or the queue is full."""

    def __init__(
        self,
        catalog: ModelCatalog,
        queue: JobQueue,
        throughput: Throughput,
        space: DiskSpace,
        max_queued: int,
    ) -> None:
        self._catalog = catalog
        self._queue = queue
        self._throughput = throughput
        self._space = space
        self._max_queued = max_queued

    async def admit(
        self,
        request: GenerationRequest,
        key_id: str,
        count: int,
        source: FoundSource | None = None,
    ) -> QueuedData:
        """The first event of a new job.

        Args:
            key_id: of the API key that asks; empty where no keys are used.
            count: jobs like it that must have a place, this one included.
            source: the picture that it begins with, which has decided its size.

        Raises:
            NoModelError: no worker has announced a model yet.
            InvalidRequestError: the model does not support this.
            QueueFullError: with the time until a place will be free.
            NoSpaceError: the store's disk has no space for the result.
        """
        offer = await self._read_offer()
        card = _choose(request, offer.cards)
        # Masks on a large canvas take up to a second.
        masked = request.regions or request.source
        data = await to_thread.run_sync(resolve, request, card, source) if masked else resolve(request, card)
        await self._check_capacity(card.name, offer, key_id, count)
        await self._space.require(estimate_disk(data.request, card).store_bytes)
        return data

    async def find_card(self, model: str | None) -> ModelCard:
        """The card of that name, or that of the default model.

        Raises:
            NoModelError: no worker has announced a model yet.
        """
        offer = await self._catalog.read_recent()
        if not offer.cards:
            offer = await self._read_offer()
        return offer.find(model or "") or offer.cards[0]

    async def expect(self, request: GenerationRequest, key_id: str, count: int) -> None:
        """Whether so many like this request could be admitted, before the size of its picture is known.

        Raises:
            NoModelError, InvalidRequestError, QueueFullError: as `admit`.
        """
        offer = await self._read_offer()
        await self._check_capacity(_choose(request, offer.cards).name, offer, key_id, count)

    async def recount(
        self, data: QueuedData, masks: Mapping[MaskPart, Image], source: FoundSource | None
    ) -> QueuedData:
        """The same with the cost of regions, and of what is inpainted, whose masks have been decoded since."""
        request = data.request
        card = _choose(request, (await self._read_offer()).cards)
        stages = lay_stages(card, request)
        size = source and source.size
        queries = await to_thread.run_sync(count_queries, request, card, stages, size, masks)
        return data.model_copy(update={"cost": card.estimate(request, stages, queries)})

    async def _read_offer(self) -> Offer:
        """What is served; of models that no worker has announced the reason is told, if a worker told it."""
        offer = await self._catalog.read()
        if offer.cards:
            return offer
        why = "; ".join(sorted(set((await self._catalog.list_paused()).values())))
        message = f"no worker has announced a model yet{why and f'; paused: {why}'}"
        raise NoModelError(message, retry_after_s=_NO_MODEL_RETRY_S)

    async def _check_capacity(self, model: str, offer: Offer, key_id: str, count: int) -> None:
        counts, most = await self._queue.count(model, key_id), self._max_queued
        excess = find_excess(counts, most, count, shared=bool(key_id))
        if excess <= 0:
            return
        per_job_s = self._throughput.seconds_per_job(model) or _UNMEASURED_JOB_S
        workers = max(1, offer.count_workers(model))
        raise QueueFullError(
            # One key is not told what others do.
            f"the queue of {model} is full: jobs that wait: at most {most}, shared among the API keys that have some"
            if key_id
            else f"the queue of {model} is full: jobs that wait: {counts.listed + counts.waiting}, at most {most}",
            retry_after_s=max(1, math.ceil(excess * per_job_s / workers)),
        )


def find_excess(counts: WaitingCounts, most: int, count: int, *, shared: bool) -> int:
    """Jobs that must leave the queue before `count` more may come, 0 or less if they may at once.

    Args:
        shared: among API keys: one with less than an even share has a place beyond `most`, up to twice as many, so
            that no key fills the queue for all.
    """
    excess = counts.listed + counts.waiting + count - most
    if not shared:
        return excess
    share = max(1, (most - counts.listed) // counts.keys)
    own_excess = (counts.own + count - share) * counts.keys  # keys take turns
    return min(excess, max(own_excess, excess - most))


def resolve(request: GenerationRequest, card: ModelCard, source: FoundSource | None = None) -> QueuedData:
    """Fill in defaults and count the cost.

    Raises:
        InvalidRequestError: names each field, its value and what is allowed.
    """
    stages = lay_stages(card, request)
    misfits = find_misfits(request, card, stages)
    if misfits:
        raise InvalidRequestError(misfits)
    layout, reason = card.choose_layout(request)
    control, control_reason = card.choose_control(request)
    choices = {
        "model": card.name,
        "steps": card.choose_steps(request),
        "guidance_scale": card.choose_guidance_scale(request),
        "layout": layout,
        "layout_reason": reason,
        "control": control and control.model_dump(),
        "control_reason": control_reason,
        "advanced": request.advanced.model_dump()
        | {
            "sync_strength": card.choose_sync_strength(request),
            "guidance_interval": card.choose_guidance_interval(request),
        },
        "source_job": source and source.describe(request, card),
        "seed": secrets.randbelow(MAX_DRAWN_SEED + 1) if request.seed is None else request.seed,
    }
    resolved = ResolvedRequest.model_validate(request.model_dump() | choices)
    masked = resolved.regions or resolved.source
    queries = count_queries(resolved, card, stages, source and source.size) if masked else None
    return QueuedData(request=resolved, cost=card.estimate(resolved, stages, queries))


def _choose(request: GenerationRequest, cards: list[ModelCard]) -> ModelCard:
    if request.model is None:
        return cards[0]
    for card in cards:
        if card.name == request.model:
            return card
    known = ", ".join(card.name for card in cards)
    raise InvalidRequestError(
        [FieldError(field="model", value=request.model[:200], allowed=f"one of: {known}")]
    )

"""Job responses: the record, its queue position and its URLs."""

import time
from collections.abc import Sequence

from api_schemas.answers import JobUrls, JobView
from api_schemas.catalog import ModelCard
from api_schemas.job import Job
from service.catalog import ModelCatalog, Offer
from service.http.signed_urls import LinkSigner
from service.job_queue import JobQueue
from service.throughput import Throughput


class JobViews:
    """Adds the queue position, the estimated time and fresh links to a record."""

    def __init__(
        self,
        queue: JobQueue,
        catalog: ModelCatalog,
        throughput: Throughput,
        links: LinkSigner,
        root_path: str = "",
    ) -> None:
        self._queue = queue
        self._catalog = catalog
        self._throughput = throughput
        self._links = links
        self._root_path = root_path

    async def show(self, job: Job) -> JobView:
        return (await self.show_all([job]))[0]

    async def show_all(self, jobs: Sequence[Job]) -> list[JobView]:
        """However many there are, their positions take one call, and what is served another once a second."""
        queued = [job for job in jobs if job.status == "queued"]
        found = await self._queue.find_positions(queued)
        positions = {job.id: position for job, position in zip(queued, found, strict=True)}
        offer = await self._catalog.read_recent() if queued else None
        return [self._view(job, positions.get(job.id), offer) for job in jobs]

    def _view(self, job: Job, position: int | None, offer: Offer | None) -> JobView:
        eta_s = job.progress.eta_s if job.progress else None
        if job.progress is None and position is not None and offer is not None:
            eta_s = self._estimate(job, position, offer)
        # Every part of it was validated when it was read.
        return JobView.model_construct(
            **dict(job), queue_position=position, eta_s=eta_s, urls=self._urls(job)
        )

    def _estimate(self, job: Job, position: int, offer: Offer) -> float | None:
        model, card = job.request.model, offer.find(job.request.model)
        own_s = _own_seconds(job.cost.work, card)
        waiting = self._throughput.waiting_work(model)
        per_job_s = _own_seconds(waiting, card) or self._throughput.seconds_per_job(model) or own_s
        if per_job_s is None:
            return None
        workers = max(1, offer.count_workers(model))
        left_s = [
            max(0.0, (_own_seconds(work, card) or per_job_s) - (time.time() - started_at))
            for work, started_at in self._throughput.list_running(model)
        ]
        busy_s = sum(left_s) if len(left_s) >= workers else 0.0
        return round((busy_s + position * per_job_s) / workers + (own_s or per_job_s), 1)

    def _urls(self, job: Job) -> JobUrls:
        download = self._root_path + self._links.sign(job.id) if job.result else None
        return JobUrls.below(self._root_path, job.id, download)


def _own_seconds(work: float | None, card: ModelCard | None) -> float | None:
    if work is None or card is None or card.tile_seconds is None:
        return None
    return card.tile_seconds * work

"""Job responses: the record, its queue position and its URLs."""

from collections.abc import Sequence

from anyio import create_task_group

from api_schemas.answers import JobUrls, JobView
from api_schemas.catalog import ModelCard
from api_schemas.job import Job
from service.catalog import ModelCatalog
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
        waits = job.status == "queued"
        position = await self._queue.position(job.id, job.request.model) if waits else None
        return JobView(
            **dict(job),
            queue_position=position,
            eta_s=await self._estimate(job, position),
            urls=self._urls(job),
        )

    async def show_all(self, jobs: Sequence[Job]) -> list[JobView]:
        views: dict[str, JobView] = {}

        async def show_one(job: Job) -> None:
            views[job.id] = await self.show(job)

        async with create_task_group() as group:
            for job in jobs:
                group.start_soon(show_one, job)
        return [views[job.id] for job in jobs]

    async def _estimate(self, job: Job, position: int | None) -> float | None:
        if job.progress is not None:
            return job.progress.eta_s
        if position is None:
            return None
        cards = {card.name: card for card in await self._catalog.list_cards()}
        own_s = _own_seconds(job, cards.get(job.request.model))
        per_job_s = self._throughput.seconds_per_job(job.request.model) or own_s
        if per_job_s is None:
            return None
        workers = max(1, await self._catalog.count_workers(job.request.model))
        return round(position * per_job_s / workers + (own_s or per_job_s), 1)

    def _urls(self, job: Job) -> JobUrls:
        base = f"{self._root_path}/v1/jobs/{job.id}"
        return JobUrls(
            self=base,
            cancel=f"{base}/cancel",
            events=f"{base}/events",
            ws=f"{base}/ws",
            result=f"{base}/image",
            deep_zoom=f"{base}/image.dzi",
            download=self._root_path + self._links.sign(job.id) if job.result else None,
        )


def _own_seconds(job: Job, card: ModelCard | None) -> float | None:
    if card is None or card.tile_seconds is None:
        return None
    return card.tile_seconds * job.cost.tiles

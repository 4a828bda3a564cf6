"""More requests than may be answered at once are refused at once; who only waits takes no place."""

import asyncio
import json

import httpx
import pytest
from redis import Redis
from starlette.types import Message, Receive, Scope, Send

from service.http.shedding import SLOT, SheddingMiddleware
from service.metrics import Metrics
from service.settings import ServiceSettings
from tests.service.conftest import Serve
from tests.story import Story


class Client:
    """One request by hand; `gone` ends it, `answer` is what it got."""

    def __init__(self, app: SheddingMiddleware, path: str = "/v1/jobs", kind: str = "http") -> None:
        self.body = asyncio.Event()
        self.answer: list[Message] = []
        self.scope: Scope = {"type": kind, "path": path, "method": "GET", "headers": []}
        self.task = asyncio.create_task(app(self.scope, self._receive, self._send))

    async def _receive(self) -> Message:
        await self.body.wait()
        return {"type": "http.request", "body": b""}

    async def _send(self, message: Message) -> None:
        self.answer.append(message)

    @property
    def status(self) -> int | None:
        return self.answer[0]["status"] if self.answer else None


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_requests_over_the_limit_are_refused_until_one_is_answered() -> None:
    async def test() -> None:
        done = asyncio.Event()

        async def work(scope: Scope, receive: Receive, send: Send) -> None:
            await done.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.Event().wait()  # a stream that never ends

        app = SheddingMiddleware(work, 2, metrics)
        first = [Client(app) for _ in range(2)]
        await settle()
        refused = [Client(app) for _ in range(5)]
        alive = Client(app, "/healthz")
        await settle()
        assert [client.status for client in refused] == [503] * 5
        assert all((b"retry-after", b"1") in client.answer[0]["headers"] for client in refused)
        assert json.loads(refused[0].answer[1]["body"])["code"] == "service_unavailable"
        done.set()
        await settle()
        assert [client.status for client in (*first, alive)] == [200] * 3
        later = Client(app)
        await settle()
        assert later.status == 200
        assert app.busy == 0

    metrics = Metrics()
    asyncio.run(test())
    assert metrics.registry.get_sample_value("chorale_http_requests_shed_total") == 5


def test_who_waits_for_a_client_or_a_job_takes_no_place() -> None:
    async def test() -> None:
        job = asyncio.Event()

        async def work(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            with scope[SLOT].lent():
                await job.wait()
            assert app.busy == 1
            await send({"type": "http.response.start", "status": 200, "headers": []})

        app = SheddingMiddleware(work, 1, Metrics())
        slow = [Client(app) for _ in range(3)]
        for client in slow:
            await settle()
            assert app.busy == 0  # it sends its body
            client.body.set()
            await settle()
            assert app.busy == 0  # its job runs
        await settle()
        assert [client.status for client in slow] == [None] * 3
        job.set()
        await settle()
        assert [client.status for client in slow] == [200] * 3
        assert app.busy == 0

    asyncio.run(test())


def test_a_request_that_fails_or_is_given_up_leaves_its_place() -> None:
    async def test() -> None:
        async def work(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            raise LookupError

        app = SheddingMiddleware(work, 1, Metrics())
        failing, leaving = Client(app), Client(app)
        failing.body.set()
        await settle()
        leaving.task.cancel()
        await asyncio.wait([failing.task, leaving.task])
        assert isinstance(failing.task.exception(), LookupError)
        assert app.busy == 0

    asyncio.run(test())


def test_handshakes_take_turns_and_connections_take_none() -> None:
    async def test() -> None:
        opening = 0
        most = 0

        async def work(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal opening, most
            opening += 1
            most = max(most, opening)
            await asyncio.sleep(0.001)
            opening -= 1
            await send({"type": "websocket.accept"})
            await asyncio.Event().wait()

        app = SheddingMiddleware(work, 1, Metrics())
        viewers = [Client(app, kind="websocket") for _ in range(200)]
        async with asyncio.timeout(20):
            while not all(viewer.answer for viewer in viewers):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert most <= 32
        assert app.busy == 0

    asyncio.run(test())


def test_a_busy_service_answers_everyone_one_way_or_the_other(
    serve_with: Serve, settings: ServiceSettings, story: Story, redis: Redis
) -> None:
    url = serve_with(settings.model_copy(update={"max_requests": 2}))

    async def post_all() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=60)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(client.post("/v1/jobs", json={}) for _ in range(60)))

    answers = asyncio.run(post_all())
    made = [answer for answer in answers if answer.status_code == 202]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(made) + len(refused) == 60
    assert made
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
    assert all(answer.headers["X-Request-ID"] == answer.json()["request_id"] for answer in refused)
    with httpx.Client(base_url=url) as client:
        listed = client.get("/v1/jobs", params={"limit": 100}).json()["data"]
        assert len(listed) == len(made)
        assert f"chorale_http_requests_shed_total {len(refused)}.0" in client.get("/metrics").text


@pytest.mark.parametrize("limit", [0, -1])
def test_a_service_that_may_answer_nobody_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match="max_requests"):
        ServiceSettings(max_requests=limit)

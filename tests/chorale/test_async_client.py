"""The asyncio client sends and receives the same as the blocking one."""

import asyncio
from pathlib import Path

import pytest
from PIL import Image

from api_schemas.add_ons import IpAdapterSettings
from api_schemas.answers import JobView
from api_schemas.generation import GenerationRequest
from chorale.async_client import AsyncClient
from chorale.client import Client
from chorale.errors import JobEndedError, NoConnectionError, NotFoundError
from chorale.local import LocalStack
from chorale.protocol import Preview, Update
from tests.chorale.cutting_proxy import cutting_proxy

REQUEST = GenerationRequest(prompt="waves", width_px=512, height_px=256, steps=40, seed=5)


def test_one_job_through_all_calls(stack: LocalStack, client: Client, tmp_path: Path) -> None:
    async def follow() -> tuple[str, list[Update], list[Update | Preview]]:
        async with AsyncClient(stack.url) as far:
            job = await far.create(REQUEST)
            live = [each async for each in far.live(job.id)]
            events = [each async for each in far.events(job.id)]
            await far.wait(job.id)
            await far.download(job.id, tmp_path / "async.png")
            await far.download_pyramid(job.id, tmp_path / "async.dzi")
            assert (await far.models())[0].name == "toy"
            assert (await far.readiness()).ready
            assert job.id in {each.id for each in (await far.list(limit=100)).data}
            return job.id, events, live

    job_id, events, live = asyncio.run(follow())
    assert events == list(client.events(job_id))
    assert [each for each in live if not isinstance(each, Preview)] == events
    client.download(job_id, tmp_path / "sync.png")
    client.download_pyramid(job_id, tmp_path / "sync.dzi")
    assert (tmp_path / "async.png").read_bytes() == (tmp_path / "sync.png").read_bytes()
    assert _tiles(tmp_path / "async_files") == _tiles(tmp_path / "sync_files")


def test_a_broken_network_leaves_no_gap_and_no_duplicate(stack: LocalStack, client: Client) -> None:
    async def follow(url: str, job_id: str) -> list[str]:
        async with AsyncClient(url) as far:
            return [update.seq async for update in far.events(job_id)]

    job = client.create(REQUEST)
    with cutting_proxy(stack.url, after_bytes=3000) as (url, cuts):
        received = asyncio.run(follow(url, job.id))
    assert len(cuts) > 3
    assert received == [event.seq for event in client.events(job.id)]


def test_a_tile_that_does_not_come_is_an_error_of_the_client(
    stack: LocalStack, client: Client, tmp_path: Path
) -> None:
    async def fetch(url: str) -> None:
        async with AsyncClient(url) as far:
            await far.download_pyramid(job.id, tmp_path / "cut.dzi")

    job = client.wait(client.create(REQUEST).id)
    with cutting_proxy(stack.url, after_bytes=3000) as (url, _), pytest.raises(NoConnectionError):
        asyncio.run(fetch(url))
    with (
        cutting_proxy(stack.url, after_bytes=3000) as (url, _),
        Client(url) as far,
        pytest.raises(NoConnectionError),
    ):
        far.download_pyramid(job.id, tmp_path / "cut.dzi")
    assert not (tmp_path / "cut.dzi").exists()  # it would say that all tiles are there


def test_pictures_go_along(stack: LocalStack, tmp_path: Path) -> None:
    picture = tmp_path / "me.png"
    Image.new("RGB", (16, 8)).save(picture)
    request = REQUEST.model_copy(update={"ip_adapter": IpAdapterSettings(name="face")})

    async def send() -> JobView:
        async with AsyncClient(stack.url) as far:
            job = await far.create(request, pictures={"ip_adapter_image": picture})
            return await far.cancel(job.id)

    assert asyncio.run(send()).request.pictures["ip_adapter_image"].width_px == 16


def test_refusals_and_silence_are_errors(stack: LocalStack) -> None:
    async def fail() -> None:
        async with AsyncClient(stack.url) as far:
            with pytest.raises(NotFoundError):
                await far.get("0" * 28)
            job = await far.create(REQUEST)
            await far.cancel(job.id)
            with pytest.raises(JobEndedError):
                await far.wait(job.id)
        async with AsyncClient("http://127.0.0.1:1") as nobody:
            with pytest.raises(NoConnectionError):
                await nobody.models()

    asyncio.run(fail())


def _tiles(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}

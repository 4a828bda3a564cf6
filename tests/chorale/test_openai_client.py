"""OpenAI's own client, unmodified, against a whole running stack."""

import asyncio
import base64
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from chorale.client import Client
from chorale.local import LocalStack


@pytest.fixture
def openai(stack: LocalStack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{stack.url}/v1", api_key="none") as openai:
        yield openai


def read(encoded: str | None) -> Image.Image:
    image = Image.open(BytesIO(base64.b64decode(encoded or "")))
    image.load()
    return image


def test_pictures_are_those_of_jobs_that_anyone_sees(openai: OpenAI, client: Client, tmp_path: Path) -> None:
    (model,) = openai.models.list()
    raw = openai.images.with_raw_response.generate(
        model="gpt-image-2.5-sunburst",
        prompt="waves",
        n=2,
        size="320x192",
        quality="low",
        output_format="jpeg",
        output_compression=40,
        background="opaque",
        moderation="low",
        user="someone",
        extra_body={"chorale": {"seed": 7}},
    )
    answer = raw.parse()
    assert (answer.size, answer.quality, answer.output_format, answer.background) == (
        "320x192",
        "low",
        "jpeg",
        "opaque",
    )
    assert answer.safety_identifier == "someone"
    jobs = raw.headers["Chorale-Jobs"].split(", ")
    for job_id, picture, seed in zip(jobs, answer.data, (7, 8), strict=True):
        job = client.get(job_id)
        assert (job.request.seed, job.request.model, job.request.output_quality) == (seed, model.id, 40)
        client.download(job_id, path := tmp_path / f"{job_id}.jpg")
        assert path.read_bytes() == base64.b64decode(picture.b64_json)
    assert answer.created == int(max(client.get(job_id).finished_at for job_id in jobs))
    assert answer.usage.output_tokens >= 1000 * sum(
        client.get(job_id).cost.megapixel_steps for job_id in jobs
    )


def test_what_is_transparent_in_the_mask_is_painted_and_all_else_stays(openai: OpenAI) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (256, 320, 3), np.uint8)
    mask = np.full((256, 320, 4), 255, np.uint8)
    mask[:, :160, 3] = 0
    files = BytesIO(), BytesIO()
    for file, pixels in zip(files, (noise, mask), strict=True):
        Image.fromarray(pixels).save(file, "PNG")
    source, alpha = (file.getvalue() for file in files)
    stream = openai.images.edit(image=source, mask=alpha, prompt="waves", stream=True, partial_images=1)
    *partial, last = stream
    assert {each.type for each in partial} <= {"image_edit.partial_image"}
    assert last.type == "image_edit.completed"
    edited = np.asarray(read(last.b64_json))
    assert (edited[:, 160:] == noise[:, 160:]).all()
    assert (edited[:, :120] != noise[:, :120]).any(axis=2).mean() > 0.9


def test_events_show_the_canvas_in_the_format_asked_for(openai: OpenAI) -> None:
    events = list(
        openai.images.generate(
            prompt="waves", size="640x512", stream=True, partial_images=2, output_format="webp"
        )
    )
    *partial, last = events
    assert [each.partial_image_index for each in partial] == list(range(len(partial)))
    assert 1 <= len(partial) <= 2
    for each in events:
        picture = read(each.b64_json)
        assert (picture.format, picture.size, each.size) == ("WEBP", (640, 512), "640x512")
    assert last.type == "image_generation.completed"


def test_a_link_leads_to_the_picture_without_a_key(stack: LocalStack) -> None:
    async def ask() -> str | None:
        async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none") as openai:
            answer = await openai.images.generate(prompt="waves", size="320x192", response_format="url")
            return answer.data[0].url if answer.data else None

    with Image.open(BytesIO(httpx.get(asyncio.run(ask()) or "").content)) as picture:
        assert (picture.format, picture.size) == ("PNG", (320, 192))

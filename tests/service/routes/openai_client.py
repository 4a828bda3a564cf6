"""OpenAI's own client, and what its tests need of jobs and pictures."""

import hashlib
import time
from io import BytesIO
from pathlib import Path

from obstore.store import LocalStore
from openai import OpenAI
from PIL import Image

from api_schemas.events import Result
from api_schemas.wire import JOBS_KEY
from tests.story import Story


def draw(mode: str = "RGB", size: tuple[int, int] = (320, 256), kind: str = "PNG") -> bytes:
    file = BytesIO()
    Image.new(mode, size).save(file, kind)
    return file.getvalue()


SOURCE = ("a.png", draw())


def connect(url: str, **choices: object) -> OpenAI:
    return OpenAI(**({"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0} | choices))


def find_jobs(story: Story, count: int = 1) -> list[str]:
    """Wait for so many jobs, oldest first."""
    deadline = time.monotonic() + 20
    while len(found := story.redis.zrange(JOBS_KEY, 0, -1)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return [job_id.decode() for job_id in found]


def finish(story: Story, store_dir: Path, job_id: str, picture: bytes) -> None:
    key, request = f"jobs/{job_id}/one", story.job(job_id).request
    LocalStore(store_dir).put(f"{key}/image.png", picture)
    result = Result(
        image_key=f"{key}/image.png",
        pyramid_key=key,
        media_type="image/png",
        width_px=request.width_px,
        height_px=request.height_px,
        size_bytes=len(picture),
        sha256=hashlib.sha256(picture).hexdigest(),
        engine_s=1.0,
    )
    story.start(job_id)
    story.succeed(job_id, result)


def end_in_failure(story: Story, job_id: str) -> None:
    story.start(job_id)
    story.fail(job_id)

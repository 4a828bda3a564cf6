"""A request's events as OpenAI's clients read them: pictures of the unfinished canvas, then the picture."""

import json
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from io import BytesIO
from typing import Final, Literal

from anyio import to_thread
from obstore.exceptions import BaseError as StoreError
from PIL import Image
from redis.exceptions import RedisError

from api_schemas.job import Job
from api_schemas.pyramid import Window
from service.errors import ServiceError
from service.images.deep_zoom import Pixels, PreviewCanvas
from service.messages import EventMessage
from service.openai_api.answers import Answers
from service.openai_api.usage import count_usage
from service.openai_api.waiting import Waiting

Kind = Literal["image_generation", "image_edit"]
_LONGEST_PX: Final = 1024  # of a picture of the unfinished canvas, whose previews are no sharper
_PARTIAL_QUALITY: Final = 85
_STILL_HERE: Final = b": still here\n\n"


@dataclass(frozen=True, slots=True)
class ImageEvents:
    """Writes the server-sent events of one request.

    No event has an id: OpenAI's clients would take the empty line behind each later comment for one more event.
    """

    kind: Kind
    answers: Answers
    previews: PreviewCanvas
    waiting: Waiting
    ping_interval_s: float
    describe: Callable[[Exception], bytes]

    async def write_all(self, jobs: Sequence[Job]) -> AsyncGenerator[bytes]:
        """One picture after the other; what fails is the last event."""
        yield _STILL_HERE  # so that the client has an answer at once
        try:
            for job in jobs:
                async for piece in self._write_one(job):
                    yield piece
        except (ServiceError, RedisError, StoreError, OSError) as error:
            yield b"event: error\ndata: " + self.describe(error) + b"\n\n"

    async def _write_one(self, job: Job) -> AsyncGenerator[bytes]:
        async for piece in self._write_progress(job):
            yield piece
        ended, result = await self.waiting.read_end(job.id)
        await self.waiting.require_key()
        said = {
            "type": f"{self.kind}.completed",
            "created_at": int(time.time()),
            **await self.answers.describe(ended, result),
            "usage": count_usage([ended]).model_dump(),
        }
        if self.answers.asked.response_format == "url":
            said["b64_json"] = ""  # its type requires one
        before = f"event: {said['type']}\ndata: "
        async for piece in self.answers.write_picture(said, ended, result, before):
            yield piece
        yield b"\n\n"

    async def _write_progress(self, job: Job) -> AsyncGenerator[bytes]:
        """Until the job has ended: partial pictures, and comments that keep the connection open."""
        sent, reached, told_at = 0, 0, time.monotonic()
        async with aclosing(self.waiting.follow(job, None)) as messages:
            async for message in messages:
                due = self._count_due(message) if isinstance(message, EventMessage) else 0
                if due > reached and (partial := await self._draw(job, sent)):
                    sent, reached = sent + 1, due
                    yield partial
                elif time.monotonic() - told_at < self.ping_interval_s:
                    continue
                else:
                    yield _STILL_HERE
                told_at = time.monotonic()

    def _count_due(self, message: EventMessage) -> int:
        """How many partial pictures there should be by now; they divide the steps evenly."""
        if message.type != "step.completed":
            return 0
        data = json.loads(message.text)["data"]
        wanted = self.answers.asked.partial_images
        return min(wanted, int(data["step"] * (wanted + 1) / data["steps"]))

    async def _draw(self, job: Job, index: int) -> bytes | None:
        """The whole canvas as it is now; None if nothing of it was shown yet."""
        request, asked = job.request, self.answers.asked
        pixels = await self.previews.draw(job.id, fit_window(request.width_px, request.height_px))
        if pixels is None:
            return None
        picture = await to_thread.run_sync(_encode, pixels, asked.output_format)
        said = {
            "type": f"{self.kind}.partial_image",
            "partial_image_index": index,
            "created_at": int(time.time()),
            "size": f"{request.width_px}x{request.height_px}",
            "quality": asked.chosen_quality,
            "background": "opaque",
            "output_format": asked.output_format,
            "b64_json": b64encode(picture).decode(),
        }
        return f"event: {said['type']}\ndata: {json.dumps(said)}\n\n".encode()


def fit_window(width_px: int, height_px: int) -> Window:
    """The whole of a picture, reduced to what its previews show."""
    scale = min(1.0, _LONGEST_PX / max(width_px, height_px))
    width, height = (max(1, round(side * scale)) for side in (width_px, height_px))
    return Window(0, 0, width_px, height_px, width, height)


def _encode(pixels: Pixels, kind: Literal["png", "webp", "jpeg"]) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=_PARTIAL_QUALITY)
    return file.getvalue()

"""Writes finished pictures into answers piece by piece: ten of them in JSON would be more than a process may hold."""

import json
import struct
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from obstore.exceptions import BaseError as StoreError
from pydantic import BaseModel, ConfigDict, Field

from api_schemas.events import Result
from api_schemas.job import Job
from service.image_store import ImageStore
from service.openai_api.long_response import Body, BreakOffError
from service.openai_api.parameters import ImageParameters, Quality
from service.openai_api.usage import Usage, count_usage

Background = Literal["transparent", "opaque"]
_HEAD_BYTES: Final = 32
_PNG_ALPHA: Final = (4, 6)  # colour types, PNG specification, 11.2.1
_WEBP_ALPHA: Final = 0x10  # of VP8X (RFC 9649, 2.7)


class Picture(BaseModel):
    """One finished picture."""

    model_config = ConfigDict(frozen=True)

    b64_json: str | None = None
    url: str | None = None


class ImagesAnswer(BaseModel):
    """All pictures of a request."""

    model_config = ConfigDict(frozen=True)

    created: int = Field(description="Unix time at which the last of them was finished.")
    background: Background
    output_format: Literal["png", "webp", "jpeg"]
    quality: Quality
    size: str
    usage: Usage
    safety_identifier: str | None = None
    data: list[Picture]


@dataclass(frozen=True, slots=True)
class Answers:
    """Writes the answers to one request.

    Args:
        link: the absolute address of a job's picture, which expires.
    """

    images: ImageStore
    asked: ImageParameters
    link: Callable[[Job], str]

    async def write_all(self, pictures: Sequence[tuple[Job, Result]]) -> Body:
        """The body of an `ImagesAnswer`.

        Raises:
            ResultExpiredError, ResultDamagedError: a picture is not stored as it was made.
        """
        for _, result in pictures:
            await self.images.require(result.image_key, result.size_bytes)
        jobs = [job for job, _ in pictures]
        head = await self.describe(*pictures[0]) | {"usage": count_usage(jobs).model_dump()}
        head["created"] = int(max(job.finished_at or job.created_at for job in jobs))
        return lambda: self._write(head, pictures)

    async def describe(self, job: Job, result: Result) -> dict[str, object]:
        """What is said of a picture, or of several that are alike."""
        said: dict[str, object] = {
            "background": await self._find_background(result),
            "output_format": self.asked.output_format,
            "quality": self.asked.chosen_quality,
            "size": f"{job.request.width_px}x{job.request.height_px}",
        }
        caller = self.asked.caller
        return said | ({"safety_identifier": caller} if caller else {})

    async def write_picture(
        self, said: dict[str, object], job: Job, result: Result, before: str = ""
    ) -> AsyncGenerator[bytes]:
        """A JSON object on one line: what is said, and the picture or its link.

        Args:
            before: comes first, once the picture was found.

        Raises:
            BreakOffError: the store fails after something was written.
        """
        if self.asked.response_format == "url":
            yield (before + json.dumps(said | {"url": self.link(job)})).encode()
            return
        pieces = await self.images.stream(result.image_key, 0, result.size_bytes, result.size_bytes)
        begun = json.dumps(said).removesuffix("}")
        yield (before + begun + (", " if said else "") + '"b64_json": "').encode()
        try:
            async for piece in encode_base64(pieces):
                yield piece
        except (StoreError, OSError) as error:
            raise BreakOffError from error
        yield b'"}'

    async def _write(
        self, head: dict[str, object], pictures: Sequence[tuple[Job, Result]]
    ) -> AsyncGenerator[bytes]:
        yield (json.dumps(head).removesuffix("}") + ', "data": [').encode()
        for index, (job, result) in enumerate(pictures):
            if index:
                yield b", "
            async for piece in self.write_picture({}, job, result):
                yield piece
        yield b"]}"

    async def _find_background(self, result: Result) -> Background:
        """An edited picture keeps the alpha that it came with."""
        if self.asked.output_format == "jpeg":
            return "opaque"
        pieces = await self.images.stream(
            result.image_key, 0, min(_HEAD_BYTES, result.size_bytes), result.size_bytes
        )
        return "transparent" if has_alpha(b"".join([piece async for piece in pieces])) else "opaque"


def has_alpha(head: bytes) -> bool:
    """Whether a PNG or WebP that begins like this has an alpha channel."""
    if head.startswith(b"\x89PNG"):
        return head[25] in _PNG_ALPHA
    if head[12:16] == b"VP8L":  # RFC 9649, 3.4: after a signature and two sides of 14 bits
        return bool(struct.unpack_from("<I", head, 21)[0] >> 28 & 1)
    return head[12:16] == b"VP8X" and bool(head[20] & _WEBP_ALPHA)


async def encode_base64(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Of all pieces together."""
    rest = b""
    async for piece in pieces:
        whole = len(rest + piece) // 3 * 3
        yield b64encode((rest + piece)[:whole])
        rest = (rest + piece)[whole:]
    if rest:
        yield b64encode(rest)

"""Pictures sent with requests: each is decoded in a sandboxed subprocess before anything in it is trusted."""

import os
import signal
import struct
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from io import SEEK_END, BytesIO
from pathlib import Path
from subprocess import PIPE
from typing import IO, Final

from anyio import CapacityLimiter, fail_after, run_process

from api_schemas.errors import FieldError
from api_schemas.generation import PicturePart, SentPicture
from api_schemas.job import Job
from api_schemas.regions import MaskPart
from api_schemas.wire import input_key
from service.errors import InvalidRequestError, ResultExpiredError, UnavailableError
from service.image_store import ImageStore
from service.images.masks import MASK_PARTS
from service.images.received import ReceivedPicture, open_scratch

_AT_ONCE: Final = 2  # of them one large picture
_MOST_WAITING: Final = 50
_NO_SPACE: Final = 2  # exit code of the decoder
_CPU_S: Final = 60
_PATIENCE_S: Final = 120
_RETRY_AFTER_S: Final = 60
_INTERPRETER_BYTES: Final = 512 << 20
_BYTES_PER_PIXEL: Final = 17  # of a WebP: two canvases of its decoder, the frame and the picture
_PNG_SIZE: Final = struct.Struct(">16xII")
# The decoder gets only these variables: it needs none of the secrets in the environment.
_INHERITED: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG")


@dataclass(frozen=True, slots=True)
class CleanPicture:
    """A PNG that the decoder has written, and, of a mask, its summary."""

    file: IO[bytes]
    mask: bytes

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), pixels."""
        self.file.seek(0)
        width_px, height_px = _PNG_SIZE.unpack(self.file.read(_PNG_SIZE.size))
        return width_px, height_px

    @property
    def size_bytes(self) -> int:
        return self.file.seek(0, SEEK_END)


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pictures that jobs which are alike have in common, decoded for the first of them.

    Args:
        opened: closes their files.
    """

    opened: ExitStack
    pictures: dict[PicturePart, CleanPicture] = field(default_factory=dict[PicturePart, CleanPicture])


class Uploads:
    """Decodes pictures, encodes them as PNG and stores them for the worker.

    Args:
        megapixels: the most that a picture may have.
        folder: where pictures are meanwhile.
        patience_s: how long one may be decoded, however little of the CPU it gets.
    """

    def __init__(
        self, images: ImageStore, megapixels: float, folder: Path, patience_s: float = _PATIENCE_S
    ) -> None:
        self._images = images
        self._megapixels = megapixels
        self._folder = folder
        self._patience_s = patience_s
        self._limiter = CapacityLimiter(_AT_ONCE)
        self._turn: IO[bytes] | None = None

    @asynccontextmanager
    async def clean(
        self, files: Mapping[PicturePart, ReceivedPicture], shared: Decoded | None = None
    ) -> AsyncGenerator[dict[PicturePart, CleanPicture]]:
        """Decode all pictures of a job, and encode them as PNG, which are there until the block ends.

        Args:
            shared: has them for this job and others; what it lacks is decoded and added.

        Raises:
            InvalidRequestError: names the part that is no picture, or too large a one.
            UnavailableError: the machine is too busy to decode it, or its disk full.
        """
        with ExitStack() as opened:
            decoded = shared or Decoded(opened)
            for part, file in files.items():
                if part not in decoded.pictures:
                    decoded.pictures[part] = await self._clean(part, file, decoded.opened)
            yield decoded.pictures

    async def inherit(
        self, job_id: str, parent: Job, parts: Sequence[PicturePart]
    ) -> dict[PicturePart, SentPicture]:
        """Store pictures of another job for one that is not yet on record.

        Raises:
            ResultExpiredError: one is no longer stored.
        """
        for part in parts:
            await self._images.put(input_key(job_id, part), BytesIO(await self._read(parent, part)))
        return {part: parent.request.pictures[part] for part in parts}

    @asynccontextmanager
    async def sum_up(
        self, parent: Job, masks: Sequence[MaskPart]
    ) -> AsyncGenerator[dict[PicturePart, CleanPicture]]:
        """Masks of another job, as `clean` gives those that are sent.

        Raises:
            ResultExpiredError: one is no longer stored.
            UnavailableError: the machine is too busy to decode it, or its disk full.
        """
        with ExitStack() as opened:
            files: dict[PicturePart, ReceivedPicture] = {}
            for part in masks:
                files[part] = self._write(await self._read(parent, part), opened)
            async with self.clean(files) as cleaned:
                yield cleaned

    async def _read(self, job: Job, part: PicturePart) -> bytes:
        png = await self._images.read(input_key(job.id, part))
        if png is None:
            raise ResultExpiredError(f"the picture {part} of job {job.id} is no longer stored")
        return png

    def _write(self, png: bytes, opened: ExitStack) -> ReceivedPicture:
        try:
            file = opened.enter_context(open_scratch(self._folder))
            file.write(png)
            file.flush()
        except OSError as error:
            raise _no_space(error.strerror or "") from error
        return ReceivedPicture(file, len(png), sha256="")

    async def keep(
        self,
        job_id: str,
        files: Mapping[PicturePart, ReceivedPicture],
        cleaned: Mapping[PicturePart, CleanPicture],
    ) -> dict[PicturePart, SentPicture]:
        """Store all pictures of a job that is not yet on record.

        Args:
            files: as they were sent; `cleaned`: what `clean` made of them.
        """
        sent: dict[PicturePart, SentPicture] = {}
        for part, picture in cleaned.items():
            await self._images.put(input_key(job_id, part), picture.file)
            width_px, height_px = picture.size
            sent[part] = SentPicture(
                sha256=files[part].sha256,
                width_px=width_px,
                height_px=height_px,
                size_bytes=picture.size_bytes,
            )
        return sent

    async def _clean(self, part: PicturePart, picture: ReceivedPicture, opened: ExitStack) -> CleanPicture:
        if self._limiter.statistics().tasks_waiting >= _MOST_WAITING:
            raise UnavailableError("too many pictures wait to be decoded", retry_after_s=_RETRY_AFTER_S)
        try:
            async with self._limiter:
                png = opened.enter_context(open_scratch(self._folder))
                with open_scratch(self._folder) as mask:
                    code, words = await self._decode(part, picture, png, mask)
                    summary = mask.read()
        except OSError as error:
            raise _no_space(error.strerror or "") from error
        if code == 0:
            return CleanPicture(png, summary)
        if code == _NO_SPACE:
            raise _no_space(words)
        value, allowed = f"{picture.size_bytes} bytes", _explain(code, words)
        raise InvalidRequestError([FieldError(field=part, value=value, allowed=allowed)])

    async def _decode(
        self, part: PicturePart, picture: ReceivedPicture, png: IO[bytes], mask: IO[bytes]
    ) -> tuple[int, str]:
        """Exit code of the decoder and the last that it said; the alpha of a source is kept, a mask is summed up."""
        self._turn = self._turn or open_scratch(self._folder)
        memory_bytes = _INTERPRETER_BYTES + int(_BYTES_PER_PIXEL * self._megapixels * 1e6)
        asked = ["alpha"] if part == "source_image" else [mask.fileno()] if part in MASK_PARTS else []
        asked += ["by-alpha"] if picture.marks_by_alpha else []
        command = [sys.executable, "-m", "service.images.decoder"]
        command += map(str, (self._megapixels, memory_bytes, _CPU_S, self._turn.fileno(), *asked))
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        picture.file.seek(0)
        try:
            with fail_after(self._patience_s):
                done = await run_process(
                    command,
                    stdin=picture.file,
                    stdout=png,
                    stderr=PIPE,
                    check=False,
                    env=environment,
                    pass_fds=[self._turn.fileno(), mask.fileno()],
                )
        except TimeoutError as error:
            why = f"the machine is busy: a picture could not be decoded within {self._patience_s:g} s"
            raise UnavailableError(why, retry_after_s=_RETRY_AFTER_S) from error
        mask.seek(0)  # the decoder has moved the end that both share
        return done.returncode, (done.stderr or b"").decode(errors="replace")[-300:].strip().rpartition("\n")[
            2
        ]


def _no_space(words: str) -> UnavailableError:
    return UnavailableError(f"pictures cannot be taken in: {words}", retry_after_s=_RETRY_AFTER_S)


def _explain(code: int, words: str) -> str:
    if code == 1:
        return words
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"a picture that can be decoded within {_CPU_S} s"
    return "a whole picture; this one crashes its decoder"

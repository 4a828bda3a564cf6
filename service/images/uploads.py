"""Pictures sent with requests: each is decoded in a sandboxed subprocess before anything in it is trusted."""

import os
import signal
import struct
import sys
from collections.abc import Mapping, Sequence
from subprocess import PIPE
from typing import Final

from anyio import CapacityLimiter, fail_after, run_process

from api_schemas.errors import FieldError
from api_schemas.generation import PicturePart, SentPicture
from api_schemas.job import Job
from api_schemas.wire import input_key
from service.errors import InvalidRequestError, ResultExpiredError, UnavailableError
from service.image_store import ImageStore

_AT_ONCE: Final = 2
_CPU_S: Final = 60
_PATIENCE_S: Final = 120
_RETRY_AFTER_S: Final = 60
_INTERPRETER_BYTES: Final = 512 << 20
_BYTES_PER_PIXEL: Final = (
    24  # of a WebP: two canvases of its decoder, the frame, the picture, turned, and sRGB
)
_PNG_SIZE: Final = struct.Struct(">16xII")
# The decoder gets only these variables: it needs none of the secrets in the environment.
_INHERITED: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG")


class Uploads:
    """Decodes pictures, encodes them as PNG and stores them for the worker.

    Args:
        megapixels: the most that a picture may have.
        patience_s: how long one may be decoded, however little of the CPU it gets.
    """

    def __init__(self, images: ImageStore, megapixels: float, patience_s: float = _PATIENCE_S) -> None:
        self._images = images
        self._megapixels = megapixels
        self._patience_s = patience_s
        self._limiter = CapacityLimiter(_AT_ONCE)

    async def clean(self, files: Mapping[PicturePart, bytes]) -> dict[PicturePart, bytes]:
        """Decode all pictures of a job, and encode them as PNG.

        Raises:
            InvalidRequestError: names the part that is no picture, or too large a one.
            UnavailableError: the machine is too busy to decode it.
        """
        return {part: await self._clean(part, file) for part, file in files.items()}

    async def fetch(self, parent: Job, parts: Sequence[PicturePart]) -> dict[PicturePart, bytes]:
        """Pictures of another job, as `clean` has made them.

        Raises:
            ResultExpiredError: one is no longer stored.
        """
        found: dict[PicturePart, bytes] = {}
        for part in parts:
            png = await self._images.read(input_key(parent.id, part))
            if png is None:
                raise ResultExpiredError(f"the picture {part} of job {parent.id} is no longer stored")
            found[part] = png
        return found

    async def keep(
        self, job_id: str, cleaned: Mapping[PicturePart, bytes], digests: Mapping[PicturePart, str]
    ) -> dict[PicturePart, SentPicture]:
        """Store all pictures of a job that is not yet on record.

        Args:
            cleaned: what `clean` made of them; `digests`: of the files as they were sent.
        """
        sent: dict[PicturePart, SentPicture] = {}
        for part, png in cleaned.items():
            await self._images.put(input_key(job_id, part), png)
            width_px, height_px = read_size(png)
            sent[part] = SentPicture(sha256=digests[part], width_px=width_px, height_px=height_px)
        return sent

    async def _clean(self, part: PicturePart, file: bytes) -> bytes:
        async with self._limiter:
            code, png, words = await self._decode(file)
        if code == 0:
            return png
        allowed = _explain(code, words)
        raise InvalidRequestError([FieldError(field=part, value=f"{len(file)} bytes", allowed=allowed)])

    async def _decode(self, file: bytes) -> tuple[int, bytes, str]:
        memory_bytes = _INTERPRETER_BYTES + int(_BYTES_PER_PIXEL * self._megapixels * 1e6)
        command = [sys.executable, "-m", "service.images.decoder"]
        command += [str(self._megapixels), str(memory_bytes), str(_CPU_S)]
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        try:
            with fail_after(self._patience_s):
                done = await run_process(
                    command, input=file, stdout=PIPE, stderr=PIPE, check=False, env=environment
                )
        except TimeoutError as error:
            why = f"the machine is busy: a picture could not be decoded within {self._patience_s:g} s"
            raise UnavailableError(why, retry_after_s=_RETRY_AFTER_S) from error
        return done.returncode, done.stdout, done.stderr.decode(errors="replace")[-300:]


def read_size(png: bytes) -> tuple[int, int]:
    """(width, height), pixels, of what `Uploads.clean` has made."""
    width_px, height_px = _PNG_SIZE.unpack_from(png)
    return width_px, height_px


def _explain(code: int, words: str) -> str:
    if code == 1:
        return words.strip().rpartition("\n")[2]  # libraries may have written lines before
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"a picture that can be decoded within {_CPU_S} s"
    return "a whole picture; this one crashes its decoder"

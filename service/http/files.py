"""One picture as an HTTP answer: whole, in part, or unchanged."""

import re

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api_schemas.events import Result
from service.errors import RangeNotSatisfiableError
from service.image_store import ImageStore


async def send_file(
    request: Request, images: ImageStore, result: Result, *, name: str, inline: bool
) -> Response:
    """Answer GET or HEAD, with ranges and validators (RFC 9110).

    Raises:
        RangeNotSatisfiableError: the range begins after the end.
        ResultExpiredError: the store no longer has it.
        ResultDamagedError: what it has is of another size: the digest of every answer would cost too much.
    """
    headers = _headers(result, name, inline)
    if _matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    part = parse_range(_wanted_range(request, headers["ETag"]), result.size_bytes)
    start, end = part or (0, result.size_bytes)
    headers["Content-Length"] = str(end - start)
    if part:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{result.size_bytes}"
    status = 206 if part else 200
    if request.method == "HEAD":
        await images.require(result.image_key, result.size_bytes)
        return Response(status_code=status, headers=headers, media_type=result.media_type)
    body = await images.stream(result.image_key, start, end, result.size_bytes)
    return StreamingResponse(body, status, headers, media_type=result.media_type)


def _headers(result: Result, name: str, inline: bool) -> dict[str, str]:
    extension = result.image_key.rpartition(".")[2]
    kind = "inline" if inline else "attachment"
    return {
        "ETag": f'"{result.sha256}"',
        "Accept-Ranges": "bytes",
        # The picture of a job never changes, but it is not everybody's.
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": f'{kind}; filename="{name}.{extension}"',
    }


def _wanted_range(request: Request, etag: str) -> str | None:
    """The Range header, unless If-Range says that the client's part is of another picture."""
    condition = request.headers.get("if-range")
    return request.headers.get("range") if condition in (None, etag) else None


def _matches(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    offered = [each.strip().removeprefix("W/") for each in header.split(",")]
    return "*" in offered or etag in offered


_FORM = re.compile(r"bytes=\s*([0-9]{0,19})-([0-9]{0,19})\s*")


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(start, exclusive end), or None where the whole file is to be sent.

    What is no single range of bytes is ignored, as the RFC allows.

    Raises:
        RangeNotSatisfiableError: the range begins after the end.
    """
    match = _FORM.fullmatch(header or "")
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        return _suffix(int(last), size)
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size:
        raise RangeNotSatisfiableError(size)
    return start, min(int(last) + 1, size) if last else size


def _suffix(length: int, size: int) -> tuple[int, int]:
    if length == 0 or size == 0:
        raise RangeNotSatisfiableError(size)
    return max(0, size - length), size

"""The head of a request and its trailers, which the parser holds whole: how large they may be."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from api_schemas.errors import Problem

MOST_BYTES: Final = 64 * 1024  # of the line, of all headers, of all trailers: other servers take 8 to 64 KiB
_FIELD_BYTES: Final = 4  # colon, space and line end


@dataclass(slots=True)
class HeadSize:
    """Bytes of what is being read: `line` and `fields` as the parser hands them on, `unparsed` what it holds back."""

    line: int = 0
    fields: int = 0
    unparsed: int = 0

    def begin(self) -> None:
        """The next request begins, or the next part of it."""
        self.line = self.fields = self.unparsed = 0

    def add_line(self, piece: bytes) -> None:
        self.line, self.unparsed = self.line + len(piece), 0

    def add_field(self, name: bytes, value: bytes) -> None:
        self.fields, self.unparsed = self.fields + len(name) + len(value) + _FIELD_BYTES, 0

    def find_excess(self) -> HTTPStatus | None:
        """The status that says what is too large."""
        if self.line > MOST_BYTES:
            return HTTPStatus.REQUEST_URI_TOO_LONG
        if self.fields + self.unparsed > MOST_BYTES:
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        return None


class HeadTooLargeError(Exception):
    """Ends the parser's work on what it was given."""


def write_refusal(status: HTTPStatus, headers: list[tuple[bytes, bytes]]) -> bytes:
    """A whole answer, made where no application can be asked.

    Args:
        headers: of every answer.
    """
    what = "its address" if status is HTTPStatus.REQUEST_URI_TOO_LONG else "its headers or trailers"
    detail = f"the request is refused: {what} may have {MOST_BYTES} bytes"
    problem = Problem(
        title=status.phrase, status=status, detail=detail, code="invalid_request", request_id="-"
    )
    body = problem.model_dump_json().encode()
    own = [
        (b"content-type", b"application/problem+json"),
        (b"cache-control", b"no-store"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
    lines += [name + b": " + value for name, value in [*headers, *own]]
    return b"\r\n".join([*lines, b"", body])

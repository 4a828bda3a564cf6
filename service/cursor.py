"""Cursors of the job list, opaque to clients."""

import base64
import binascii

from api_schemas.errors import FieldError
from service.errors import InvalidRequestError


def write_cursor(position: tuple[float, str]) -> str:
    created_at, job_id = position
    return base64.urlsafe_b64encode(f"{created_at!r} {job_id}".encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[float, str]:
    """Inverse of `write_cursor`.

    Raises:
        InvalidRequestError: this is no cursor of ours.
    """
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        created_at, job_id = text.split(" ")
        position = float(created_at), job_id
    except (binascii.Error, ValueError):
        position = None
    if position is None or not position[0] < float("inf") or not position[0] >= 0:
        allowed = "what `next` of a page said"
        raise InvalidRequestError([FieldError(field="cursor", value=ascii(cursor)[:200], allowed=allowed)])
    return position

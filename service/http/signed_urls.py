"""Signed download links that need no credentials and expire."""

import hashlib
import hmac
import time

from pydantic import SecretStr

from service.errors import ForbiddenError


class LinkSigner:
    """HMAC-SHA256 over job id and expiry time, for stores that cannot sign addresses themselves."""

    def __init__(self, secret: SecretStr, lifetime_s: int) -> None:
        self._secret = secret.get_secret_value().encode()
        self._lifetime_s = lifetime_s

    def sign(self, job_id: str) -> str:
        """A path on this server."""
        expires = int(time.time()) + self._lifetime_s
        return f"/v1/files/{job_id}?expires={expires}&signature={self._signature(job_id, expires)}"

    def check(self, job_id: str, expires: int, signature: str) -> None:
        """Check a link.

        Raises:
            ForbiddenError: the link was altered or is over.
        """
        expected = self._signature(job_id, expires)
        if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
            raise ForbiddenError("the signature does not fit this link")
        if expires < time.time():
            raise ForbiddenError("this link has expired; GET the job for a new one")

    def _signature(self, job_id: str, expires: int) -> str:
        return hmac.new(self._secret, f"{job_id}\n{expires}".encode(), hashlib.sha256).hexdigest()

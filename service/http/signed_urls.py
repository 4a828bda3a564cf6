"""Signed download links that need no credentials and expire."""

import hashlib
import time

from itsdangerous import Signer
from pydantic import SecretStr

from service.errors import ForbiddenError


class LinkSigner:
    """HMAC-SHA256 over job id and expiry time, for stores that cannot sign addresses themselves."""

    def __init__(self, secret: SecretStr, lifetime_s: int) -> None:
        self._signer = Signer(
            secret.get_secret_value(), salt="chorale.download", digest_method=hashlib.sha256
        )
        self._lifetime_s = lifetime_s

    def sign(self, job_id: str) -> str:
        """A path on this server."""
        expires = int(time.time()) + self._lifetime_s
        signature = self._signer.get_signature(f"{job_id}\n{expires}").decode()
        return f"/v1/files/{job_id}?expires={expires}&signature={signature}"

    def check(self, job_id: str, expires: int, signature: str) -> None:
        """Check a link.

        Raises:
            ForbiddenError: the link was altered or is over.
        """
        if not self._signer.verify_signature(f"{job_id}\n{expires}", signature):
            raise ForbiddenError("the signature does not fit this link")
        if expires < time.time():
            raise ForbiddenError("this link has expired; GET the job for a new one")

"""One POST to an address that is allowed: resolved once, and the connection goes to what was found allowed then."""

import asyncio
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Final, cast

import httpcore
import httpx

from service.settings import Network
from service.webhooks.errors import UndeliveredError
from service.webhooks.targets import may_reach

_MAX_ANSWER_BYTES: Final = 16 * 1024
_CONNECT_S: Final = 5.0  # to one address of several
_ANSWER_S: Final = 2.0  # for the body, after the status, which alone counts


class WebhookClient:
    """Obeys no proxy of the environment, which would resolve names by itself, and follows no redirect.

    Args:
        networks: allowed beside public addresses, and without TLS.
        timeout_s: for all of a POST, from the name to the status.
    """

    def __init__(self, networks: Sequence[Network], timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._networks = networks
        self._tls = httpx.create_ssl_context()  # SSL_CERT_FILE names other authorities

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """The status of the answer.

        Raises:
            UndeliveredError: there was none.
        """
        try:
            async with asyncio.timeout(self.timeout_s):
                return await self._post(httpx.URL(url), headers, body)
        except (TimeoutError, httpcore.TimeoutException) as error:
            raise UndeliveredError(f"no answer within {self.timeout_s:g} s") from error
        except httpx.InvalidURL as error:
            raise UndeliveredError("the URL is not valid") from error
        except (httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
            raise UndeliveredError("the answer is not HTTP") from error
        except (httpcore.NetworkError, OSError) as error:
            raise UndeliveredError(_describe(error)) from error

    async def _post(self, url: httpx.URL, headers: Mapping[str, str], body: bytes) -> int:
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        backend = _AllowedAddresses(self._networks, is_plain=url.scheme == "http")
        # TLS is with the name in the URL, whatever address it has.
        async with (
            httpcore.AsyncConnectionPool(
                ssl_context=self._tls, network_backend=backend, max_keepalive_connections=0
            ) as pool,
            pool.stream("POST", target, headers=list(headers.items()), content=body) as response,
        ):
            with suppress(TimeoutError, httpcore.NetworkError, httpcore.ProtocolError):
                async with asyncio.timeout(_ANSWER_S):
                    await _drain(response)
            return response.status


class _AllowedAddresses(httpcore.AsyncNetworkBackend):
    """Connects to addresses of a name, of those that are allowed."""

    def __init__(self, networks: Sequence[Network], *, is_plain: bool) -> None:
        self._networks = networks
        self._is_plain = is_plain
        self._backend = cast(httpcore.AsyncNetworkBackend, httpcore.AnyIOBackend())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (httpcore's signature)
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """
        Raises:
            UndeliveredError: none is allowed, which looks as if there were none: names inside are not told.
        """
        failure: Exception = UndeliveredError("the host has no public address")
        for address in await self._resolve(host, port):
            try:
                wait_s = timeout or _CONNECT_S
                return await self._backend.connect_tcp(address, port, wait_s, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def _resolve(self, host: str, port: int) -> list[str]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return []
        addresses = dict.fromkeys(ip_address(str(each[4][0])) for each in found)
        return [str(each) for each in addresses if may_reach(each, self._networks, is_plain=self._is_plain)]


async def _drain(response: httpcore.Response) -> None:
    """Read the answer, so that the receiver can end it in peace; never more than a little."""
    received = 0
    async for piece in response.aiter_stream():
        received += len(piece)
        if received > _MAX_ANSWER_BYTES:
            return


def _describe(error: BaseException) -> str:
    """In words without addresses."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"TLS: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {cause.reason}"
        cause = cause.__cause__ or cause.__context__
    return "the connection was refused or broke"

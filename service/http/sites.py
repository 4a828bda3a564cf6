"""Which web sites may use this server through their visitors' browsers."""

import re
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service.errors import ForbiddenError
from service.http.problems import answer
from service.settings import ServiceSettings

_SAFE: Final = ("GET", "HEAD", "OPTIONS", "TRACE")  # RFC 9110, 9.2.1
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^\s:/?#@\[\]]+)(?::([0-9]{0,5}))?")
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}


def install(app: FastAPI, settings: ServiceSettings) -> None:
    """Surround an app; the last one added is the outermost."""
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["*"],
            allow_private_network=True,
        )
    app.add_middleware(SiteMiddleware, settings=settings)


class SiteMiddleware:
    """Refuses what the pages of other sites make browsers send.

    The host must be one of ours: a name that an attacker points at this machine (DNS rebinding) makes pages of
    his look like our own. Whatever changes something, and every WebSocket, must come from our own page or from an
    allowed origin, by what the browser says in Sec-Fetch-Site and Origin. Programs such as curl say neither.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        trusted = list(settings.forwarded_allow_ips)
        self._proxied = ProxyHeadersMiddleware(app, "*" if "*" in trusted else trusted)  # pyright: ignore[reportArgumentType]
        self._hosts = name_hosts(settings)
        self._origins = frozenset(settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            refusal = self._check(scope)
            if refusal is not None:
                return await answer(scope, ForbiddenError(refusal))(scope, receive, send)
        await self._proxied(scope, receive, send)  # pyright: ignore[reportArgumentType]

    def _check(self, scope: Scope) -> str | None:
        """Why it is refused, if it is; else `Host` is the one that the browser has in its address bar."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host") or [""]
        if len(hosts) > 1:  # who reads the other one sees another server; RFC 9112, 3.2
            return "a request has one Host"
        if "x-forwarded-host" in headers and (scope.get("client") or ("",))[0] in self._proxied.trusted_hosts:
            hosts.append(headers["x-forwarded-host"].partition(",")[0].strip())
        for host in hosts:  # both: a page of a rebound name may send any header
            if not is_own_host(host, self._hosts):
                return f"the host {host[:100]!a} is not this server's; its operator may add it to CHORALE_ALLOWED_HOSTS"
        if len(hosts) > 1:
            MutableHeaders(scope=scope)["host"] = hosts[-1]
        return self._check_page(scope, headers, hosts[-1])

    def _check_page(self, scope: Scope, headers: Headers, host: str) -> str | None:
        if scope["type"] == "http" and scope["method"] in _SAFE:
            return None
        origin = headers.get("origin")
        if origin in self._origins or is_own_page(headers, host):
            return None
        return (
            f"pages of {(origin or 'another site')[:100]!a} may not use this server;"
            " its operator may add them to CHORALE_ALLOWED_ORIGINS"
        )


def name_hosts(settings: ServiceSettings) -> frozenset[str]:
    """All names of this server that are no addresses."""
    own = socket.gethostname().lower()
    names = (settings.host, "localhost", "*.localhost", own, f"{own}.local", *settings.allowed_hosts)
    return frozenset(name.lower() for name in names)


def is_own_host(host: str, names: Iterable[str]) -> bool:
    """Whether a `Host` header is for this server. An address is, whatever its port: it cannot be rebound.

    So is none at all, which no browser sends.
    """
    match = _HOST.fullmatch(host.lower())
    if match is None:
        return not host
    name = match[1].strip("[]").rstrip(".")
    return _is_address(name) or any(_fits(name, pattern) for pattern in names)


def is_own_page(headers: Headers, host: str) -> bool:
    """Whether a page of ours makes a browser send this, by what the browser says; programs say nothing.

    Args:
        host: that the browser has in its address bar.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    return origin is None or is_same_origin(origin, host)


def is_same_origin(origin: str, host: str) -> bool:
    """Whether an `Origin` has the host and the port of a `Host` header.

    The scheme may differ: a proxy in front may end TLS and not say so.
    """
    scheme, _, page = origin.lower().partition("://")  # urlsplit raises ValueError for some
    here, there, port = _HOST.fullmatch(host.lower()), _HOST.fullmatch(page), _DEFAULT_PORTS.get(scheme)
    if here is None or there is None or port is None:
        return False
    return (here[1], here[2] or port) == (there[1], there[2] or port)


def _fits(name: str, pattern: str) -> bool:
    return pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True

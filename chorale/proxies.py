"""The proxy that the environment names for an address: one rule for HTTP and for WebSockets."""

import re
from ipaddress import ip_address, ip_network
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from api_schemas.addresses import has_place
from chorale.errors import ProxyError

_LOGIN = re.compile(r"(?<=://).*@")  # no password in a message
_RETRIES = 2  # of connecting only, so nothing is done twice


class AsyncTransport(httpx.AsyncBaseTransport):
    """Connects to each host directly or through its proxy, also when redirected from one to another."""

    def __init__(self) -> None:
        self._routes: dict[str | None, httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        proxy = find_proxy(str(request.url))
        if proxy not in self._routes:
            self._routes[proxy] = httpx.AsyncHTTPTransport(proxy=proxy, retries=_RETRIES)
        return await self._routes[proxy].handle_async_request(request)

    async def aclose(self) -> None:
        for route in self._routes.values():
            await route.aclose()


class Transport(httpx.BaseTransport):
    """The same, blocking."""

    def __init__(self) -> None:
        self._routes: dict[str | None, httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        proxy = find_proxy(str(request.url))
        if proxy not in self._routes:
            self._routes[proxy] = httpx.HTTPTransport(proxy=proxy, retries=_RETRIES)
        return self._routes[proxy].handle_request(request)

    def close(self) -> None:
        for route in self._routes.values():
            route.close()


def find_proxy(url: str) -> str | None:
    """HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, by the scheme of the address; None connects directly.

    So it does to this machine, whatever the environment says, and to what NO_PROXY lists: hosts, domains, networks.

    Raises:
        ProxyError: it is no HTTP proxy.
    """
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or _is_near(parts, proxies.get("no", "")):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not _is_usable(proxy):
        raise ProxyError(
            f"the environment's proxy {_LOGIN.sub('', proxy)} cannot be used; allowed is http(s)://host:port or"
            f" http(s)://user:password@host:port, and NO_PROXY={parts.hostname} connects without one"
        )
    return proxy


def _is_near(url: SplitResult, no_proxy: str) -> bool:
    host = url.hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return bool(proxy_bypass(url.netloc.rpartition("@")[2]))
    near = address.is_loopback or address.is_unspecified
    networks = [word.strip() for word in no_proxy.split(",") if "/" in word]
    return near or any(_holds(network, host) for network in networks) or bool(proxy_bypass(host))


def _holds(network: str, address: str) -> bool:
    try:
        return ip_address(address) in ip_network(network, strict=False)
    except ValueError:
        return False


def _is_usable(proxy: str) -> bool:
    if not has_place(proxy):
        return False
    parts = urlsplit(proxy)
    has_half_a_login = parts.username is not None and parts.password is None
    return parts.scheme in ("http", "https") and not has_half_a_login

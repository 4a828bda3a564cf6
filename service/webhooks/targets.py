"""Where webhooks may go: to public addresses, and into networks that the operator has listed."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

import httpx

from service.settings import Network

Address = IPv4Address | IPv6Address

# Last labels by which browsers and resolvers take a host for an IPv4 address, 0x7f.1 and 017700000001 too.
_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?", re.IGNORECASE)
_NAME: Final = re.compile(r"[a-z0-9._-]+")
_MAX_PORT: Final = 65_535
_GLOBAL_UNICAST: Final = ip_network("2000::/3")
_NAT64: Final = ip_network("64:ff9b::/96")
# Beside what Python counts as private: IETF assignments (192.0.0.192 is Oracle's metadata server), relays to
# 6to4, and Azure's metadata server, which has a public address.
_NOT_PUBLIC_IPV4: Final = tuple(map(ip_network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")))
# IETF assignments with Teredo, documentation, and 6to4, whose addresses hold any IPv4 address.
_NOT_PUBLIC_IPV6: Final = tuple(
    map(ip_network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16"))
)


def may_reach(address: Address, networks: Sequence[Network], *, is_plain: bool) -> bool:
    """Whether a webhook may go to an address.

    Args:
        networks: that the operator has listed.
        is_plain: without TLS, for which the address has to be in one of them.
    """
    address = _unwrap(address)
    if any(address in network for network in networks):
        return True
    return not is_plain and _is_public(address)


def find_misfit(url: str, networks: Sequence[Network]) -> str | None:
    """What is allowed, where the form of a URL is refused; to which address its name leads is seen at delivery."""
    try:
        parts = httpx.URL(url)
        host = parts.raw_host.decode().lower()
    except (httpx.InvalidURL, UnicodeError):
        return "a URL, as in https://receiver.example/hook"
    is_plain = parts.scheme == "http"
    if parts.scheme not in ("http", "https") or not host or not _is_port(parts.port):
        return "a URL of the scheme https, as in https://receiver.example/hook"
    if parts.userinfo:
        return "a URL without a name and password: receivers know the service by its signature"
    if is_plain and not networks:
        return "https; without TLS only into networks that the operator lists in CHORALE_WEBHOOK_NETWORKS"
    return _find_host_misfit(host, networks, is_plain)


def _is_port(port: int | None) -> bool:
    return port is None or 0 < port <= _MAX_PORT


def _find_host_misfit(host: str, networks: Sequence[Network], is_plain: bool) -> str | None:
    try:
        address = ip_address(host)
    except ValueError:
        if not _NAME.fullmatch(host):
            return "a host name of letters, digits, dots and dashes"
        if _NUMBER.fullmatch(host):
            return "an IPv4 address in the usual form, as in 203.0.113.7"
        is_local = host.rstrip(".") == "localhost" or host.rstrip(".").endswith(".localhost")
        return _PUBLIC if is_local and not networks else None
    return None if may_reach(address, networks, is_plain=is_plain) else _PUBLIC


_PUBLIC: Final = "a public address, or one in a network that the operator lists in CHORALE_WEBHOOK_NETWORKS"


def _unwrap(address: Address) -> Address:
    """The IPv4 address to which packets for an IPv6 address go (RFC 4291, 2.5.5.2; RFC 6052)."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        listed = any(address in network for network in _NOT_PUBLIC_IPV4)
        return address.is_global and not address.is_multicast and not listed
    return address in _GLOBAL_UNICAST and not any(address in network for network in _NOT_PUBLIC_IPV6)

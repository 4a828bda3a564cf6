"""Addresses in settings: what the libraries that take them would fail on later, with a traceback."""

import re
from typing import Annotated, Final
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator

_REDIS: Final = "redis://host:port/number, rediss://… or unix:///path"
_WEB: Final = "http:// or https:// with a host, and a port up to 65535 where one is needed, as in https://store.example:9000"


def has_place(url: str) -> bool:
    """Whether it names a host, and no port that cannot be."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # no number, above 65535, or brackets of IPv6 that do not match
        return False


def check_redis(url: str) -> str:
    """
    Raises:
        ValueError: it is none; the message says what is allowed.
    """
    if re.search(r"\s", url) or not (_is_socket(url) or _is_server(url)):
        raise ValueError(_REDIS)
    return url


def _is_socket(url: str) -> bool:
    return bool(re.fullmatch(r"unix://[^/?#]*/[^?#]+(\?[^#]*)?", url)) and _has_number(url, default="")


def _is_server(url: str) -> bool:
    is_one = re.fullmatch(r"rediss?://[^#]+", url) and has_place(url)
    return bool(is_one) and _has_number(url, default=urlsplit(url).path)


def _has_number(url: str, default: str) -> bool:
    """The number of a database, or none; anything else is the first database to redis-py."""
    number = dict(parse_qsl(urlsplit(url).query)).get("db", default.strip("/"))
    return number == "" or (number.isascii() and number.isdigit())


def _check_web(url: str) -> str:
    if not re.fullmatch(r"https?://[^\s#]+", url) or not has_place(url):
        raise ValueError(_WEB)
    return url


RedisAddress = Annotated[str, AfterValidator(check_redis)]
WebAddress = Annotated[str, AfterValidator(_check_web)]

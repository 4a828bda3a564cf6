"""`python -m service.preflight`: why the API and webhooks would refuse to start here, told without starting them."""

import socket
import sys

from pydantic import ValidationError

from api_schemas.settings import RefusedSettingsError, describe_refused, print_refusal
from service.keys.bind import lacks_keys
from service.settings import ServiceSettings


def read_settings() -> ServiceSettings:
    """From the environment.

    Raises:
        RefusedSettingsError: one is refused, or the address to bind is: it is not of this machine, or open to others without keys.
    """
    try:
        settings = ServiceSettings()
    except ValidationError as error:
        raise RefusedSettingsError(*describe_refused(error, ServiceSettings)) from error
    _try_address(settings.host)
    if not settings.is_loopback() and lacks_keys(settings.redis_url):
        why = f"CHORALE_HOST={settings.host} is open to the network, and there is no API key yet:"
        raise RefusedSettingsError(
            f"{why} make one by `chorale keys create NAME`, with `--data` as given to `chorale up`, or bind 127.0.0.1"
        )
    return settings


def _try_address(host: str) -> None:
    """At any port: one that is taken may be free again later."""
    try:
        for family, kind, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as probe:
                probe.bind(address)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise RefusedSettingsError(f"CHORALE_HOST={host} cannot be bound: {why}") from error


if __name__ == "__main__":
    sys.exit(print_refusal(read_settings))

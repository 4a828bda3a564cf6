"""The API process: how it is started and ends."""

import gc
import os
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from api_schemas.settings import RefusedSettingsError, refuse, spare_loopback, tell_doubts
from service import logs
from service.app import create_app
from service.http.connections import (
    ConnectionLimits,
    bind_limits,
    fit_connections,
    raise_descriptor_limit,
)
from service.live.hub import LiveHub
from service.preflight import read_settings
from service.settings import ServiceSettings

_SHUTDOWN_S = 10
_KEEP_ALIVE_S = 75
# Of every answer, those of failures too: no page may frame ours, and what we say is what it is.
_SAFETY_HEADERS = [
    ("Content-Security-Policy", "frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
]
_GARBAGE_THRESHOLDS = 20_000, 20, 20


def main() -> None:
    """Run until SIGTERM or Ctrl-C, with settings from the environment; exit code 2 if these are refused.

    The reason is also written to the file that CHORALE_REFUSAL_FILE names, for whoever has started this.
    """
    logs.set_up()
    spare_loopback(os.environ)
    try:
        settings = read_settings()
    except RefusedSettingsError as error:
        sys.exit(refuse(str(error)))
    tell_doubts(settings)
    raise_descriptor_limit(settings.max_connections)
    app = create_app(settings)
    _collect_garbage_less_often()
    _Server(app, settings).run()


def _collect_garbage_less_often() -> None:
    """Of what 2,000 sockets hold almost nothing is garbage: looking through it took a third of the process's time."""
    gc.freeze()
    gc.set_threshold(*_GARBAGE_THRESHOLDS)


class _Server(uvicorn.Server):
    """Ends all event streams at the first signal, so that shutdown does not wait for clients."""

    def __init__(self, app: FastAPI, settings: ServiceSettings) -> None:
        super().__init__(server_config(app, settings))
        self._hub: LiveHub = app.state.hub

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._hub.close()
        super().handle_exit(sig, frame)


def server_config(app: FastAPI, settings: ServiceSettings) -> uvicorn.Config:
    """How uvicorn is run."""
    limits = ConnectionLimits(
        fit_connections(settings.max_connections),
        receive_s=settings.receive_timeout_s,
        send_s=settings.send_timeout_s,
        metrics=app.state.services.metrics,
    )
    return uvicorn.Config(
        app,
        http=bind_limits(limits),
        host=settings.host,
        port=settings.port,
        ws="websockets-sansio",
        # JPEG does not shrink, and deflating each message for each viewer would cost most of a core.
        ws_per_message_deflate=False,
        ws_max_size=64 * 1024,
        timeout_graceful_shutdown=_SHUTDOWN_S,
        # Longer than clients and proxies keep idle connections: else both end them at the same moment,
        # and a request that is just being sent gets lost (uvicorn's 5 s are also httpx's).
        timeout_keep_alive=_KEEP_ALIVE_S,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # see http/sites.py
        headers=_SAFETY_HEADERS,
    )


if __name__ == "__main__":
    main()

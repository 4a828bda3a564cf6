"""Counts and times requests by route, not by path, so that job ids create no series."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics


class RequestMetricsMiddleware:
    """The route is known once the router has run, which is before the first byte of the response."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began = time.perf_counter()

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._observe(scope, str(message["status"]), time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, send_counted)

    def _observe(self, scope: Scope, status: str, seconds: float) -> None:
        route = str(getattr(scope.get("route"), "path", "unmatched"))
        self._metrics.requests.labels(scope["method"], route, status).inc()
        self._metrics.request_s.labels(route).observe(seconds)

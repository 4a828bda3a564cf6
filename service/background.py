"""What runs beside the requests for as long as the process does, each task kept alive by itself."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from anyio import create_task_group

from service.metrics import Metrics

_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 10.0
_SOUND_S: Final = 5.0
log = logging.getLogger(__name__)

Run = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class _State:
    """`trouble` is what ended the task last, until it has run for a while since."""

    trouble: str = ""
    started_at: float | None = None

    def is_sound(self) -> bool:
        runs = self.started_at is not None and time.monotonic() - self.started_at >= _SOUND_S
        return not self.trouble or runs


class Background:
    """Starts a task again when it ends, later and later while it goes on failing; the others do not notice."""

    def __init__(self, metrics: Metrics, tasks: Mapping[str, Run]) -> None:
        self._metrics = metrics
        self._tasks = dict(tasks)
        self._states = {name: _State() for name in tasks}
        for name in tasks:
            metrics.background_restarts.labels(name)
            metrics.background_up.labels(name).set_function(lambda name=name: self._states[name].is_sound())

    async def run(self) -> None:
        """Run all until cancelled."""
        async with create_task_group() as group:
            for name, run in self._tasks.items():
                group.start_soon(self._keep_alive, name, run)

    def list_troubles(self) -> dict[str, str]:
        """What ended those that failed and have not run soundly since."""
        return {name: state.trouble for name, state in self._states.items() if not state.is_sound()}

    async def _keep_alive(self, name: str, run: Run) -> None:
        state, wait_s = self._states[name], _FIRST_WAIT_S / 2
        while True:
            state.started_at = time.monotonic()
            try:
                await run()
                state.trouble = "ended"
            except Exception as error:
                log.exception("background task %s failed", name)
                state.trouble = f"failed with {type(error).__name__}; the log says more"
            ran_s, state.started_at = time.monotonic() - state.started_at, None
            wait_s = _FIRST_WAIT_S if ran_s >= _SOUND_S else min(2 * wait_s, _LONGEST_WAIT_S)
            await asyncio.sleep(wait_s)
            self._metrics.background_restarts.labels(name).inc()

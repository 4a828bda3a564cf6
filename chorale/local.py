"""The whole stack on one machine: queue server, API, webhooks and workers, as supervised processes."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Event, Thread
from types import TracebackType

from api_schemas.answers import Readiness
from chorale.append_only_file import mend_for_start, remember_run
from chorale.client import Client
from chorale.data_folder import DataFolder
from chorale.errors import ChoraleError, PartFailedError, UnwritableError
from chorale.interrupts import raise_if_interrupted
from chorale.part import Death, Part, find_pause
from chorale.preflight import check_parts, free_port, require_port, write_host
from chorale.queue_server import answers

_LOOK_S = 0.2
_READY_S = (
    3600.0  # for downloading a large model, or reading it from a slow disk; a failed part is noticed earlier
)
_WEBHOOKS_IN_S = 3.0
_MOST_DEATHS = 5  # in a row, of one part
_STOP_S = 90.0  # longer than any part gives itself
_OWN_HOSTS = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class StackOptions:
    """Options of a stack.

    Args:
        port: 0 takes any free one.
        workers: per model.
        root_path: below which a proxy serves it; None: as the environment says.
        for_ever: never give up a part that dies, only one that refuses to start.
    """

    host: str = "127.0.0.1"
    port: int = 0
    models: tuple[str, ...] = ()
    devices: str | None = None
    workers: int = 1
    root_path: str | None = None
    for_ever: bool = False


class LocalStack:
    """Runs between `with` and the end of its block, and leaves no process behind.

    >>> with LocalStack(DataFolder(Path("data")), StackOptions()) as stack:
    ...     stack.await_ready()
    ...     Client(stack.url).create(GenerationRequest(prompt="moss"))

    Raises:
        AlreadyRunningError: another stack uses the data folder.
        PortTakenError: the port is in use.
        DamagedQueueError: the queue's log is damaged, and its operator has to decide.
        PartFailedError: the queue server was given up.
        RefusedStartError: a part would refuse its settings.
        UnwritableError: the data directory has no space for a start.

    Args:
        report: told of each part that died, and when it starts again.
    """

    def __init__(
        self, folder: DataFolder, options: StackOptions, report: Callable[[str], None] = lambda _: None
    ) -> None:
        self._folder = folder
        self._options = options
        self._report = report
        self._was_ready = False
        self._port = options.port or free_port(options.host)
        self.url = f"http://{write_host(options.host)}:{self._port}"
        self._closing = ExitStack()
        self._stop = Event()
        self._failure: PartFailedError | None = None
        self._parts: list[Part] = []
        self._watcher = Thread(target=self._watch, name="watch-parts", daemon=True)

    def __enter__(self) -> "LocalStack":
        with ExitStack() as starting:
            starting.enter_context(self._folder.hold(self.url))
            require_port(self._options.host, self._port)
            starting.callback(self._end)
            self._start()
            self._closing = starting.pop_all()
        return self

    @property
    def folder(self) -> Path:
        """The data directory."""
        return self._folder.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def check(self) -> None:
        """
        Raises:
            PartFailedError: a part was given up.
            KeyboardInterrupt: the command was interrupted.
        """
        raise_if_interrupted()
        if self._failure is not None:
            raise self._failure

    def await_ready(self, report: Callable[[str], None] = lambda _: None) -> Readiness:
        """Wait until a job posted now would run, reporting what is missing.

        Raises:
            PartFailedError: a part was given up, or it takes too long.
        """
        deadline = time.monotonic() + _READY_S
        with Client(self.url) as client:
            while self._options.for_ever or time.monotonic() < deadline:
                self.check()
                readiness = _ask(client)
                if readiness is not None and self._serves_all(readiness):
                    self._was_ready = True
                    return readiness
                report(_describe(readiness) or f"loading the model (log: {self._folder.log('worker-1')})")
                time.sleep(_LOOK_S)
        raise PartFailedError(f"not ready after {_READY_S:.0f} s; logs are in {self._folder.log('').parent}")

    def _start(self) -> None:
        environment = dict(self._environment())
        for doubt in self._check_settings(environment):
            self._report(doubt)
        if not os.environ.get("CHORALE_REDIS_URL"):
            path = self._folder.socket()
            if not answers(path):
                self._mend_queue()
            environment["CHORALE_REDIS_URL"] = f"unix://{path}"
            arguments = (str(self._folder.queue), str(path), str(self._folder.parts_lock))
            self._await_queue(self._add("queue", ("chorale.queue_server", *arguments), {}, None), path)
            remember_run(self._folder.queue)
            if self._options.host not in _OWN_HOSTS:
                self._check_settings(environment)  # whether there are API keys is known now
        lock = ("--lock", str(self._folder.parts_lock))
        probe = ("--probe", f"{self.url}/healthz")
        self._add("service", ("service.main",), environment, (*lock, *probe))
        webhooks = ("service.webhooks.main",)
        # Later than the parts that a job waits for: while it starts, it takes the cores from them.
        self._add("webhooks", webhooks, environment, lock, start_in_s=_WEBHOOKS_IN_S)
        chosen = self._models() * self._options.workers
        environment |= self._share_cores(len(chosen))
        for number, model in enumerate(chosen, start=1):
            self._add(f"worker-{number}", ("worker.main",), environment | model, lock)
        self._watcher.start()

    def _check_settings(self, environment: Mapping[str, str]) -> list[str]:
        """Before parts are started, which takes them seconds; answers what is doubtful.

        Raises:
            RefusedStartError: one would refuse to start.
        """
        workers = [("worker", {**environment, **model}) for model in self._models()]
        typed = {
            "CHORALE_HOST": self._options.host,
            "CHORALE_MODEL": self._options.models or None,
            "CHORALE_DEVICES": self._options.devices,
            "CHORALE_ROOT_PATH": self._options.root_path,
        }
        names = [name for name, value in typed.items() if value is not None]
        return check_parts([("service", environment), *workers], names)

    def _mend_queue(self) -> None:
        """For ever, where the stack is to run for ever: somebody may make space."""
        for tried in count(1):
            self.check()
            try:
                return mend_for_start(self._folder.queue, self._report)
            except UnwritableError as error:
                if not self._options.for_ever:
                    raise
                self._report(f"{error}; tried again in {find_pause(tried):g} s")
                time.sleep(find_pause(tried))

    def _await_queue(self, queue: Part, path: Path) -> None:
        while not answers(path):
            self._look_after(queue)
            self.check()
            time.sleep(0.05)

    def _share_cores(self, workers: int) -> dict[str, str]:
        """Let threads of torch that wait sleep: spinning, they take the cores from other workers (54 s for 11 s).

        Fewer threads for each would do as well, but their number changes the last bits of a picture.
        """
        devices = self._options.devices or os.environ.get("CHORALE_DEVICES", "")
        ranks = workers * len(devices.split(","))
        return {} if ranks == 1 or "OMP_WAIT_POLICY" in os.environ else {"OMP_WAIT_POLICY": "PASSIVE"}

    def _models(self) -> list[dict[str, str]]:
        """Environment variables for each model; without a choice, the present environment decides."""
        return [{"CHORALE_MODEL": model} for model in self._options.models] or [{}]

    def _serves_all(self, readiness: Readiness) -> bool:
        """Where API keys are required, and CHORALE_API_KEY has none with the scope admin, the models are not told."""
        are_all = not readiness.models or len(readiness.models) >= len(set(self._options.models))
        return readiness.ready and are_all

    def _add(
        self,
        name: str,
        arguments: tuple[str, ...],
        environment: Mapping[str, str],
        guard: tuple[str, ...] | None,
        start_in_s: float = 0.0,
    ) -> Part:
        part = Part(name, arguments, environment, self._folder.log(name), guard)
        self._parts.append(part)
        if start_in_s:
            part.start_in(start_in_s)
        else:
            part.start()
        return part

    def _environment(self) -> Mapping[str, str]:
        chosen = {"CHORALE_DEVICES": self._options.devices, "CHORALE_ROOT_PATH": self._options.root_path}
        fixed = {
            "CHORALE_HOST": self._options.host,
            "CHORALE_PORT": str(self._port),
            "CHORALE_WORK_DIR": str(self._folder.work),
        }
        defaults = {
            "CHORALE_MODELS_FILE": str(self._folder.models_file),
            "CHORALE_STORE_URL": self._folder.store.as_uri(),
            "CHORALE_LINK_SECRET": self._folder.link_secret(),
            "TORCHINDUCTOR_CACHE_DIR": str(self._folder.work / "compiled"),
        }
        return {
            # Set to nothing is not set, as for the parts themselves.
            **{name: value for name, value in defaults.items() if not os.environ.get(name)},
            **{name: value for name, value in chosen.items() if value is not None},
            **fixed,
        }

    def _watch(self) -> None:
        while self._failure is None and not self._stop.wait(_LOOK_S):
            for part in self._parts:
                self._look_after(part)

    def _look_after(self, part: Part) -> None:
        death = part.look_after()
        if death is None:
            return
        if self._gives_up(death):
            self._failure = PartFailedError(f"{death.text} (log: {part.log})")
        else:
            self._report(f"{death.text}; starts again in {death.pause_s:g} s (log: {part.log})")

    def _gives_up(self, death: Death) -> bool:
        """What ran once may run again, when what it refuses has been mended."""
        if death.refused and not self._was_ready:
            return True
        return not self._options.for_ever and death.in_a_row >= _MOST_DEATHS

    def _end(self) -> None:
        """Workers first, while they can still record in the queue where they stopped; the queue server last."""
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join()
        queue = [part for part in self._parts if part.name == "queue"]
        for group in ([part for part in self._parts if part not in queue], queue):
            for part in group:
                part.ask_to_stop()
            for part in group:
                if trouble := part.await_end(_STOP_S):
                    self._report(f"{trouble} (log: {part.log})")


def _ask(client: Client) -> Readiness | None:
    try:
        return client.readiness()
    except ChoraleError:
        return None


def _describe(readiness: Readiness | None) -> str:
    """What is missing but a model that is loaded."""
    if readiness is None:
        return "starting the API"
    started_here = ("workers", "webhooks")
    wrong = [part.message for part in readiness.parts if not part.ready and part.name not in started_here]
    if wrong or readiness.paused:
        return "; ".join([*wrong, *dict.fromkeys(readiness.paused.values())])
    return ""

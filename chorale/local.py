"""The whole stack on one machine: queue server, API and workers, as supervised processes."""

import errno
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from types import TracebackType

from api_schemas.answers import Readiness
from chorale.client import Client
from chorale.data_folder import DataFolder
from chorale.errors import ChoraleError, PartFailedError, PortTakenError, StackError
from chorale.part import Part
from chorale.queue_server import answers

_LOOK_S = 0.2
_READY_S = (
    3600.0  # for downloading a large model, or reading it from a slow disk; a failed part is noticed earlier
)
_QUEUE_READY_S = 60.0
_STOP_S = 90.0  # longer than any part gives itself
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


@dataclass(frozen=True, slots=True)
class StackOptions:
    """Options of a stack. Port 0 takes any free one; `workers` is per model; `root_path` is the environment's if None."""

    host: str = "127.0.0.1"
    port: int = 0
    models: tuple[str, ...] = ()
    devices: str | None = None
    workers: int = 1
    root_path: str | None = None


class LocalStack:
    """Runs between `with` and the end of its block, and leaves no process behind.

    >>> with LocalStack(DataFolder(Path("data")), StackOptions()) as stack:
    ...     stack.await_ready()
    ...     Client(stack.url).create(GenerationRequest(prompt="moss"))

    Raises:
        AlreadyRunningError: another stack uses the data folder.
        PortTakenError: the port is in use.
    """

    def __init__(self, folder: DataFolder, options: StackOptions) -> None:
        self._folder = folder
        self._options = options
        self._port = options.port or _free_port(options.host)
        self.url = f"http://{_write_host(options.host)}:{self._port}"
        self._closing = ExitStack()
        self._stop = Event()
        self._failure: PartFailedError | None = None
        self._parts: list[Part] = []
        self._watcher = Thread(target=self._watch, name="watch-parts", daemon=True)

    def __enter__(self) -> "LocalStack":
        with ExitStack() as starting:
            starting.enter_context(self._folder.hold(self.url))
            _require_port(self._options.host, self._port)
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
        """
        if self._failure is not None:
            raise self._failure

    def await_ready(self, report: Callable[[str], None] = lambda _: None) -> Readiness:
        """Wait until a job posted now would run, reporting what is missing.

        Raises:
            PartFailedError: a part was given up, or it takes too long.
        """
        deadline = time.monotonic() + _READY_S
        with Client(self.url) as client:
            while time.monotonic() < deadline:
                self.check()
                readiness = _ask(client)
                if readiness is not None and self._serves_all(readiness):
                    return readiness
                report(_describe(readiness))
                time.sleep(_LOOK_S)
        raise PartFailedError(f"not ready after {_READY_S:.0f} s; logs are in {self._folder.log('').parent}")

    def _start(self) -> None:
        environment = dict(self._environment())
        if not os.environ.get("CHORALE_REDIS_URL"):
            path = self._folder.socket()
            environment["CHORALE_REDIS_URL"] = f"unix://{path}"
            queue = self._add(
                "queue", ("chorale.queue_server", str(self._folder.queue), str(path)), {}, False
            )
            _await_queue(queue, path)
        self._add("service", ("service.main",), environment, True)
        for number, chosen in enumerate(self._models() * self._options.workers, start=1):
            self._add(f"worker-{number}", ("worker.main",), environment | chosen, True)
        self._watcher.start()

    def _models(self) -> list[dict[str, str]]:
        """Environment variables for each model; without a choice, the present environment decides."""
        return [{"CHORALE_MODEL": model} for model in self._options.models] or [{}]

    def _serves_all(self, readiness: Readiness) -> bool:
        return readiness.ready and len(readiness.models) >= len(set(self._options.models))

    def _add(
        self, name: str, arguments: tuple[str, ...], environment: Mapping[str, str], guarded: bool
    ) -> Part:
        part = Part(name, arguments, environment, self._folder.log(name), guarded)
        self._parts.append(part)
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
        }
        return {
            # Set to nothing is not set, as for the parts themselves.
            **{name: value for name, value in defaults.items() if not os.environ.get(name)},
            **{name: value for name, value in chosen.items() if value is not None},
            **fixed,
        }

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_S):
            try:
                for part in self._parts:
                    part.look_after()
            except PartFailedError as error:
                self._failure = error
                return

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
                part.await_end(_STOP_S)


def _write_host(host: str) -> str:
    """A bound address as it stands in URLs."""
    reached = _ANY_HOST.get(host, host)
    return f"[{reached}]" if ":" in reached else reached


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise StackError(f"{host} cannot be bound: {error.strerror}") from error
        return probe.getsockname()[1]


def _require_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTakenError(host, port) from error
            raise StackError(f"{host} cannot be bound: {error.strerror}") from error


def _await_queue(queue: Part, path: Path) -> None:
    deadline = time.monotonic() + _QUEUE_READY_S
    while time.monotonic() < deadline:
        queue.look_after()
        if answers(path):
            return
        time.sleep(0.05)
    raise PartFailedError(f"the queue server does not answer (log: {queue.log})")


def _ask(client: Client) -> Readiness | None:
    try:
        return client.readiness()
    except ChoraleError:
        return None


def _describe(readiness: Readiness | None) -> str:
    if readiness is None:
        return "starting the API"
    wrong = [part.message for part in readiness.parts if not part.ready and part.name != "workers"]
    if wrong or readiness.paused:
        return "; ".join([*wrong, *readiness.paused.values()])
    return "loading the model"

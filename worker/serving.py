"""A worker's life: load a model, then run jobs until told to stop."""

import logging
import os
import re
import signal
import socket
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import cast

from redis import Redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from api_schemas import wire
from api_schemas.catalog import ModelCard
from api_schemas.settings import RefusedSettingsError, refuse, spare_loopback, tell_doubts
from api_schemas.stored import UnreadableRecordError, read_card, write_card
from provenance.errors import ProvenanceError
from provenance.manifest import ManifestSigner
from worker.consumer import EngineWorker
from worker.context import JobContext, Limits, Pace
from worker.disk_faults import blame_work_folder
from worker.errors import EngineLostError, ModelRefusedError, ResourceError, WorkerError
from worker.janitor import set_aside
from worker.machine import Machine
from worker.marking import Marking
from worker.native_memory import keep_little
from worker.patience import PatientRetry
from worker.preflight import read_settings
from worker.process.client import EngineProcess
from worker.process.protocol import ModelLoaded, ModelRefused
from worker.settings import WorkerSettings
from worker.sign_of_life import SignOfLife
from worker.storage import Storage
from worker.workdir import open_scratch

_REDIS_RETRIES = 20  # about 15 s, in which a job does not notice that Redis is gone
_LOAD_ATTEMPTS = 3
_SCRATCH_S = 1.0
_WAITING_EXPIRY_S = 5  # of what is said every `_SCRATCH_S`, by one that a successor may replace
_SAY_EVERY_S = 30.0
_log = logging.getLogger(__name__)


def main() -> int:
    """Exit codes: 0 stopped as told, 1 the engine process died while loading, 2 refused settings or model."""
    keep_little()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("pyvips").setLevel(logging.WARNING)  # it reports every thread pool
    spare_loopback(os.environ)
    try:
        settings = read_settings()
    except RefusedSettingsError as error:
        return refuse(str(error))
    tell_doubts(settings)
    try:
        _try_signer(settings)
    except ProvenanceError as error:
        return refuse(f"pictures cannot be signed: {error}")
    stop = _handle_signals()
    with ExitStack() as closing:
        scratch = _await_scratch(settings, stop, closing)
        return 0 if scratch is None else _serve(settings, scratch, stop)


def _open_signer(settings: WorkerSettings) -> ManifestSigner | None:
    certificate, key = settings.provenance_certificate, settings.provenance_key
    if certificate is None or key is None:
        return None
    return ManifestSigner(certificate, key, settings.provenance_timestamp_url)


def _try_signer(settings: WorkerSettings) -> None:
    """Sign a picture of one pixel, without asking for the time.

    Raises:
        ProvenanceError: certificate and key cannot sign; a restart would not help.
    """
    if (signer := _open_signer(settings)) is not None:
        signer.try_out()


def _await_scratch(settings: WorkerSettings, stop: Event, closing: ExitStack) -> Path | None:
    """A folder in the work folder, as soon as that can be written; None if told to stop meanwhile."""
    name, said = _name_worker(), ""
    while not stop.is_set():
        try:
            scratch = closing.enter_context(open_scratch(settings.work_dir, name))
        except OSError as error:
            fault = blame_work_folder(error)
            if str(fault) != said:
                _log.error("waiting: %s (%s)", fault, settings.work_dir)
            said = str(fault)
            _tell_pause(settings, name, fault, stop)
            stop.wait(_SCRATCH_S)
        else:
            if said:
                _tell_pause(settings, name, None, stop)
            return scratch
    return None


def _tell_pause(settings: WorkerSettings, name: str, fault: ResourceError | None, stop: Event) -> None:
    """Where readiness shows it, although there is no model yet."""
    redis = _connect(settings.redis_url, name, 0, stop)
    try:
        SignOfLife(redis, name, settings.lease_s).tell_pause(fault, _WAITING_EXPIRY_S)
    except RedisError as error:
        _log.warning("the queue server: %s", error)
    finally:
        redis.close()


def _serve(settings: WorkerSettings, scratch: Path, stop: Event) -> int:
    with EngineProcess(settings, scratch) as engine:
        if trouble := _find_queue_trouble(settings.redis_url):
            _log.warning("no queue server yet: %s", trouble)
        _log.info("loading the model %s", settings.model)
        try:
            loaded = _load(engine, stop)
        except ModelRefusedError as error:
            return refuse(f"model {settings.model} is refused: {error}")
        except EngineLostError as error:
            _log.error("%s", error)
            return 1
        if loaded is not None:
            _work(settings, engine, loaded, stop, scratch)
    return 0


def _handle_signals() -> Event:
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    return stop


def _name_worker() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _load(engine: EngineProcess, stop: Event) -> ModelLoaded | None:
    """Wait for the model; None if told to stop meanwhile.

    Raises:
        ModelRefusedError: the engine process says why.
        EngineLostError: it died at every attempt.
    """
    for _ in range(_LOAD_ATTEMPTS - 1):
        try:
            return _await_model(engine, stop)
        except EngineLostError:
            _log.exception("loading again")
            engine.restart()
    return _await_model(engine, stop)


def _await_model(engine: EngineProcess, stop: Event) -> ModelLoaded | None:
    while not stop.is_set():
        match engine.receive(0.5):
            case ModelLoaded() as loaded:
                return loaded
            case ModelRefused(reason=reason):
                raise ModelRefusedError(reason)
            case _:
                pass
    return None


def _work(
    settings: WorkerSettings, engine: EngineProcess, loaded: ModelLoaded, stop: Event, scratch: Path
) -> None:
    """Work until told to stop; connect again whenever Redis was gone."""
    pace = Pace(loaded.tile_s, loaded.decode_s)
    while _await_queue_server(settings.redis_url, stop):
        name = _name_worker()  # RQ takes a name once: after trouble with Redis the worker needs a new one
        redis = _connect(settings.redis_url, name, _REDIS_RETRIES, stop)
        try:
            set_aside(redis, wire.index_types([wire.queue_name(loaded.card.name)]))
            card = _publish(redis, loaded)
            context = _make_context(settings, redis, name, engine, card, pace, stop, scratch, loaded.digest)
            _log.info("takes jobs of %s", card.name)
            EngineWorker(context, engine, settings.lease_s).work(logging_level="WARNING")
        except (RedisError, WorkerError):
            _log.exception("the worker starts again")
        finally:
            redis.close()
        stop.wait(1)


def _await_queue_server(url: str, stop: Event) -> bool:
    """Wait until it answers, saying now and then what is missing; False if told to stop meanwhile."""
    said_at = -_SAY_EVERY_S
    while not stop.is_set():
        trouble = _find_queue_trouble(url)
        if trouble is None:
            return True
        if time.monotonic() - said_at >= _SAY_EVERY_S:
            said_at = time.monotonic()
            _log.warning("waiting for the queue server: %s", trouble)
        stop.wait(1)
    return False


def _find_queue_trouble(url: str) -> str | None:
    """Why it does not answer now."""
    try:
        with Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            url, retry=Retry(NoBackoff(), 0), socket_timeout=5, socket_connect_timeout=5
        ) as redis:
            redis.ping()  # pyright: ignore[reportUnknownMemberType]
            return None
    except (RedisError, OSError) as error:
        return f"{_without_secrets(url)}: {error}"


def _without_secrets(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url).partition("?")[0]


def _connect(url: str, name: str, retries: int, stop: Event) -> "Redis":
    return Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
        url,
        client_name=name,
        retry=PatientRetry(ExponentialBackoff(cap=1, base=0.05), retries, stop),
        socket_timeout=15,
        socket_connect_timeout=5,
    )


def _publish(redis: "Redis", loaded: ModelLoaded) -> ModelCard:
    """Tell the service about the model. The first model that any worker serves is the default."""
    cards = cast(dict[bytes, bytes], redis.hgetall(wire.MODELS_KEY))
    others = (_read_card(text) for name, text in cards.items() if name != loaded.card.name.encode())
    is_default = not any(card is not None and card.is_default for card in others)
    card = loaded.card.model_copy(update={"tile_seconds": round(loaded.tile_s, 4), "is_default": is_default})
    redis.hset(wire.MODELS_KEY, card.name, write_card(card))
    return card


def _read_card(text: bytes) -> ModelCard | None:
    """None if it cannot be read, which the service tells."""
    try:
        return read_card(text)
    except UnreadableRecordError:
        return None


def _make_context(
    settings: WorkerSettings,
    redis: "Redis",
    name: str,
    engine: EngineProcess,
    card: ModelCard,
    pace: Pace,
    stop: Event,
    scratch: Path,
    digest: str,
) -> JobContext:
    storage = Storage.open(settings)
    marking = Marking(_open_signer(settings), settings.watermark, digest)
    return JobContext(
        redis=redis,
        storage=storage,
        machine=Machine(scratch, storage, settings.disk_reserve_bytes, marking),
        engine=engine,
        card=card,
        pace=pace,
        marking=marking,
        limits=Limits(
            settings.stall_timeout_s,
            settings.storage_patience_s,
            settings.max_attempts,
            settings.drain_timeout_s,
        ),
        worker=name,
        work_dir=scratch,
        stop=stop,
        cancel=Event(),
        renew_lease=lambda: None,
    )

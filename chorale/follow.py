"""One job on the command line, from its start to its file."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Final

from rich.console import Console

from api_schemas.answers import JobView
from chorale.bar import show_progress
from chorale.client import Client
from chorale.errors import ChoraleError, NoConnectionError, NoWebSocketError
from chorale.plain_text import show
from chorale.protocol import Preview, Update
from chorale.server_options import open_notes

_LOOK_S: Final = 5.0


def follow_job(client: Client, job: JobView, path: Path, *, dzi: bool = False) -> None:
    """Follow a job to its end and download its picture."""
    console = open_notes()
    try:
        _announce(console, client.url, job)
        with telling_why_it_waits(console, client, job):
            show_progress(console, _follow(client, job.id))
            client.wait(job.id)
    except (KeyboardInterrupt, NoConnectionError) as error:
        hint = f"stopped following; if the server keeps running, cancel with: chorale cancel {job.id} --url {client.url}"
        if isinstance(error, NoConnectionError):
            hint = f"the job is kept; once the server is back: {client.url}/?job={job.id}"
        # A console that is interrupted while it prints may keep back all that follows.
        open_notes().print(hint, soft_wrap=True, highlight=False, markup=False)
        raise
    print(client.download(job.id, path))
    if dzi:
        print(client.download_pyramid(job.id, path.with_suffix(".dzi")))


def _follow(client: Client, job_id: str) -> Iterator[Update | Preview]:
    """With previews, where the network between lets WebSockets through."""
    try:
        yield from client.live(job_id)
    except NoWebSocketError:
        yield from client.events(job_id)


@contextmanager
def telling_why_it_waits(
    console: Console, client: Client, job: JobView, look_s: float = _LOOK_S
) -> Generator[None]:
    """As often as the reason changes, while the job is queued."""
    ended = Event()

    def tell() -> None:
        told = ""
        while not ended.wait(look_s):
            # The client may be closed meanwhile.
            with suppress(ChoraleError, RuntimeError):
                now = client.get(job.id)
                why = _say_why(client, now) if now.status == "queued" else ""
                if why and why != told:
                    text = f"the job waits: {show(why)}"
                    console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)
                told = why

    Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _say_why(client: Client, job: JobView) -> str:
    if missing := _find_missing(client, job.request.model):
        return missing
    return f"jobs before it: {job.queue_position}" if job.queue_position else "its turn is next"


def _find_missing(client: Client, model: str) -> str:
    """What the server lacks for a job; empty if nothing. Models may be kept from who has no key."""
    readiness = client.readiness()
    if readiness.ready and model not in (readiness.models or [model]):
        return f"no worker for model {model} is connected"
    return "; ".join(part.message for part in readiness.parts if not part.ready and part.name != "webhooks")


def _announce(console: Console, url: str, job: JobView) -> None:
    request = job.request
    console.print(f"live: {url}/?job={job.id}", highlight=False, soft_wrap=True)
    console.print(
        f"{request.width_px}x{request.height_px}, {request.steps} steps, seed {request.seed}", style="dim"
    )
    if request.layout_reason:
        # Its words are the prompt's: no markup.
        reason = show(request.layout_reason)
        console.print(f"layout {request.layout}: {reason}", style="dim", markup=False, highlight=False)
    if request.control is not None and request.control_reason:
        chosen = show(f"ControlNet {request.control.name}: {request.control_reason}")
        console.print(chosen, style="dim", markup=False, highlight=False)

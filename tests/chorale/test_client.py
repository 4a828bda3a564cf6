"""The client against a real server, on good and on bad networks."""

import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api_schemas.generation import GenerationRequest
from chorale.cli import app
from chorale.client import Client
from chorale.errors import (
    AddressError,
    DownloadError,
    InvalidRequestError,
    JobEndedError,
    JobRunningError,
    KeyFormatError,
    NoConnectionError,
    NotFoundError,
    ProblemError,
    TimedOutError,
    UnauthenticatedError,
    UnexpectedAnswerError,
)
from chorale.local import LocalStack
from chorale.part_file import PartFile
from chorale.protocol import Preview
from tests.chorale.cutting_proxy import cutting_proxy
from tests.chorale.test_keys_commands import make, run

SHORT = GenerationRequest(prompt="waves", width_px=512, height_px=512, steps=3, seed=5)
LONG = GenerationRequest(prompt="tide", width_px=1024, height_px=1024, steps=150, seed=5)
STEPPED = GenerationRequest(prompt="ebb", width_px=512, height_px=256, steps=40, seed=5)


@pytest.fixture(scope="session")
def finished(stack: LocalStack) -> str:
    """A job that has its picture."""
    with Client(stack.url) as client:
        return client.wait(client.create(SHORT).id).id


def test_events_tell_a_job_from_its_beginning_to_its_end(client: Client) -> None:
    job = client.create(SHORT)
    events = list(client.events(job.id))
    assert events[0].type == "job.queued"
    assert events[-1].type == "job.succeeded"
    assert [event.data.step for event in events if event.type == "step.completed"] == [1, 2, 3]
    middle = events[3].seq
    assert list(client.events(job.id, after=middle)) == events[4:]
    assert list(client.events(job.id, after=events[-1].seq)) == []


def test_events_of_a_broken_network_have_no_gap_and_no_duplicate(stack: LocalStack, client: Client) -> None:
    job = client.create(STEPPED)
    with cutting_proxy(stack.url, after_bytes=3000) as (url, cuts), Client(url) as far:
        received = [update.seq for update in far.events(job.id)]
    assert len(cuts) > 3
    assert received == [event.seq for event in client.events(job.id)]


def test_the_live_line_of_a_broken_network_has_no_gap_and_no_duplicate(
    stack: LocalStack, client: Client
) -> None:
    job = client.create(STEPPED)
    with cutting_proxy(stack.url, after_bytes=40_000) as (url, cuts), Client(url) as far:
        received = list(far.live(job.id))
    assert len(cuts) > 1
    assert any(isinstance(each, Preview) for each in received)
    told = [each.seq for each in received if not isinstance(each, Preview)]
    assert told == [event.seq for event in client.events(job.id)]


def test_a_picture_survives_a_network_that_cuts_it_to_pieces(
    stack: LocalStack, client: Client, finished: str, tmp_path: Path
) -> None:
    whole = client.download(finished, tmp_path / "whole.png")
    limit = whole.stat().st_size // 4
    with cutting_proxy(stack.url, after_bytes=limit + 2000) as (url, cuts), Client(url) as far:
        pieces = far.download(finished, tmp_path / "pieces.png")
    assert len(cuts) >= 3
    assert pieces.read_bytes() == whole.read_bytes()
    result = client.get(finished).result
    assert result is not None
    assert hashlib.sha256(whole.read_bytes()).hexdigest() == result.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pieces.png", "whole.png"]


def test_a_download_goes_on_from_the_part_that_is_there_and_is_checked(
    client: Client, finished: str, tmp_path: Path
) -> None:
    result = client.get(finished).result
    assert result is not None
    part = PartFile(tmp_path / "waves.png", result)
    part.append(b"x" * 100)  # a part that is not of this picture
    with pytest.raises(DownloadError, match=result.sha256):
        client.download(finished, tmp_path / "waves.png")
    assert list(tmp_path.iterdir()) == []
    client.download(finished, tmp_path / "waves.png")


def test_the_deep_zoom_is_written_as_viewers_expect(client: Client, finished: str, tmp_path: Path) -> None:
    path = client.download_pyramid(finished, tmp_path / "waves.dzi")
    assert path.read_bytes().startswith(b"<?xml")
    files = sorted(str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*.jpg"))
    # 512 px: levels 0 to 8 are one tile each, level 9 has two by two of 510 px.
    assert len(files) == 9 + 4
    assert "waves_files/9/1_1.jpg" in files
    assert all(each.read_bytes().startswith(b"\xff\xd8") for each in tmp_path.rglob("*.jpg"))


def test_refusals_carry_their_problem(client: Client) -> None:
    with pytest.raises(NotFoundError) as unknown:
        client.get("0" * 28)
    assert unknown.value.problem.status == 404
    with pytest.raises(InvalidRequestError) as refused:
        client.create(GenerationRequest(width_px=1001, height_px=512, seamless="x"))
    assert [each.field for each in refused.value.problem.errors] == ["width_px"]
    assert "1000" in str(refused.value)
    assert "1008" in str(refused.value)


def test_a_job_may_be_canceled_and_says_so(client: Client, tmp_path: Path) -> None:
    job = client.create(LONG)
    with pytest.raises(JobRunningError):
        client.download(job.id, tmp_path / "tide.png")
    with pytest.raises(TimedOutError):
        client.wait(job.id, timeout_s=0)
    client.cancel(job.id)
    with pytest.raises(JobEndedError, match="canceled") as ended:
        client.wait(job.id, timeout_s=60)
    assert ended.value.job.status == "canceled"
    assert client.cancel(job.id).status == "canceled"
    with pytest.raises(JobEndedError):
        client.download(job.id, tmp_path / "tide.png")


def test_the_same_key_gives_the_same_job(client: Client) -> None:
    first = client.create(SHORT, idempotency_key="one")
    assert client.create(SHORT, idempotency_key="one").id == first.id
    assert client.create(SHORT).id != first.id
    with pytest.raises(ProblemError) as mismatch:
        client.create(STEPPED, idempotency_key="one")
    assert mismatch.value.problem.code == "idempotency_mismatch"


def test_pages_of_jobs_follow_each_other(client: Client, finished: str) -> None:
    created = [client.create(SHORT).id for _ in range(3)]
    seen: list[str] = []
    cursor = None
    while True:
        page = client.list(limit=2, cursor=cursor)
        seen += [job.id for job in page.data]
        cursor = page.next
        if cursor is None:
            break
    assert len(seen) == len(set(seen))
    assert seen[:3] == created[::-1]
    assert finished in {job.id for job in client.list(status="succeeded", limit=100).data}


def test_models_come_with_their_limits(client: Client) -> None:
    (card,) = client.models()
    assert (card.name, card.is_default) == ("toy", True)
    assert client.readiness().ready


@pytest.mark.parametrize(
    "url",
    [
        "http://::1:8000",
        "http://[::1",
        "http://h:x",
        "http://h:99999",
        "localhost:8000",
        "ftp://x",
        "http://",
        "",
        "http://x:99999",
        "http://x:0",
    ],
)
def test_what_is_no_address_is_named(url: str) -> None:
    with pytest.raises(AddressError, match="in brackets"):
        Client(url)


def test_nobody_at_an_address_is_said_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with Client(url) as client, pytest.raises(NoConnectionError, match=url):
            client.get("any")


@pytest.fixture
def stranger() -> Iterator[str]:
    """A web server that is not Chorale."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_another_kind_of_server_is_recognised(stranger: str) -> None:
    with Client(stranger) as client, pytest.raises(UnexpectedAnswerError):
        client.get("any")


def test_a_path_that_is_not_the_apis_is_told_from_a_job_that_is_gone(stack: LocalStack) -> None:
    address = f"{stack.url}/x"
    with (
        Client(address) as client,
        pytest.raises(UnexpectedAnswerError, match=f"no Chorale at {address}: GET"),
    ):
        client.get("any")


def test_a_reader_may_stop_in_the_middle(client: Client) -> None:
    job = client.create(STEPPED)
    assert [event.type for event in islice(client.events(job.id), 2)] == ["job.queued", "job.started"]
    client.wait(job.id)


@pytest.fixture
def key(stack: LocalStack) -> Iterator[str]:
    """The running stack has keys for the length of a test."""
    folder = ("--data", str(stack.folder))
    yield make("create", "ann", *folder)
    run("delete", "ann", *folder)


def test_a_key_goes_with_all_that_a_client_asks(stack: LocalStack, key: str, tmp_path: Path) -> None:
    with Client(stack.url, api_key=f" {key}\n") as client, Client(stack.url, api_key="") as nobody:
        job = client.create(SHORT)
        assert [update.type for update in client.events(job.id)][-1] == "job.succeeded"
        assert [update for update in client.live(job.id) if not isinstance(update, Preview)]
        client.download(job.id, tmp_path / "waves.png")
        client.download_pyramid(job.id, tmp_path / "waves.dzi")
        assert [each.id for each in client.list().data] == [job.id]  # and none from before there were keys
        for refused in (
            nobody.models,
            lambda: next(nobody.live(job.id)),
            lambda: next(nobody.events(job.id)),
        ):
            with pytest.raises(UnauthenticatedError, match="needs an API key"):
                refused()
        assert nobody.readiness().ready
    with pytest.raises(KeyFormatError):
        Client(stack.url, api_key="chorale_\x00secret")
    listed = CliRunner().invoke(
        app, ["jobs", "--url", stack.url], env={"CHORALE_API_KEY": key, "COLUMNS": "200"}
    )
    assert job.id in listed.stdout
    shown = CliRunner().invoke(app, ["jobs", "--help"], env={"CHORALE_API_KEY": key, "COLUMNS": "200"})
    assert "CHORALE_API_KEY" in shown.stdout
    assert key not in shown.stdout

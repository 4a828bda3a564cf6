"""The command line, as a user runs it."""

import hashlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread

import httpx
import pytest
from PIL import Image

from api_schemas.errors import Problem
from api_schemas.generation import GenerationRequest
from chorale.client import Client
from chorale.local import LocalStack
from tests.chorale.commands import run, run_alone
from tests.disks import small_disk
from tests.local_stack import find_all

SHORT = ("--size", "512x256", "--steps", "3", "--seed", "7")
PICTURE = str(Path(__file__).parents[1] / "provenance" / "marked.jpg")


def test_generate_writes_the_picture_and_its_deep_zoom(stack: LocalStack, tmp_path: Path) -> None:
    done = run(
        "generate",
        "waves at dusk",
        *SHORT,
        "-o",
        "out/dusk.png",
        "--dzi",
        folder=tmp_path,
        CHORALE_URL=stack.url,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["out/dusk.png", "out/dusk.dzi"]
    assert f"{stack.url}/?job=" in done.stderr
    assert "100%" in done.stderr
    assert "step 3/3" in done.stderr
    with Image.open(tmp_path / "out" / "dusk.png") as picture:
        assert picture.size == (512, 256)
        assert picture.text["Description"] == "waves at dusk"
    assert (tmp_path / "out" / "dusk_files" / "9" / "0_0.jpg").exists()


def test_generate_takes_any_size(stack: LocalStack, tmp_path: Path) -> None:
    """A4 at 300 dpi; where the picture is seamless, the nearest sizes are named."""
    a4 = ("generate", "waves", "--size", "2480x3508", "--steps", "1", "--url", stack.url)
    done = run(*a4, "-o", "a4.png", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2480x3508" in done.stderr
    with Image.open(tmp_path / "a4.png") as picture:
        assert picture.size == (2480, 3508)
    refused = run(*a4, "--seamless", "both", folder=tmp_path)
    assert refused.returncode != 0
    assert "3504 or 3512" in refused.stderr
    assert "width_px" not in refused.stderr


def test_the_same_seed_gives_the_same_bytes_and_a_name_comes_from_the_prompt(
    stack: LocalStack, tmp_path: Path
) -> None:
    for _ in range(2):
        done = run("generate", "Waves, at dusk!", *SHORT, "--url", stack.url, folder=tmp_path)
        assert done.stdout.split() == ["waves-at-dusk.png"]
        (tmp_path / "waves-at-dusk.png").rename(tmp_path / f"{len(list(tmp_path.iterdir()))}.png")
    first, second = sorted(tmp_path.iterdir())
    assert first.read_bytes() == second.read_bytes()


def test_a_file_for_print_has_its_bits_and_its_resolution(stack: LocalStack, tmp_path: Path) -> None:
    options = ("--bit-depth", "16", "--dpi", "150", "-o", "waves.tif", "--url", stack.url)
    done = run("generate", "waves", *SHORT, *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "waves.tif") as picture:
        assert picture.info["dpi"] == (150, 150)
        assert picture.tag_v2[258] == (16, 16, 16)  # BitsPerSample


def test_generate_sends_pictures_and_names_add_ons(stack: LocalStack, tmp_path: Path) -> None:
    Image.new("RGB", (32, 24), "teal").save(tmp_path / "me.webp")
    options = (
        "--lora", "ink:-0.5", "--ip-adapter", "face", "--ip-adapter-image", "me.webp",
        "--guidance", "4", "--guidance-interval", "0.2,0.9",
    )  # fmt: skip
    done = run("generate", "waves", *SHORT, *options, "--url", stack.url, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "waves.png") as picture:
        settings = json.loads(picture.text["settings"])
    assert settings["loras"] == [{"name": "ink", "weight": -0.5}]
    assert settings["ip_adapter"] == {"name": "face", "scale": 0.6}
    assert settings["advanced"]["guidance_interval"] == [0.2, 0.9]
    digest = hashlib.sha256((tmp_path / "me.webp").read_bytes()).hexdigest()
    assert settings["pictures"] == {"ip_adapter_image": {"sha256": digest, "width_px": 32, "height_px": 24}}


def test_generate_gives_regions_prompts_of_their_own(stack: LocalStack, tmp_path: Path) -> None:
    """The toy paints what it is told: each half is that of the picture with its prompt alone."""
    mask = Image.new("L", (512, 256))
    mask.paste(255, (0, 0, 512, 128))
    mask.save(tmp_path / "upper.png")
    regions = ("--region", "0,128,512,128:tide", "--region", "upper.png:surf", "--feather", "0")
    halves: dict[str, list[bytes]] = {}
    for prompt, chosen in (("surf", ()), ("tide", ()), ("waves", regions)):
        done = run("generate", prompt, *SHORT, *chosen, "--url", stack.url, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        with Image.open(tmp_path / f"{prompt}.png") as picture:
            halves[prompt] = [picture.crop((0, top, 512, top + 128)).tobytes() for top in (0, 128)]
            settings = json.loads(picture.text["settings"])
    assert halves["waves"] == [halves["surf"][0], halves["tide"][1]]
    assert [region["prompt"] for region in settings["regions"]] == ["tide", "surf"]
    assert settings["pictures"]["region_mask_1"]["width_px"] == 512


def test_generate_without_a_server_starts_one_and_leaves_nothing(tmp_path: Path) -> None:
    done = run_alone(
        "generate", "waves", *SHORT, "-o", "waves.jpg", folder=tmp_path,
        CHORALE_MODEL="toy", XDG_DATA_HOME=str(tmp_path / "share"), TMPDIR=str(tmp_path), HOME=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours = [path.name for path in tmp_path.iterdir() if not path.name.startswith("torch")]
    assert ours == ["waves.jpg"]
    assert find_all(str(tmp_path)) == []


def test_jobs_models_and_cancel(stack: LocalStack, tmp_path: Path) -> None:
    with Client(stack.url) as client:
        job = client.create(
            GenerationRequest(prompt="[bold]tide \x1b[31m\x07", width_px=1024, height_px=1024, steps=150)
        )
        listing = run("jobs", "--url", stack.url, folder=tmp_path).stdout
        assert job.id in listing
        assert "[bold]tide \\x1b[31m\\x07" in listing
        assert "\x1b" not in listing
        canceled = run("cancel", job.id, "--url", stack.url, folder=tmp_path)
        assert canceled.returncode == 0
        assert job.id in canceled.stdout
        assert [event.type for event in client.events(job.id)][-1] == "job.canceled"
    assert "toy (default)" in run("models", "--url", stack.url, folder=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("generate", "x", "--size", "wide"), 2, "WIDTHxHEIGHT"),
        (("generate", "x", "--size", "63x64"), 2, "--size, width 63: a whole number from 64 to 16384"),
        (("generate", "x", "-o", "x.gif"), 2, ".png"),
        (("generate", "x", "--seed", "-1"), 2, "--seed -1: a whole number from 0 to"),
        (("generate", "x", "--dpi", "2401"), 2, "--dpi 2401: a whole number from 1 to 2400"),
        (("generate", "x", "--bit-depth", "12"), 2, "8 or 16"),
        (
            ("generate", "x", "--bit-depth", "16", "-o", "x.jpg"),
            2,
            "--bit-depth 16: 16 is for --output png or tiff",
        ),
        (("generate", "x", "--size", "1001x512", "--seamless", "x"), 2, "1000 or 1008"),
        (("generate", "x", "--model", "nobody"), 2, "--model nobody: one of: toy"),
        (("generate", "x", "--seamless", "diagonal"), 2, "diagonal"),
        (("generate", "x", "--lora", "ink:x:"), 2, "--lora ink:x:"),
        (("generate", "x", "--lora", "brush"), 2, "one of: ink"),
        (("generate", "x", "--lora", "ink:5"), 2, "--lora ink:5: weight: a number from -4 to 4"),
        (("generate", "x", "--control", "edges"), 2, "--control-image"),
        (("generate", "x", "--control", "brush", "--source", PICTURE), 2, "--control"),
        (("generate", "x", "--ip-adapter-image", __file__), 2, "--ip-adapter NAME"),
        (("generate", "x", "--ip-adapter", "face", "--ip-adapter-image", __file__), 2, "a PNG, JPEG, WebP"),
        (("generate", "x", "--region", "dunes"), 2, "LEFT,TOP,WIDTH,HEIGHT:PROMPT"),
        (
            ("generate", "x", "--region", "0,0 9,9 9,0 0,9:dunes"),
            2,
            "--region 0,0 9,9 9,0 0,9:dunes: edges that do not",
        ),
        (("generate", "x", "--region", "0,0,1025,9:dunes"), 2, "--region 0,0,1025,9:dunes: within"),
        (("generate", "x", "--region", f"{__file__}:x"), 2, f"--region {__file__}:x, mask {__file__}: a PNG"),
        (("generate", "x", "--source", PICTURE, "--mask", "9,9,999,9"), 2, "--mask 9,9,999,9: within"),
        (("generate", "x", "--source", PICTURE, "--upscale", "2", "--size", "64"), 2, "beside --upscale"),
        (("generate", "x", "--source", PICTURE, "--style-image", PICTURE), 2, f"--style-image {PICTURE}: no"),
        (("generate", "x", "--regions", __file__), 2, "this is no JSON"),
        (("cancel", "0000"), 1, "0000"),
        (("cancel", "../jobs/0000"), 1, "no job '../jobs/0000'"),
        (("reroll", "", "-o", "x.png", "--region", "0,0,9,9"), 1, "no job ''"),
        (("reroll", "0000", "-o", "x.png", "--region", "0,0,0,9"), 2, "--region 0,0,0,9: width: a whole"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    stack: LocalStack, arguments: tuple[str, ...], code: int, says: str, tmp_path: Path
) -> None:
    done = run(*arguments, folder=tmp_path, CHORALE_URL=stack.url)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_written_is_kept_and_found(stack: LocalStack) -> None:
    with small_disk() as disk, disk.filled() as code:
        if code != "disk_full":
            pytest.skip("there is no disk that can be filled")
        done = run("generate", "waves", *SHORT, "--url", stack.url, folder=disk.folder)
    assert done.returncode == 1
    told = done.stderr.partition("the picture is kept: ")[2].split()[0]
    assert told.startswith(f"{stack.url}/v1/jobs/")
    with Image.open(BytesIO(httpx.get(told).content)) as picture:
        assert picture.size == (512, 256)


@pytest.fixture
def full() -> Iterator[str]:
    """A server whose queue is full."""
    problem = Problem(
        title="", status=503, detail="the queue of toy is full", code="queue_full", request_id="-"
    )

    class Refuse(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(503)
            self.send_header("Retry-After", "7")
            self.end_headers()
            self.wfile.write(problem.model_dump_json().encode())

    with HTTPServer(("127.0.0.1", 0), Refuse) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_full_queue_says_when_to_try_again(full: str, tmp_path: Path) -> None:
    done = run("cancel", "0000", "--url", full, folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith("chorale: the queue of toy is full; try again in 7 s\n")


def test_a_canceled_job_ends_generate_with_its_reason(stack: LocalStack, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "chorale.cli", "generate", "tide", "--steps", "150", "--url", stack.url]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        with Client(stack.url) as client:
            while not (
                running := [
                    job
                    for job in client.list().data
                    if job.request.prompt == "tide" and job.status == "processing"
                ]
            ):
                assert process.poll() is None
            client.cancel(running[0].id)
        assert process.wait(60) == 1
        assert process.stderr
        assert "canceled" in process.stderr.read()
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_is_not_made_in_time_stops_and_says_which_deadline(
    stack: LocalStack, tmp_path: Path
) -> None:
    wanted = ("--priority", "high", "--finish-within", "0.5")
    done = run("generate", "ebb", "--steps", "150", *wanted, "--url", stack.url, folder=tmp_path)
    assert done.returncode == 1
    assert "expired: it had not ended within 0.5 s (finish_within_s) (deadline_missed)" in done.stderr
    assert list(tmp_path.iterdir()) == []
    with Client(stack.url) as client:
        (job,) = client.list(status="expired").data
        assert (job.request.priority, job.request.finish_within_s) == ("high", 0.5)
        assert [event.type for event in client.events(job.id)][-1] == "job.expired"
    assert job.id in run("jobs", "--status", "expired", "--url", stack.url, folder=tmp_path).stdout


def test_ctrl_c_ends_following_and_not_the_job(stack: LocalStack, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "chorale.cli", "generate", "flood", "--steps", "150", "--url", stack.url]
    with (
        subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process,
        Client(stack.url) as client,
    ):
        while not (found := [job for job in client.list().data if job.request.prompt == "flood"]):
            assert process.poll() is None
        assert process.stderr
        while "live:" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(30) == 130
        assert f"chorale cancel {found[0].id}" in said
        assert "Traceback" not in said
        assert client.get(found[0].id).status in {"queued", "processing"}
        client.cancel(found[0].id)


def test_without_a_server_commands_say_how_to_start_one(tmp_path: Path) -> None:
    for command in (("jobs",), ("models",), ("cancel", "1")):
        done = run(*command, "--data", str(tmp_path / "none"), folder=tmp_path)
        assert done.returncode == 1
        assert "chorale up" in done.stderr
    with tempfile.TemporaryDirectory() as unused:
        away = run("jobs", "--url", "http://127.0.0.1:1", folder=Path(unused))
    assert away.returncode == 1
    assert len(away.stderr.splitlines()) == 1


def test_a_terminal_for_ascii_shows_any_prompt(stack: LocalStack, tmp_path: Path) -> None:
    with Client(stack.url) as client:
        request = GenerationRequest(prompt="Жар-птица 火の鳥", width_px=256, height_px=256, steps=1)
        client.wait(client.create(request).id)
    shown = run_alone("jobs", "--url", stack.url, folder=tmp_path, PYTHONIOENCODING="ascii")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "\\u0416\\u0430\\u0440" in shown.stdout
    made = run_alone(
        "generate",
        "Жар",
        *SHORT,
        "-o",
        "Жар.png",
        "--url",
        stack.url,
        folder=tmp_path,
        PYTHONIOENCODING="ascii",
    )
    assert (made.returncode, made.stdout) == (0, "\\u0416\\u0430\\u0440.png\n")
    assert (tmp_path / "Жар.png").is_file()

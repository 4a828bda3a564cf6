"""Pictures that come with a job: what is taken, what is refused, and what is stored."""

import hashlib
import json
import socket
import struct
import zlib
from contextlib import ExitStack
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path

import anyio
import httpx
import pytest
from PIL import Image

from api_schemas.answers import JobView
from service.errors import UnavailableError
from service.image_store import ImageStore
from service.images.received import ReceivedPicture, open_scratch
from service.images.uploads import Decoded, Uploads
from service.settings import ServiceSettings
from tests.service.conftest import Serve
from tests.service.images.test_colors import profile, with_chunks
from tests.story import CARD, Story

CONTROL = {"prompt": "lava", "control": {"name": "edges"}}


def encode(
    kind: str = "PNG", size: tuple[int, int] = (64, 48), mode: str = "RGB", **options: object
) -> bytes:
    file = BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(file, kind, **options)
    return file.getvalue()


def post(
    api: httpx.Client, request: dict[str, object] = CONTROL, key: str = "", **pictures: bytes
) -> httpx.Response:
    parts = {"request": (None, json.dumps(request), "application/json")}
    files = {part: (f"{part}.bin", content, "image/png") for part, content in pictures.items()}
    return api.post("/v1/jobs", files=parts | files, headers={"Idempotency-Key": key} if key else {})


def errors(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    return {each["field"]: each["allowed"] for each in answer.json()["errors"]}


@pytest.fixture(autouse=True)
def announce_controls(story: Story) -> None:
    names = {"controlnets": ["edges"], "ip_adapters": ["style"], "style_image": True}
    story.publish(CARD.model_copy(update=names))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_a_picture_is_stored_as_png_before_the_job_is_queued(
    api: httpx.Client, store_dir: Path, kind: str
) -> None:
    sent = encode(kind)
    answer = post(api, control_image=sent)
    assert answer.status_code == 202, answer.text
    job = JobView.model_validate_json(answer.content)
    picture = job.request.pictures["control_image"]
    assert picture.sha256 == hashlib.sha256(sent).hexdigest()
    assert (picture.width_px, picture.height_px) == (64, 48)
    with Image.open(store_dir / "inputs" / job.id / "control_image.png") as stored:
        assert (stored.format, stored.mode, stored.size) == ("PNG", "RGB", (64, 48))
        with Image.open(BytesIO(sent)) as original:
            assert list(stored.get_flattened_data()) == list(original.convert("RGB").get_flattened_data())


@pytest.mark.parametrize("asked", [{"upscale": 2}, {"width_px": 64, "height_px": 64}])
def test_a_controlnet_needs_no_picture_beside_a_source(api: httpx.Client, asked: dict[str, object]) -> None:
    request = CONTROL | {"source": {}} | asked
    for sent in ({}, {"control_image": encode(size=(64, 64))}):
        answer = post(api, request, source_image=encode(size=(64, 64)), **sent)
        assert answer.status_code == 202, answer.text
        assert set(answer.json()["request"]["pictures"]) == {"source_image", *sent}


def test_two_pictures_come_each_by_its_name(api: httpx.Client, store_dir: Path) -> None:
    request = CONTROL | {"ip_adapter": {"name": "style", "scale": 0.5}}
    job = post(api, request, control_image=encode(), ip_adapter_image=encode("JPEG")).json()
    assert sorted(path.name for path in (store_dir / "inputs" / job["id"]).iterdir()) == [
        "control_image.png",
        "ip_adapter_image.png",
    ]


def test_what_a_file_holds_beside_pixels_is_not_stored(api: httpx.Client, store_dir: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a secret place"  # ImageDescription
    exif[0x0112] = 6  # turned by 90 degrees
    job = post(api, control_image=encode("JPEG", exif=exif)).json()
    stored = store_dir / "inputs" / job["id"] / "control_image.png"
    assert b"a secret place" not in stored.read_bytes()
    with Image.open(stored) as picture:
        assert picture.size == (48, 64)  # upright
        assert not picture.info


def test_colours_are_stored_as_srgb_whatever_text_comes_along(api: httpx.Client, store_dir: Path) -> None:
    text = (b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * (80 << 20)))
    red = encode_p3(Image.new("RGB", (8, 8), (200, 100, 50)))
    job = post(api, control_image=with_chunks(red, text)).json()
    with Image.open(store_dir / "inputs" / job["id"] / "control_image.png") as picture:
        assert picture.getpixel((0, 0)) == pytest.approx((215, 93, 32), abs=1)  # by CSS Color 4's matrices
        assert not picture.info


def encode_p3(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", icc_profile=profile("p3"))
    return file.getvalue()


def test_sixteen_bits_of_grey_keep_their_range(api: httpx.Client, store_dir: Path) -> None:
    file = BytesIO()
    levels = struct.pack("<256H", *(level * 257 for level in range(256)))
    Image.frombytes("I;16", (256, 1), levels).save(file, "PNG")
    job = post(api, control_image=file.getvalue()).json()
    with Image.open(store_dir / "inputs" / job["id"] / "control_image.png") as picture:
        assert [pixel[0] for pixel in picture.get_flattened_data()] == list(range(256))


def test_what_is_transparent_is_black(api: httpx.Client, store_dir: Path) -> None:
    file = BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(file, "PNG")
    job = post(api, control_image=file.getvalue()).json()
    with Image.open(store_dir / "inputs" / job["id"] / "control_image.png") as picture:
        assert set(picture.get_flattened_data()) == {(0, 0, 0)}


def bomb(width_px: int, height_px: int) -> bytes:
    """A PNG of a few kilobytes that claims to be huge, and is."""
    rows = zlib.compressobj(9)
    line = b"\0" * (1 + width_px // 8)
    packed = b"".join(rows.compress(line) for _ in range(height_px)) + rows.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width_px, height_px, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def test_size_is_checked_before_anything_is_decoded(
    serve_with: Serve, settings: ServiceSettings, story: Story
) -> None:
    limits = {"max_picture_megapixels": 1.0, "max_picture_bytes": 400_000}
    with httpx.Client(base_url=serve_with(settings.model_copy(update=limits)), timeout=30) as api:
        assert (
            "this one has 16000x16000 px"
            in errors(post(api, control_image=bomb(16_000, 16_000)))["control_image"]
        )
        assert "16384 px a side" in errors(post(api, control_image=bomb(20_000, 8)))["control_image"]
        assert post(api, control_image=encode(size=(1000, 1000))).status_code == 202
        assert "at most 400000 bytes" in errors(post(api, control_image=bytes(400_001)))["control_image"]
        assert _announce(api.base_url.port, 256 * 1024 + 1_600_001) == 413


def _announce(port: int | None, size: int) -> int:
    """The answer to the headers alone: what is refused need not be sent."""
    connection = HTTPConnection("127.0.0.1", port or 0, timeout=30)
    connection.putrequest("POST", "/v1/jobs")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    try:
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_key_is_bound_to_the_pictures_too(api: httpx.Client) -> None:
    first = post(api, key="one", control_image=encode())
    assert post(api, key="one", control_image=encode()).json()["id"] == first.json()["id"]
    other = post(api, key="one", control_image=encode(size=(65, 48)))
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    refused = post(api, key="two", control_image=b"no picture")
    assert refused.status_code == 422
    assert post(api, key="two", control_image=encode()).status_code == 202


def test_what_jobs_that_are_alike_have_in_common_is_decoded_once(
    settings: ServiceSettings, store_dir: Path
) -> None:
    """Its file is read no second time, and each job has it whole."""

    async def keep(picture: ReceivedPicture) -> None:
        files = {"source_image": picture}
        with ExitStack() as opened:
            shared = Decoded(opened)
            for job_id in ("one", "two"):
                async with uploads.clean(files, shared) as cleaned:
                    await uploads.keep(job_id, files, cleaned)
                picture.file.close()

    uploads = Uploads(ImageStore.open(settings), 1.0, store_dir.parent / "uploads")
    file = open_scratch(store_dir.parent)
    file.write(encode())
    file.flush()
    anyio.run(keep, ReceivedPicture(file, size_bytes=0, sha256=""))
    for job_id in ("one", "two"):
        with Image.open(store_dir / "inputs" / job_id / "source_image.png") as picture:
            assert picture.convert("L").tobytes() == Image.open(BytesIO(encode())).convert("L").tobytes()


def test_a_machine_without_time_says_so(settings: ServiceSettings, store_dir: Path) -> None:
    """No interpreter starts within a millisecond."""

    async def clean() -> None:
        picture = ReceivedPicture(open_scratch(store_dir.parent), size_bytes=0, sha256="")
        async with uploads.clean({"control_image": picture}):
            raise AssertionError("decoded at once")

    uploads = Uploads(ImageStore.open(settings), 1.0, store_dir.parent / "uploads", patience_s=0.001)
    with pytest.raises(UnavailableError, match="busy"):
        anyio.run(clean)
    assert not [path for path in store_dir.rglob("*") if path.is_file()]


def test_uploads_that_there_is_no_space_for_are_shed_at_once(
    serve_with: Serve, settings: ServiceSettings
) -> None:
    """The sum counts what has come in and is not worked off; what is announced must fit beside it."""
    limited = settings.model_copy(update={"max_upload_bytes_at_once": 100_000})
    head = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    part = '--x\r\nContent-Disposition: form-data; name="control_image"; filename="a"\r\n\r\n'
    with httpx.Client(base_url=serve_with(limited), timeout=30) as api:
        address = api.base_url.host, api.base_url.port
        with socket.create_connection(address) as other, socket.create_connection(address) as endless:
            other.sendall(f"{head}Content-Length: 99999\r\n\r\n{part}".encode() + b"x" * 90_000)
            while _held(api) < 90_000:
                pass
            assert _announce(api.base_url.port, 20_000) == 503
            refused = post(api, control_image=encode(size=(256, 256), mode="RGB") + bytes(20_000))
            assert (refused.status_code, refused.json()["code"]) == (503, "service_unavailable")
            assert refused.json()["retryable"]
            assert int(refused.headers["Retry-After"]) > 0
            endless.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n4e20\r\n{part}".encode())
            endless.sendall(b"x" * (20_000 - len(part)))
            answer = b"".join(iter(lambda: endless.recv(4096), b""))  # it has announced nothing
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b'"retryable":true' in answer
            assert post(api, control_image=encode()).status_code == 202  # a small one fits
        while _held(api):
            pass
        assert post(api, control_image=encode() + bytes(60_000)).status_code == 202


def _held(api: httpx.Client) -> float:
    name = 'chorale_bodies_held_bytes{kind="upload"} '
    (line,) = [line for line in api.get("/metrics").text.splitlines() if line.startswith(name)]
    return float(line.removeprefix(name))


def test_a_body_in_memory_counts_apart(serve_with: Serve, settings: ServiceSettings) -> None:
    limited = settings.model_copy(update={"max_upload_bytes_at_once": 1024})
    with httpx.Client(base_url=serve_with(limited), timeout=30) as api:
        assert api.post("/v1/jobs", json={"prompt": "lava " * 300}).status_code == 202
        assert post(api, control_image=encode() + bytes(2000)).status_code == 503


def test_a_folder_that_cannot_be_written_is_said_so(
    serve_with: Serve, settings: ServiceSettings, tmp_path: Path
) -> None:
    (tmp_path / "in the way").touch()
    limited = settings.model_copy(update={"work_dir": tmp_path / "in the way"})
    with httpx.Client(base_url=serve_with(limited), timeout=30) as api:
        answer = post(api, control_image=encode())
        assert (answer.status_code, answer.json()["code"]) == (503, "service_unavailable")
        assert answer.json()["detail"] == "pictures cannot be taken in: Not a directory"
        assert api.post("/v1/jobs", json={"prompt": "lava"}).status_code == 202


@pytest.mark.parametrize("style", [{}, {"prompt": "ink"}])
def test_a_style_picture_stands_alone_or_beside_words(api: httpx.Client, style: dict[str, object]) -> None:
    pictures = {"source_image": encode(size=(64, 64)), "style_image": encode(size=(96, 48))}
    request = post(api, {"source": {}, "style": style}, **pictures).json()["request"]
    assert request["style"]["style_image"]
    assert request["pictures"]["style_image"]["width_px"] == 96


def test_an_ip_adapter_beside_a_style_picture_needs_none_of_its_own(api: httpx.Client) -> None:
    request = {"source": {}, "style": {}, "ip_adapter": {"name": "style"}}
    pictures = {"source_image": encode(size=(64, 64)), "style_image": encode()}
    for more in ({}, {"ip_adapter_image": encode()}):
        answer = post(api, request, **pictures, **more)
        assert answer.status_code == 202, answer.text
        assert sorted(answer.json()["request"]["pictures"]) == sorted([*pictures, *more])

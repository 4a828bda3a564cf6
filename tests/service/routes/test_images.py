"""The picture and its deep zoom, over HTTP, from a folder and from a real S3 server."""

import hashlib
import random
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import simplejpeg
from obstore.store import LocalStore, S3Store

from api_schemas.events import Result
from service.http.signed_urls import LinkSigner
from service.settings import ServiceSettings
from tests.conftest import S3Server
from tests.service.conftest import Serve
from tests.story import Story

JOB = "1" * 28
IMAGE = f"/v1/jobs/{JOB}/image"
PICTURE = random.Random(1).randbytes(3_000_000)
TILE = simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8))


def finish(story: Story, store: LocalStore | S3Store) -> Result:
    """A job whose picture is in the store; its bytes need not be a picture for this."""
    key = f"jobs/{JOB}/one"
    store.put(f"{key}/image.png", PICTURE)
    store.put(f"{key}/image_files/10/1_0.jpg", TILE)
    result = Result(
        image_key=f"{key}/image.png",
        pyramid_key=key,
        media_type="image/png",
        width_px=1024,
        height_px=1024,
        size_bytes=len(PICTURE),
        sha256=hashlib.sha256(PICTURE).hexdigest(),
        engine_s=1.5,
    )
    story.queue(JOB)
    story.start(JOB)
    story.succeed(JOB, result)
    return result


@pytest.fixture
def done(story: Story, store_dir: Path) -> Result:
    return finish(story, LocalStore(store_dir))


def test_the_whole_picture_with_all_that_caches_need(api: httpx.Client, done: Result) -> None:
    answer = api.get(IMAGE)
    assert (answer.status_code, answer.content) == (200, PICTURE)
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["Content-Disposition"] == f'inline; filename="chorale-{JOB}.png"'
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    head = api.head(IMAGE)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("Content-Length", "ETag", "Content-Type"):
        assert head.headers[name] == answer.headers[name]
    same = api.get(IMAGE, headers={"If-None-Match": f'"other", W/{answer.headers["ETag"]}'})
    assert (same.status_code, same.content) == (304, b"")


def test_ranges_put_together_are_the_picture(api: httpx.Client, done: Result) -> None:
    parts, at = [], 0
    while at < len(PICTURE):
        answer = api.get(IMAGE, headers={"Range": f"bytes={at}-{at + 699_999}"})
        assert answer.status_code == 206
        end = at + len(answer.content)
        assert answer.headers["Content-Range"] == f"bytes {at}-{end - 1}/{len(PICTURE)}"
        parts.append(answer.content)
        at = end
    assert b"".join(parts) == PICTURE
    assert api.get(IMAGE, headers={"Range": "bytes=-10"}).content == PICTURE[-10:]


def test_a_range_beyond_the_end_and_one_of_another_picture(api: httpx.Client, done: Result) -> None:
    beyond = api.get(IMAGE, headers={"Range": f"bytes={len(PICTURE)}-"})
    assert (beyond.status_code, beyond.json()["code"]) == (416, "range_not_satisfiable")
    assert beyond.headers["Content-Range"] == f"bytes */{len(PICTURE)}"
    other = api.get(IMAGE, headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert (other.status_code, len(other.content)) == (200, len(PICTURE))
    own = api.get(IMAGE, headers={"Range": "bytes=0-9", "If-Range": f'"{done.sha256}"'})
    assert (own.status_code, own.content) == (206, PICTURE[:10])


def test_a_picture_that_is_not_there_yet_or_never_or_no_longer(
    api: httpx.Client, story: Story, store_dir: Path
) -> None:
    story.queue(JOB)
    early = api.get(IMAGE)
    assert (early.status_code, early.json()["retryable"]) == (409, True)
    assert int(early.headers["Retry-After"]) > 0
    never = "2" * 28
    story.queue(never)
    story.cancel(never)
    answer = api.get(f"/v1/jobs/{never}/image")
    assert (answer.status_code, answer.json()["retryable"]) == (409, False)
    story.redis.flushdb()
    gone = finish(story, LocalStore(store_dir))
    (store_dir / gone.image_key).unlink()
    answer = api.get(IMAGE)
    assert (answer.status_code, answer.json()["code"]) == (410, "result_expired")


@pytest.mark.parametrize("left", [0, 10_000, len(PICTURE) - 1, len(PICTURE) + 1])
def test_what_is_stored_in_another_size_is_no_answer(
    api: httpx.Client, done: Result, store_dir: Path, left: int
) -> None:
    """Neither whole nor in part, where that part is still there: it may be of another picture."""
    (store_dir / done.image_key).write_bytes((PICTURE + b"x")[:left])
    (tile := store_dir / done.pyramid_key / "image_files/10/1_0.jpg").write_bytes(TILE[:-1])
    link = api.get(f"/v1/jobs/{JOB}").json()["urls"]["download"]
    answers = [api.get(IMAGE), api.get(IMAGE, headers={"Range": "bytes=0-9"}), api.get(link)]
    answers += [api.get(f"/v1/jobs/{JOB}/tiles/10/1_0")]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (410, "result_damaged")
        assert answer.headers["Cache-Control"] == "no-store"
        assert "ETag" not in answer.headers
    assert api.head(IMAGE).status_code == 410
    tile.unlink()
    assert api.get(f"/v1/jobs/{JOB}/tiles/10/1_0").json()["code"] == "result_expired"


def test_the_download_link_works_until_it_is_altered_or_over(
    api: httpx.Client, done: Result, settings: ServiceSettings
) -> None:
    link = httpx.URL(api.get(f"/v1/jobs/{JOB}").json()["urls"]["download"])
    answer = api.get(link)
    assert (answer.status_code, answer.content) == (200, PICTURE)
    assert answer.headers["Content-Disposition"].startswith("attachment;")
    later = str(int(link.params["expires"]) + 1)
    forged = [
        link.copy_set_param("expires", later),
        link.copy_set_param("signature", "0" * 64),
        link.copy_set_param("signature", "ü"),
        link.copy_with(path=f"/v1/files/{'2' * 28}"),
        LinkSigner(settings.link_secret, lifetime_s=-1).sign(JOB),
    ]
    for each in forged:
        answer = api.get(each)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), each


def test_the_finished_deep_zoom_comes_from_the_store(api: httpx.Client, done: Result) -> None:
    descriptor = api.get(f"/v1/jobs/{JOB}/image.dzi")
    assert descriptor.headers["Content-Type"].startswith("application/xml")
    assert 'Width="1024"' in descriptor.text
    for path in ("tiles/10/1_0", "image_files/10/1_0.jpg"):
        answer = api.get(f"/v1/jobs/{JOB}/{path}")
        assert (answer.content, answer.headers["Content-Type"]) == (TILE, "image/jpeg")
        assert "immutable" in answer.headers["Cache-Control"]
    assert api.get(f"/v1/jobs/{JOB}/tiles/10/0_0").status_code == 410  # not in the store
    for path in ("tiles/11/0_0", "tiles/10/3_0", "tiles/10/0_9"):  # not in the geometry
        assert api.get(f"/v1/jobs/{JOB}/{path}").status_code == 404


@pytest.mark.parametrize("level", [8, 9, 10, 11])
def test_the_present_canvas_can_be_zoomed_while_the_job_runs(
    api: httpx.Client, story: Story, level: int
) -> None:
    story.queue(JOB, width_px=2048, height_px=1024)
    story.start(JOB)
    for left_px in (0, 512, 1536):  # the cell at 1024 was not denoised yet
        for top_px in (0, 512):
            story.preview(JOB, left_px, top_px, level=(left_px + top_px) // 16 + 60)
    columns = {}
    for column in range(5):
        answer = api.get(f"/v1/jobs/{JOB}/tiles/{level}/{column}_0")
        if answer.status_code == 404:
            break
        assert answer.headers["Cache-Control"] == "no-store"
        columns[column] = simplejpeg.decode_jpeg(answer.content)
    scale = 2 ** (11 - level)
    for x_px, y_px, expected in [
        (200, 100, 60),
        (700, 100, 92),
        (1200, 100, 40),
        (1700, 100, 156),
        (300, 900, 92),
    ]:
        column, row = x_px // scale // 510, y_px // scale // 510
        tile = columns[column] if row == 0 else _tile(api, level, column, row)
        x = x_px // scale - max(0, column * 510 - 1)
        y = y_px // scale - max(0, row * 510 - 1)
        assert np.abs(tile[y, x].astype(int) - expected).max() <= 6


def _tile(api: httpx.Client, level: int, column: int, row: int) -> np.ndarray:
    return simplejpeg.decode_jpeg(api.get(f"/v1/jobs/{JOB}/tiles/{level}/{column}_{row}").content)


def test_s3_pictures_are_redirected_to_and_tiles_come_through(
    s3: S3Server, valkey: str, story: Story, serve_with: Serve
) -> None:
    store = S3Store(
        "chorale",
        endpoint=s3.endpoint,
        access_key_id=s3.access_key_id,
        secret_access_key=s3.secret_access_key,
        region=s3.region,
        client_options={"allow_http": True},
    )
    finish(story, store)
    settings = ServiceSettings(
        redis_url=valkey,
        store_url=s3.url,
        store_endpoint=s3.endpoint,
        store_access_key_id=s3.access_key_id,
        store_secret_access_key=s3.secret_access_key,
    )
    with httpx.Client(base_url=serve_with(settings), timeout=30) as api:
        assert api.get("/readyz").json()["store"] == "ok"
        redirect = api.get(IMAGE)
        assert redirect.status_code == 302
        assert redirect.headers["Location"].startswith(s3.endpoint)
        assert s3.secret_access_key not in redirect.text + redirect.headers["Location"]
        assert httpx.get(redirect.headers["Location"]).content == PICTURE
        assert httpx.head(api.head(IMAGE).headers["Location"]).status_code == 200
        address = httpx.URL(redirect.headers["Location"])
        assert httpx.get(address.copy_set_param("X-Amz-Expires", "99999")).status_code == 403
        assert httpx.get(address.copy_with(query=None)).status_code == 403
        assert api.get(f"/v1/jobs/{JOB}/tiles/10/1_0").content == TILE
        link = api.get(f"/v1/jobs/{JOB}").json()["urls"]["download"]
        assert api.get(link, follow_redirects=True).content == PICTURE


def test_a_store_that_is_away_is_said_so_and_the_rest_goes_on(
    valkey: str, story: Story, store_dir: Path, serve_with: Serve
) -> None:
    finish(story, LocalStore(store_dir))
    settings = ServiceSettings(
        redis_url=valkey,
        store_url="s3://chorale",
        store_endpoint="http://127.0.0.1:1",
        store_access_key_id="a",
        store_secret_access_key="b",
    )
    with httpx.Client(base_url=serve_with(settings), timeout=30) as api:
        began = time.monotonic()
        tile = api.get(f"/v1/jobs/{JOB}/tiles/10/1_0")
        assert (tile.status_code, tile.json()["code"]) == (503, "service_unavailable")
        ready = api.get("/readyz")
        assert (ready.status_code, ready.json()["store"], ready.json()["queue"]) == (503, "unreachable", "ok")
        assert time.monotonic() - began < 15
        assert api.post("/v1/jobs", json={"prompt": "lava"}).status_code == 202

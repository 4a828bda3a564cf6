"""The page, driven through jobs as a visitor does."""

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image
from playwright.sync_api import Page, WebSocketRoute, expect
from redis import Redis

from api_schemas.advanced import AdvancedSettings, StageSettings
from api_schemas.generation import GenerationRequest
from chorale.client import Client
from chorale.data_folder import DataFolder
from chorale.local import LocalStack
from tests.browser.conftest import OpenPage
from tests.browser.visitor import (
    SHORT,
    ask,
    await_deep_zoom,
    await_true,
    job_of,
    painted,
    percent,
    pixels,
    still,
)
from tests.story import CARD, Story

LONG = GenerationRequest(prompt="a long tide", width_px=1024, height_px=1024, steps=100, seed=3)


def test_a_prompt_becomes_a_picture_before_the_visitors_eyes(
    open_page: OpenPage, client: Client, tmp_path: Path
) -> None:
    page = open_page()
    ask(page, "waves at dusk", width=1024, height=512, steps=30, seamless="x")
    expect(page.locator("#state")).to_contain_text("Denoising, step")
    expect(page.locator("#left")).to_contain_text("left")
    expect(page.locator("#counts")).to_contain_text(re.compile(r"[\d,]+ of about [\d,]+ tiles"))
    before = painted(page), percent(page)
    page.screenshot(path=tmp_path / "running.png")
    await_true(lambda: percent(page) > before[1] + 10)
    assert painted(page) > before[0]
    await_deep_zoom(page)
    page.screenshot(path=tmp_path / "done.png")
    _check_shown(page, client, tmp_path)
    with page.expect_download() as download:
        page.click("#download")
    picture = client.download(job_of(page), tmp_path / "by-client.png")
    assert Path(download.value.path()).read_bytes() == picture.read_bytes()


def test_a_picture_of_odd_sides_fills_its_place(open_page: OpenPage, client: Client, tmp_path: Path) -> None:
    """Cells of previews end where the picture does: the last of 512 px are one pixel wide, and three high."""
    page = open_page()
    ask(page, "waves at dusk", width=1025, height=515, steps=10)
    expect(page.locator("#state")).to_contain_text("Denoising, step")
    await_true(lambda: painted(page) >= 6)
    page.screenshot(path=tmp_path / "running.png")
    await_deep_zoom(page)
    page.screenshot(path=tmp_path / "done.png")
    expect(page.locator("#facts")).to_contain_text("1025 × 515")
    _check_shown(page, client, tmp_path)


def _check_shown(page: Page, client: Client, folder: Path) -> None:
    """What lies on the stage is the picture, whole and in its middle."""
    page.evaluate("document.getElementById('tools').hidden = true")
    shown = still(page.locator("#viewer"))
    page.evaluate("document.getElementById('tools').hidden = false")
    picture = Image.open(client.download(job_of(page), folder / "picture.png")).convert("RGB")
    height, width, _ = shown.shape
    scale = min(width / picture.width, height / picture.height)
    size = round(picture.width * scale), round(picture.height * scale)
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    part = shown[top : top + size[1], left : left + size[0]]
    expected = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(part - expected).mean() < 12


def test_a_late_viewer_sees_the_whole_canvas_at_once(open_page: OpenPage, client: Client) -> None:
    job = client.create(LONG)
    for event in client.events(job.id):
        if event.type == "step.completed" and event.data.step >= 2:
            break
    page = open_page(f"/?job={job.id}")
    # 1024 px in cells of 512 px: all four are painted, by what was kept and not by what comes.
    await_true(lambda: painted(page) >= 4)
    assert client.get(job.id).status == "processing"
    expect(page.locator("#title")).to_have_text("a long tide")
    shown = pixels(page.locator("#viewer"))
    assert shown[shown.shape[0] // 4 :: 40, shown.shape[1] // 2].std() > 10


def test_a_cascade_is_shown_whole_and_its_canvases_named(
    open_page: OpenPage, client: Client, tmp_path: Path
) -> None:
    """At 256 px already, all of the place where the picture will be is painted."""
    stages = AdvancedSettings(stages=[StageSettings(), StageSettings(steps=40), StageSettings(steps=4)])
    asked = GenerationRequest(
        prompt="a rising tide",
        width_px=1024,
        height_px=1024,
        steps=100,
        seed=3,
        layout="cascade",
        advanced=stages,
    )
    page = open_page(f"/?job={client.create(asked).id}")
    expect(page.locator("#state")).to_contain_text(re.compile(r"Denoising at 256 × 256, step \d+ of 144"))
    await_true(lambda: painted(page) >= 4)
    page.screenshot(path=tmp_path / "small.png")
    shown = pixels(page.locator("#viewer"))
    rows, columns = (slice(side // 4, side * 3 // 4, 20) for side in shown.shape[:2])
    assert shown[rows, columns].std() > 10
    first = percent(page)
    expect(page.locator("#state")).to_contain_text(
        re.compile(r"Denoising at 512 × 512, step 1[0-4]\d of 144")
    )
    page.screenshot(path=tmp_path / "middle.png")
    await_true(lambda: percent(page) > first)
    await_deep_zoom(page)


def test_cancel_stops_the_job_within_a_step(open_page: OpenPage, client: Client) -> None:
    page = open_page()
    ask(page, "never to be seen", width=1024, height=1024, steps=120)
    expect(page.locator("#state")).to_contain_text(re.compile(r"Denoising, step ([3-9]|\d\d)"))
    page.click("#cancel")
    expect(page.locator("#state")).to_contain_text("Canceled after step")
    expect(page.locator("#cancel")).to_be_hidden()
    assert client.get(job_of(page)).status == "canceled"


def test_a_seamless_picture_may_be_seen_repeated(open_page: OpenPage, client: Client, tmp_path: Path) -> None:
    job = client.wait(client.create(SHORT).id)
    page = open_page(f"/?job={job.id}", width=1400, height=700)
    await_deep_zoom(page)
    page.evaluate("document.getElementById('tools').style.opacity = 0")
    viewer = page.locator("#viewer")
    once = still(viewer)
    middle = once.shape[0] // 2
    edge = np.s_[middle - 40 : middle + 40, 4]
    assert once[edge].std(axis=0).max() < 1, "beside the picture there is the wall"
    page.click("#repeat")
    await_true(lambda: pixels(viewer)[edge].std(axis=0).min() > 10)  # there is the picture again
    page.screenshot(path=tmp_path / "repeated.png")
    page.click("#repeat")
    await_true(lambda: bool(np.abs(pixels(viewer) - once).mean() < 2))


def test_the_deep_zoom_shows_pixels_of_the_full_size(open_page: OpenPage, client: Client) -> None:
    job = client.wait(client.create(SHORT.model_copy(update={"width_px": 2048, "height_px": 2048})).id)
    page = open_page(f"/?job={job.id}")
    await_deep_zoom(page)
    with page.expect_response(re.compile(rf"{job.id}/tiles/11/\d+_\d+$")) as tile:
        for _ in range(3):
            page.click("#zoom-in")
            page.wait_for_timeout(300)
    assert tile.value.ok


def test_a_broken_line_is_taken_up_without_gap_or_duplicate(open_page: OpenPage, client: Client) -> None:
    received: list[str] = []
    lines: list[str] = []

    def break_first_lines(route: WebSocketRoute) -> None:
        lines.append(route.url)
        number = len(lines)
        server = route.connect_to_server()

        def pass_on(message: str | bytes) -> None:
            if isinstance(message, str):
                received.append(re.findall(r'"seq": ?"([^"]+)"', message)[0])
            route.send(message)
            if number < 3 and len(received) >= 4 * number:
                route.close()

        server.on_message(pass_on)

    page = open_page()
    page.route_web_socket(re.compile("/ws"), break_first_lines)
    ask(page, "waves", width=512, height=512, steps=30)
    await_deep_zoom(page)
    assert len(lines) >= 3
    assert [parse_qs(urlsplit(line).query)["after"][0] for line in lines[1:3]]
    assert list(dict.fromkeys(received)) == [event.seq for event in client.events(job_of(page))]


def test_a_network_without_websockets_costs_the_previews_alone(open_page: OpenPage) -> None:
    page = open_page()
    page.route_web_socket(re.compile("/ws"), lambda route: route.close(code=1006))
    ask(page, "waves", width=256, height=256, steps=2)
    await_deep_zoom(page)


def test_a_failed_job_says_why(open_page: OpenPage, stack: LocalStack) -> None:
    socket = DataFolder(stack.folder).socket()
    with Redis(unix_socket_path=str(socket)) as redis:
        story = Story(redis)
        story.queue("f0" * 14, prompt="no luck at all")
        story.start("f0" * 14)
        story.warn("f0" * 14, "no memory for batches of 8")
        page = open_page("/?job=" + "f0" * 14)
        expect(page.locator("#state")).to_contain_text("(no memory for batches of 8)")
        story.fail("f0" * 14)
        expect(page.locator("#failure")).to_contain_text("no luck")
        expect(page.locator("#viewer")).to_have_attribute("aria-busy", "false")
        expect(page.locator("#cancel")).to_be_hidden()
    assert CARD.name in (page.text_content("#facts") or "")


def test_an_unknown_job_says_so(open_page: OpenPage) -> None:
    page = open_page("/?job=" + "0" * 28)
    expect(page.locator("#sheet-note")).to_contain_text("does not exist")


def test_the_smallest_picture_is_shown_and_found_again(open_page: OpenPage, client: Client) -> None:
    smallest = SHORT.model_copy(update={"prompt": "very small", "width_px": 64, "height_px": 64})
    page = open_page(f"/?job={client.wait(client.create(smallest).id).id}")
    await_deep_zoom(page)
    thumb = page.locator("li", has_text="very small").locator("img")
    await_true(lambda: thumb.evaluate("each => each.naturalWidth") == 64)


def test_a_server_without_jobs_says_so(open_page: OpenPage) -> None:
    page = open_page()
    page.route("**/v1/jobs?*", lambda route: route.fulfill(json={"data": [], "next": None}))
    page.reload()
    expect(page.locator("#recent-empty")).to_be_visible()


def test_recent_jobs_lead_back_to_their_picture(open_page: OpenPage, client: Client) -> None:
    job = client.wait(client.create(SHORT.model_copy(update={"prompt": "to be found again"})).id)
    page = open_page()
    page.click("text=to be found again")
    assert job_of(page) == job.id
    await_deep_zoom(page)
    page.go_back()
    expect(page.locator("#sheet-size")).to_be_visible()
    expect(page.locator("#caption")).to_be_hidden()

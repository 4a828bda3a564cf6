"""Jobs that begin with a picture: a file on the form, and parent and child beside each other in the deep zoom."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from api_schemas.derived import ExtendRequest
from api_schemas.generation import GenerationRequest
from api_schemas.source import Source
from chorale.client import Client
from tests.browser.conftest import OpenPage
from tests.browser.visitor import SHORT, await_deep_zoom, await_true, drop_no_picture, job_of, pixels

SOURCE_PX = (320, 192)
PARENT = SHORT.model_copy(update={"width_px": 256, "height_px": 256, "steps": 2, "seamless": "none"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "source.png"
    Image.effect_noise(SOURCE_PX, 60).convert("RGB").save(path)
    return path


def sides(page: Page) -> tuple[str, str]:
    return page.input_value("#width_px"), page.input_value("#height_px")


def choose(page: Page, what: str) -> None:
    page.check(f"input[name=source-kind][value={what}]", force=True)


def test_a_file_is_dropped_refused_and_replaced_and_a_part_of_the_new_one_inpainted(
    open_page: OpenPage, client: Client, file: Path, tmp_path: Path
) -> None:
    page = open_page()
    page.fill("#prompt", "a lake")
    before = sides(page)
    drop_no_picture(page.locator("body"), "letter.png")
    expect(page.locator("#source-name")).to_have_text("letter.png")
    page.click("#submit")
    expect(page.locator("#refusal-source")).to_contain_text("PNG, JPEG")
    page.click("#source-remove")
    expect(page.locator("#refusal-source")).to_be_empty()
    assert sides(page) == before
    page.set_input_files("#source_image", file)
    expect(page.locator("#source-facts")).to_contain_text("320 × 192")
    assert sides(page) == ("320", "192")
    choose(page, "enhance")
    page.select_option("#upscale", "4")
    expect(page.locator("#size-note")).to_contain_text("1280 × 768")
    choose(page, "inpaint")
    page.fill("#width_px", "640")
    assert sides(page) == ("640", "384"), "a side that is not touched follows the source's proportions"
    page.click("#submit")
    expect(page.locator("#refusal-mask")).to_contain_text("Draw what is inpainted")
    _drag(page, "#mask-area", (0.25, 0.25), (0.5, 0.75))
    page.fill("#mask-feather", "8")
    page.screenshot(path=tmp_path / "inpaint.png")
    page.click("#submit")
    page.wait_for_url("**/?job=*")
    request = client.get(job_of(page)).request
    assert request.pictures["source_image"].width_px == 320
    assert (request.source, request.strength) == (Source(), 1.0)
    assert (request.width_px, request.height_px) == (640, 384)
    assert request.mask
    assert request.mask.rectangle
    assert request.mask.feather_px == 8
    place = request.mask.rectangle
    drawn = place.left_px, place.top_px, place.width_px, place.height_px
    assert drawn == pytest.approx((160, 96, 160, 192), abs=6)


def test_a_part_of_a_finished_picture_is_made_again_by_keyboard_alone(
    open_page: OpenPage, client: Client
) -> None:
    parent = client.wait(client.create(PARENT).id)
    page = open_page(f"/?job={parent.id}")
    expect(page.locator("#derive summary")).to_be_visible()
    page.locator("#derive summary").press("Enter")
    page.get_by_label("Part: across,down in px").fill("10,10 200,20 90,200")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: parent.id not in url)
    request = client.get(job_of(page)).request
    assert request.parent == parent.id
    assert request.mask
    assert request.mask.polygon == [(10, 10), (200, 20), (90, 200)]


def test_parent_and_child_are_compared_at_the_same_place_and_zoom(
    open_page: OpenPage, client: Client, tmp_path: Path
) -> None:
    """An extended child has its parent's pixels, so nothing may move where the parent lies; an enhanced one is larger."""
    parent = client.wait(client.create(PARENT).id)
    asked = GenerationRequest(prompt="waves", source=Source(job=parent.id), upscale=2, fidelity=1, steps=2)
    enhanced = client.create(asked)
    child = client.wait(client.extend(parent.id, ExtendRequest(left_px=128, top_px=64)).id)
    page = open_page(f"/?job={child.id}")
    await_deep_zoom(page)
    alone = _look(page)
    page.click("#compare")
    slider = page.get_by_role("slider", name="Divider between parent and child")
    expect(slider).to_be_focused()
    middle = alone.shape[1] // 2
    left, top, _, bottom = _find_on_screen(alone.shape, (384, 320), (128, 64, 384, 320))

    def is_halved() -> bool:
        both = _look(page)
        same = np.abs(both - alone).mean(axis=2)
        wall = both[40 : top - 3, 40:middle]
        parents = same[top + 3 : bottom - 3, left + 3 : middle - 4]
        return same[:, middle + 4 :].mean() < 1 and parents.mean() < 3 and wall.std(axis=(0, 1)).max() < 1

    await_true(is_halved)
    page.screenshot(path=tmp_path / "halves.png")
    page.keyboard.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuetext", "parent 52 %, child 48 %")
    _drag(page, "#divider", (0.5, 0.5), (0.5 - alone.shape[1] / 4 / 44, 0.5))
    expect(slider).to_have_attribute("aria-valuenow", "27")
    page.keyboard.press("Escape")
    expect(slider).to_be_hidden()
    expect(page.locator("#compare")).to_be_focused()
    await_true(lambda: bool(np.abs(_look(page) - alone).mean() < 1))

    client.wait(enhanced.id)
    page.click(f"#recent a[data-job='{enhanced.id}']")
    expect(page.locator("#facts")).to_contain_text("enhanced 2 times")
    await_deep_zoom(page)
    alone = _look(page)
    page.click("#compare")
    expect(slider).to_be_focused()
    left, top, right, bottom = _find_on_screen(alone.shape, (1, 1), (0, 0, 1, 1))
    picture = Image.open(client.download(parent.id, tmp_path / "parent.png")).convert("RGB")
    expected = alone.copy()
    expected[top:bottom, left:right] = picture.resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    expected[:, middle:] = alone[:, middle:]
    sides = np.s_[:, left : middle - 4], np.s_[:, middle + 4 : right]
    await_true(lambda: all(np.abs(_look(page) - expected)[side].mean() < 6 for side in sides))


def _drag(page: Page, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From and to shares of an element's sides."""
    page.locator(selector).scroll_into_view_if_needed()
    box = page.locator(selector).bounding_box()
    assert box
    for share, act in ((start, page.mouse.down), (end, page.mouse.up)):
        page.mouse.move(box["x"] + share[0] * box["width"], box["y"] + share[1] * box["height"])
        act()


def _look(page: Page) -> np.ndarray:
    """The pictures alone."""
    page.evaluate("for (const id of ['tools', 'pair']) document.getElementById(id).style.opacity = 0")
    return pixels(page.locator("#viewer"))


def _find_on_screen(
    shape: tuple[int, ...], size: tuple[int, int], place: tuple[int, int, int, int]
) -> tuple[int, int, int, int]:
    """Where a part (left, top, right, bottom) of a picture of that (width, height) is, when all of it is shown."""
    scale = min(shape[1] / size[0], shape[0] / size[1])
    left, top = ((side - own * scale) / 2 for side, own in zip((shape[1], shape[0]), size, strict=True))
    return (
        round(left + place[0] * scale),
        round(top + place[1] * scale),
        round(left + place[2] * scale),
        round(top + place[3] * scale),
    )

"""Regions on the page: drawn with a pointer or by keyboard alone, corrected, sent and copied."""

from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from api_schemas.generation import GenerationRequest
from api_schemas.regions import RectangleShape, Region, RegionShape
from chorale.client import Client
from tests.browser.conftest import OpenPage
from tests.browser.visitor import job_of

SIDE_PX = 1024


def open_form(open_page: OpenPage, **how: object) -> Page:
    """The form with its regions unfolded, for a small picture."""
    page = open_page(**how)
    page.fill("#prompt", "stormy grey clouds")
    page.check("input[name=size][value='1024']")
    page.click("#advanced summary")
    page.fill("#steps", "2")
    page.click("#regions > summary")
    page.locator("#region-area").scroll_into_view_if_needed()
    return page


def point_at(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where on the screen a share of the picture's sides lies."""
    box = page.locator("#region-area").bounding_box()
    assert box
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*point_at(page, *start))
    page.mouse.down()
    page.mouse.move(*point_at(page, *end), steps=4)
    page.mouse.up()


def tap(page: Page, *points: tuple[float, float]) -> None:
    for point in points:
        page.mouse.click(*point_at(page, *point))


def send(page: Page, client: Client) -> list[Region]:
    page.click("#submit")
    page.wait_for_url("**/?job=*")
    return client.get(job_of(page)).request.regions


def test_a_drawn_rectangle_is_sent_with_its_prompt(
    open_page: OpenPage, client: Client, tmp_path: Path
) -> None:
    page = open_form(open_page)
    drag(page, (0.75, 0.9), (0.25, 0.5))
    expect(page.get_by_label("Prompt of region 1")).to_be_focused()
    page.keyboard.type("desert dunes at sunset")
    page.screenshot(path=tmp_path / "drawn.png")
    (region,) = send(page, client)
    assert region.prompt == "desert dunes at sunset"
    assert region.shape.rectangle
    place = region.shape.rectangle
    sides = place.left_px, place.top_px, place.width_px, place.height_px
    assert sides == pytest.approx((256, 512, 512, 410), abs=6)


def test_a_polygon_closes_where_it_began_and_can_be_moved(open_page: OpenPage, client: Client) -> None:
    page = open_form(open_page)
    page.check("input[name=region-tool][value=polygon]", force=True)
    tap(page, (0.2, 0.2), (0.6, 0.2), (0.6, 0.6), (0.21, 0.21))
    page.get_by_label("Prompt of region 1").fill("green grass")
    page.check("input[name=region-tool][value=move]", force=True)
    drag(page, (0.5, 0.3), (0.7, 0.5))
    drag(page, (0.8, 0.8), (0.9, 0.9))
    (region,) = send(page, client)
    assert region.shape.polygon
    expected = [(0.4, 0.4), (0.8, 0.4), (0.9, 0.9)]
    for corner, (x, y) in zip(region.shape.polygon, expected, strict=True):
        assert corner == pytest.approx((x * SIDE_PX, y * SIDE_PX), abs=8)


def test_escape_drops_a_polygon_and_a_tap_draws_nothing(open_page: OpenPage) -> None:
    page = open_form(open_page)
    tap(page, (0.5, 0.5))
    page.check("input[name=region-tool][value=polygon]", force=True)
    tap(page, (0.2, 0.2), (0.6, 0.2), (0.6, 0.6))
    expect(page.locator("#close-polygon")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#close-polygon")).to_be_hidden()
    expect(page.locator("#region-area *")).to_have_count(0)
    expect(page.locator("#region-rows li")).to_have_count(0)


def test_the_keyboard_alone_is_enough(open_page: OpenPage, client: Client) -> None:
    page = open_form(open_page)
    page.focus("#add-polygon")
    page.keyboard.press("Enter")
    page.keyboard.type("a lake")
    corners = page.get_by_label("Corners")
    corners.focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("0,0 512,0 512,400")
    page.focus("#add-rectangle")
    page.keyboard.press("Space")
    page.keyboard.type("a hut")
    row = page.locator("#region-rows li").nth(1)
    for label, value in (
        ("Left", "100"),
        ("Top", "200"),
        ("Width", "300"),
        ("Height", "64"),
        ("Weight", "2.5"),
        ("Feather", "0"),
    ):
        row.get_by_label(label).fill(value)
    row.get_by_label("Seed").fill("9223372036854775807")
    row.get_by_label("Negative prompt").fill("people")
    expect(page.locator("#region-count")).to_have_text("(2)")
    first, second = send(page, client)
    assert (first.prompt, first.shape.polygon) == ("a lake", [(0, 0), (512, 0), (512, 400)])
    assert second == Region(
        prompt="a hut",
        negative_prompt="people",
        weight=2.5,
        feather_px=0,
        seed=2**63 - 1,
        shape=RegionShape(rectangle=RectangleShape(left_px=100, top_px=200, width_px=300, height_px=64)),
    )


def test_regions_keep_their_place_when_the_size_changes(open_page: OpenPage) -> None:
    page = open_form(open_page)
    page.click("#add-rectangle")
    page.check("input[name=size][value='4096']", force=True)
    expect(page.get_by_label("Left, px")).to_have_value("1024")
    expect(page.get_by_label("Width, px")).to_have_value("2048")


def test_a_removed_region_is_not_sent(open_page: OpenPage, client: Client) -> None:
    page = open_form(open_page)
    page.click("#add-rectangle")
    page.click("#add-polygon")
    page.get_by_label("Prompt of region 2").fill("a path")
    page.get_by_label("Remove region 1").click()
    expect(page.get_by_label("Prompt of region 1")).to_be_focused()
    (region,) = send(page, client)
    assert region.prompt == "a path"


def test_there_are_no_more_than_sixteen(open_page: OpenPage) -> None:
    page = open_form(open_page)
    for _ in range(16):
        page.click("#add-rectangle")
    expect(page.locator("#add-rectangle")).to_be_disabled()
    expect(page.locator("#region-hint")).to_have_text("At most 16 regions.")
    drag(page, (0.1, 0.1), (0.9, 0.9))
    expect(page.locator("#region-rows li")).to_have_count(16)


def test_a_refusal_stands_at_its_region(open_page: OpenPage) -> None:
    page = open_form(open_page)
    page.click("#add-polygon")
    page.get_by_label("Corners").fill("0,0 500,500 500,0 0,500")
    page.click("#submit")
    expect(page.locator("#refusal-regions")).to_contain_text("Region 1")
    expect(page.locator("#refusal-regions")).to_contain_text("edges that do not cross")
    expect(page.get_by_label("Corners")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Corners")).to_be_focused()
    page.get_by_label("Corners").fill("0,0 500,500 500,0")
    expect(page.locator("#refusal-regions")).to_be_empty()


def test_a_job_gives_its_regions_back(open_page: OpenPage, client: Client) -> None:
    place = RectangleShape(left_px=11, top_px=0, width_px=333, height_px=512)
    regions = [
        Region(prompt="a river", shape=RegionShape(rectangle=place), weight=0.5, seed=2**63 - 1),
        Region(
            prompt="a hill", shape=RegionShape(polygon=[(1, 2), (500, 3), (77, 511)]), negative_prompt="snow"
        ),
    ]
    asked = GenerationRequest(prompt="plain", width_px=768, height_px=512, steps=2, regions=regions)
    page = open_page(f"/?job={client.create(asked).id}")
    expect(page.locator("#facts")).to_contain_text("768 × 512 · 2 regions")
    page.click("#again")
    assert send(page, client) == regions


def test_a_mask_picture_is_not_copied_and_that_is_said(
    open_page: OpenPage, client: Client, tmp_path: Path
) -> None:
    Image.new("L", (512, 512), "white").save(tmp_path / "mask.png")
    place = RectangleShape(left_px=0, top_px=0, width_px=64, height_px=64)
    regions = [
        Region(prompt="a hole", shape=RegionShape(mask="region_mask_1")),
        Region(prompt="a hut", shape=RegionShape(rectangle=place)),
    ]
    asked = GenerationRequest(prompt="plain", width_px=512, height_px=512, steps=2, regions=regions)
    page = open_page(f"/?job={client.create(asked, pictures={'region_mask_1': tmp_path / 'mask.png'}).id}")
    page.click("#again")
    expect(page.locator("#refusal-regions")).to_have_text("Regions with a mask picture are left out: 1")
    expect(page.locator("#region-rows li")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_finger_draws_on_a_phone(open_page: OpenPage, scheme: str, tmp_path: Path) -> None:
    page = open_form(open_page, width=390, height=844, scheme=scheme)
    session = page.context.new_cdp_session(page)
    for kind, at in (
        ("touchStart", (0.1, 0.1)),
        ("touchMove", (0.5, 0.4)),
        ("touchMove", (0.9, 0.5)),
        ("touchEnd", None),
    ):
        points = [dict(zip("xy", point_at(page, *at), strict=True))] if at else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    expect(page.locator("#region-rows li")).to_have_count(1)
    page.get_by_label("Prompt of region 1").fill("stars")
    page.locator("#region-rows summary").click()
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for target in page.locator("#regions button:visible, #regions input:visible:not([type=radio])").all():
        box = target.bounding_box()
        assert box
        assert min(box["width"], box["height"]) >= 40, target.evaluate("each => each.outerHTML")

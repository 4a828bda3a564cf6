"""The page for everyone: what is refused, a phone, day and night, the keyboard alone."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from api_schemas.generation import GenerationRequest
from chorale.client import Client
from tests.browser.conftest import OpenPage
from tests.browser.visitor import SHORT, ask, await_deep_zoom, job_of


@pytest.mark.parametrize(
    ("field", "value", "place", "says"),
    [
        ("width_px", "1001", "size", "1000 or 1008"),
        ("height_px", "63", "size", "64"),
        ("seed", "12.5", "seed", "whole number"),
        ("seed", "9223372036854775808", "seed", "9223372036854775807"),
        ("steps", "500", "steps", "200"),
    ],
)
def test_refusals_stand_at_their_field(
    open_page: OpenPage, field: str, value: str, place: str, says: str
) -> None:
    page = open_page()
    page.fill("#prompt", "waves")
    page.check("input[name=size][value=free]")
    page.check("input[name=seamless][value=x]")
    page.click("#advanced summary")
    page.fill(f"#{field}", value)
    page.click("#submit")
    expect(page.locator(f"#refusal-{place}")).to_contain_text(says)
    expect(page.locator(f"#{field}")).to_have_attribute("aria-invalid", "true")
    expect(page.locator(f"#{field}")).to_be_focused()
    assert "job=" not in page.url
    page.fill(f"#{field}", "512")
    expect(page.locator(f"#refusal-{place}")).to_be_empty()


def test_nothing_is_made_without_a_prompt(open_page: OpenPage) -> None:
    page = open_page()
    page.click("#submit")
    expect(page.locator("#refusal-prompt")).to_contain_text("what the picture shows")
    expect(page.locator("#prompt")).to_be_focused()
    assert "job=" not in page.url


def test_a_click_after_a_long_prompt_is_not_lost(open_page: OpenPage) -> None:
    """The prompt's field scrolls, and the page does not move when it is left."""
    page = open_page()
    page.fill("#prompt", "waves and rocks " * 120)
    choice = page.locator("label", has=page.locator("input[name=size][value=free]"))
    choice.scroll_into_view_if_needed()
    box = choice.bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator("input[name=size][value=free]")).to_be_checked(timeout=2000)
    assert page.locator("#prompt").evaluate("field => field.clientHeight <= innerHeight / 2")


def test_seeds_beyond_53_bits_are_kept_exactly(open_page: OpenPage, client: Client) -> None:
    page = open_page()
    page.fill("#seed", "9223372036854775807")
    ask(page, "waves", width=512, height=512, steps=2)
    assert client.get(job_of(page)).request.seed == 2**63 - 1
    expect(page.locator("#facts")).to_contain_text("seed 9223372036854775807")
    page.fill("#seed", "1")
    page.click("#again")
    expect(page.locator("#seed")).to_have_value("9223372036854775807")


def test_copied_settings_keep_what_the_form_has_no_field_for(open_page: OpenPage, client: Client) -> None:
    """Else the copy's file would hold the prompt that the first was not to hold."""
    asked = {"embed_metadata": False, "guidance_scale": 4.0, "advanced": {"guidance_interval": [0.25, 0.75]}}
    made = client.create(GenerationRequest.model_validate(SHORT.model_dump(exclude_unset=True) | asked))
    page = open_page(f"/?job={made.id}")
    await_deep_zoom(page)
    expect(page.locator("#facts")).to_contain_text("guidance from 0.25 to 0.75 of the schedule")
    page.click("#again")
    page.click("#submit")
    page.wait_for_url(lambda address: "job=" in address and made.id not in address)
    copy = client.get(job_of(page)).request
    assert (copy.embed_metadata, copy.advanced.guidance_interval) == (False, (0.25, 0.75))


def test_a_phone_needs_no_sideways_scrolling(open_page: OpenPage, client: Client, tmp_path: Path) -> None:
    job = client.wait(client.create(SHORT).id)
    page = open_page(f"/?job={job.id}", width=390, height=844)
    await_deep_zoom(page)
    page.click("#advanced summary")
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    stage, form = page.locator("#frame").bounding_box(), page.locator("#form").bounding_box()
    assert stage
    assert form
    assert stage["y"] < form["y"], "the picture comes first"
    for target in page.locator("button:visible, .primary:visible, select:visible").all():
        box = target.bounding_box()
        assert box
        assert min(box["width"], box["height"]) >= 40, target.evaluate("each => each.outerHTML")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_by_day_and_by_night(
    open_page: OpenPage, client: Client, scheme: str, tmp_path: Path
) -> None:
    job = client.wait(client.create(SHORT).id)
    page = open_page(f"/?job={job.id}", scheme=scheme)
    await_deep_zoom(page)
    page.screenshot(path=tmp_path / f"{scheme}.png")
    ground = _color(page, "body", "background-color")
    assert (sum(ground) < 150) == (scheme == "dark")
    for text in ("#title", "#facts", "label", "#recent small", ".motto"):
        assert _contrast(_color(page, text, "color"), ground) >= 4.5, text
    button = _color(page, "#submit", "color"), _color(page, "#submit", "background-color")
    assert _contrast(*button) >= 4.5


def _color(page: Page, selector: str, name: str) -> tuple[int, ...]:
    style = page.locator(selector).first.evaluate(
        "(each, name) => getComputedStyle(each).getPropertyValue(name)", name
    )
    return tuple(map(int, re.findall(r"\d+", style)[:3]))


def _contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """WCAG 2.2, contrast ratio."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: tuple[int, ...]) -> float:
    parts = [(value / 255 + 0.055) / 1.055 for value in color]
    linear = [
        part**2.4 if value > 10 else value / 255 / 12.92 for part, value in zip(parts, color, strict=True)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_keyboard_alone_makes_a_picture(open_page: OpenPage, client: Client) -> None:
    page = open_page()
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("by hand")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")  # from 2048² to 1024²
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")  # seamless across
    page.locator("#prompt").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/?job=*")
    expect(page.locator("#title")).to_be_focused()
    request = client.get(job_of(page)).request
    assert (request.prompt, request.width_px, request.seamless) == ("by hand", 1024, "x")
    names = _tab_through(page, 32)
    assert {"cancel", "again", "share", "zoom-in", "fit"} <= names


def _tab_through(page: Page, times: int) -> set[str]:
    names: set[str] = set()
    for _ in range(times):
        page.keyboard.press("Tab")
        names.add(page.evaluate("document.activeElement.id"))
    return names

"""A style that a picture takes: in words and of another picture, on the form and from a finished job."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from api_schemas.style import Style
from chorale.client import Client
from tests.browser.conftest import OpenPage
from tests.browser.visitor import SHORT, drop_no_picture, job_of

WORDS, PICTURE, STRENGTH = "Style in words", "Choose a picture that has the style", "Style strength, 0 to 1"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The source, and the picture whose style it takes."""
    paths = tmp_path / "hills.png", tmp_path / "painting.png"
    for path, size in zip(paths, ((320, 192), (96, 64)), strict=True):
        Image.effect_noise(size, 60).convert("RGB").save(path)
    return paths


def open_style(page: Page, source: Path) -> None:
    page.fill("#prompt", "hills")
    page.set_input_files("#source_image", source)
    page.locator("input[name=source-kind]:checked").press("ArrowLeft")
    expect(page.get_by_role("radio", name="Style")).to_be_checked()


def test_a_style_is_asked_for_in_words_and_by_a_picture_and_refused_at_its_field(
    open_page: OpenPage, client: Client, files: tuple[Path, Path], tmp_path: Path
) -> None:
    page = open_page()
    source, painting = files
    open_style(page, source)
    page.click("#submit")
    form = page.locator("#form")
    words, strength, picture = (form.get_by_label(each) for each in (WORDS, STRENGTH, PICTURE))
    expect(words).to_be_focused()
    expect(words).to_have_accessible_description("Give the style in words, or choose a picture that has it.")
    words.fill("ink wash")
    strength.fill("2")
    page.keyboard.press("Enter")
    expect(strength).to_be_focused()
    expect(strength).to_have_accessible_description(re.compile("number from 0 to 1"))
    strength.fill("0.5")
    drop_no_picture(page.locator("#style-drop"), "letter.png")
    expect(page.locator("#style-name")).to_have_text("letter.png")
    expect(page.locator("#source-name")).to_have_text(source.name)
    page.click("#submit")
    expect(page.locator("#refusal-style\\.style_image")).to_contain_text("PNG, JPEG")
    page.get_by_role("button", name="Remove the style picture").press("Enter")
    expect(page.locator("#refusal-style\\.style_image")).to_be_empty()
    expect(picture).to_be_focused()
    picture.set_input_files(painting)
    expect(page.locator("#style-facts")).to_contain_text("96 × 64")
    assert page.locator("#style-image").evaluate("each => each.naturalWidth") == 96
    page.screenshot(path=tmp_path / "style.png")
    page.click("#submit")
    page.wait_for_url("**/?job=*")
    request = client.get(job_of(page)).request
    assert request.style == Style(prompt="ink wash", style_image=True, strength=0.5)
    assert [request.pictures[part].width_px for part in ("source_image", "style_image")] == [320, 96]
    expect(page.locator("#facts")).to_contain_text("style “ink wash” and style picture, strength 0.5")
    page.click("#again")
    expect(page.locator("#refusal-source")).to_contain_text("style picture is left out")
    expect(words).to_have_value("ink wash")


def test_a_model_that_takes_no_style_picture_is_given_words(
    open_page: OpenPage, client: Client, files: tuple[Path, Path]
) -> None:
    def answer(route: Route) -> None:
        cards = route.fetch().json()
        cards["data"][0]["style_image"] = False
        route.fulfill(body=json.dumps(cards), content_type="application/json")

    page = open_page()
    page.route("**/v1/models", answer)
    with page.expect_response("**/v1/models"):
        page.reload()
    open_style(page, files[0])
    expect(page.locator("#style-note")).to_have_text(
        "No style picture: the model toy takes a style in words alone."
    )
    expect(page.locator("#form").get_by_label(PICTURE)).to_be_hidden()
    page.click("#submit")
    expect(page.get_by_text("Give the style in words.")).to_be_visible()
    page.locator("#form").get_by_label(WORDS).fill("ink wash")
    page.click("#submit")
    page.wait_for_url("**/?job=*")
    assert client.get(job_of(page)).request.style == Style(prompt="ink wash")


def test_a_finished_picture_is_restyled_and_compared_with_itself(
    open_page: OpenPage, client: Client, files: tuple[Path, Path]
) -> None:
    parent = client.wait(client.create(SHORT.model_copy(update={"seamless": "none"})).id)
    page = open_page(f"/?job={parent.id}")
    expect(page.locator("#derive summary")).to_be_visible()  # a hidden one takes no focus, and says nothing
    page.focus("#derive summary")
    page.keyboard.press("Enter")
    page.locator("#derive input[name=kind]:checked").press("ArrowLeft")
    page.keyboard.press("Tab")
    page.keyboard.type("ink wash")
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: parent.id not in url)
    request = client.get(job_of(page)).request
    assert request.parent == parent.id
    assert request.style == Style(prompt="ink wash")
    page.click("#compare")
    expect(page.get_by_role("slider", name="Divider between parent and child")).to_be_focused()

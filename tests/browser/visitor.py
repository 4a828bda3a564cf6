"""What a visitor does and sees."""

import io
import time
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from api_schemas.generation import GenerationRequest

SHORT = GenerationRequest(prompt="waves", width_px=512, height_px=512, steps=3, seed=3, seamless="both")

_DROP = """(place, name) => {
  const carried = new DataTransfer();
  carried.items.add(new File(["no picture"], name, { type: "image/png" }));
  for (const type of ["dragover", "drop"]) {
    place.dispatchEvent(new DragEvent(type, { dataTransfer: carried, bubbles: true, cancelable: true }));
  }
}"""


def job_of(page: Page) -> str:
    return parse_qs(urlsplit(page.url).query)["job"][0]


def ask(page: Page, prompt: str, *, width: int, height: int, steps: int, seamless: str = "none") -> None:
    """Fill the form in and send it."""
    page.fill("#prompt", prompt)
    page.check("input[name=size][value=free]")
    page.fill("#width_px", str(width))
    page.fill("#height_px", str(height))
    page.check(f"input[name=seamless][value={seamless}]")
    page.click("#advanced summary")
    page.fill("#steps", str(steps))
    page.click("#submit")
    page.wait_for_url("**/?job=*")


def drop_no_picture(place: Locator, name: str) -> None:
    """A file that is called a PNG, and is none."""
    place.evaluate(_DROP, name)


def percent(page: Page) -> int:
    return int(page.get_attribute("#bar", "aria-valuenow") or 0)


def painted(page: Page) -> int:
    canvas = page.locator(".canvas")
    return int(canvas.get_attribute("data-painted") or 0) if canvas.count() else 0


def await_true(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    """Look from outside: the page's own policy lets no test evaluate strings in it again and again."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def pixels(place: Locator) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(place.screenshot())).convert("RGB")).astype(int)


def still(place: Locator, timeout_s: float = 60) -> np.ndarray:
    """The pixels once they have stopped changing."""
    deadline = time.monotonic() + timeout_s
    before, now = np.zeros(0), pixels(place)
    while not np.array_equal(before, now):
        assert time.monotonic() < deadline, "it goes on moving"
        place.page.wait_for_timeout(400)
        before, now = now, pixels(place)
    return now


def await_deep_zoom(page: Page) -> None:
    """All tiles that are looked at are there, and the live canvas has gone."""
    expect(page.locator("#viewer")).to_have_attribute("aria-busy", "false", timeout=90_000)
    expect(page.locator("#download")).to_be_visible()
    expect(page.locator(".canvas")).to_have_count(0)

"""A real Chromium on a real stack with the closed-form model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

from chorale.client import Client
from chorale.local import LocalStack
from tests.browser.chromium import find_browser
from tests.local_stack import toy_stack

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
OpenPage = Callable[..., Page]
expect.set_options(timeout=60_000)


# Not longer than its module: Playwright keeps an event loop running in this thread.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = find_browser()
    assert chromium, "no Chromium or Chrome: `python -m tests.browser.chromium` finds or installs one"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    with toy_stack(tmp_path_factory.mktemp("stack"), "toy:delay_ms=40,style_image=1") as stack:
        yield stack


@pytest.fixture
def client(stack: LocalStack) -> Iterator[Client]:
    """Ends what a test leaves running, so that the next one need not wait for it."""
    with Client(stack.url) as client:
        yield client
        for status in ("processing", "queued"):
            for job in client.list(status=status, limit=100).data:
                client.cancel(job.id)


@pytest.fixture
def open_page(browser: Browser, stack: LocalStack, client: Client, tmp_path: Path) -> Iterator[OpenPage]:
    """Opens windows; at the end none of them may have complained or asked another host."""
    troubles: list[str] = []
    pages: list[Page] = []

    def note_message(message: ConsoleMessage) -> None:
        # A refused request is told to the console too, and some tests are refused on purpose.
        if message.type == "error" and "Failed to load resource" not in message.text:
            troubles.append(message.text)

    def note_request(request: Request) -> None:
        if urlsplit(request.url).scheme.startswith("http") and not request.url.startswith(stack.url):
            troubles.append(f"asked {request.url}")

    def open_one(path: str = "/", *, width: int = 1280, height: int = 800, scheme: str = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        context.set_default_timeout(30_000)
        page = context.new_page()
        pages.append(page)
        page.on("console", note_message)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", note_request)
        page.goto(stack.url + path)
        return page

    yield open_one
    for number, page in enumerate(pages):
        page.screenshot(path=tmp_path / f"page-{number}.png")
        page.context.close()
    assert troubles == []

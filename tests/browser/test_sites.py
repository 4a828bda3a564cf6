"""The page behind a proxy that serves it below a path, and pages of other sites that try to use this server."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from chorale.client import Client
from chorale.local import LocalStack
from tests.browser.reverse_proxy import reverse_proxy
from tests.browser.visitor import SHORT, ask, await_deep_zoom, job_of

ATTACK = """async ([url, live]) => {
  const body = JSON.stringify({prompt: "stolen", width_px: 256, height_px: 256});
  const socketOpens = (address) => new Promise((done) => {
    const socket = new WebSocket(address);
    socket.onopen = () => done(true);
    socket.onerror = () => done(false);
  });
  const post = (options) => fetch(`${url}/v1/jobs`, {method: "POST", ...options}).then((got) => got.type, () => "no");
  await post({mode: "no-cors", body: new Blob([body])});
  await post({mode: "no-cors", body, headers: {"Content-Type": "text/plain"}});
  await post({body, headers: {"Content-Type": "application/json"}});
  const form = new FormData();
  form.append("request", new Blob([body], {type: "application/json"}));
  await post({mode: "no-cors", body: form});
  const frame = document.createElement("iframe");
  document.body.append(frame);
  await new Promise((done) => { frame.onload = done; frame.src = url; });
  const read = await fetch(`${url}/v1/jobs`).then((got) => got.ok, () => false);
  return { read, socket: await socketOpens(live) };
}"""


@pytest.fixture
def evil() -> Iterator[str]:
    """Another site, with an empty page."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><form method=post enctype=text/plain><input name=x></form>")

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(30_000)
    yield context.new_page()
    context.close()


def test_the_page_works_below_any_path(page: Page, client: Client, stack: LocalStack, tmp_path: Path) -> None:
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    with reverse_proxy(stack.url, "/pictures/chorale") as address:
        page.on(
            "request", lambda asked: troubles.append(asked.url) if not _is_below(asked.url, address) else None
        )
        page.goto(address)
        ask(page, "waves at dusk", width=256, height=256, steps=3)
        await_deep_zoom(page)
        page.screenshot(path=tmp_path / "below.png")
        with page.expect_download() as download:
            page.click("#download")
        picture = client.download(job_of(page), tmp_path / "by-client.png")
        assert Path(download.value.path()).read_bytes() == picture.read_bytes()
        page.click("#recent a")
        expect(page.locator("#title")).to_have_text("waves at dusk")
        page.click(".brand")
        assert page.url == address
        page.goto(f"{address}docs")
        expect(page.locator("#operations-jobs-create_job_v1_jobs_post")).to_be_visible()
        page.screenshot(path=tmp_path / "docs.png")
    assert troubles == []


def _is_below(url: str, address: str) -> bool:
    return url.startswith((address, address.replace("http", "ws"), "blob:", "data:"))


def test_a_page_of_another_site_gets_nothing(
    page: Page, client: Client, stack: LocalStack, evil: str
) -> None:
    client.create(SHORT)
    before = client.list(limit=100).data
    page.goto(evil)
    done = page.evaluate(ATTACK, [stack.url, f"{stack.url.replace('http', 'ws')}/v1/jobs/{before[0].id}/ws"])
    assert done == {"read": False, "socket": False}
    assert page.frames[1].locator("#form").count() == 0
    page.evaluate(
        "(url) => { document.forms[0].action = url; document.forms[0].submit(); }", f"{stack.url}/v1/jobs"
    )
    expect(page.locator("body")).to_contain_text("forbidden")
    assert [job.id for job in client.list(limit=100).data] == [job.id for job in before]

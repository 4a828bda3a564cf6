"""The page behind a proxy that serves it below a path; pages of other sites that try to use this server; signing in."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from redis import Redis

from chorale.client import Client
from chorale.data_folder import DataFolder
from chorale.key_records import KeyRecords
from chorale.local import LocalStack
from tests.browser.reverse_proxy import reverse_proxy
from tests.browser.visitor import SHORT, ask, await_deep_zoom, await_true, job_of

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

# With the cookie of a visitor who has signed in: another port is of the same site.
ATTACK_WITH_COOKIE = """async ([url, job]) => {
  const asks = (path, options) => fetch(url + path, {credentials: "include", ...options}).then((got) => got.ok, () => false);
  const loads = (element, address) => new Promise((done) => {
    element.onload = element.onopen = () => done(true);
    element.onerror = () => done(false);
    if (address) element.src = address;
  });
  return [
    await asks("/v1/jobs"),
    await asks(`/v1/jobs/${job}/cancel`, {method: "POST", mode: "no-cors"}),
    await asks("/v1/session", {method: "DELETE"}),
    await loads(new Image(), `${url}/v1/jobs/${job}/image`),
    await loads(new WebSocket(`${url.replace("http", "ws")}/v1/jobs/${job}/ws`)),
  ];
}"""


@pytest.fixture
def keys(stack: LocalStack, client: Client) -> Iterator[KeyRecords]:
    """The stack may have keys for the length of a test, but not while its client tidies up."""
    with Redis.from_url(f"unix://{DataFolder(stack.folder).socket()}") as redis:
        records = KeyRecords(redis)
        yield records
        for key in records.list_all():
            records.delete(key.id)


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


def test_a_page_asks_for_a_key_once_and_again_when_that_ends(
    page: Page, client: Client, stack: LocalStack, keys: KeyRecords, evil: str, tmp_path: Path
) -> None:
    key = keys.create("Ann of the studio", frozenset({"create", "read"}))
    dialog, name = page.locator("#sign-in"), page.locator("#account-name")
    page.goto(stack.url)
    expect(dialog).to_be_visible()
    page.screenshot(path=tmp_path / "asks.png")
    for _ in range(4):  # Chromium lets every second one through
        page.keyboard.press("Escape")
        expect(dialog).to_be_visible()
    page.fill("#key", f"{key[:-1]}{'0' if key[-1] != '0' else '1'}")
    page.click("#sign-in button")
    expect(page.locator("#refusal-key")).to_contain_text("no API key of this service")
    _sign_in(page, f" {key} ")
    expect(name).to_have_text("Ann of the studio")
    ask(page, "waves at dusk", width=256, height=256, steps=3)
    await_deep_zoom(page)
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/")
    assert key.split("_")[2] not in str(page.context.storage_state(indexed_db=True))
    attacker = page.context.new_page()
    attacker.goto(evil)
    assert attacker.evaluate(ATTACK_WITH_COOKIE, [stack.url, job_of(page)]) == [False] * 5
    attacker.close()

    page.reload()
    expect(name).to_be_visible()  # and nothing is asked again
    ask(page, "waves at night", width=256, height=256, steps=200)
    expect(page.locator("#state")).to_contain_text("step")
    new = keys.rotate("Ann of the studio", overlap_s=0)
    expect(dialog).to_be_visible()  # since the live stream has ended
    _sign_in(page, new)
    page.click("#cancel")
    expect(page.locator("#state")).to_contain_text("Canceled")

    others = job_of(page)
    page.fill("#prompt", "a secret of Ann's")
    keys.revoke("Ann of the studio")
    await_true(lambda: page.request.get(f"{stack.url}/v1/models").status == 401)
    page.click("#submit")
    _sign_in(page, keys.create("Bob", frozenset({"create", "read"})))
    expect(name).to_have_text("Bob")
    expect(page.locator("#title")).to_be_hidden()
    expect(page.locator("#prompt")).to_have_value("")
    expect(page.locator("#recent-empty")).to_be_visible()  # and nothing was made by his key
    page.go_back()
    assert job_of(page) == others
    expect(page.locator("main")).to_contain_text("This picture does not exist")
    expect(name).to_have_text("Bob")

    page.fill("#prompt", "a secret of Bob's")
    page.request.post(f"{stack.url}/v1/session", data={"key": keys.create("Cleo", frozenset({"read"}))})
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # as after a look at another tab
    expect(name).to_have_text("Cleo")
    expect(page.locator("#prompt")).to_have_value("")
    page.click("#sign-out")
    expect(dialog).to_be_visible()
    assert page.context.cookies() == []
    expect(page.locator("#title")).to_be_hidden()


def _sign_in(page: Page, key: str) -> None:
    page.fill("#key", key)
    page.click("#sign-in button")
    expect(page.locator("#sign-in")).to_be_hidden()

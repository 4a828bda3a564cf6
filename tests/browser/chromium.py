"""The browser of the page's tests: found, or installed by `python -m tests.browser.chromium`.

`make test` runs it twice: beside pip, with no package yet, for what the system has or gives; then for all.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

OVERRIDE = "CHORALE_TEST_BROWSER"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_MAC_PLACES = (
    "Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "Applications/Chromium.app/Contents/MacOS/Chromium",
)
_DEBIAN_PACKAGES = ("chromium", "fonts-dejavu-core")
_HELP = (
    "no browser for the page's tests, and none could be installed: install Chromium or Chrome (Debian:"
    " apt-get install chromium; macOS: brew install --cask chromium), or name one in " + OVERRIDE
)


def find_browser() -> str | None:
    """The first Chromium or Chrome that starts; only the named one where the environment names one.

    Ubuntu has a script `chromium-browser` that only says how to install it, so each is asked its version.
    """
    named = os.environ.get(OVERRIDE)
    return next(filter(_starts, [named] if named else _list_places()), None)


def _list_places() -> Iterator[str]:
    yield from filter(None, map(shutil.which, _NAMES))
    yield from (str(root / place) for root in (Path("/"), Path.home()) for place in _MAC_PLACES)
    if _has_playwright():
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            yield playwright.chromium.executable_path


def _has_playwright() -> bool:
    return find_spec("playwright") is not None


def _starts(path: str) -> bool:
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def install_browser() -> None:
    """Debian's package where we may install it, else Playwright's own browser; failures show in what is found."""
    root = _find_root()
    if root is not None:
        _try(*root, "apt-get", "update", "-qq")
        _try(*root, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *_DEBIAN_PACKAGES)
    if _has_playwright() and find_browser() is None:
        command = (sys.executable, "-m", "playwright", "install", "chromium")
        # Its libraries come from apt, too.
        if root is None or not _try(*command, "--with-deps"):
            _try(*command)


def _find_root() -> list[str] | None:
    """What goes before a command to run it as root, where apt-get is there and nobody is asked a password."""
    if shutil.which("apt-get") is None:
        return None
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    return prefix if _try(*prefix, "true") else None


def _try(*command: str) -> bool:
    """Whether it succeeded; what it prints goes to standard error."""
    try:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        return subprocess.run(command, stdout=sys.stderr, env=environment).returncode == 0
    except OSError:
        return False


def main() -> None:
    """Exits with one line where there is no browser and none can be installed, not even by Playwright."""
    named = os.environ.get(OVERRIDE)
    if find_browser() is None and not named:
        install_browser()
    if _has_playwright() and find_browser() is None:
        sys.exit(f"{OVERRIDE}: {named} does not start" if named else _HELP)


if __name__ == "__main__":
    main()

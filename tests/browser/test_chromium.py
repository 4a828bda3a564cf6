"""Which browser the page is tested in, as `make test` asks before anything else."""

import os
import subprocess
import sys
from pathlib import Path

from tests.browser.chromium import OVERRIDE

FIND = "from tests.browser.chromium import find_browser; print(find_browser())"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != OVERRIDE}
    return subprocess.run(
        [sys.executable, *arguments], env=clean | environment, capture_output=True, text=True, timeout=120
    )


def put_program(path: Path, code: int) -> Path:
    path.write_text(f"#!/bin/sh\nexit {code}\n")
    path.chmod(0o755)
    return path


def test_a_program_that_only_says_how_to_install_it_is_passed_over(tmp_path: Path) -> None:
    """As Ubuntu's `chromium-browser` without its snap."""
    put_program(tmp_path / "chromium-browser", 1)
    chrome = put_program(tmp_path / "google-chrome-stable", 0)
    assert run("-c", FIND, PATH=str(tmp_path)).stdout.strip() == str(chrome)


def test_a_named_browser_goes_before_all_others_and_must_start(tmp_path: Path) -> None:
    good, bad = put_program(tmp_path / "good", 0), put_program(tmp_path / "bad", 1)
    assert run("-c", FIND, **{OVERRIDE: str(good)}).stdout.strip() == str(good)
    assert run("-m", "tests.browser.chromium", **{OVERRIDE: str(good)}).returncode == 0
    refused = run("-m", "tests.browser.chromium", **{OVERRIDE: str(bad)})
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [f"{OVERRIDE}: {bad} does not start"]
    early = run("-S", "-m", "tests.browser.chromium", **{OVERRIDE: str(bad)})
    assert (early.returncode, early.stderr) == (0, "")  # beside pip, before Playwright is there

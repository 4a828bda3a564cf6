"""`python -m tests.chorale.blocking_client`: write chorale/client.py from chorale/async_client.py."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
SOURCE, TARGET = ROOT / "chorale/async_client.py", ROOT / "chorale/client.py"
_DOCSTRING: Final = '"""The blocking client, generated from async_client.py; see there."""'
_REPLACEMENTS: Final = (
    (r"\bimport asyncio\n", ""),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"\bwebsockets\.asyncio\b", "websockets.sync"),
    (r"\basync_(\w+)\b", r"\1"),
    (r"\basync(contextmanager)\b", r"\1"),
    (r"\bAsync(\w+)\b", r"\1"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\ba(close|read|iter_\w+)\b", r"\1"),
    (r"\bfor (\w+) in (.+):\n *yield \1\n", r"yield from \2\n"),
)


def generate() -> str:
    """The blocking client's source."""
    text = SOURCE.read_text()
    for pattern, replacement in _REPLACEMENTS:
        text = re.sub(pattern, replacement, text)
    text = re.sub(r'\A""".*"""', _DOCSTRING, text)
    for arguments in (["check", "--quiet", "--fix", "--select", "I"], ["format", "--quiet"]):
        text = _run_ruff(*arguments, text=text)
    return text


def _run_ruff(*arguments: str, text: str) -> str:
    command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", str(TARGET), "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout


if __name__ == "__main__":
    TARGET.write_text(generate())

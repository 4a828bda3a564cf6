"""The README tells the truth: its commands exist, its files are there, its snippets run."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from chorale.cli import app
from tests.stack import running_stack

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
CONSOLE = [
    line.split("#")[0].strip()
    for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]
CHORALE = [line[line.index("chorale ") :] for line in CONSOLE if re.match(r"(\S+=\S+ )*chorale ", line)]


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", TEXT, re.MULTILINE))
def test_make_targets_exist(target: str) -> None:
    assert subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize("command", CHORALE)
def test_chorale_commands_are_known(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    words = [name, arguments[0]] if name in ("models", "keys") and arguments else [name]
    usage = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
    assert usage.exit_code == 0
    for option in (argument for argument in arguments if argument.startswith("-")):
        assert re.search(rf"(?<!\w){option}\b", usage.output), f"{name} has no {option}"


def test_diagram_names_files_that_are_there() -> None:
    diagram = re.search(r"    client ──POST.*?\n\n", TEXT, re.DOTALL).group()
    files = re.findall(r"(?:service|worker|api_schemas)(?:/\w+)+", diagram)
    assert len(files) > 8
    chain = re.search(r"noise ─> .*? stitch", diagram).group()
    files += [f"worker/engine/{name}" for name in re.findall(r"\w+(?:/\w+)*", chain)]
    for file in files:
        assert (ROOT / f"{file}.py").is_file(), file


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_curl_bodies_and_python_snippets_work_on_a_running_server(tmp_path: Path, valkey: str) -> None:
    body = json.loads(re.search(r"-d '(\{.*?\})'", TEXT, re.DOTALL).group(1))
    small = {name: 256 if name.endswith("_px") else value for name, value in body.items()}
    snippets = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    snippets = [each for each in snippets if "localhost:8000" in each]
    assert len(snippets) == 2
    with running_stack(tmp_path, valkey, "toy") as stack:
        answer = subprocess.run(
            [
                "curl",
                "-s",
                f"{stack.url}/v1/jobs",
                "-H",
                "Content-Type: application/json",
                "-d",
                json.dumps(small),
            ],
            capture_output=True,
            timeout=30,
        )
        assert json.loads(answer.stdout)["status"] == "queued"
        for snippet in snippets:
            script = re.sub("4096|2048", "256", snippet).replace("http://localhost:8000", stack.url)
            script = re.sub(r"(\w+\.png)", rf"{tmp_path}/\1", script)
            exec(compile(script, "README.md", "exec"), {})
    for name in ("cobbles.png", "lake.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

"""`chorale verify` and `chorale provenance init`, as commands."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from chorale.cli import app
from provenance.manifest import Claim, ManifestSigner
from provenance.trial import TrialFiles, make_trial, name_trial_files

PIXELS = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> TrialFiles:
    return make_trial(tmp_path_factory.mktemp("trial"))


def verify(path: Path, *options: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["verify", str(path), *map(str, options)])
    return result.exit_code, result.output


def sign(path: Path, trial: TrialFiles, made: dict[str, object]) -> Path:
    Image.fromarray(PIXELS).save(path)
    ManifestSigner(trial.certificate, trial.key).sign(path, Claim("1", "trainedAlgorithmicMedia", made))
    return path


def test_verify_says_what_a_file_claims_and_whether_it_holds(tmp_path: Path, trial: TrialFiles) -> None:
    made: dict[str, object] = {"model": {"name": "m", "sha256": "ab"}, "prompt": "a \x1b[31m cave"}
    path = sign(tmp_path / "image.png", trial, made)
    code, told = verify(path)
    assert code == 0
    for line in (
        "C2PA manifest: valid",
        "not known to be trusted",
        "Chorale trial signer",
        "made by a trained model",
    ):
        assert line in told
    assert "model: name m, sha256 ab" in told
    assert r"prompt: a \x1b[31m cave" in told, "a terminal is not obeyed to"
    assert verify(path, "--trust", trial.authority)[0] == 0


def test_verify_tells_files_apart_by_its_exit_code(tmp_path: Path, trial: TrialFiles) -> None:
    path, other = sign(tmp_path / "image.jpg", trial, {}), make_trial(tmp_path / "other")
    code, told = verify(path, "--trust", other.authority)
    assert (code, "not known to be trusted" in told) == (3, True)
    data = bytearray(path.read_bytes())
    data[-60] ^= 1
    path.write_bytes(data)
    code, told = verify(path, "--trust", trial.authority)
    assert (code, "NOT valid" in told, "dataHash.mismatch" in told) == (3, True, True)
    Image.fromarray(PIXELS).save(tmp_path / "plain.webp")
    code, told = verify(tmp_path / "plain.webp")
    assert code == 4
    assert "C2PA manifest: none" in told


@pytest.mark.parametrize("made", [["a", "list"], "a text", 7, None])
def test_an_assertion_of_others_is_no_description_of_ours(
    tmp_path: Path, trial: TrialFiles, made: object
) -> None:
    path = sign(tmp_path / "image.png", trial, made)
    code, told = verify(path, "--trust", trial.authority)
    assert (code, "valid, and signed by one that you trust" in told) == (0, True)


@pytest.mark.parametrize("encoding", ["shift_jis", "utf-7", "idna", "punycode", "hex", "none-such"])
def test_xmp_in_any_encoding_is_read_or_left(tmp_path: Path, encoding: str) -> None:
    packet = f"<?xml version='1.0' encoding='{encoding}'?><a>\xff</a>".encode("latin-1")
    Image.fromarray(PIXELS).save(tmp_path / "image.jpg", xmp=packet)
    code, told = verify(tmp_path / "image.jpg")
    assert (code, "XMP: no source type" in told) == (4, True)


def test_what_is_no_regular_file_is_refused_and_so_are_authorities_that_are_none(
    tmp_path: Path, trial: TrialFiles
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path):
        result = CliRunner().invoke(app, ["verify", str(path)])
        assert result.exit_code == 1
        assert str(result.exception) == f"{path} is no regular file"
    path, broken = sign(tmp_path / "image.png", trial, {}), tmp_path / "broken.pem"
    lines = trial.authority.read_text().splitlines()
    for text in ("no PEM", "\n".join([lines[0], *lines[3:]]), "\n".join(lines[:-1])):
        broken.write_text(f"{text}\n")
        result = CliRunner().invoke(app, ["verify", str(path), "--trust", str(broken)])
        assert result.exit_code == 1
        assert str(result.exception).startswith(f"{broken} holds no certificates, or one that is damaged")


def test_a_file_that_is_no_picture_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no picture")
    command = [Path(sys.executable).with_name("chorale"), "verify", tmp_path / "note.png"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert (
        run.stderr
        == f"chorale: {tmp_path}/note.png is no picture that is known here; allowed: PNG, JPEG, WebP, TIFF\n"
    )


def test_init_makes_a_certificate_once_and_says_that_nobody_trusts_it(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["provenance", "init", "--data", str(tmp_path)])
    files = name_trial_files(tmp_path / "provenance")
    assert told.exit_code == 0
    assert f"CHORALE_PROVENANCE_CERTIFICATE={files.certificate}" in told.output
    assert "untrusted" in told.output
    ManifestSigner(files.certificate, files.key).try_out()
    before = files.key.read_bytes()
    again = CliRunner().invoke(app, ["provenance", "init", "--out", str(tmp_path / "provenance")])
    assert again.exit_code == 1
    assert "is there already" in str(again.exception)
    assert files.key.read_bytes() == before
    for kept in (files.certificate, files.authority, files.key):  # whichever is there, no other is written
        folder = tmp_path / kept.stem
        folder.mkdir()
        (folder / kept.name).write_text("mine")
        again = CliRunner().invoke(app, ["provenance", "init", "--out", str(folder)])
        assert f"{folder / kept.name} is there already" in str(again.exception)
        assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(kept.name, "mine")]

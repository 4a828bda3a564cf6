"""Signed files, verified by the c2pa library, with the trial's authority as the only one that it trusts."""

import hashlib
import json
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
import pytest
from PIL import Image

from provenance.errors import SigningError
from provenance.manifest import Claim, ManifestSigner, Parent
from provenance.trial import TrialFiles

TERMS = "http://cv.iptc.org/newscodes/digitalsourcetype/"
KINDS = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "tif": "image/tiff"}


def draw(path: Path) -> Path:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def read(path: Path, trial: TrialFiles) -> tuple[dict[str, Any], str]:
    """The store of manifests, and the library's judgement."""
    settings = {
        "version": 1,
        "trust": {"user_anchors": trial.authority.read_text()},
        "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    }
    context = c2pa.Context(c2pa.Settings.from_dict(settings))
    with path.open("rb") as file, c2pa.Reader(KINDS[path.suffix[1:]], file, context=context) as reader:
        return json.loads(reader.json()), str(reader.get_validation_state())


def list_actions(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    (found,) = [each for each in manifest["assertions"] if each["label"] == "c2pa.actions.v2"]
    return found["data"]["actions"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_signed_and_a_childs_parent_keeps_its_manifest(
    tmp_path: Path, trial: TrialFiles, kind: str
) -> None:
    signer = ManifestSigner(trial.certificate, trial.key)
    parent, child = draw(tmp_path / f"parent.{kind}"), draw(tmp_path / f"child.{kind}")
    before = np.asarray(Image.open(child))
    signer.sign(parent, Claim("1", "trainedAlgorithmicMedia", {"model": {"name": "m", "sha256": "ab"}}))
    signer.sign(
        child, Claim("1", "compositeWithTrainedAlgorithmicMedia", {"seed": 7}, Parent(parent, "a cave"))
    )
    assert np.array_equal(before, np.asarray(Image.open(child)))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"child.{kind}", f"parent.{kind}"]

    store, state = read(parent, trial)
    assert state == "Trusted"
    (action,) = list_actions(store["manifests"][store["active_manifest"]])
    assert (action["action"], action["digitalSourceType"]) == (
        "c2pa.created",
        f"{TERMS}trainedAlgorithmicMedia",
    )
    parents_label = store["active_manifest"]

    store, state = read(child, trial)
    assert state == "Trusted"
    manifest = store["manifests"][store["active_manifest"]]
    assert [each["action"] for each in list_actions(manifest)] == ["c2pa.opened", "c2pa.edited"]
    assert list_actions(manifest)[1]["digitalSourceType"] == f"{TERMS}compositeWithTrainedAlgorithmicMedia"
    (ingredient,) = manifest["ingredients"]
    assert (ingredient["relationship"], ingredient["active_manifest"]) == ("parentOf", parents_label)
    assert ingredient["title"] == "a cave"
    assert all(each.get("created") for each in manifest["assertions"])
    assert "thumbnail" not in json.dumps(store)


def test_of_a_parent_that_is_not_quoted_the_digest_is_told_and_nothing_of_its_manifest(
    tmp_path: Path, trial: TrialFiles
) -> None:
    signer = ManifestSigner(trial.certificate, trial.key)
    parent, child = draw(tmp_path / "parent.png"), draw(tmp_path / "child.png")
    signer.sign(parent, Claim("1", "trainedAlgorithmicMedia", {"prompt": "a secret cave"}))
    told = Parent(parent, "a picture", is_quoted=False)
    signer.sign(child, Claim("1", "trainedAlgorithmicMedia", {}, told))
    store, state = read(child, trial)
    assert (state, list(store["manifests"])) == ("Trusted", [store["active_manifest"]])
    manifest = store["manifests"][store["active_manifest"]]
    assert [each["action"] for each in list_actions(manifest)] == ["c2pa.opened", "c2pa.edited"]
    (ingredient,) = manifest["ingredients"]
    assert ingredient["relationship"] == "parentOf"
    assert hashlib.sha256(parent.read_bytes()).hexdigest() in ingredient["metadata"].values()
    assert b"secret" in parent.read_bytes()
    assert b"secret" not in child.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_pixel_is_noticed(tmp_path: Path, trial: TrialFiles, kind: str) -> None:
    path = draw(tmp_path / f"image.{kind}")
    ManifestSigner(trial.certificate, trial.key).sign(path, Claim("1", "trainedAlgorithmicMedia", {}))
    data = bytearray(path.read_bytes())
    place = {"png": -60, "jpg": -60, "webp": 120, "tif": 400}[kind]
    data[place] ^= 1
    path.write_bytes(data)
    store, state = read(path, trial)
    assert state == "Invalid"
    assert "assertion.dataHash.mismatch" in {each["code"] for each in store["validation_status"]}


def test_what_cannot_be_signed_stays_as_it_was(tmp_path: Path, trial: TrialFiles) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(SigningError):
        ManifestSigner(trial.certificate, trial.key).sign(path, Claim("1", "trainedAlgorithmicMedia", {}))
    assert path.read_bytes() == b"\x89PNG\r\n\x1a\n and no more"
    assert [each.name for each in tmp_path.iterdir()] == ["image.png"]


def test_who_gives_no_time_is_told_from_what_cannot_be_signed(tmp_path: Path, trial: TrialFiles) -> None:
    signer = ManifestSigner(trial.certificate, trial.key, "http://127.0.0.1:9/")
    path, claim = draw(tmp_path / "image.png"), Claim("1", "trainedAlgorithmicMedia", {})
    with pytest.raises(SigningError):
        signer.sign(path, claim)
    signer.sign(path, claim, timed=False)
    assert read(path, trial)[1] == "Trusted"

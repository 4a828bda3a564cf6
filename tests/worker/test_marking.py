"""What finished files say of their origin: in XMP always, signed and in the pixels where the operator wants it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from api_schemas.generation import OutputFormat, ResolvedRequest
from provenance.manifest import ManifestSigner
from provenance.reading import FileClaims, read_claims
from provenance.trial import TrialFiles, make_trial
from tests.worker.bench import Bench, result_of
from worker.errors import SigningUnavailableError
from worker.machine import Machine
from worker.marking import Marking
from worker.process.files import ImageFile
from worker.process.protocol import Generated, Levels
from worker.result import ResultFiles, ResultWriter
from worker.settings import WorkerSettings
from worker.storage import Storage

SIDE = 320
TERMS = "http://cv.iptc.org/newscodes/digitalsourcetype/"


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> TrialFiles:
    return make_trial(tmp_path_factory.mktemp("trial"))


def write(
    folder: Path, marking: Marking, *, is_child: bool = False, source: Path | None = None, **changes: object
) -> ResultFiles:
    """The files of one job, of grey noise."""
    pixels = np.random.default_rng(2).integers(60, 200, (SIDE, SIDE, 3), np.uint8)
    with ImageFile(folder / "image.tif", SIDE, SIDE) as rows:
        rows.write(0, pixels)
    (folder / "state.safetensors").write_bytes(b"")
    generated = Generated(folder / "image.tif", folder / "state.safetensors", 1.0)
    if is_child:
        (folder / "mask.rows").write_bytes(draw_levels().tobytes())
        levels = Levels(folder / "mask.rows", SIDE, SIDE + 8)
        generated = dataclasses.replace(generated, changed=(100, 0, 200, SIDE), levels=levels)
    fields = {"model": "m", "steps": 1, "guidance_scale": 1.0, "seed": 1, "prompt": "a cave"}
    request = ResolvedRequest.model_validate(fields | {"width_px": SIDE, "height_px": SIDE} | changes)
    storage = Storage.open(WorkerSettings(store_url=(folder / "store").as_uri()))
    return ResultWriter(storage, request, "a", generated, source, marking).write(folder)


def draw_levels() -> np.ndarray:
    """A canvas that is larger than the picture, inpainted between two columns."""
    levels = np.zeros((SIDE, SIDE + 8), np.uint8)
    levels[:, 100:200] = 255
    return levels


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
def test_every_file_says_where_its_pixels_come_from(tmp_path: Path, kind: OutputFormat, told: bool) -> None:
    """Read by Pillow, which finds XMP where each format's specification has it."""
    for is_child, term in (
        (False, "trainedAlgorithmicMedia"),
        (True, "compositeWithTrainedAlgorithmicMedia"),
    ):
        files = write(tmp_path, Marking(), is_child=is_child, output_format=kind, embed_metadata=told)
        with Image.open(files.image) as image:
            packet = image.info.get("XML:com.adobe.xmp") or image.info["xmp"]
        assert f'DigitalSourceType="{TERMS}{term}"' in (
            packet if isinstance(packet, str) else packet.decode()
        )
        (tmp_path / "pyramid").rename(tmp_path / f"pyramid-{is_child}")


def test_the_manifest_tells_the_prompt_only_where_metadata_is_wanted(
    tmp_path: Path, trial: TrialFiles
) -> None:
    marking = Marking(ManifestSigner(trial.certificate, trial.key), model_digest="abc")
    made = {
        told: read_made(write(make(tmp_path / str(told)), marking, embed_metadata=told), trial)
        for told in (True, False)
    }
    assert made[False] == {"model": {"name": "m", "sha256": "abc"}}
    assert made[True]["prompt"] == "a cave"
    assert made[True].items() > made[False].items()
    assert b"a cave" not in (tmp_path / "False" / "image.png").read_bytes()


def test_a_parent_is_told_as_far_as_it_is_known_and_without_its_prompt_if_its_child_has_none(
    tmp_path: Path, trial: TrialFiles
) -> None:
    marking = Marking(ManifestSigner(trial.certificate, trial.key))
    parent = write(make(tmp_path / "parent"), marking, prompt="a secret cave").image
    job = {"image_key": "x", "sha256": "x", "width_px": SIDE, "height_px": SIDE}
    for made_by, told in ((job, True), (job, False), (None, True)):
        folder = make(tmp_path / f"{made_by is None}-{told}")
        child = write(folder, marking, source=parent, source_job=made_by, embed_metadata=told).image
        assert (b"secret" in child.read_bytes()) == told
        assert (b"uploaded picture" in child.read_bytes()) == (made_by is None)
        assert len(read_claims(child, trial.authority).manifest.parents) == 1


def read_made(files: ResultFiles, trial: TrialFiles) -> dict[str, object]:
    claims = read_claims(files.image, trial.authority)
    assert claims.manifest.state == "trusted"
    return claims.manifest.made


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_pixels_that_stay_are_not_marked(tmp_path: Path) -> None:
    plain, marked = (
        np.asarray(Image.open(write(make(tmp_path / name), marking, is_child=True).image)).astype(int)
        for name, marking in (("plain", Marking()), ("marked", Marking(has_watermark=True)))
    )
    differs = (plain != marked).any(-1)
    assert not differs[draw_levels()[:, :SIDE] == 0].any()
    assert differs[:, 100:200].mean() > 0.5


def test_nothing_is_stored_unsigned_for_lack_of_a_valid_certificate(tmp_path: Path) -> None:
    """The worker takes no jobs, and one that is running waits."""
    files = make_trial(tmp_path / "expired", days=-1)
    marking = Marking(ManifestSigner(files.certificate, files.key))
    with pytest.raises(SigningUnavailableError, match="has expired"):
        write(make(tmp_path / "job"), marking)
    storage = Storage.open(WorkerSettings(store_url=(tmp_path / "store").as_uri()))
    fault = Machine(make(tmp_path / "work"), storage, 0, marking).find_fault(None)
    assert fault is not None
    assert fault.code == "signing_unavailable"
    assert str(tmp_path) not in str(fault), "clients read it"


def test_a_picture_is_delivered_without_the_time_and_without_a_manifest_if_need_be(
    tmp_path: Path, trial: TrialFiles
) -> None:
    marking = Marking(ManifestSigner(trial.certificate, trial.key, "http://127.0.0.1:9/"))
    files = write(tmp_path, marking)
    assert [each.code for each in files.warnings] == ["untimed"]
    assert read_claims(files.image, trial.authority).manifest.state == "trusted"
    cut = tmp_path / "cut.png"
    cut.write_bytes(files.image.read_bytes()[:50])
    request = ResolvedRequest(model="m", steps=1, guidance_scale=1.0, seed=1)
    (warning,) = marking.sign(cut, request, Generated(cut, cut, 1.0), None)
    assert warning.code == "unsigned"
    assert cut.read_bytes() == files.image.read_bytes()[:50]


def test_a_worker_signs_and_marks_pictures_and_their_children(
    bench: Bench, tmp_path: Path, trial: TrialFiles
) -> None:
    bench.start_worker(
        provenance_certificate=trial.certificate,
        provenance_key=trial.key,
        watermark="on",
        provenance_timestamp_url="",
    )
    parent = bench.await_end(bench.submit())
    result = result_of(parent)
    whole = {"width_px": 512, "height_px": 512}
    child = bench.await_end(
        bench.submit(
            seed=8,
            source={"job": "1" * 28, "fit": "exact"},
            mask={
                "rectangle": {"left_px": 64, "top_px": 128, "width_px": 200, "height_px": 160},
                "feather_px": 0,
            },
            source_job={"image_key": result.image_key, "sha256": result.sha256, **whole},
        )
    )
    claims = [read_stored(bench, each, trial) for each in (result.image_key, result_of(child).image_key)]
    assert [each.manifest.state for each in claims] == ["trusted", "trusted"]
    assert all(each.has_watermark for each in claims)
    assert [each.xmp_source_type.removeprefix(TERMS) for each in claims] == [
        "trainedAlgorithmicMedia",
        "compositeWithTrainedAlgorithmicMedia",
    ]
    assert claims[1].manifest.parents == (
        "a picture signed by Chorale trial signer, Chorale trial, not verified",
    )
    pixels = [np.asarray(Image.open(bench.store / result_of(each).image_key)) for each in (parent, child)]
    differs = (pixels[0] != pixels[1]).any(-1)
    assert differs[128:288, 64:264].any()
    differs[128:288, 64:264] = False
    assert not differs.any()


def read_stored(bench: Bench, key: str, trial: TrialFiles) -> FileClaims:
    return read_claims(bench.store / key, trial.authority)


def test_a_worker_that_cannot_sign_does_not_start(bench: Bench, tmp_path: Path) -> None:
    files = make_trial(tmp_path / "expired", days=-1)
    worker = bench.start_worker(provenance_certificate=files.certificate, provenance_key=files.key)
    assert worker.wait(60) == 2
    assert "pictures cannot be signed" in bench.logs()
    assert "has expired" in bench.logs()


def test_a_certificate_without_its_key_is_refused(trial: TrialFiles) -> None:
    with pytest.raises(ValidationError, match="set both or none"):
        WorkerSettings(provenance_certificate=trial.certificate)

"""What a job writes is never more than was estimated, even of noise, which no format makes smaller."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from api_schemas.disk import describe_bytes, estimate_disk
from api_schemas.generation import (
    GenerationRequest,
    OutputFormat,
    PicturePart,
    ResolvedRequest,
    SentPicture,
)
from worker.adapters.toy import Toy
from worker.engine.plan import BitDepth
from worker.picture_writer import SUFFIXES, PictureWriter
from worker.process.files import ImageFile
from worker.source_files import write_source


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("png", 8), ("png", 16), ("tiff", 8), ("tiff", 16), ("jpeg", 8), ("webp", 8)],
)
def test_noise_fits_into_the_estimate(tmp_path: Path, kind: OutputFormat, bits: BitDepth) -> None:
    side = 1024
    noise = np.random.default_rng(0).integers(0, 2**bits, (side, side, 3)).astype(f"uint{bits}")
    rows, stored = tmp_path / "rows.tif", tmp_path / "stored"
    stored.mkdir()
    with ImageFile(rows, side, side, bits) as image:
        image.write(0, noise)
    writer = PictureWriter(rows, 300)
    writer.write_picture(stored / f"picture.{SUFFIXES[kind]}", kind, None)
    writer.write_pyramid(stored / "pyramid")
    request = GenerationRequest(width_px=side, height_px=side, output_format=kind, bit_depth=bits)
    need = estimate_disk(request, Toy().card)
    used = sum(path.stat().st_blocks * 512 for path in stored.rglob("*"))
    assert used < need.store_bytes < 3 * used
    assert rows.stat().st_size + used < need.work_bytes
    assert len(list(stored.rglob("*"))) + 2 < need.files < 100


@pytest.mark.parametrize("fields", [{"mask": {}}, {"upscale": 2}])
def test_a_source_and_its_mask_fit_into_what_they_add(tmp_path: Path, fields: dict[str, object]) -> None:
    side, sent = 512, tmp_path / "sent.png"
    inputs: dict[PicturePart, Path] = {"source_image": sent, "mask_image": sent}
    Image.effect_noise((side, side), 90).convert("RGB").save(sent)
    size = {"width_px": side * 2, "height_px": side * 2}
    chosen = {"model": "toy", "steps": 4, "guidance_scale": 1.0, "seed": 1, "source": {}} | size | fields
    picture = SentPicture(sha256="", width_px=side, height_px=side)
    request = ResolvedRequest.model_validate(chosen | {"pictures": {"source_image": picture}})
    (tmp_path / "work").mkdir()
    write_source(request, Toy().card, inputs, tmp_path / "work")
    used = sum(path.stat().st_size for path in (tmp_path / "work").iterdir())
    without = estimate_disk(request.model_copy(update={"source": None, "pictures": {}}), Toy().card)
    assert used <= estimate_disk(request, Toy().card).work_bytes - without.work_bytes


def test_bytes_are_told_in_a_fitting_unit() -> None:
    assert [describe_bytes(count) for count in (0, 300 << 20, 3 << 30)] == ["0.0 KiB", "300.0 MiB", "3.0 GiB"]

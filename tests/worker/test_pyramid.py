"""Files that clients get: pixels, metadata, deep zoom."""

import io
import threading
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import pyvips
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from api_schemas.generation import OutputFormat, ResolvedRequest
from worker.image_file import ImageFile
from worker.metadata import PictureMetadata, describe_picture, png_chunks
from worker.pyramid import OVERLAP, SUFFIXES, TILE_SIZE, Press

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
PROMPT = "glühende Lava 🌋 <&\"'> 熔岩\n\x01"


def write_rows(path: Path, height: int = 1100, width: int = 700) -> np.ndarray:
    """A BigTIFF of a gradient with noise, as the engine process leaves it."""
    noise = np.random.default_rng(0).integers(0, 10, (height, width, 3))
    pixels = (noise + np.linspace(0, 200, width)[None, :, None]).astype(np.uint8)
    with ImageFile(path, height, width) as image:
        for top in range(0, height, 512):
            image.write(top, pixels[top : top + 512])
    return pixels


def describe(**changes: object) -> PictureMetadata:
    fields = {"model": "toy", "steps": 4, "guidance_scale": 1.5, "seed": 2**63 - 1, "prompt": PROMPT}
    return describe_picture(ResolvedRequest.model_validate(fields | changes))


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_lossless_files_hold_the_very_pixels(tmp_path: Path, kind: OutputFormat) -> None:
    pixels = write_rows(tmp_path / "rows.tif")
    path = tmp_path / f"image.{SUFFIXES[kind]}"
    Press(tmp_path / "rows.tif").write_picture(path, kind, describe())
    assert (np.asarray(pyvips.Image.new_from_file(str(path)).numpy()) == pixels).all()


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_lossy_files_look_the_same(tmp_path: Path, kind: OutputFormat) -> None:
    pixels = write_rows(tmp_path / "rows.tif").astype(int)
    path = tmp_path / f"image.{SUFFIXES[kind]}"
    Press(tmp_path / "rows.tif").write_picture(path, kind, describe())
    found = pyvips.Image.new_from_file(str(path)).numpy().astype(int)
    assert np.abs(found - pixels).mean() < 8


def test_a_png_tells_how_it_was_made(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.tif")
    Press(tmp_path / "rows.tif").write_picture(tmp_path / "image.png", "png", describe())
    with Image.open(tmp_path / "image.png") as image:
        text = image.info
        image.load()
    assert text["prompt"] == PROMPT
    assert text["seed"] == str(2**63 - 1)
    assert text["model"] == "toy"
    assert '"guidance_scale": 1.5' in text["settings"]


@pytest.mark.parametrize("kind", ["jpeg", "webp", "tiff"])
def test_other_files_tell_it_in_xmp(tmp_path: Path, kind: OutputFormat) -> None:
    write_rows(tmp_path / "rows.tif")
    path = tmp_path / f"image.{SUFFIXES[kind]}"
    Press(tmp_path / "rows.tif").write_picture(path, kind, describe())
    packet = pyvips.Image.new_from_file(str(path)).get("xmp-data")
    (description,) = ElementTree.fromstring(packet).iter(f"{RDF}Description")
    assert description.get("{urn:chorale:picture:1}seed") == str(2**63 - 1)
    told = "".join(entry.text or "" for entry in description.iter(f"{RDF}li"))
    assert told == PROMPT.replace("\x01", "\ufffd")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
def test_without_metadata_a_file_tells_nothing(tmp_path: Path, kind: OutputFormat) -> None:
    write_rows(tmp_path / "rows.tif")
    path = tmp_path / f"image.{SUFFIXES[kind]}"
    Press(tmp_path / "rows.tif").write_picture(path, kind, None)
    assert b"Chorale" not in path.read_bytes()


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=300))
@settings(max_examples=25)
def test_any_prompt_survives_in_a_png(prompt: str) -> None:
    pixel = pyvips.Image.black(1, 1, bands=3).cast("uchar").pngsave_buffer()
    data = pixel[:33] + png_chunks(describe(prompt=prompt)) + pixel[33:]
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["prompt"] == prompt


def test_the_pyramid_covers_the_picture(tmp_path: Path) -> None:
    pixels = write_rows(tmp_path / "rows.tif").astype(int)
    Press(tmp_path / "rows.tif").write_pyramid(tmp_path / "image")
    assert f'TileSize="{TILE_SIZE}"' in (tmp_path / "image.dzi").read_text()
    levels = sorted(int(path.name) for path in (tmp_path / "image_files").iterdir() if path.name.isdigit())
    assert levels == list(range(12))  # 1 px up to 1100 px
    tile = pyvips.Image.new_from_file(str(tmp_path / "image_files/11/1_2.jpg"))
    top, left = 2 * TILE_SIZE - OVERLAP, TILE_SIZE - OVERLAP
    expected = pixels[top:, left:]
    assert (tile.height, tile.width) == expected.shape[:2]
    assert np.abs(tile.numpy().astype(int) - expected).mean() < 8


def test_a_stopped_press_gives_up(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.tif", 6000, 3000)
    press = Press(tmp_path / "rows.tif")
    threading.Timer(0.1, press.stop).start()
    with pytest.raises(pyvips.Error):
        _write_for_ever(press, tmp_path / "image.png")


def _write_for_ever(press: Press, path: Path) -> None:
    while True:
        press.write_picture(path, "png", None)

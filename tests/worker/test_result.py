"""Files that clients get: pixels, metadata, deep zoom."""

import io
import threading
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image, ImageCms
from PIL.ExifTags import IFD, Base

from api_schemas.generation import OutputFormat, ResolvedRequest
from api_schemas.layout import PYRAMID_OVERLAP_PX, PYRAMID_TILE_PX
from worker.colors import ColorFix
from worker.engine.plan import BitDepth
from worker.metadata import PictureMetadata, describe_picture
from worker.picture_writer import SUFFIXES, PictureWriter, needs_bigtiff
from worker.process.files import ImageFile
from worker.process.protocol import Generated
from worker.result import ResultWriter
from worker.settings import WorkerSettings
from worker.storage import Storage

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
PROMPT = "glühende Lava 🌋 <&\"'> 熔岩\n\x01"


def write_rows(path: Path, height: int = 1100, width: int = 700, bit_depth: BitDepth = 8) -> np.ndarray:
    """A BigTIFF of a gradient with noise, as the engine process leaves it."""
    noise = np.random.default_rng(0).uniform(0, 10, (height, width, 3))
    levels = (noise + np.linspace(0, 200, width)[None, :, None]) * 2 ** (bit_depth - 8)
    pixels = levels.astype(f"uint{bit_depth}")
    with ImageFile(path, height, width, bit_depth) as image:
        for top in range(0, height, 512):
            image.write(top, pixels[top : top + 512])
    return pixels


def describe(**changes: object) -> PictureMetadata:
    fields = {"model": "toy", "steps": 4, "guidance_scale": 1.5, "seed": 2**63 - 1, "prompt": PROMPT}
    return describe_picture(ResolvedRequest.model_validate(fields | changes))


@pytest.mark.parametrize("bit_depth", [8, 16])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_lossless_files_hold_the_very_pixels(tmp_path: Path, kind: OutputFormat, bit_depth: BitDepth) -> None:
    pixels = write_rows(tmp_path / "rows.tif", bit_depth=bit_depth)
    path = tmp_path / f"image.{SUFFIXES[kind]}"
    PictureWriter(tmp_path / "rows.tif", 300).write_picture(path, kind, describe())
    found = pyvips.Image.new_from_file(str(path)).numpy()
    assert found.dtype == pixels.dtype
    assert (found == pixels).all()


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_lossy_files_look_the_same(tmp_path: Path, kind: OutputFormat) -> None:
    pixels = write_rows(tmp_path / "rows.tif").astype(int)
    path = tmp_path / f"image.{SUFFIXES[kind]}"
    PictureWriter(tmp_path / "rows.tif", 300).write_picture(path, kind, describe())
    found = pyvips.Image.new_from_file(str(path)).numpy().astype(int)
    assert np.abs(found - pixels).mean() < 8


def test_a_png_tells_how_it_was_made(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.tif")
    PictureWriter(tmp_path / "rows.tif", 300).write_picture(tmp_path / "image.png", "png", describe())
    with Image.open(tmp_path / "image.png") as image:
        text = image.info
        image.load()
    assert text["Description"] == PROMPT
    assert text["seed"] == str(2**63 - 1)
    assert text["model"] == "toy"
    assert '"guidance_scale": 1.5' in text["settings"]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("dpi", [1, 300, 2400])
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
def test_every_file_says_its_colours_and_its_resolution(
    tmp_path: Path, kind: OutputFormat, dpi: int, told: bool
) -> None:
    write_rows(tmp_path / "rows.tif", 64, 64)
    path = tmp_path / f"image.{SUFFIXES[kind]}"
    PictureWriter(tmp_path / "rows.tif", dpi).write_picture(path, kind, describe() if told else None)
    with Image.open(path) as image:
        resolution = image.info.get("dpi") or (
            image.getexif()[Base.XResolution],
            image.getexif()[Base.YResolution],
        )
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        colors = image.getexif().get_ifd(IFD.Exif).get(Base.ColorSpace)
    assert resolution == pytest.approx((dpi, dpi), abs=0.02)  # PNG counts by the metre
    assert "sRGB" in ImageCms.getProfileDescription(profile)
    grey = Image.new("RGB", (1, 1), (90, 120, 200))
    assert ImageCms.profileToProfile(grey, profile, ImageCms.createProfile("sRGB")).getpixel((0, 0)) == (
        90,
        120,
        200,
    )
    assert colors == (1 if kind in ("jpeg", "webp") else None)


@pytest.mark.parametrize("quality", [1, 40, 100])
def test_a_jpeg_has_the_quality_that_was_asked_for(tmp_path: Path, quality: int) -> None:
    """By its quantization tables, which are those of Pillow's encoder."""
    write_rows(tmp_path / "rows.tif", 64, 64)
    path, same = tmp_path / "image.jpg", io.BytesIO()
    PictureWriter(tmp_path / "rows.tif", 300).write_picture(path, "jpeg", None, quality=quality)
    with Image.open(path) as image:
        image.save(same, "JPEG", quality=quality)
        assert image.quantization == Image.open(same).quantization


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_a_tiff_is_one_that_every_program_opens(tmp_path: Path, bit_depth: BitDepth) -> None:
    pixels = write_rows(tmp_path / "rows.tif", 256, 512, bit_depth)
    PictureWriter(tmp_path / "rows.tif", 300).write_picture(tmp_path / "image.tif", "tiff", None)
    with tifffile.TiffFile(tmp_path / "image.tif") as file:
        assert not file.is_bigtiff
        page = file.pages[0]
        assert page.resolution == (300, 300)
        assert page.resolutionunit == tifffile.RESUNIT.INCH
        # tifffile needs another package to inflate; libvips has compared the pixels.
        assert (page.shape, page.dtype) == (pixels.shape, pixels.dtype)


def test_only_what_may_pass_four_gigabytes_is_a_bigtiff() -> None:
    """A sample of more than 4 GB would take a minute, so it is asked what would be done."""
    largest = pyvips.Image.black(16_384, 16_384, bands=3)
    assert not needs_bigtiff(largest.cast("ushort"))
    assert not needs_bigtiff(pyvips.Image.black(36_000, 37_000, bands=3))
    assert needs_bigtiff(pyvips.Image.black(36_000, 38_000, bands=3))
    assert needs_bigtiff(pyvips.Image.black(36_000, 19_000, bands=3).cast("ushort"))


@pytest.mark.parametrize("kind", ["jpeg", "webp", "tiff"])
def test_other_files_tell_it_in_xmp(tmp_path: Path, kind: OutputFormat) -> None:
    write_rows(tmp_path / "rows.tif")
    path = tmp_path / f"image.{SUFFIXES[kind]}"
    PictureWriter(tmp_path / "rows.tif", 300).write_picture(path, kind, describe())
    packet = pyvips.Image.new_from_file(str(path)).get("xmp-data")
    (description,) = ElementTree.fromstring(packet).iter(f"{RDF}Description")
    assert description.get("{urn:chorale:picture:1}seed") == str(2**63 - 1)
    told = "".join(entry.text or "" for entry in description.iter(f"{RDF}li"))
    assert told == PROMPT.replace("\x01", "\ufffd")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
def test_without_metadata_a_file_tells_nothing(tmp_path: Path, kind: OutputFormat) -> None:
    write_rows(tmp_path / "rows.tif")
    path = tmp_path / f"image.{SUFFIXES[kind]}"
    PictureWriter(tmp_path / "rows.tif", 300).write_picture(path, kind, None)
    assert b"Chorale" not in path.read_bytes()


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_the_pyramid_covers_the_picture(tmp_path: Path, bit_depth: BitDepth) -> None:
    pixels = write_rows(tmp_path / "rows.tif", bit_depth=bit_depth).astype(int) >> (bit_depth - 8)
    PictureWriter(tmp_path / "rows.tif", 300).write_pyramid(tmp_path / "image")
    assert f'TileSize="{PYRAMID_TILE_PX}"' in (tmp_path / "image.dzi").read_text()
    levels = sorted(int(path.name) for path in (tmp_path / "image_files").iterdir() if path.name.isdigit())
    assert levels == list(range(12))  # 1 px up to 1100 px
    tile = pyvips.Image.new_from_file(str(tmp_path / "image_files/11/1_2.jpg"))
    top, left = 2 * PYRAMID_TILE_PX - PYRAMID_OVERLAP_PX, PYRAMID_TILE_PX - PYRAMID_OVERLAP_PX
    expected = pixels[top:, left:]
    assert (tile.height, tile.width) == expected.shape[:2]
    assert np.abs(tile.numpy().astype(int) - expected).mean() < 8


def test_a_stopped_writer_ends(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.tif", 6000, 3000)
    writer = PictureWriter(tmp_path / "rows.tif", 300)
    threading.Timer(0.1, writer.stop).start()
    with pytest.raises(pyvips.Error):
        _write_for_ever(writer, tmp_path / "image.png")


def _write_for_ever(writer: PictureWriter, path: Path) -> None:
    while True:
        writer.write_picture(path, "png", None)


def test_a_child_stores_the_tiles_that_changed_and_finds_the_others_at_its_parents(tmp_path: Path) -> None:
    store, parent = tmp_path / "store", "1" * 28
    storage = Storage.open(WorkerSettings(store_url=store.as_uri()))
    (tmp_path / "state.safetensors").write_bytes(b"")
    pixels = write_rows(tmp_path / "rows.tif", 2100, 1700)
    for name, changed in (("a/1", None), ("b/1", (1030, 600, 1400, 900)), ("c/1", (0, 0, 8, 8))):
        fields = {
            "model": "m",
            "steps": 1,
            "guidance_scale": 1.0,
            "seed": 1,
            "width_px": 1700,
            "height_px": 2100,
        }
        if changed is not None:
            left, top, right, bottom = changed
            pixels[top:bottom, left:right] = 7
            kept = {
                "image_key": "",
                "width_px": 1700,
                "height_px": 2100,
                "pyramid_keys": ["b/1", "a/1"][name == "b/1" :],
            }
            fields |= {"parent": parent, "source": {"job": parent}, "mask": {}, "source_job": kept}
        with ImageFile(tmp_path / "rows.tif", 2100, 1700) as image:
            image.write(0, pixels)
        generated = Generated(tmp_path / "rows.tif", tmp_path / "state.safetensors", 1.0, changed=changed)
        folder = tmp_path / name
        folder.mkdir(parents=True)
        writer = ResultWriter(storage, ResolvedRequest.model_validate(fields), name, generated)
        result = writer.upload(writer.write(folder))
        own = {path.relative_to(store / name) for path in (store / name).glob("image_files/*/*.jpg")}
        whole = {path.relative_to(folder / "pyramid") for path in (folder / "pyramid").glob("*/*/*.jpg")}
        assert len(own) == len(whole) if changed is None else 2 * len(own) < len(whole)
        for tile in whole:
            places = [store / prefix / tile for prefix in (name, *result.inherited_pyramids)]
            found = next(path for path in places if path.exists())
            assert found.read_bytes() == (folder / "pyramid" / tile).read_bytes()


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_files_have_their_colours_corrected_and_their_alpha_and_the_deep_zoom_is_on_white(
    tmp_path: Path, bit_depth: BitDepth
) -> None:
    pixels, most = write_rows(tmp_path / "rows.tif", 300, 200, bit_depth), 2**bit_depth - 1
    alpha = np.linspace(0, most, 200).round().astype(pixels.dtype) * np.ones((300, 1), pixels.dtype)
    colors = ColorFix((0.8, 1.0, 1.1), (0.1, 0.0, -0.05))
    writer = PictureWriter(tmp_path / "rows.tif", 300, colors, lambda: pyvips.Image.new_from_array(alpha))
    wanted = np.rint(pixels * np.array(colors.gains) + np.array(colors.offsets) * most).clip(0, most)
    for kind in ("png", "tiff"):
        path = tmp_path / f"image.{SUFFIXES[kind]}"
        writer.write_picture(path, kind, describe())
        found = pyvips.Image.new_from_file(str(path)).numpy()
        assert np.array_equal(found, np.dstack([wanted, alpha]))
    writer.write_pyramid(tmp_path / "image")
    shown = pyvips.Image.new_from_file(str(tmp_path / "image_files/9/0_0.jpg")).numpy().astype(int)
    share = (alpha / most)[..., None]
    assert np.abs(shown - 255 * (wanted / most * share + 1 - share)).mean() < 3

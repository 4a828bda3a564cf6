"""The source of a job, as rows at the size of its canvas: compared with Pillow, and with itself where it must not change."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from api_schemas.catalog import ModelCard
from api_schemas.generation import PicturePart, ResolvedRequest, SentPicture
from api_schemas.layout import Cascade
from api_schemas.source import Source
from api_schemas.stages import lay_stages
from worker.alpha import open_alpha
from worker.engine.canvas import Plane
from worker.engine.start import GivenPixels, Picture
from worker.planner import plan_generation
from worker.source import lay_source
from worker.source_files import SourceFiles, write_source

CARD = ModelCard(
    name="m", family="f", native_size_px=64, alignment_px=8, latent_channels=4, vae_scale=8,
    default_steps=4, default_guidance_scale=1.0,
)  # fmt: skip
Pixels = npt.NDArray[np.uint8]


def paint(width: int, height: int) -> Image.Image:
    """Smooth, and another colour everywhere."""
    down, right = np.mgrid[:height, :width]
    waves = [np.sin(down / 9 + phase) * np.cos(right / 13 - phase) for phase in (0, 1, 2)]
    return Image.fromarray((127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8))


def write(
    folder: Path,
    image: Image.Image,
    sent_mask: Image.Image | None = None,
    *,
    card: ModelCard = CARD,
    **fields: object,
) -> SourceFiles:
    inputs: dict[PicturePart, Path] = {"source_image": folder / "source_image.png"}
    image.save(inputs["source_image"])
    if sent_mask is not None:
        inputs["mask_image"] = folder / "mask_image.png"
        sent_mask.save(inputs["mask_image"])
    sent = SentPicture(sha256="", width_px=image.width, height_px=image.height)
    settled = {"model": "m", "steps": 4, "guidance_scale": 1.0, "seed": 1, "pictures": {"source_image": sent}}
    return write_source(ResolvedRequest.model_validate(settled | fields), card, inputs, folder)


def read(files: SourceFiles) -> Pixels:
    return np.array(files.open_pixels())


def test_a_source_of_the_pictures_size_is_not_changed(tmp_path: Path) -> None:
    image = paint(96, 72)
    files = write(tmp_path, image, width_px=96, height_px=72, source={"fit": "exact"})
    assert files.levels is None
    assert np.array_equal(read(files), np.asarray(image))


@pytest.mark.parametrize("size", [(200, 90), (90, 200), (50, 40)])
def test_fill_is_what_pillow_fits(size: tuple[int, int], tmp_path: Path) -> None:
    image = paint(*size)
    found = read(write(tmp_path, image, width_px=96, height_px=72, source={}))
    wanted = np.asarray(ImageOps.fit(image, (96, 72), Image.Resampling.LANCZOS))
    assert np.abs(found.astype(int) - wanted).mean() < 3  # each places its middle to half a pixel


@pytest.mark.parametrize(("times", "own"), [(4, (76, 100)), (3, (77, 101))])
def test_what_is_enlarged_knows_its_own_size(times: int, own: tuple[int, int], tmp_path: Path) -> None:
    """With what the canvas has beside the picture: at 3 times 228 x 300 of 232 x 304 px."""
    files = write(
        tmp_path, paint(100, 76), width_px=100 * times, height_px=76 * times, source={}, upscale=times
    )
    sent = SentPicture(sha256="", width_px=100, height_px=76)
    request = ResolvedRequest(
        model="m", steps=4, guidance_scale=1.0, seed=1, pictures={"source_image": sent}, source=Source(),
        upscale=times, width_px=100 * times, height_px=76 * times,
    )  # fmt: skip
    plan = lay_source(plan_generation(request, CARD, 1 << 30, tmp_path), request, files)
    start = plan.stages[0].start
    assert isinstance(start, Picture)
    assert isinstance(start.given, GivenPixels)
    assert start.given.smaller == Plane(*own)


@pytest.mark.parametrize("times", [2, 3, 4, 8])
def test_what_is_enlarged_stays_where_it_is(times: int, tmp_path: Path) -> None:
    """Pixels' centres lie where Pillow has them; a step that is half a pixel off would be an error of five levels or more."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).repeat(4, 0).repeat(4, 1)
    image = Image.fromarray(pixels.astype(np.uint8))
    size = (image.width * times, image.height * times)
    found = read(write(tmp_path, image, width_px=size[0], height_px=size[1], source={}))
    assert np.abs(found.astype(int) - np.asarray(image.resize(size, Image.Resampling.BICUBIC))).mean() < 0.5


def test_what_is_enlarged_in_two_stages_does_not_drift(tmp_path: Path) -> None:
    """Canvases of 384 and 800 px, of which the picture covers 776 of the last: so 372.48 of the first, not 372."""
    card = CARD.model_copy(update={"alignment_px": 32, "cascade": Cascade(conditioned=True, enlarges=4)})
    waves = 127 + 120 * np.sin(np.arange(0.5, 97) * np.pi / 8)
    image = Image.fromarray(np.broadcast_to(waves[:, None, None], (97, 97, 3)).round().astype(np.uint8))
    found = read(write(tmp_path, image, card=card, width_px=776, height_px=776, source={}, upscale=8))
    assert found.shape == (384, 384, 3)
    places = np.arange(0.5, 384) / 384 * 800 / 8  # in pixels of the source
    inside = (places > 4) & (places < 93)
    wanted = 127 + 120 * np.sin(places * np.pi / 8)
    assert np.abs(found[:, 40, 0] - wanted)[inside].max() < 3


@pytest.mark.parametrize("size", [(200, 90), (90, 200)])
def test_fit_shows_all_and_inpaints_what_is_left(size: tuple[int, int], tmp_path: Path) -> None:
    image = paint(*size)
    files = write(tmp_path, image, width_px=96, height_px=72, source={"fit": "fit"})
    inside = ImageOps.contain(image, (96, 72), Image.Resampling.LANCZOS)
    left, top = (96 - inside.width) // 2, (72 - inside.height) // 2
    part = slice(top, top + inside.height), slice(left, left + inside.width)
    assert np.abs(read(files)[part].astype(int) - np.asarray(inside)).mean() < 2
    levels = np.array(files.open_levels())
    assert levels[part].max() == 0
    levels[part] = 255
    assert levels.min() == 255


def test_an_offset_scales_nothing_and_continues_its_edges(tmp_path: Path) -> None:
    image = paint(40, 32)
    fields = {"width_px": 96, "height_px": 72, "source": {"offset": {"left_px": 16, "top_px": 24}}}
    pixels = read(write(tmp_path, image, **fields))
    wanted = np.pad(np.asarray(image), ((24, 16), (16, 40), (0, 0)), mode="edge")
    assert np.array_equal(pixels, wanted)


def test_what_is_new_around_a_source_fades_into_it_along_the_edges_that_can_be_seen(tmp_path: Path) -> None:
    source = {"offset": {"left_px": 16, "top_px": 0}, "feather_px": 7}
    levels = np.array(write(tmp_path, paint(80, 72), width_px=96, height_px=72, source=source).open_levels())
    assert levels[:, :16].min() == 255
    assert levels[:, 23:].max() == 0
    assert (np.diff(levels[:, 15:24].astype(int)) < 0).all()


def test_the_canvas_beyond_the_picture_continues_it(tmp_path: Path) -> None:
    image = paint(67, 70)
    files = write(tmp_path, image, width_px=67, height_px=70, source={})
    assert files.size == (72, 72)
    assert np.array_equal(read(files)[:70, :67], np.asarray(image))
    assert np.array_equal(read(files)[:70, 71], np.asarray(image)[:, -1])


@pytest.mark.parametrize("feather", [0, 6])
def test_a_polygon_is_where_pillow_draws_it_and_soft_inwards_only(feather: int, tmp_path: Path) -> None:
    corners = [(10, 10), (80, 14), (60, 60), (20, 50)]
    mask = {"polygon": corners, "feather_px": feather}
    files = write(tmp_path, paint(96, 72), width_px=96, height_px=72, source={}, mask=mask)
    drawn = Image.new("L", (96, 72))
    ImageDraw.Draw(drawn).polygon(corners, fill=255)
    levels, wanted = np.array(files.open_levels()), np.asarray(drawn)
    around = np.asarray(drawn.filter(ImageFilter.MaxFilter(3)))  # edges are rounded another way
    assert levels[around == 0].max() == 0
    assert levels[30, 40] == 255
    assert (levels == wanted).mean() > (0.95 if feather == 0 else 0.7)


@pytest.mark.parametrize("side", [1, 5, 40])
def test_a_shape_that_is_narrower_than_its_soft_border_is_still_inpainted(side: int, tmp_path: Path) -> None:
    shape = {"left_px": 20, "top_px": 12, "width_px": side, "height_px": side}
    mask = {"rectangle": shape, "feather_px": 64}
    files = write(tmp_path, paint(96, 72), width_px=96, height_px=72, source={}, mask=mask)
    levels = np.array(files.open_levels())
    assert levels[12 : 12 + side, 20 : 20 + side].max() == 255
    levels[12 : 12 + side, 20 : 20 + side] = 0
    assert levels.max() == 0


def test_a_mask_picture_is_scaled(tmp_path: Path) -> None:
    sent = Image.new("L", (48, 36))
    sent.paste(255, (12, 9, 36, 27))
    fields = {"width_px": 96, "height_px": 72, "source": {}, "mask": {"feather_px": 0}}
    files = write(tmp_path, paint(96, 72), sent, **fields)
    levels = np.array(files.open_levels())
    assert levels[22:50, 28:68].min() == 255
    assert levels[:14].max() == levels[:, :20].max() == 0


def test_a_mask_picture_is_softened_as_the_rectangle_that_it_shows(tmp_path: Path) -> None:
    sent = Image.new("L", (960, 720))
    sent.paste(255, (300, 200, 500, 400))
    fields = {"width_px": 960, "height_px": 720, "source": {}}
    shown = np.array(write(tmp_path, paint(96, 72), sent, **fields, mask={"feather_px": 32}).open_levels())
    rectangle = {"left_px": 300, "top_px": 200, "width_px": 200, "height_px": 200}
    drawn = {"rectangle": rectangle, "feather_px": 32}
    assert np.array_equal(shown, write(tmp_path, paint(96, 72), **fields, mask=drawn).open_levels())


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_the_depth_is_the_results(bit_depth: int, tmp_path: Path) -> None:
    image = paint(64, 64)
    pixels = read(write(tmp_path, image, width_px=64, height_px=64, source={}, bit_depth=bit_depth))
    assert np.array_equal(pixels, np.asarray(image).astype(pixels.dtype) * (257 if bit_depth == 16 else 1))


def test_a_source_is_written_at_the_size_of_the_first_canvas_that_it_is_enlarged_to(tmp_path: Path) -> None:
    card = CARD.model_copy(
        update={"cascade": CARD.cascade.model_copy(update={"conditioned": True, "enlarges": 4})}
    )
    request = ResolvedRequest(
        model="m", steps=4, guidance_scale=1.0, seed=1, width_px=560, height_px=480, source={}, upscale=8,
        pictures={"source_image": SentPicture(sha256="", width_px=70, height_px=60)},
    )  # fmt: skip
    paint(70, 60).save(tmp_path / "in.png")
    files = write_source(request, card, {"source_image": tmp_path / "in.png"}, tmp_path)
    first = lay_stages(card, request)[0]
    assert files.size == (first.height_px, first.width_px) == (240, 280)


def test_what_cannot_be_seen_takes_the_colours_beside_it(tmp_path: Path) -> None:
    """Whatever colour hides there: at a border, as much of it would be seen as of the border itself."""
    image = paint(96, 72).convert("RGBA")
    pixels = np.array(image)
    pixels[:, 40:] = 255, 0, 255, 0
    found = read(write(tmp_path, Image.fromarray(pixels), width_px=192, height_px=144, source={}))
    wanted = np.asarray(image.convert("RGB").resize((192, 144), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(found[:, :76] - wanted[:, :76]).mean() < 2
    beside = found[:, 80:96].astype(int).mean(1) - wanted[:, 60:80].mean(1)
    assert np.abs(beside).mean() < 25
    flat = write(
        tmp_path, Image.fromarray(pixels), width_px=96, height_px=72, source={}, output_format="jpeg"
    )
    assert (read(flat)[:, 40:] == 255).all()
    assert np.array_equal(read(flat)[:, :40], pixels[:, :40, :3])


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_alpha_lies_where_the_pixels_lie_and_what_is_free_is_opaque(bit_depth: int, tmp_path: Path) -> None:
    image = paint(40, 32)
    image.putalpha(image.getchannel("G"))
    fields = {"width_px": 96, "height_px": 72, "source": {"offset": {"left_px": 16, "top_px": 24}}}
    fields |= {"model": "m", "steps": 4, "guidance_scale": 1.0, "seed": 1, "bit_depth": bit_depth}
    image.save(tmp_path / "in.png")
    alpha = open_alpha(ResolvedRequest.model_validate(fields), tmp_path / "in.png")
    assert alpha is not None
    wanted = np.full((72, 96), 255)
    wanted[24:56, 16:56] = image.getchannel("A")
    assert np.array_equal(alpha.numpy(), wanted * (257 if bit_depth == 16 else 1))


def test_a_source_that_can_be_seen_through_is_scaled_without_a_shift_of_its_colours(tmp_path: Path) -> None:
    """Against Pillow's own kernel on floats: what thumbnails of 8 bits round on the way made it two levels darker."""
    image = np.dstack(
        [np.asarray(paint(64, 48)), np.linspace(10, 250, 64)[None].repeat(48, 0).astype(np.uint8)]
    )
    found = read(write(tmp_path, Image.fromarray(image), width_px=128, height_px=96, source={}))

    def enlarge(plane: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.asarray(Image.fromarray(plane).resize((128, 96), Image.Resampling.BICUBIC))

    seen = image.astype(np.float32)
    alpha = enlarge(seen[..., 3])
    wanted = np.dstack([enlarge(seen[..., channel] * seen[..., 3]) / alpha for channel in range(3)])
    assert np.abs(found.mean((0, 1)) - wanted.mean((0, 1))).max() < 0.7
    assert np.abs(found - wanted).mean() < 1.5

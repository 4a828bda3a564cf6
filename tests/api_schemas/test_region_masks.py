"""How much each prompt counts at each pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from api_schemas.region_masks import MaskGrid, Masks, Weights, fill_polygon, rasterize, weigh_prompts
from api_schemas.regions import Region
from tests.api_schemas.test_regions import star

SIDE_PX, SCALE = 512, 8
PLAIN = MaskGrid((64, 64), (64, 64), (SIDE_PX, SIDE_PX), (False, False))
TORUS = MaskGrid((64, 64), (64, 64), (SIDE_PX, SIDE_PX), (True, True))


def lay(
    left_px: int, top_px: int, width_px: int, height_px: int, weight: float = 1.0, feather_px: int = 0
) -> Region:
    rectangle = {"left_px": left_px, "top_px": top_px, "width_px": width_px, "height_px": height_px}
    return Region.model_validate(
        {"prompt": "", "shape": {"rectangle": rectangle}, "weight": weight, "feather_px": feather_px}
    )


def polygon(corners: list[tuple[int, int]], feather_px: int = 0) -> Region:
    return Region.model_validate({"prompt": "", "shape": {"polygon": corners}, "feather_px": feather_px})


def weigh(*regions: Region, grid: MaskGrid = PLAIN, masks: Masks | None = None) -> Weights:
    return weigh_prompts(regions, grid, masks or {})


@st.composite
def rectangles(draw: st.DrawFn) -> Region:
    left, top = (draw(st.integers(0, SIDE_PX - 1)) for _ in range(2))
    width, height = draw(st.integers(1, SIDE_PX - left)), draw(st.integers(1, SIDE_PX - top))
    weight, feather = draw(st.sampled_from([0.1, 0.5, 1.0, 3.0])), draw(st.integers(0, 200))
    return lay(left, top, width, height, weight, feather)


@given(st.lists(rectangles(), min_size=1, max_size=5), st.sampled_from([PLAIN, TORUS]))
def test_all_prompts_together_weigh_one_everywhere(regions: list[Region], grid: MaskGrid) -> None:
    weights = weigh(*regions, grid=grid)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(0), 1, rtol=0, atol=1e-6)


def test_where_regions_overlap_they_share_by_weight_and_the_background_has_nothing() -> None:
    weights = weigh(lay(0, 0, 256, 512, 1.0), lay(128, 0, 256, 512, 3.0), lay(448, 0, 64, 512, 0.5))[:, 5]
    for columns, expected in (
        (slice(0, 16), (0, 1, 0, 0)),
        (slice(16, 32), (0, 0.25, 0.75, 0)),
        (slice(32, 48), (0, 0, 1, 0)),
        (slice(48, 56), (1, 0, 0, 0)),
        (slice(56, 64), (0.5, 0, 0, 0.5)),
    ):
        np.testing.assert_allclose(
            weights[:, columns].T, [expected] * (columns.stop - columns.start), atol=1e-6
        )


@pytest.mark.parametrize("picture_px", [(512, 512), (505, 449), (64, 1000)])
@pytest.mark.parametrize("feather_px", [0, 32, 1024])
@pytest.mark.parametrize("wrap", [False, True])
def test_a_region_that_covers_the_picture_is_all_that_counts(
    picture_px: tuple[int, int], feather_px: int, wrap: bool
) -> None:
    """Bit for bit, also in what of the canvas lies beyond the picture, in every kind of shape."""
    height_px, width_px = picture_px
    size = -(-height_px // SCALE), -(-width_px // SCALE)
    grid = MaskGrid(size, (height_px / SCALE, width_px / SCALE), picture_px, (wrap, wrap))
    corners = [(0, 0), (width_px, 0), (width_px, height_px), (0, height_px)]
    mask = Region.model_validate({"prompt": "", "shape": {"mask": "region_mask_1"}})
    for region in (lay(0, 0, width_px, height_px, 1.0, feather_px), polygon(corners, feather_px), mask):
        weights = weigh(region, grid=grid, masks={"region_mask_1": Image.new("L", (3, 2), 255)})
        assert weights.shape == (2, *size)
        assert (weights[0] == 0).all()
        assert (weights[1] == 1).all()


@given(rectangles(), st.sampled_from([PLAIN, TORUS]))
def test_a_region_reaches_as_far_as_its_feather_and_is_whole_as_far_inside(
    region: Region, grid: MaskGrid
) -> None:
    """To a latent pixel, which the edge may cut."""
    box = region.shape.rectangle
    assert box is not None
    levels, places = rasterize(region, grid, {}), np.arange(64) * SCALE + SCALE / 2
    distances: list[np.ndarray] = []  # below zero inside
    for start, extent in ((box.top_px, box.height_px), (box.left_px, box.width_px)):
        around = [places - SIDE_PX, places, places + SIDE_PX] if grid is TORUS else [places]
        outside = [np.maximum(start - each, each - start - extent) for each in around]
        distance = np.minimum.reduce(outside)
        if grid is PLAIN:  # a border that lies on the picture's own is none
            distance = np.where(start == 0, places - extent, distance)
            distance = np.where(start + extent == SIDE_PX, start - places, distance)
            distance = np.where((start == 0) & (extent == SIDE_PX), -1e9, distance)
        elif extent == SIDE_PX:
            distance = np.full(64, -1e9)
        distances.append(distance)
    outside = np.maximum.outer(distances[0], distances[1])
    assert (levels[outside > region.feather_px + SCALE] == 0).all()
    assert (levels[outside < -region.feather_px - SCALE] == 255).all()


def test_a_feather_crosses_the_edge_of_a_seamless_canvas_alone() -> None:
    region = lay(0, 0, 512, 128, feather_px=64)
    plain, torus = (rasterize(region, grid, {})[:, 7] for grid in (PLAIN, TORUS))
    assert (plain[:8] == 255).all()
    assert (plain[24:] == 0).all()
    np.testing.assert_array_equal(torus, np.roll(torus[::-1], 16))  # symmetric around its middle
    assert 100 < torus[0] < 255 > 155 > torus[-1] > 0


@given(st.lists(st.integers(60, 240), min_size=3, max_size=9), st.floats(0, 6))
def test_a_polygon_is_filled_as_pillow_does_but_for_its_outline(radii: list[int], turn: float) -> None:
    """Which Pillow fills too."""
    corners = [(x - 244, y - 244) for x, y in star(radii, turn)]
    ours = fill_polygon(corners, SIDE_PX, SIDE_PX)
    with_outline, outline = (Image.new("L", (SIDE_PX, SIDE_PX)) for _ in range(2))
    ImageDraw.Draw(with_outline).polygon(corners, fill=255)
    ImageDraw.Draw(outline).line([*corners, corners[0]], fill=255, width=5)
    inner = np.asarray(outline) == 0
    np.testing.assert_array_equal(ours[inner], np.asarray(with_outline)[inner])


def test_two_polygons_with_a_common_edge_share_no_pixel_and_leave_none() -> None:
    corners = [(0, 0), (SIDE_PX, 0), (SIDE_PX, SIDE_PX), (0, SIDE_PX)]
    one = polygon([corners[0], corners[1], (301, 207), corners[3]])
    other = polygon([corners[1], corners[2], corners[3], (301, 207)])
    levels = [rasterize(each, PLAIN, {}).astype(int) for each in (one, other)]
    assert set(np.unique(levels[0] + levels[1])) <= {254, 255, 256}
    assert (weigh(one, other)[0] == 0).all()


@pytest.mark.parametrize("feather_px", [0, 48, 128])
def test_on_a_smaller_canvas_lies_the_same_region_reduced(feather_px: int) -> None:
    region = polygon([(64, 80), (400, 120), (300, 440)], feather_px)
    half = MaskGrid((32, 32), (32, 32), (SIDE_PX, SIDE_PX), (False, False))
    reduced = rasterize(region, PLAIN, {}).reshape(32, 2, 32, 2).mean((1, 3))
    assert np.abs(reduced - rasterize(region, half, {})).max() < 40
    assert np.abs(reduced - rasterize(region, half, {})).mean() < 3


@pytest.mark.parametrize("size", [(512, 512), (128, 256), (64, 64)])
def test_a_mask_is_scaled_to_the_picture_and_its_lightness_counts(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size)
    picture.paste((255, 255, 255), (0, 0, size[0] // 2, size[1]))
    picture.paste((128, 128, 128), (0, 0, size[0] // 2, size[1] // 2))
    region = Region.model_validate({"prompt": "", "shape": {"mask": "region_mask_2"}, "feather_px": 0})
    levels = rasterize(region, PLAIN, {"region_mask_2": picture})
    for rows, columns, level in ((slice(0, 29), slice(0, 29), 128), (slice(35, 64), slice(0, 29), 255)):
        assert np.abs(levels[rows, columns].astype(int) - level).max() <= 1
    assert (levels[:, 35:] == 0).all()

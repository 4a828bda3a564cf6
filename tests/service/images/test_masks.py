"""Mask pictures of regions: stored, refused by name, and counted."""

from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from api_schemas.events import Result
from service.images.formats import name_formats
from tests.service.images.test_uploads import announce_controls, encode, errors, post
from tests.story import Story

__all__ = ["announce_controls"]


MASKED = {"prompt": "moss", "shape": {"mask": "region_mask_3"}}
REGIONS = {"prompt": "cobbles", "width_px": 1024, "height_px": 1024, "seed": 1, "regions": [MASKED]}


def mask(*box: int, size: tuple[int, int] = (1024, 1024)) -> bytes:
    """White in a box, black elsewhere."""
    file, picture = BytesIO(), Image.new("L", size)
    picture.paste(255, box)
    picture.save(file, "PNG")
    return file.getvalue()


def test_masks_of_regions_are_stored_and_decide_the_cost(api: httpx.Client, store_dir: Path) -> None:
    """A mask costs what the rectangle costs that it shows."""
    fixed = REGIONS | {"advanced": {"tile_grid": "fixed"}}

    def draw(*box: int) -> dict[str, object]:
        rectangle = dict(zip(("left_px", "top_px", "width_px", "height_px"), box, strict=True))
        return fixed | {"regions": [MASKED | {"shape": {"rectangle": rectangle}}]}

    masked = post(api, fixed, region_mask_3=mask(512, 512, 1024, 1024)).json()
    corner, whole = (post(api, draw(*box)).json() for box in ((512, 512, 512, 512), (0, 0, 1024, 1024)))
    plain = post(api, fixed | {"regions": []}).json()
    assert masked["cost"] == corner["cost"]
    assert plain["cost"] == whole["cost"]
    assert plain["cost"]["tiles"] < masked["cost"]["tiles"] < 2 * plain["cost"]["tiles"]
    with Image.open(store_dir / "inputs" / masked["id"] / "region_mask_3.png") as stored:
        assert stored.convert("L").getbbox() == (512, 512, 1024, 1024)


def test_inherited_masks_count_where_they_are(api: httpx.Client, story: Story) -> None:
    """A variation costs what its parent costs; a re-roll what it costs with the mask drawn in place of sent."""
    inpainted = {"seed": 1, "source": {}, "mask": {"feather_px": 0}, "advanced": {"tile_grid": "fixed"}}
    parts = {"source_image": mask(0, 0, 9, 9), "mask_image": mask(0, 0, 90, 90)}
    parent = post(api, inpainted, **parts).json()
    assert parent["cost"]["tiles"] < parent["cost"]["canvas_tiles"]
    assert derive(api, story, parent, "variations", count=1)["data"][0]["cost"] == parent["cost"]
    fixed = REGIONS | {"advanced": {"tile_grid": "fixed"}}
    corner = {"left_px": 512, "top_px": 512, "width_px": 512, "height_px": 512}
    drawn = post(api, fixed | {"regions": [MASKED | {"shape": {"rectangle": corner}}]}).json()
    sent = post(api, fixed, region_mask_3=mask(512, 512, 1024, 1024)).json()
    region = {"rectangle": {"left_px": 0, "top_px": 0, "width_px": 256, "height_px": 256}}
    costs = [derive(api, story, job, "reroll", region=region, seed=2)["cost"] for job in (sent, drawn)]
    assert costs[0] == costs[1]


def derive(
    api: httpx.Client, story: Story, parent: dict[str, Any], what: str, **body: object
) -> dict[str, Any]:
    """A child of a job that ends meanwhile."""
    job_id = parent["id"]
    result = Result(
        image_key=f"jobs/{job_id}/one/image.png", pyramid_key=f"jobs/{job_id}/one", media_type="image/png",
        width_px=1024, height_px=1024, size_bytes=1, sha256="0" * 64, engine_s=1.0,
    )  # fmt: skip
    story.start(job_id)
    story.succeed(job_id, result)
    answer = api.post(f"/v1/jobs/{job_id}/{what}", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("request_", "parts", "field", "says"),
    [
        (REGIONS, {}, "region_mask_3", "as the part region_mask_3 of multipart/form-data, for regions.*.shape.mask"),
        (REGIONS, {"region_mask_3": mask(0, 0, 9, 9), "region_mask_4": mask(0, 0, 9, 9)}, "region_mask_4", "without the field regions.*.shape.mask"),
        (REGIONS, {"region_mask_3": mask(0, 0, 0, 0)}, "region_mask_3", "white where the region is; this one is black everywhere"),
        ({"source": {}, "mask": {}}, {"source_image": encode(), "mask_image": mask(0, 0, 0, 0)}, "mask_image", "white where the source is to be inpainted; this one is black everywhere"),
        (REGIONS, {"region_mask_3": b"no picture"}, "region_mask_3", name_formats()),
        (REGIONS, {"region_mask_17": mask(0, 0, 9, 9)}, "region_mask_17", "region_mask_16"),
        (REGIONS | {"regions": [MASKED] * 17}, {}, "regions", "at most 16"),
        (REGIONS | {"regions": [MASKED | {"shape": {"polygon": [[0, 0], [9, 9], [9, 0], [0, 9]]}}]}, {}, "regions.0.shape.polygon", "do not cross"),
        (REGIONS | {"regions": [MASKED | {"shape": {"polygon": [[0, 0], [9, 0], [1025, 9]]}}]}, {}, "regions.0.shape.polygon.2", "x from 0 to 1024 px, y from 0 to 1024 px"),
        (REGIONS | {"regions": [MASKED | {"shape": {"rectangle": {"left_px": 9, "top_px": 9, "width_px": 9, "height_px": 1016}}}]}, {}, "regions.0.shape.rectangle", "within the picture"),
        (REGIONS | {"regions": [MASKED | {"shape": {"circle": 3}}]}, {}, "regions.0.shape.circle", "known are rectangle, polygon, mask"),
        (REGIONS | {"regions": [MASKED | {"wieght": 3}]}, {}, "regions.0.wieght", "known are prompt, negative_prompt, weight, seed, shape, feather_px"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_region_is_named(
    api: httpx.Client, request_: dict[str, object], parts: dict[str, bytes], field: str, says: str
) -> None:
    assert says in errors(post(api, request_, **parts))[field]


def test_sixteen_masks_may_come_beside_the_other_pictures(api: httpx.Client) -> None:
    """All parts are read: what is refused are the two that nobody asked for."""
    masks = {f"region_mask_{number}": mask(0, 0, 64, 64, size=(64, 64)) for number in range(1, 17)}
    request = REGIONS | {"regions": [MASKED | {"shape": {"mask": part}} for part in masks]}
    others = {"control_image": encode(), "ip_adapter_image": encode()}
    assert errors(post(api, request, **masks, **others)).keys() == others.keys()

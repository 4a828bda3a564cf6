"""Regions on the command line."""

import json
from pathlib import Path

import pytest

from chorale.picture_options import build_request
from chorale.region_options import read_regions
from chorale.typed_options import OptionError


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "path.png"
    path.write_bytes(b"a picture")
    return path


def test_shapes_are_told_apart_by_how_they_are_written(mask: Path) -> None:
    texts = ["0,512, 1024,512:x", "0,512,1024,512:dunes: at sunset", "0,0 300,20 9,80:grass", f"{mask}:moss"]
    with pytest.raises(OptionError, match="LEFT,TOP,WIDTH,HEIGHT"):
        read_regions(texts[:1], None, None)
    chosen = read_regions(texts[1:], None, 8)
    rectangle = {"left_px": 0, "top_px": 512, "width_px": 1024, "height_px": 512}
    assert chosen.regions == [
        {"prompt": "dunes: at sunset", "shape": {"rectangle": rectangle}, "feather_px": 8},
        {"prompt": "grass", "shape": {"polygon": [[0, 0], [300, 20], [9, 80]]}, "feather_px": 8},
        {"prompt": "moss", "shape": {"mask": "region_mask_1"}, "feather_px": 8},
    ]
    assert chosen.masks == {"region_mask_1": mask}
    assert len(build_request({"regions": chosen.regions}).regions) == 3


def test_a_file_has_all_settings_and_names_masks_beside_it(mask: Path) -> None:
    regions = [
        {"prompt": "moss", "negative_prompt": "rain", "weight": 2, "seed": 5, "shape": {"mask": mask.name}},
        {"prompt": "dunes", "shape": {"polygon": [[0, 0], [9, 0], [9, 9]]}, "feather_px": 0},
        {"prompt": "ferns", "shape": {"mask": mask.name}},
    ]
    file = mask.with_name("regions.json")
    file.write_text(json.dumps(regions))
    chosen = read_regions(["0,0,9,9:sand"], file, None)
    assert chosen.masks == {"region_mask_1": mask}
    request = build_request({"regions": chosen.regions})
    assert [region.prompt for region in request.regions] == ["moss", "dunes", "ferns", "sand"]
    assert [region.shape.mask for region in request.regions] == ["region_mask_1", None, "region_mask_1", None]
    assert request.regions[0].model_dump(exclude={"shape", "prompt", "feather_px"}) == {
        "negative_prompt": "rain", "weight": 2.0, "seed": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dunes", "--region dunes: LEFT,TOP,WIDTH,HEIGHT:PROMPT"),
        ("1,2,3:dunes", "--region 1,2,3:dunes: LEFT,TOP"),
        ("0,0,9.5,9:dunes", "MASK_FILE:PROMPT"),
        (
            "missing.png:dunes",
            "--region missing.png:dunes, mask missing.png: a file that can be read; No such file",
        ),
    ],
)
def test_what_is_no_region_is_told_what_is(text: str, says: str) -> None:
    with pytest.raises(OptionError, match=says.replace(".", r"\.")):
        read_regions([text], None, None)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[{", "this is no JSON"),
        ('{"prompt": "x"}', "this is no list"),
        ("[1]", "regions.0 is no object"),
        (
            '[{"prompt": "x", "shape": {"mask": "missing.png"}}]',
            r"--regions .*/regions.json, mask missing.png: a file that can be read; No such file",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_told_why(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "regions.json"
    file.write_text(content)
    with pytest.raises(OptionError, match=says):
        read_regions(None, file, None)


def test_a_feather_needs_a_region() -> None:
    with pytest.raises(OptionError, match="--feather 8: only with --region"):
        read_regions(None, None, 8)

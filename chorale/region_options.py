"""The options of `chorale generate` that give areas of the picture prompts of their own."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

from typer import Option

from api_schemas.generation import PicturePart
from api_schemas.regions import Region
from chorale.file_options import file_option, require_file
from chorale.typed_options import OptionError, field_of, shown, typed

RegionTexts = Annotated[
    list[str] | None,
    Option(
        "--region",
        metavar="SHAPE:PROMPT",
        help="Area with a prompt of its own; may be repeated. A rectangle LEFT,TOP,WIDTH,HEIGHT, a polygon 'X,Y X,Y X,Y', "
        "or the file of a mask, white where the region is. In pixels of the picture.",
    ),
]
RegionsFile = Annotated[
    Path | None,
    file_option(
        "--regions",
        help="Regions with all their settings: a JSON list as in the API, a mask being the file beside it.",
    ),
]
Feather = Annotated[
    int | None,
    typed(
        field_of(Region, "feather_px"),
        help="Softness of the borders of each --region, pixels.",
        show_default="32",
    ),
]

_RECTANGLE = re.compile(r"\s*(\d+),(\d+),(\d+),(\d+)\s*")
_POLYGON = re.compile(r"\s*\d+,\d+(\s+\d+,\d+)+\s*")
_FORM = "--region {}: LEFT,TOP,WIDTH,HEIGHT:PROMPT, 'X,Y X,Y X,Y:PROMPT', or MASK_FILE:PROMPT; for example '0,512,1024,512:dunes'"


@dataclass(frozen=True, slots=True)
class ChosenRegions:
    """Regions as the API takes them, and the masks that come with them."""

    regions: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    masks: dict[PicturePart, Path] = field(default_factory=dict[PicturePart, Path])
    texts: dict[str, str] = field(default_factory=dict[str, str])
    """Option and value of those of `--region`, and of all masks, by what they are sent as."""

    def add(self, region: dict[str, Any], folder: Path, typed: str) -> None:
        """
        Args:
            folder: that a mask's file is named from.
            typed: the option and its value.

        Raises:
            OptionError: the file cannot be read.
        """
        shape = region.get("shape")
        if isinstance(shape, dict) and isinstance(name := cast(dict[str, Any], shape).get("mask"), str):
            part = self._take_mask(folder / name, f"{typed}, mask {shown(name)}")
            region = region | {"shape": {**cast(dict[str, Any], shape), "mask": part}}
        self.regions.append(region)

    def _take_mask(self, path: Path, typed: str) -> str:
        """The part that a file is sent as, once."""
        for part, known in self.masks.items():
            if known == path:
                return part
        part = f"region_mask_{len(self.masks) + 1}"
        # The request refuses more regions than there are parts.
        self.masks[cast(PicturePart, part)] = require_file(path, typed)
        self.texts[part] = typed
        return part


def read_regions(texts: Sequence[str] | None, file: Path | None, feather_px: int | None) -> ChosenRegions:
    """All regions of a command line: those of the file, then those of `--region`.

    Raises:
        OptionError: one cannot be read.
    """
    chosen = ChosenRegions()
    for region in _read_file(file) if file is not None else ():
        chosen.add(region, cast(Path, file).parent, f"--regions {file}")
    for text in texts or ():
        chosen.texts[f"regions.{len(chosen.regions)}"] = typed = f"--region {shown(text)}"
        chosen.add(_parse(text) | ({} if feather_px is None else {"feather_px": feather_px}), Path(), typed)
    if feather_px is not None and not texts:
        raise OptionError(f"--feather {feather_px}: only with --region; in a file it is feather_px")
    return chosen


def parse_shape(text: str) -> dict[str, Any] | None:
    """A rectangle LEFT,TOP,WIDTH,HEIGHT or a polygon 'X,Y X,Y X,Y'; None if it is neither."""
    if match := _RECTANGLE.fullmatch(text):
        names = ("left_px", "top_px", "width_px", "height_px")
        return {"rectangle": dict(zip(names, map(int, match.groups()), strict=True))}
    if _POLYGON.fullmatch(text):
        return {"polygon": [[int(number) for number in point.split(",")] for point in text.split()]}
    return None


def _parse(text: str) -> dict[str, Any]:
    shape, colon, prompt = text.partition(":")
    if not colon:
        raise OptionError(_FORM.format(text))
    if drawn := parse_shape(shape):
        return {"prompt": prompt, "shape": drawn}
    if os.path.exists(shape) or Path(shape).suffix[1:].isalpha():  # if there is none, `add` says so
        return {"prompt": prompt, "shape": {"mask": shape}}
    raise OptionError(_FORM.format(text))


def _read_file(path: Path) -> Iterator[dict[str, Any]]:
    try:
        found: object = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise OptionError(f"--regions {path}: this is no JSON: {error}") from error
    regions = cast(list[object], found) if isinstance(found, list) else [found]
    for index, region in enumerate(regions):
        if not isinstance(found, list) or not isinstance(region, dict):
            what = f"regions.{index} is no object" if isinstance(found, list) else "this is no list"
            raise OptionError(f"--regions {path}: {what}; a list of objects with prompt and shape is")
        yield cast(dict[str, Any], region)

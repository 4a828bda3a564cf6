"""The options of `chorale generate` that begin with a picture."""

import re
from pathlib import Path
from typing import Annotated

from typer import Option

from api_schemas.generation import GenerationRequest, PicturePart
from api_schemas.source import MAX_UPSCALE, Fit
from api_schemas.style import Style
from chorale.region_options import parse_shape
from chorale.typed_options import OptionError, field_of, typed

SourceName = Annotated[
    str | None, Option("--source", metavar="FILE|JOB", help="Begin with this picture, or with that of a job.")
]
Strength = Annotated[
    float | None,
    typed(
        field_of(GenerationRequest, "strength"),
        help="How far a source is changed, 0 to 1.",
        show_default="0.6; 1 with --mask",
    ),
]
SourceFit = Annotated[
    Fit | None, typed(Fit, help="How a source of another size comes to --size.", show_default="fill")
]
Mask = Annotated[
    str | None,
    Option(
        metavar="SHAPE|FILE",
        help="What of the source is inpainted, LEFT,TOP,WIDTH,HEIGHT or 'X,Y X,Y X,Y', or where a picture is white; all else"
        " stays.",
    ),
]
Upscale = Annotated[
    int | None,
    typed(
        field_of(GenerationRequest, "upscale"),
        help=f"Enlarge the source so many times, 2 to {MAX_UPSCALE}, and add detail.",
    ),
]
Fidelity = Annotated[
    float | None,
    typed(
        field_of(GenerationRequest, "fidelity"),
        help="With --upscale: 1 stays nearest to the source, 0 invents.",
        show_default="0.5",
    ),
]
StylePrompt = Annotated[str | None, Option(help="Style that a source takes, in words.")]
StyleImage = Annotated[
    Path | None, Option(help="Picture whose style a source takes.", exists=True, dir_okay=False)
]
StyleStrength = Annotated[
    float | None,
    typed(field_of(Style, "strength"), help="How much of the style it takes, 0 to 1.", show_default="1"),
]

_JOB = re.compile(r"[0-9a-f]{28}")


def read_source(
    source: str | None,
    fit: Fit | None,
    strength: float | None,
    mask: str | None,
    upscale: int | None,
    fidelity: float | None,
) -> tuple[dict[str, object], dict[PicturePart, Path]]:
    """Fields of the request, and the pictures that come with it.

    Raises:
        OptionError: the source is neither a file nor a job, the mask neither a shape nor a file, or a fit comes alone.
    """
    fields: dict[str, object] = {"strength": strength, "upscale": upscale, "fidelity": fidelity}
    pictures: dict[PicturePart, Path] = {}
    if mask is not None:
        fields["mask"] = parse_shape(mask) or {}
        if not fields["mask"]:
            pictures["mask_image"] = _find_mask(mask)
    if source is None and fit is not None:
        raise OptionError(f"--fit {fit}: nothing without --source: the picture to begin with")
    if source is None:
        return fields, pictures
    chosen: dict[str, object] = {} if fit is None else {"fit": fit}
    if Path(source).is_file():
        pictures["source_image"] = Path(source)
    elif _JOB.fullmatch(source):
        chosen["job"] = source
    else:
        raise OptionError(f"--source {source}: no such file, and no id of a job")
    return fields | {"source": chosen}, pictures


def _find_mask(mask: str) -> Path:
    if not Path(mask).is_file():
        raise OptionError(
            f"--mask {mask}: neither a file nor a shape, LEFT,TOP,WIDTH,HEIGHT or 'X,Y X,Y X,Y', in whole pixels from 0 on"
        )
    return Path(mask)


def read_style(
    prompt: str | None, image: Path | None, strength: float | None
) -> tuple[dict[str, object], dict[PicturePart, Path]]:
    """The field of the request, and the picture that comes with it.

    Raises:
        OptionError: a strength comes alone.
    """
    if prompt is None and image is None:
        if strength is not None:
            raise OptionError(
                f"--style-strength {strength:g}: only with --style-prompt TEXT or --style-image FILE"
            )
        return {}, {}
    chosen = {"prompt": prompt, "strength": strength, "style_image": image is not None}
    style = {name: value for name, value in chosen.items() if value is not None}
    return {"style": style}, {} if image is None else {"style_image": image}

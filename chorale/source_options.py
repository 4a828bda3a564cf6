"""The options of `chorale generate` that begin with a picture."""

import os
import re
from pathlib import Path
from typing import Annotated

from typer import Option

from api_schemas.generation import GenerationRequest, PicturePart
from api_schemas.source import MAX_UPSCALE, Fit
from api_schemas.style import Style
from chorale.file_options import file_option, require_file
from chorale.region_options import parse_shape
from chorale.typed_options import OptionError, field_of, shown, typed

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
StyleImage = Annotated[Path | None, file_option(help="Picture whose style a source takes.")]
StyleStrength = Annotated[
    float | None,
    typed(field_of(Style, "strength"), help="How much of the style it takes, 0 to 1.", show_default="1"),
]

_JOB = re.compile(r"[0-9a-f]{28}")
_MASK = "a file, or a shape, LEFT,TOP,WIDTH,HEIGHT or 'X,Y X,Y X,Y', in whole pixels from 0 on"


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
            pictures["mask_image"] = require_file(mask, f"--mask {shown(mask)}", _MASK)
    if source is None and fit is not None:
        raise OptionError(f"--fit {fit}: nothing without --source: the picture to begin with")
    if source is None:
        return fields, pictures
    chosen: dict[str, object] = {} if fit is None else {"fit": fit}
    if _JOB.fullmatch(source) and not os.path.isfile(source):
        chosen["job"] = source
    else:
        pictures["source_image"] = require_file(
            source, f"--source {shown(source)}", "a file, or the id of a job"
        )
    return fields | {"source": chosen}, pictures


def read_style(
    prompt: str | None, image: Path | None, strength: float | None
) -> tuple[dict[str, object], dict[PicturePart, Path]]:
    """The field of the request, and the picture that comes with it.

    Raises:
        OptionError: a strength comes alone, or nothing describes the style.
    """
    if prompt is None and image is None:
        if strength is not None:
            raise OptionError(
                f"--style-strength {strength:g}: only with --style-prompt TEXT or --style-image FILE"
            )
        return {}, {}
    if image is None and not (prompt or "").strip():
        raise OptionError(
            f"--style-prompt {shown(prompt)}: text that describes a style, or --style-image FILE"
        )
    chosen = {"prompt": prompt, "strength": strength, "style_image": image is not None}
    style = {name: value for name, value in chosen.items() if value is not None}
    return {"style": style}, {} if image is None else {"style_image": image}

"""The options of `chorale generate`, as a request."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ValidationError
from typer import Argument, Option

from api_schemas.add_ons import ControlSettings, IpAdapterSettings
from api_schemas.generation import BitDepth as Depth
from api_schemas.generation import GenerationRequest, Layout, OutputFormat, PicturePart, Seamless
from api_schemas.refused_values import list_refused
from chorale.file_options import file_option
from chorale.typed_options import Given, OptionError, field_of, shown, tell_options, typed

Prompt = Annotated[
    str | None,
    Argument(
        help="What the picture shows; one that begins with a source can do without.", show_default=False
    ),
]
Output = Annotated[
    Path | None, Option("-o", "--output", help="File to write.", show_default="named after the prompt")
]
Size = Annotated[
    str | None, Option(help="WIDTHxHEIGHT in pixels.", show_default="1024x1024, or the source's")
]
SeamlessAxes = Annotated[
    Seamless, typed(Seamless, help="Axes along which copies of the picture tile without a seam.")
]
LayoutName = Annotated[
    Layout,
    typed(
        Layout,
        help="From small to large in stages, or at full size at once; auto: by the prompt, or the model's default.",
    ),
]
Seed = Annotated[
    int | None,
    typed(
        field_of(GenerationRequest, "seed"),
        help="The same seed gives the same picture.",
        show_default="drawn",
    ),
]
Steps = Annotated[
    int | None,
    typed(
        field_of(GenerationRequest, "steps"),
        help="Denoising steps.",
        show_default="the model's",
    ),
]
Guidance = Annotated[
    float | None,
    typed(
        field_of(GenerationRequest, "guidance_scale"),
        help="1.0 turns guidance off.",
        show_default="the model's",
    ),
]
GuidanceInterval = Annotated[
    str | None,
    Option(
        metavar="START,END",
        help="Part of the noise schedule that guidance is limited to, as in 0.2,0.9; 0 is pure noise. The rest takes half"
        " the time.",
        show_default="the model's",
    ),
]
Negative = Annotated[str | None, Option(help="What the picture should not show.")]
Model = Annotated[str | None, Option(help="Name of a model that is served.", show_default="default")]
Loras = Annotated[
    list[str] | None, Option(metavar="NAME[:WEIGHT]", help="LoRA of the model's card; may be repeated.")
]
Control = Annotated[str | None, Option(metavar="NAME", help="ControlNet of the model's card.")]
ControlImage = Annotated[
    Path | None, file_option(help="Conditioning picture of the ControlNet.", show_default="--source")
]
ControlScale = Annotated[
    float | None,
    typed(field_of(ControlSettings, "scale"), help="Conditioning scale, 0 to 2.", show_default="1"),
]
IpAdapter = Annotated[str | None, Option(metavar="NAME", help="IP-Adapter of the model's card.")]
IpAdapterImage = Annotated[Path | None, file_option(help="Conditioning picture of the IP-Adapter.")]
IpAdapterScale = Annotated[
    float | None, typed(field_of(IpAdapterSettings, "scale"), help="Scale, 0 to 1.", show_default="0.6")
]
BitDepth = Annotated[
    Depth | None, typed(Depth, help="Bits per channel; 16 needs .png or .tif.", show_default="8")
]
Dpi = Annotated[
    int | None,
    typed(
        field_of(GenerationRequest, "dpi"),
        help="Resolution in the metadata of the file, pixels per inch.",
        show_default="300",
    ),
]
PriorityLevel = Annotated[
    Literal["low", "normal", "high"] | None,
    typed(
        field_of(GenerationRequest, "priority"),
        "--priority",
        help="Among the jobs of the same API key.",
        show_default="normal",
    ),
]
StartWithin = Annotated[
    float | None,
    typed(
        field_of(GenerationRequest, "start_within_s"),
        help="Seconds by which the job must have started; else it expires.",
        show_default="no limit",
    ),
]
FinishWithin = Annotated[
    float | None,
    typed(
        field_of(GenerationRequest, "finish_within_s"),
        help="Seconds by which the job must have ended; else it is stopped.",
        show_default="no limit",
    ),
]
DeepZoom = Annotated[bool, Option("--dzi", help="Also write the deep zoom, beside the picture.")]

_SIZE = re.compile(r"(\d{1,6})(?:\s*[x×X,]\s*(\d{1,6}))?")
_FORMATS: dict[str, OutputFormat] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
}
_LONGEST_NAME = 60


def parse_size(text: str) -> tuple[int, int]:
    """(width, height), pixels: `4096x2048` is 4096 wide; `4096` alone is a square.

    Raises:
        OptionError: it is neither.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise OptionError(f"--size {text}: WIDTHxHEIGHT, for example 4096x2048")
    width, height = match.groups()
    return int(width), int(height or width)


def find_format(path: Path) -> OutputFormat:
    """
    Raises:
        OptionError: no output format has this suffix.
    """
    if path.suffix.lower() not in _FORMATS:
        raise OptionError(f"--output {shown(path)}: pictures end with {', '.join(_FORMATS)}")
    return _FORMATS[path.suffix.lower()]


def choose_prompt(prompt: str | None, source: str | None) -> str:
    """
    Raises:
        OptionError: there is nothing that a picture could show.
    """
    if not (prompt or "").strip() and source is None:
        typed = "prompt" if prompt is None else f"prompt {shown(prompt)}"
        raise OptionError(f"{typed}: missing; only with --source a picture can do without")
    return prompt or ""


def name_after(prompt: str) -> Path:
    """File name for a picture without `--output`."""
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")
    return Path(f"{words[:_LONGEST_NAME].rstrip('-') or 'picture'}.png")


def parse_lora(text: str) -> dict[str, object]:
    """`ink` or `ink:0.6`.

    Raises:
        OptionError: what follows the colon is no number.
    """
    name, colon, weight = text.partition(":")
    if not colon:
        return {"name": name}
    try:
        return {"name": name, "weight": float(weight)}
    except ValueError as error:
        raise OptionError(f"--lora {shown(text)}: NAME or NAME:WEIGHT, for example ink:0.6") from error


def tell_loras(texts: Sequence[str] | None) -> dict[str, str]:
    """Option and value of each, by the fields of the request that they are sent as."""
    return {f"loras.{index}": f"--lora {shown(text)}" for index, text in enumerate(texts or ())}


def parse_interval(text: str) -> list[float]:
    """`0.2,0.9`.

    Raises:
        OptionError: it is not two numbers.
    """
    try:
        start, end = map(float, text.split(","))
    except ValueError as error:
        raise OptionError(
            f"--guidance-interval {shown(text)}: START,END from 0 to 1, for example 0.2,0.9"
        ) from error
    return [start, end]


def name_advanced(guidance_interval: str | None) -> dict[str, object] | None:
    """None if the model's defaults hold."""
    return None if guidance_interval is None else {"guidance_interval": parse_interval(guidance_interval)}


def name_add_on(
    option: str, name: str | None, scale: float | None, image: Path | None, *, shows_source: bool = False
) -> dict[str, object] | None:
    """A ControlNet or an IP-Adapter; None if there is none.

    Args:
        shows_source: whether it is given the source where it has no picture.

    Raises:
        OptionError: name or picture comes without the other.
    """
    if name is None and image is None and scale is None:
        return None
    if name is None:
        typed = f"-image {image}" if scale is None else f"-scale {scale:g}"
        raise OptionError(f"--{option}{typed}: only with --{option} NAME")
    if image is None and not shows_source:
        beside = " or --source" if option == "control" else ""
        raise OptionError(f"--{option} {shown(name)}: only with --{option}-image FILE{beside}")
    return {"name": name} if scale is None else {"name": name, "scale": scale}


def name_urgency(
    priority: str | None, start_within: float | None, finish_within: float | None
) -> dict[str, object]:
    """When the job should be made."""
    return {"priority": priority, "start_within_s": start_within, "finish_within_s": finish_within}


def name_pictures(control_image: Path | None, ip_adapter_image: Path | None) -> dict[PicturePart, Path]:
    """Those that were given, by the parts that they are sent as."""
    pictures: dict[PicturePart, Path] = {}
    if control_image is not None:
        pictures["control_image"] = control_image
    if ip_adapter_image is not None:
        pictures["ip_adapter_image"] = ip_adapter_image
    return pictures


def build_request(fields: dict[str, object], given: Given | None = None) -> GenerationRequest:
    """What was given; the server chooses the rest.

    Args:
        given: as it was typed, for errors.

    Raises:
        OptionError: a value is out of its limits.
    """
    try:
        return GenerationRequest.model_validate(
            {key: value for key, value in fields.items() if value is not None}
        )
    except ValidationError as error:
        raise OptionError(tell_options(list_refused(error, GenerationRequest), given)) from error

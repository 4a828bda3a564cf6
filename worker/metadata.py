"""Metadata of a picture: PNG text, EXIF and XMP. libvips 8.18 writes text as Latin-1 or ASCII only."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from xml.sax.saxutils import escape, quoteattr

from PIL.ExifTags import IFD, Base
from PIL.Image import Exif
from PIL.PngImagePlugin import PngInfo, putchunk

from api_schemas.advanced import ALWAYS_GUIDED
from api_schemas.generation import ResolvedRequest
from provenance.source_types import SourceType, name_term

_NAMESPACE = "urn:chorale:picture:1"
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production 2: Char
_PLAIN = re.compile("[\n\x20-\x7e]*")  # other control characters have no place in a tEXt chunk
_SRGB = 1  # EXIF 3.0, ColorSpace
_PNG_XMP = "XML:com.adobe.xmp"  # keyword, as ISO 16684-1, 7.6, has it
# What is told apart from the settings, and what does not change the picture.
_NO_SETTINGS = dict.fromkeys((
    "prompt", "negative_prompt", "seed", "model", "embed_metadata", "layout_reason", "control_reason",
    "priority", "start_within_s", "finish_within_s",
), True) | {"pictures": {"__all__": {"size_bytes"}}}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PictureMetadata:
    """`settings` is JSON; `parameters` is the text that the common readers of generated pictures parse."""

    prompt: str
    negative_prompt: str
    seed: int
    model: str
    settings: str
    parameters: str


def describe_picture(request: ResolvedRequest) -> PictureMetadata:
    """All that is needed to make the same picture again."""
    settings = request.model_dump(mode="json", exclude=_NO_SETTINGS)
    return PictureMetadata(
        request.prompt,
        request.negative_prompt,
        request.seed,
        request.model,
        json.dumps(settings),
        _write_parameters(request),
    )


def _write_parameters(request: ResolvedRequest) -> str:
    """Prompt, negative prompt and a line of settings, as AUTOMATIC1111's web UI writes them."""
    values: dict[str, object] = {
        "Steps": request.steps,
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": request.seed,
        "Size": f"{request.width_px}x{request.height_px}",
        "Model": request.model,
        **_describe_interval(request),
        "Version": "Chorale",
    }
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quote(str(value))}" for key, value in values.items()))
    return "\n".join(lines).strip()


def _describe_interval(request: ResolvedRequest) -> dict[str, object]:
    interval = request.advanced.guidance_interval or ALWAYS_GUIDED
    return {} if interval == ALWAYS_GUIDED else {"CFG interval": f"{interval[0]:g} to {interval[1]:g}"}


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\r\n]', value) else value


def png_chunks(metadata: PictureMetadata | None, source_type: SourceType) -> bytes:
    """Text chunks: plain ones where possible, since some readers know no other; and where the pixels come from, as XMP.

    PNG specification, third edition, 11.3.3. No key is `prompt` or `workflow`: readers of node graphs
    expect JSON there.
    """
    info, chunks = PngInfo(), BytesIO()
    for key, text in () if metadata is None else _list_texts(metadata):
        add = info.add_text if _PLAIN.fullmatch(text) else info.add_itxt
        add(key, text)
    info.add_itxt(_PNG_XMP, xmp_packet(None, source_type).decode())
    for kind, body, _ in info.chunks:
        putchunk(chunks, kind, body)
    return chunks.getvalue()


def _list_texts(metadata: PictureMetadata) -> Iterator[tuple[str, str]]:
    yield "parameters", metadata.parameters
    yield "Software", "Chorale"
    yield "Description", metadata.prompt
    yield "negative_prompt", metadata.negative_prompt
    yield "seed", str(metadata.seed)
    yield "model", metadata.model
    yield "settings", metadata.settings


def exif_block(metadata: PictureMetadata | None) -> bytes:
    """EXIF for JPEG and WebP: the colour space, and the parameters as a comment, where common readers look."""
    block = Exif()
    block[Base.ResolutionUnit] = 2  # inches; libvips adds the number of pixels
    details = block.get_ifd(IFD.Exif)
    details[Base.ColorSpace] = _SRGB
    if metadata is not None:
        details[Base.UserComment] = b"UNICODE\0" + metadata.parameters.encode("utf-16-be")
    return block.tobytes()


def xmp_packet(metadata: PictureMetadata | None, source_type: SourceType) -> bytes:
    """XMP (ISO 16684-1): where the pixels come from, and how the picture was made.

    Args:
        metadata: None for nothing but the first, which no file lacks.
    """
    return f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType="{name_term(source_type)}"{"/>" if metadata is None else _describe_making(metadata)}
</rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>""".encode()


def _describe_making(metadata: PictureMetadata) -> str:
    """The rest of the description."""
    return f""" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:chorale="{_NAMESPACE}"
 xmp:CreatorTool="Chorale" chorale:seed="{metadata.seed}" chorale:model={_attribute(metadata.model)}
 chorale:negative_prompt={_attribute(metadata.negative_prompt)} chorale:settings={_attribute(metadata.settings)}>
<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{_content(metadata.prompt)}</rdf:li></rdf:Alt></dc:description>
</rdf:Description>"""


def _attribute(text: str) -> str:
    return quoteattr(_clean(text), {"\r": "&#13;"})


def _content(text: str) -> str:
    """A bare carriage return would be read as a line feed (XML 1.0, 2.11)."""
    return escape(_clean(text), {"\r": "&#13;"})


def _clean(text: str) -> str:
    """Replace what XML cannot hold, escaped or not: control characters, U+FFFE and U+FFFF."""
    return _NO_XML.sub("\ufffd", text)

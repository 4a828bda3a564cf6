"""What a picture says about itself, as PNG text or as XMP."""

import json
import struct
import zlib
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from api_schemas.generation import ResolvedRequest

_NAMESPACE = "urn:chorale:picture:1"


@dataclass(frozen=True, slots=True)
class PictureMetadata:
    """`settings` is JSON."""

    prompt: str
    negative_prompt: str
    seed: int
    model: str
    settings: str


def describe_picture(request: ResolvedRequest) -> PictureMetadata:
    """All that is needed to make the picture again."""
    settings = request.model_dump(
        mode="json", exclude={"prompt", "negative_prompt", "seed", "model", "embed_metadata"}
    )
    return PictureMetadata(
        request.prompt, request.negative_prompt, request.seed, request.model, json.dumps(settings)
    )


def png_chunks(metadata: PictureMetadata) -> bytes:
    """International text chunks, UTF-8 (PNG specification, third edition, 11.3.3.4)."""
    texts = {
        "Software": "Chorale",
        "Description": metadata.prompt,
        "prompt": metadata.prompt,
        "negative_prompt": metadata.negative_prompt,
        "seed": str(metadata.seed),
        "model": metadata.model,
        "settings": metadata.settings,
    }
    return b"".join(_international_text(key, text) for key, text in texts.items())


def _international_text(keyword: str, text: str) -> bytes:
    uncompressed, no_language, no_translation = b"\0\0", b"\0", b"\0"
    body = (
        b"iTXt"
        + keyword.encode("latin-1")
        + b"\0"
        + uncompressed
        + no_language
        + no_translation
        + text.encode()
    )
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def _clean(text: str) -> str:
    """XML 1.0 has no place for control characters, escaped or not."""
    return "".join(char if char >= " " or char in "\t\n\r" else "\ufffd" for char in text)


def _attribute(text: str) -> str:
    return quoteattr(_clean(text))


def xmp_packet(metadata: PictureMetadata) -> bytes:
    """XMP for JPEG, WebP and TIFF (ISO 16684-1)."""
    return f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:chorale="{_NAMESPACE}"
 xmp:CreatorTool="Chorale" chorale:seed="{metadata.seed}" chorale:model={_attribute(metadata.model)}
 chorale:negative_prompt={_attribute(metadata.negative_prompt)} chorale:settings={_attribute(metadata.settings)}>
<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{escape(_clean(metadata.prompt))}</rdf:li></rdf:Alt></dc:description>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>""".encode()

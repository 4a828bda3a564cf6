"""What files tell, read back by Pillow, by XML parsers, and as the readers of such texts do."""

import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import pyvips
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from PIL.ExifTags import IFD, Base

from api_schemas.generation import OutputFormat, ResolvedRequest
from worker.metadata import PictureMetadata, describe_picture, png_chunks, xmp_packet
from worker.picture_writer import SUFFIXES, PictureWriter
from worker.process.files import ImageFile

LI = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
DESCRIPTION = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
CHORALE = "{urn:chorale:picture:1}"
MADE = "trainedAlgorithmicMedia"
# All that JSON can bring, but for U+0000, which is refused.
PROMPTS = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"], exclude_characters="\x00"),
        st.sampled_from("\x01\x0b\x1f\x7f\x85\u2028\ufffe\uffff\U0001fffe<>&\"'\r\n\t,:\\]"),
    ),
    max_size=300,
)
PIXEL = pyvips.Image.black(1, 1, bands=3).cast("uchar").pngsave_buffer()
# As AUTOMATIC1111's web UI and those that follow it find the settings in the last line.
SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def describe(**changes: object) -> PictureMetadata:
    fields = {"model": "toy", "steps": 4, "guidance_scale": 1.5, "seed": 2**63 - 1, "prompt": "lava"}
    return describe_picture(ResolvedRequest.model_validate(fields | changes))


def read_parameters(text: str) -> dict[str, str]:
    """Prompt, negative prompt and settings."""
    *lines, last = text.strip().split("\n")
    found = dict(SETTING.findall(last))
    assert len(found) >= 3, "fewer are taken for a line of the prompt"
    prompt, _, negative = "\n".join(lines).partition("\nNegative prompt: ")
    values = {key: json.loads(value) if value.startswith('"') else value for key, value in found.items()}
    return values | {"prompt": prompt, "negative": negative}


@given(PROMPTS, PROMPTS)
@settings(max_examples=60, deadline=None)
def test_xmp_is_well_formed_for_every_prompt(prompt: str, negative: str) -> None:
    packet = xmp_packet(describe(prompt=prompt, negative_prompt=negative, model=f"a{prompt[:100]}"), MADE)
    (description,) = ElementTree.fromstring(packet).iter(DESCRIPTION)
    told = "".join(entry.text or "" for entry in description.iter(LI))
    assert told == replace_what_xml_lacks(prompt)
    assert description.get(f"{CHORALE}negative_prompt") == replace_what_xml_lacks(negative)
    assert json.loads(description.get(f"{CHORALE}settings", ""))["steps"] == 4


def replace_what_xml_lacks(text: str) -> str:
    """XML 1.0, 2.2: char by char."""

    def fits(code: int) -> bool:
        return code in (9, 10, 13) or 32 <= code < 0xFFFE or code >= 0x10000

    return "".join(char if fits(ord(char)) else "\ufffd" for char in text)


@given(PROMPTS)
@settings(max_examples=40, deadline=None)
def test_any_prompt_survives_in_a_png(prompt: str) -> None:
    data = PIXEL[:33] + png_chunks(describe(prompt=prompt), MADE) + PIXEL[33:]
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["Description"] == prompt
        assert image.info["parameters"].startswith(prompt.strip()[:1])
        assert not {"prompt", "workflow"} & image.info.keys(), "there readers expect JSON"


@given(PROMPTS)
@settings(max_examples=40, deadline=None)
def test_plain_chunks_hold_no_control_characters(prompt: str) -> None:
    """PNG specification, third edition, 11.3.3.2; `pngcheck` calls such a file broken."""
    data = PIXEL[:33] + png_chunks(describe(prompt=prompt), MADE) + PIXEL[33:]
    with Image.open(io.BytesIO(data)) as image:
        plain = [text for text in image.text.values() if not isinstance(text, PngImagePlugin.iTXt)]
    assert "Chorale" in plain
    assert not re.search("[^\n\x20-\x7e]", "".join(plain))


def test_parameters_are_read_as_common_readers_do() -> None:
    metadata = describe(
        prompt="a cave,\nlit: red",
        negative_prompt="blur, text",
        model='a "b", c:d',
        width_px=512,
        height_px=768,
    )
    assert read_parameters(metadata.parameters) == {
        "prompt": "a cave,\nlit: red",
        "negative": "blur, text",
        "Steps": "4",
        "CFG scale": "1.5",
        "Seed": str(2**63 - 1),
        "Size": "512x768",
        "Model": 'a "b", c:d',
        "Version": "Chorale",
    }
    assert metadata.parameters.splitlines()[-1].startswith("Steps: 4, CFG scale: 1.5, Seed: ")
    assert "Negative prompt" not in describe().parameters
    limited = read_parameters(describe(advanced={"guidance_interval": [0.2, 0.9]}).parameters)
    assert limited["CFG interval"] == "0.2 to 0.9"
    assert describe(prompt="").parameters.startswith("Steps: 4")


@pytest.mark.parametrize("prompt", ["lava", "glühende Lava 🌋 \uffff\x01", "&\U0001f30b" * 1000])
@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_the_comment_of_jpeg_and_webp_holds_the_parameters(
    tmp_path: Path, kind: OutputFormat, prompt: str
) -> None:
    """Also the longest: a segment of JPEG ends at 65,533 bytes."""
    with ImageFile(tmp_path / "rows.tif", 16, 16) as rows:
        rows.write(0, np.zeros((16, 16, 3), np.uint8))
    metadata = describe(prompt=prompt, negative_prompt=prompt, model='"&<' * 60)
    path = tmp_path / f"image.{SUFFIXES[kind]}"
    PictureWriter(tmp_path / "rows.tif", 300).write_picture(path, kind, metadata)
    with Image.open(path) as image:
        comment = image.getexif().get_ifd(IFD.Exif)[Base.UserComment]
        (description,) = ElementTree.fromstring(image.info["xmp"]).iter(DESCRIPTION)
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == metadata.parameters
    assert "".join(entry.text or "" for entry in description.iter(LI)) == replace_what_xml_lacks(prompt)

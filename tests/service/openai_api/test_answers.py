"""Pictures in answers, against the libraries that read them."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncGenerator
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.openai_api.answers import encode_base64, has_alpha


@given(st.lists(st.binary(max_size=50), max_size=12))
def test_pieces_of_any_length_are_one_base64_text(pieces: list[bytes]) -> None:
    async def encode() -> bytes:
        async def give() -> AsyncGenerator[bytes]:
            for piece in pieces:
                yield piece

        return b"".join([piece async for piece in encode_base64(give())])

    assert asyncio.run(encode()) == b64encode(b"".join(pieces))


@pytest.mark.parametrize(
    "options", [{"format": "PNG"}, {"format": "WEBP"}, {"format": "WEBP", "lossless": True}]
)
@pytest.mark.parametrize("icc", [b"", b"profile"])  # with one a WebP has the extended form
def test_alpha_is_seen_in_the_head_of_a_file(options: dict[str, object], icc: bytes) -> None:
    for mode in ("RGB", "RGBA"):
        file, picture = BytesIO(), Image.new(mode, (20, 30), (200, 100, 50, 120)[: len(mode)])
        picture.save(file, icc_profile=icc, **options)
        assert has_alpha(file.getvalue()[:32]) == (mode == "RGBA")

"""Tokens, as OpenAI's clients count what a picture costs: of pictures and texts there are none here."""

from collections.abc import Sequence
from math import ceil
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from api_schemas.job import Job

_CHARACTERS: Final = 4  # a token of English text
_SQUARE_PX: Final = 32
_TOKENS: Final = 1000  # for a megapixel-step


class _Counts(BaseModel):
    model_config = ConfigDict(frozen=True)


class TokenDetails(_Counts):
    """What tokens are of."""

    image_tokens: int
    text_tokens: int


class Usage(_Counts):
    """What a request has cost."""

    input_tokens: int
    input_tokens_details: TokenDetails = Field(
        description="Text: a quarter of the characters that are read. Pictures: a token for each 32x32 px of those sent."
    )
    output_tokens: int = Field(
        description="Thousandths of the megapixel-steps of all pictures, which quotas count too."
    )
    output_tokens_details: TokenDetails
    total_tokens: int


def count_usage(jobs: Sequence[Job]) -> Usage:
    """Of jobs with one request; what was sent counts once."""
    request = jobs[0].request
    text = ceil(len(request.prompt + request.negative_prompt) / _CHARACTERS)
    sent = [each for part, each in request.pictures.items() if part != "mask_image"]
    image = sum(ceil(each.width_px / _SQUARE_PX) * ceil(each.height_px / _SQUARE_PX) for each in sent)
    output = sum(ceil(job.cost.megapixel_steps * _TOKENS) for job in jobs)
    return Usage(
        input_tokens=text + image,
        input_tokens_details=TokenDetails(image_tokens=image, text_tokens=text),
        output_tokens=output,
        output_tokens_details=TokenDetails(image_tokens=output, text_tokens=0),
        total_tokens=text + image + output,
    )

"""What a source is to look like, while it keeps its structure."""

from pydantic import Field

from api_schemas.fields import Prompt, RequestPart

_PICTURE_SHARE = 0.8


class Style(RequestPart):
    """The style of the result: by words, by the picture in the part `style_image`, or by both."""

    prompt: Prompt = Field(
        default="",
        description="Describes the style; it stands behind the request's prompt, and behind each region's.",
    )
    style_image: bool = Field(
        default=False, description="Whether there is a part `style_image`; set where one is sent."
    )
    strength: float = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="How much of the style the result takes; 0 is none. Where the request has no `strength`, it also decides the share of"
        " the noise schedule that is run: the same in words, four fifths of it with a picture.",
    )

    @property
    def has_picture(self) -> bool:
        """Whether it comes as the part `style_image`: it has to, where no words describe it."""
        return self.style_image or not self.prompt

    @property
    def share(self) -> float:
        """Of the noise schedule. Words need all of it, since the source's tones show through the noise; with a picture the
        source has its tones from the start."""
        return self.strength * (_PICTURE_SHARE if self.has_picture else 1.0)

    def describe(self, prompt: str) -> str:
        """A prompt with the style's own behind it."""
        return ", ".join(filter(None, (prompt, self.prompt)))

"""What a client asks of a finished job: a part inpainted, more picture around it, or variations of it."""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from api_schemas.fields import (
    MAX_SEED,
    FinishWithin,
    Priority,
    Prompt,
    RequestPart,
    StartWithin,
    refuse_fields,
)
from api_schemas.generation import (
    MAX_DRAWN_SEED,
    WEBP_MAX_SIDE_PX,
    GenerationRequest,
    ResolvedRequest,
)
from api_schemas.regions import MAX_FEATHER_PX
from api_schemas.sizes import MAX_SIDE_PX
from api_schemas.source import MAX_VARIATIONS, SourceMask
from api_schemas.webhook import AskedWebhook

EmbedMetadata = Annotated[
    bool | None,
    Field(
        description="Write prompt, seed, model and settings into the file; if left out, as the job's request says."
    ),
]


class _Derivation(RequestPart):
    """When the new job should be made, whatever was asked of its parent."""

    priority: Priority = "normal"
    start_within_s: StartWithin = None
    finish_within_s: FinishWithin = None

    @property
    def _urgency(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in _Derivation.model_fields}


class _Change(_Derivation):
    """What may differ from the parent's request."""

    prompt: Prompt | None = Field(default=None, description="If left out, that of the job.")
    negative_prompt: Prompt | None = Field(default=None, description="If left out, that of the job.")
    seed: int | None = Field(
        default=None, ge=0, le=MAX_SEED, description="If left out, the service draws one below 2^53."
    )
    embed_metadata: EmbedMetadata = None
    webhook: AskedWebhook = None

    def _apply(self, parent: ResolvedRequest, **changes: object) -> GenerationRequest:
        """The parent's request with these changes; how it began, and its stages' settings, are not asked for again."""
        own = {
            "seed": self.seed,
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "embed_metadata": self.embed_metadata,
        }
        kept = parent.model_dump(include=set(GenerationRequest.model_fields) - _BEGINNING)
        kept["prompt"] = parent.styled_prompt
        for region, described in zip(
            kept["regions"], map(parent.describe_region, parent.regions), strict=True
        ):
            region["prompt"] = described
        if "ip_adapter_image" not in parent.pictures:  # it was given the style picture
            kept["ip_adapter"] = None
        if "control_image" not in parent.pictures:  # it was given the source
            kept["control"] = None
        kept["advanced"]["stages"] = []
        if self.prompt not in (None, parent.styled_prompt):  # what is another thing has tones of its own
            kept["advanced"]["sync_strength"] = 0.0
        # A part is made as the whole was, whatever its own prompt says.
        kept["layout"] = "auto" if parent.goes_by_source else parent.layout
        own = {name: value for name, value in own.items() if value is not None or name == "seed"}
        asked = kept | own | self._urgency | changes | {"webhook": self.webhook}
        return GenerationRequest.model_validate(asked)


_BEGINNING = {"source", "strength", "upscale", "fidelity", "mask", "style", "layout"}


class RerollRequest(_Change):
    """Inpaint a part of the picture. With the job's own seed and prompts it stays as it is, at any strength. The words of
    the job's style stay behind its prompt; a style picture, and a ControlNet that was given the job's source, do not apply."""

    region: SourceMask
    strength: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="Img2img strength: below 1 the part begins with what it was.",
    )

    @field_validator("region")
    @classmethod
    def _require_shape(cls, region: SourceMask) -> SourceMask:
        if region.is_picture:
            raise ValueError("rectangle or polygon")
        return region

    def derive(self, parent_id: str, parent: ResolvedRequest) -> GenerationRequest:
        """The request of the job that does it."""
        own = self._apply(parent, source={"job": parent_id, "fit": "exact"}, mask=self.region.model_dump())
        same = (own.seed, own.prompt, own.negative_prompt) == (
            parent.seed,
            parent.styled_prompt,
            parent.negative_prompt,
        )
        return own.model_copy(update={"strength": 0.0 if same else self.strength})


class ExtendRequest(_Change):
    """Make more picture around the job's. Regions, a style picture and a ControlNet of the job do not apply to it."""

    left_px: int = Field(default=0, ge=0, le=MAX_SIDE_PX)
    right_px: int = Field(default=0, ge=0, le=MAX_SIDE_PX)
    top_px: int = Field(default=0, ge=0, le=MAX_SIDE_PX)
    bottom_px: int = Field(default=0, ge=0, le=MAX_SIDE_PX)
    feather_px: int = Field(
        default=0,
        ge=0,
        le=MAX_FEATHER_PX,
        description="How far what is new fades into the picture; at 0 every pixel of it stays.",
    )

    @model_validator(mode="after")
    def _require_more(self) -> Self:
        if not any(getattr(self, side) for side in _SIDES):
            side, *others = sorted(_SIDES, key=lambda side: side not in self.model_fields_set)
            named = ", ".join(f"`{each}`" for each in others)
            allowed = f"above 0, here or in {named}: by 0 on all sides nothing is extended"
            raise refuse_fields((side, 0, allowed))
        return self

    def derive(self, parent_id: str, parent: ResolvedRequest) -> GenerationRequest:
        """The request of the job that does it.

        Raises:
            ValidationError: names each side that is too large.
        """
        most = WEBP_MAX_SIDE_PX if parent.output_format == "webp" else MAX_SIDE_PX
        own = {"width_px": parent.width_px, "height_px": parent.height_px}
        errors = [each for axis, px in own.items() for each in self._find_excess(axis, px, most)]
        if errors:
            raise refuse_fields(*errors)
        offset = {"left_px": self.left_px, "top_px": self.top_px}
        return self._apply(
            parent,
            width_px=parent.width_px + self.left_px + self.right_px,
            height_px=parent.height_px + self.top_px + self.bottom_px,
            source={"job": parent_id, "offset": offset, "feather_px": self.feather_px},
            regions=[],
            control=None,
        )

    def list_grown(self, axis: str) -> list[tuple[str, int]]:
        """The sides above 0 that `width_px` or `height_px` grows by; none for another field."""
        return [(side, px) for side in _GROWN.get(axis, ()) if (px := getattr(self, side))]

    def _find_excess(self, axis: str, own_px: int, most_px: int) -> Iterator[tuple[str, object, str]]:
        grown = self.list_grown(axis)
        new_px = own_px + sum(px for _, px in grown)
        for side, px in grown if new_px > most_px else ():
            length = axis.removesuffix("_px")
            told = f"the picture's {length} would be {new_px} px, and ends at {most_px}"
            yield side, px, f"at most {max(most_px - new_px + px, 0)}: {told}"


_GROWN = {"width_px": ("left_px", "right_px"), "height_px": ("top_px", "bottom_px")}
_SIDES = [side for sides in _GROWN.values() for side in sides]


class VariationsRequest(_Derivation):
    """Make pictures from neighbouring noise."""

    count: int = Field(default=4, ge=1, le=MAX_VARIATIONS)
    amount: float = Field(
        default=0.2,
        gt=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="How far from the job's own noise: this share of the way to another seed's.",
    )
    embed_metadata: EmbedMetadata = None
    webhook: AskedWebhook = None

    def derive(self, parent: ResolvedRequest, token: str) -> Iterator[GenerationRequest]:
        """The requests of the jobs that do it.

        Args:
            token: names the noises: the same again for the same one.

        Raises:
            ValidationError: the job is as many variations away from its first noise as may be.
        """
        left_out = {"width_px", "height_px"} if parent.upscale else set[str]()
        kept = parent.model_dump(include=set(GenerationRequest.model_fields) - left_out)
        if self.embed_metadata is not None:
            kept["embed_metadata"] = self.embed_metadata
        if len(kept["variations"]) == MAX_VARIATIONS:
            allowed = (
                f"0: the job is {MAX_VARIATIONS} variations away from its first noise, the most there may be"
            )
            raise refuse_fields(("count", self.count, allowed))
        for index in range(self.count):
            digest = blake2b(f"{token}/{index}".encode(), digest_size=8).digest()
            variation = {"seed": int.from_bytes(digest, "big") & MAX_DRAWN_SEED, "amount": self.amount}
            changed = {"variations": [*kept["variations"], variation], "webhook": self.webhook}
            yield GenerationRequest.model_validate(kept | self._urgency | changed)

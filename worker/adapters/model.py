"""What the worker asks of a loaded model, and what a picture is conditioned on."""

from dataclasses import dataclass
from typing import Protocol

from api_schemas.advanced import Attention, Positions
from api_schemas.catalog import AddOnKind, ModelCard
from worker.adapters.add_ons import Control, IpAdapter, Lora
from worker.adapters.preview_map import PreviewMap
from worker.adapters.source import AddOns
from worker.engine.generate import PreparedModel
from worker.engine.plan import GenerationPlan
from worker.engine.vae.operations import Decoder


@dataclass(frozen=True, slots=True)
class Prompt:
    """What guidance leads to, and what it leads away from."""

    text: str
    negative: str = ""

    def list_branches(self, *, alone: bool) -> list[str]:
        """The texts to encode, in the order of the branches of guidance; without guidance the prompt is alone."""
        return [self.text] if alone else [self.negative, self.text]


@dataclass(frozen=True, slots=True)
class Conditions:
    """All that one picture is conditioned on.

    Args:
        guidance_scale: 1.0 is off: one prediction a tile instead of two.
        positions: of a tile's pixels, for a transformer: counted from the tile's corner, as in training,
            or from the canvas' corner.
        regions: prompts of the regions, in their order.
        attention: that its stages are planned with.
        styled: whether a style picture stands in the conductor's place.
    """

    prompt: str
    negative_prompt: str = ""
    guidance_scale: float = 1.0
    positions: Positions = "local"
    loras: tuple[Lora, ...] = ()
    control: Control | None = None
    ip_adapter: IpAdapter | None = None
    regions: tuple[Prompt, ...] = ()
    attention: Attention = "off"
    styled: bool = False

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """As the engine numbers them: the request's own, then the regions'."""
        return Prompt(self.prompt, self.negative_prompt), *self.regions

    @property
    def add_on_kinds(self) -> list[AddOnKind]:
        """Kinds of the add-ons that the picture has."""
        asked: dict[AddOnKind, object] = {
            "lora": self.loras, "controlnet": self.control, "ip_adapter": self.ip_adapter,
        }  # fmt: skip
        return [kind for kind, value in asked.items() if value]


class LoadedModel(Protocol):
    """Weights in memory, ready for any prompt."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def decoder(self) -> Decoder: ...

    @property
    def preview_map(self) -> PreviewMap: ...

    @property
    def add_ons(self) -> AddOns:
        """Those that a request may name."""
        ...

    def find_truncated_prompts(self, conditions: Conditions) -> list[str]:
        """Messages about prompts that are too long and will be truncated."""
        ...

    def find_new_shapes(self, plan: GenerationPlan) -> list[str]:
        """Messages about shapes that have to be compiled before the plan's tiles are denoised."""
        ...

    def prepare(self, conditions: Conditions) -> PreparedModel:
        """Encode the conditions, once for all stages."""
        ...

"""What the worker gets from an adapter."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from api_schemas.catalog import ModelCard
from api_schemas.generation import Positions
from worker.adapters.add_ons import Control, IpAdapter, Lora
from worker.adapters.source import AddOns
from worker.engine.generate import PreparedModel
from worker.engine.plan import GenerationPlan
from worker.engine.vae.operations import Decoder


@dataclass(frozen=True, slots=True)
class PreviewMap:
    """RGB in [0, 1] = weight (3, C) @ latent (C, h, w) + bias (3,)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Conditions:
    """All that a model is told about one picture.

    Args:
        guidance_scale: 1.0 is off: one prediction a tile instead of two.
        positions: what a transformer is told about where a tile's pixels lie: counted from the
            tile's corner, as in training, or from the canvas' corner.
    """

    prompt: str
    negative_prompt: str = ""
    guidance_scale: float = 1.0
    positions: Positions = "local"
    loras: tuple[Lora, ...] = ()
    control: Control | None = None
    ip_adapter: IpAdapter | None = None


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

    def find_cuts(self, conditions: Conditions) -> list[str]:
        """What of the prompts is too long to be read, in words for people."""
        ...

    def find_new_shapes(self, plan: GenerationPlan) -> list[str]:
        """What has to be compiled before the plan's tiles are denoised, in words for people."""
        ...

    def prepare(self, conditions: Conditions) -> PreparedModel:
        """Encode what the model is told, once for all stages."""
        ...

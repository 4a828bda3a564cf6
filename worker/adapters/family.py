"""What all model families share. A family's own file holds only what differs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from api_schemas.advanced import MAX_TILE_SIZE_PX, Positions
from api_schemas.catalog import AddOnKind
from worker.adapters.model import Conditions
from worker.adapters.schedulers import SchedulerUse
from worker.engine.ensemble import Replica
from worker.engine.plan import StagePlan


@dataclass(frozen=True, slots=True)
class Shape:
    """Size and channels of a family's latent, and the limits of its tiles.

    Args:
        scale: pixels per latent pixel and axis.
        alignment_px: sides of a canvas are multiples of this.
        native_size_px: side of the pictures that the model was trained on.
        max_tile_px: side of the largest tile that it can be given.
        sees_masks: whether it was trained to inpaint, and sees what is made and what stays.
    """

    channels: int
    scale: int
    alignment_px: int
    native_size_px: int
    max_tile_px: int = MAX_TILE_SIZE_PX
    sees_masks: bool = False


@dataclass(frozen=True, slots=True)
class FamilyDefaults:
    """Settings of a family where the folder's `chorale.json` does not say otherwise.

    Args:
        steps: what is usual for the family.
        guidance_scale: the same; 1.0 is off.
        positions: that its transformer takes, of where a tile lies.
        negative_prompt: whether the family uses one.
        guidance: whether it can be guided, by two branches or by an embedded scale.
        add_ons: kinds that it can take.
    """

    steps: int = 25
    guidance_scale: float = 7.5
    positions: tuple[Positions, ...] = ("local",)
    negative_prompt: bool = True
    guidance: bool = True
    add_ons: tuple[AddOnKind, ...] = ()


class Family(Protocol):
    """One loaded diffusers pipeline, and what is special about it."""

    @property
    def name(self) -> str: ...

    @property
    def pipe(self) -> DiffusionPipeline: ...

    @property
    def shape(self) -> Shape: ...

    @property
    def defaults(self) -> FamilyDefaults: ...

    def encode(self, conditions: Conditions) -> Callable[[StagePlan], Replica]:
        """Encode the conditions; a stage then adds what depends on its canvas."""
        ...

    def use_scheduler(self, stage: StagePlan) -> SchedulerUse:
        """How its pipeline uses the folder's scheduler for tiles of such a stage."""
        ...

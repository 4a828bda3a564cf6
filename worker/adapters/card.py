"""The card of a folder, from what its family is and what its `chorale.json` says."""

from collections.abc import Iterator
from typing import cast

from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from api_schemas.catalog import Dtype, ModelCard
from api_schemas.errors import FieldError
from api_schemas.folder_settings import FolderSettings
from api_schemas.layout import Cascade
from api_schemas.model_files import SETTINGS
from api_schemas.refused_values import tell
from worker.adapters.acceleration import find_denoiser
from worker.adapters.errors import ModelFolderError
from worker.adapters.family import Family, Shape
from worker.adapters.scheduler_types import Diffuses, find_scheduler


def describe_model(family: Family, settings: FolderSettings, name: str, steps: tuple[int, int]) -> ModelCard:
    """
    Args:
        steps: the fewest and the most that its scheduler takes.

    Raises:
        ModelFolderError: names each field of `chorale.json` that does not fit the family.
    """
    misfits = [*_check_sizes(settings, family.shape), *_check_interval(settings, family)]
    if misfits:
        raise ModelFolderError(f"{SETTINGS}: {'; '.join(map(tell, misfits))}")
    shape, defaults, (least, most) = family.shape, family.defaults, steps
    native_size_px, guidance_scale = settings.native_size_px, settings.default_guidance_scale
    return ModelCard(
        name=settings.name or name,
        family=family.name,
        description=settings.description,
        license=settings.license,
        native_size_px=native_size_px or shape.native_size_px,
        alignment_px=shape.alignment_px,
        latent_channels=shape.channels,
        vae_scale=shape.scale,
        tile_sizes_px=settings.tile_sizes_px or [native_size_px or shape.native_size_px],
        default_steps=min(settings.default_steps or defaults.steps, settings.max_steps, most),
        min_steps=least,
        max_steps=min(settings.max_steps, most),
        max_schedule_steps=most,
        default_guidance_scale=defaults.guidance_scale if guidance_scale is None else guidance_scale,
        default_num_modules=settings.default_num_modules or (1 if family.pipe.device.type == "cpu" else 8),
        layout=settings.layout,
        sync_strength=settings.sync_strength,
        scene_words=settings.scene_words,
        cascade=settings.cascade or _choose_cascade(family),
        positions=list(defaults.positions),
        negative_prompt=defaults.negative_prompt,
        guidance=defaults.guidance,
        guidance_interval=settings.guidance_interval,
        max_tile_size_px=shape.max_tile_px,
        dtype=name_dtype(find_denoiser(family.pipe)),
    )


def _check_sizes(settings: FolderSettings, shape: Shape) -> Iterator[FieldError]:
    native = {"native_size_px": settings.native_size_px}
    tiles = {f"tile_sizes_px.{index}": side for index, side in enumerate(settings.tile_sizes_px)}
    allowed = f"multiples of {shape.alignment_px} up to {shape.max_tile_px}, as the model has them"
    for field, side_px in (native | tiles).items():
        if side_px is not None and (side_px % shape.alignment_px or side_px > shape.max_tile_px):
            yield FieldError(field=field, value=str(side_px), allowed=allowed)
    found = settings.latent_rgb and len(settings.latent_rgb.weight[0])
    if found not in (None, shape.channels):
        allowed = f"{shape.channels} in each row, as the latent has channels"
        yield FieldError(field="latent_rgb.weight", value=f"{found} numbers", allowed=allowed)


def _check_interval(settings: FolderSettings, family: Family) -> Iterator[FieldError]:
    interval, defaults = settings.guidance_interval, family.defaults
    if interval is not None and not (defaults.guidance and defaults.negative_prompt):
        allowed = f"null: this {family.name} model has no two branches, one of which could be left out"
        yield FieldError(field="guidance_interval", value=str(list(interval)), allowed=allowed)


def name_dtype(denoiser: nn.Module) -> Dtype:
    return cast(Dtype, str(cast(ModelMixin, denoiser).dtype).removeprefix("torch."))


def _choose_cascade(family: Family) -> Cascade:
    """Flow matching hides little of a picture at the clock's middle: a stage has to begin earlier."""
    return Cascade() if isinstance(find_scheduler(family.pipe), Diffuses) else Cascade(strength=0.6)

"""A loaded folder of any family: what the worker gets from the adapters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from api_schemas.catalog import MAX_SCHEDULE_STEPS, ModelCard
from api_schemas.layout import Cascade
from worker.adapters.acceleration import compile_blocks, find_denoiser, put_parts_channels_last
from worker.adapters.autoencoders.decoder import Autoencoder, flatten_decoder
from worker.adapters.autoencoders.encoder import flatten_encoder
from worker.adapters.autoencoders.scaling import read_scaling
from worker.adapters.errors import ModelError, ModelFolderError, UnsupportedConditionError
from worker.adapters.extras.lora import LoraPipeline, Loras
from worker.adapters.family import Family
from worker.adapters.graphs import replay_forward
from worker.adapters.model import Conditions, PreviewMap
from worker.adapters.preview_map import fit_preview_map, read_preview_map
from worker.adapters.prompt_length import find_cut_prompts
from worker.adapters.scheduler_trial import find_least_steps, find_most_steps, require_working_scheduler
from worker.adapters.schedulers import SchedulerUse, make_scheduler
from worker.adapters.settings import FolderSettings
from worker.adapters.source import AddOnKind, AddOns
from worker.engine.canvas import Plane
from worker.engine.ensemble import Replica
from worker.engine.plan import DenoisePlan, GenerationPlan, StagePlan
from worker.engine.scheduler import Scheduler
from worker.engine.vae.operations import Decoder, Encoder


@dataclass(frozen=True, slots=True)
class PreparedFamily:
    """A family's model that knows its prompt."""

    decoder: Decoder
    encoder: Encoder | None
    device: torch.device
    make_replica: Callable[[StagePlan], Replica]
    make_scheduler: Callable[[StagePlan], Scheduler]


class FamilyModel:
    """A loaded folder of any family."""

    def __init__(
        self, family: Family, settings: FolderSettings, name: str, add_ons: AddOns | None = None
    ) -> None:
        self._family = family
        if settings.has_common_weights:
            # On CPUs it shortens decoding by a quarter; denoisers gain nothing there.
            put_parts_channels_last(family.pipe, denoiser=family.pipe.device.type == "cuda")
        if settings.graphs:
            replay_forward(find_denoiser(family.pipe))
        if settings.compile:
            compile_blocks(find_denoiser(family.pipe))
        self._is_compiled, self._met_shapes = settings.compile, set[tuple[int, int]]()
        self._supported = _find_supported(family, settings)
        steps = _try_scheduler(family, settings)
        self.add_ons = (add_ons or AddOns()).only(self._supported)
        self._loras = Loras(cast(LoraPipeline, family.pipe)) if "lora" in self._supported else None
        vae: Autoencoder = family.pipe.components["vae"]
        scaling = read_scaling(type(family.pipe), vae)
        self.decoder = flatten_decoder(vae, scaling)
        self._encoder = flatten_encoder(vae, scaling)
        announced = {"supports": list(self._supported), **self.add_ons.announce()}
        self.card = _describe(family, settings, name, steps).model_copy(update=announced)
        self.preview_map = _preview_map(family, settings, self.decoder)

    def find_cuts(self, conditions: Conditions) -> list[str]:
        return list(find_cut_prompts(self._family.pipe, conditions))

    def find_new_shapes(self, plan: GenerationPlan) -> list[str]:
        shapes = {stage.denoise.tile_shape for stage in plan.stages} if self._is_compiled else set()
        scale = self.card.vae_scale
        return [
            f"tiles of {width * scale}x{height * scale} px are new to this worker: the model is compiled for them "
            "first, which may take a minute"
            for height, width in sorted(shapes - self._met_shapes)
        ]

    @torch.inference_mode()
    def prepare(self, conditions: Conditions) -> PreparedFamily:
        """Encode what the model is told, once for all stages.

        Raises:
            UnsupportedConditionError: the family cannot be told that.
            ModelFolderError: an add-on is not for this model.
        """
        family = self._family
        _check(conditions, family)
        _check_add_ons(conditions, family.name, self._supported)
        if self._loras is not None:
            self._loras.apply(conditions.loras)
        encoded = _encode(family, conditions)

        def make_replica(stage: StagePlan) -> Replica:
            self._met_shapes.add(stage.denoise.tile_shape)
            return encoded(stage)

        return PreparedFamily(
            self.decoder,
            self._encoder,
            family.pipe.device,
            make_replica,
            lambda stage: make_scheduler(
                family.pipe.components["scheduler"],
                family.use_scheduler(stage),
                family.pipe._execution_device,
            ),
        )


def _encode(family: Family, conditions: Conditions) -> Callable[[StagePlan], Replica]:
    try:
        return family.encode(conditions)
    except (ModelError, RuntimeError, OSError, MemoryError):
        raise
    except Exception as error:  # tokenizers raise nothing more special
        raise ModelFolderError(
            f"this {family.name} model cannot encode a prompt, so its tokenizers and text encoders do not match "
            f"each other: {type(error).__name__}: {error}"
        ) from error


def _check(conditions: Conditions, family: Family) -> None:
    habits = family.habits
    if conditions.positions not in habits.positions:
        allowed = ", ".join(habits.positions)
        raise UnsupportedConditionError(
            f"advanced.positions: {conditions.positions!r} is not supported by {family.name}; allowed: {allowed}"
        )
    if conditions.negative_prompt and not habits.negative_prompt:
        raise UnsupportedConditionError(
            f"negative_prompt: {conditions.negative_prompt[:80]!r} would have no effect: guidance of "
            f"{family.name} uses no negative prompt; allowed: empty"
        )
    if conditions.guidance_scale != 1.0 and not habits.guidance:
        raise UnsupportedConditionError(
            f"guidance_scale: {conditions.guidance_scale:g} would have no effect: {family.name} was "
            "trained to work without guidance; allowed: 1"
        )


def _find_supported(family: Family, settings: FolderSettings) -> tuple[AddOnKind, ...]:
    """What changes a model's own layers needs them plain; a ControlNet is a network of its own."""
    return tuple(kind for kind in family.habits.add_ons if settings.is_plain or kind == "controlnet")


def _check_add_ons(conditions: Conditions, name: str, supported: Sequence[AddOnKind]) -> None:
    asked: dict[AddOnKind, object] = {
        "lora": conditions.loras, "controlnet": conditions.control, "ip_adapter": conditions.ip_adapter,
    }  # fmt: skip
    for kind, value in asked.items():
        if value and kind not in supported:
            allowed = ", ".join(supported) or "none"
            raise UnsupportedConditionError(
                f"{kind}: this {name} model takes none; add-ons that it takes: {allowed}"
            )


def _try_scheduler(family: Family, settings: FolderSettings) -> tuple[int, int]:
    """The fewest and the most steps that the folder's scheduler takes.

    Raises:
        UnsupportedSchedulerError: it does not work with this family.
    """
    scheduler, side = family.pipe.components["scheduler"], family.shape.native_size_px // family.shape.scale
    tile = DenoisePlan(Plane(side, side), side, 0, 0, moving=False, seed=0)

    def use(steps: int) -> SchedulerUse:
        return family.use_scheduler(StagePlan(tile, steps))

    usual = settings.default_steps or family.habits.steps
    least = find_least_steps(scheduler, use, usual)
    most = find_most_steps(scheduler, use, least, MAX_SCHEDULE_STEPS)
    require_working_scheduler(scheduler, use(min(usual, most)), family.name)
    return least, most


def _describe(family: Family, settings: FolderSettings, name: str, steps: tuple[int, int]) -> ModelCard:
    shape, habits, (least, most) = family.shape, family.habits, steps
    native_size_px = settings.native_size_px or shape.native_size_px
    return ModelCard(
        name=settings.name or name,
        family=family.name,
        description=settings.description,
        license=settings.license,
        native_size_px=native_size_px,
        alignment_px=shape.alignment_px,
        latent_channels=shape.channels,
        vae_scale=shape.scale,
        tile_sizes_px=settings.tile_sizes_px or [native_size_px],
        default_steps=min(settings.default_steps or habits.steps, most),
        min_steps=least,
        max_steps=min(settings.max_steps, most),
        max_schedule_steps=most,
        default_guidance_scale=(
            habits.guidance_scale
            if settings.default_guidance_scale is None
            else settings.default_guidance_scale
        ),
        default_num_modules=settings.default_num_modules or (1 if family.pipe.device.type == "cpu" else 16),
        layout=settings.layout,
        cascade=settings.cascade or _choose_cascade(family),
        positions=list(habits.positions),
        negative_prompt=habits.negative_prompt,
        guidance=habits.guidance,
        max_tile_size_px=shape.max_tile_px,
    )


def _choose_cascade(family: Family) -> Cascade:
    """Flow matching hides little of a picture at the clock's middle: a stage has to begin earlier."""
    scheduler = family.pipe.components.get("scheduler")
    return Cascade() if hasattr(scheduler, "alphas_cumprod") else Cascade(strength=0.6)


def _preview_map(family: Family, settings: FolderSettings, decoder: Decoder) -> PreviewMap:
    if settings.latent_rgb is not None:
        return read_preview_map(settings.latent_rgb)
    return fit_preview_map(decoder, family.shape.channels, family.pipe.device)

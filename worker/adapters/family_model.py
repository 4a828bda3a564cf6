"""`LoadedModel` and `PreparedModel` for the diffusers folders of all families."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast, get_args

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from api_schemas.advanced import Attention
from api_schemas.catalog import MAX_SCHEDULE_STEPS, AddOnKind, ModelCard
from api_schemas.folder_settings import FolderSettings
from worker.adapters.acceleration import (
    CompiledShapes,
    compile_blocks,
    find_denoiser,
    find_denoisers,
    put_parts_channels_last,
)
from worker.adapters.attention.layers import AttentionLayers
from worker.adapters.attention.replica import make_attentive
from worker.adapters.attention.rotary import find_rotary
from worker.adapters.autoencoders.decoder import SupportedAutoencoder, flatten_decoder
from worker.adapters.autoencoders.encoder import flatten_encoder
from worker.adapters.autoencoders.scaling import read_scaling
from worker.adapters.card import describe_model, name_dtype
from worker.adapters.errors import ModelError, ModelFolderError, UnsupportedConditionError
from worker.adapters.extras.lora import LoraPipeline, LoraReplica, Loras
from worker.adapters.family import Family
from worker.adapters.graphs import replay_forward
from worker.adapters.model import Conditions
from worker.adapters.placement import find_execution_device
from worker.adapters.preview_map import PreviewMap, fit_preview_map, read_preview_map
from worker.adapters.prompt_length import find_cut_prompts
from worker.adapters.scheduler_trial import find_least_steps, find_most_steps, require_working_scheduler
from worker.adapters.scheduler_types import find_scheduler
from worker.adapters.schedulers import SchedulerUse, make_scheduler
from worker.adapters.source import AddOns
from worker.engine.canvas import Plane
from worker.engine.ensemble import Replica
from worker.engine.plan import DenoisePlan, GenerationPlan, StagePlan
from worker.engine.scheduler import Scheduler
from worker.engine.vae.operations import Decoder, Encoder

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedFamily:
    """A family's model that is conditioned on one prompt; any number of them share its weights."""

    family: Family
    decoder: Decoder
    encoder: Encoder | None
    conditioned: Callable[[StagePlan], Replica]
    compiled: CompiledShapes

    @property
    def device(self) -> torch.device:
        return self.family.pipe.device

    @property
    def sees_masks(self) -> bool:
        return self.family.shape.sees_masks

    def make_replica(self, stage: StagePlan) -> Replica:
        self.compiled.add(stage)
        return self.conditioned(stage)

    def make_scheduler(self, stage: StagePlan) -> Scheduler:
        pipe, use = self.family.pipe, self.family.use_scheduler(stage)
        return make_scheduler(find_scheduler(pipe), use, find_execution_device(pipe))


class FamilyModel:
    """A loaded folder of any family."""

    def __init__(
        self, family: Family, settings: FolderSettings, name: str, add_ons: AddOns | None = None
    ) -> None:
        self._family, self._latent_rgb = family, settings.latent_rgb
        # Before blocks are compiled.
        self._attention = _share_attention(family, settings)
        _accelerate(family.pipe, settings, self._attention)
        self._compiled = CompiledShapes(all_known=not settings.compile)
        supported = _find_supported(family, settings)
        self._loras = Loras(cast(LoraPipeline, family.pipe)) if "lora" in supported else None
        steps = _try_scheduler(family, settings)
        self.add_ons = (add_ons or AddOns()).only(supported)
        vae: SupportedAutoencoder = family.pipe.components["vae"]
        scaling = read_scaling(type(family.pipe), vae)
        self.decoder = flatten_decoder(vae, scaling)
        self._encoder = flatten_encoder(vae, scaling)
        announced: dict[str, object] = {"supports": list(supported), **self.add_ons.announce()}
        if self._attention is not None:
            announced["attention"] = list(get_args(Attention))
            announced["style_image"] = self._attention.take_styles
        self.card = describe_model(family, settings, name, steps).model_copy(update=announced)

    @property
    def preview_map(self) -> PreviewMap:
        """Made when a picture is first shown: most ranks of an ensemble never show one."""
        return self._preview_map

    @cached_property
    def _preview_map(self) -> PreviewMap:
        if self._latent_rgb is not None:
            return read_preview_map(self._latent_rgb)
        return fit_preview_map(self.decoder, self._family.shape.channels, self._family.pipe.device)

    def find_truncated_prompts(self, conditions: Conditions) -> list[str]:
        return list(find_cut_prompts(self._family.pipe, conditions))

    def find_new_shapes(self, plan: GenerationPlan) -> list[str]:
        scale = self.card.vae_scale
        return [
            f"tiles of {width * scale}x{height * scale} px{' with attention' if attends else ''} are new to this "
            "worker: the model is compiled for them first, which may take a minute"
            for (height, width), attends in self._compiled.find_new(plan.stages)
        ]

    @torch.inference_mode()
    def prepare(self, conditions: Conditions) -> PreparedFamily:
        """Encode the conditions, once for all stages.

        Raises:
            UnsupportedConditionError: the card rules one out.
            ModelFolderError: an add-on is not for this model.
        """
        _require_supported(conditions, self.card)
        make_replica = self._attend(conditions, self._encode(conditions))
        return PreparedFamily(self._family, self.decoder, self._encoder, make_replica, self._compiled)

    def _encode(self, conditions: Conditions) -> Callable[[StagePlan], Replica]:
        loras = self._loras
        if loras is None:
            return _encode(self._family, conditions)
        chosen = loras.choose(conditions.loras)
        make_replica = _encode(self._family, conditions)
        return lambda stage: LoraReplica(make_replica(stage), loras, chosen)

    def _attend(
        self, conditions: Conditions, make_replica: Callable[[StagePlan], Replica]
    ) -> Callable[[StagePlan], Replica]:
        layers = self._attention
        if conditions.attention == "off" or layers is None:
            return make_replica
        shape, positions = self._family.shape, conditions.positions
        patch = shape.alignment_px // shape.scale
        rotary = find_rotary(find_denoiser(self._family.pipe), patch, positions)
        see, control = make_replica, conditions.control
        if conditions.styled and control is not None:
            see = self._encode(
                replace(conditions, positions="local", control=None)
            )  # it is of another picture
        elif positions != "local":
            see = self._encode(replace(conditions, positions="local"))  # a view has positions of its own
        return lambda stage: make_attentive(stage, make_replica, see, layers, patch, rotary)


def _share_attention(family: Family, settings: FolderSettings) -> AttentionLayers | None:
    """None where layers wait in main memory: there nothing was tried."""
    if settings.offload != "none":
        return None
    layers = AttentionLayers(find_denoiser(family.pipe), compiled=settings.compile, recorded=settings.graphs)
    return layers if len(layers) else None


def _accelerate(pipe: DiffusionPipeline, settings: FolderSettings, attention: AttentionLayers | None) -> None:
    if settings.has_common_weights:
        # On CPUs it shortens decoding by a quarter; denoisers gain there in bfloat16, nothing in float32.
        narrow = name_dtype(find_denoiser(pipe)) == "bfloat16"
        put_parts_channels_last(pipe, denoiser=pipe.device.type == "cuda" or narrow)
    for denoiser in find_denoisers(pipe):
        if settings.graphs:
            replay_forward(denoiser, describe=attention.describe if attention else lambda: ())
        if settings.compile:
            compile_blocks(denoiser)
    if settings.compile:
        _log.warning("compiling the model: minutes, unless it is in the cache (TORCHINDUCTOR_CACHE_DIR)")


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


def _require_supported(conditions: Conditions, card: ModelCard) -> None:
    """The card is the only truth about this: the service refuses by the same fields, before a job is queued."""
    if conditions.positions not in card.positions:
        raise UnsupportedConditionError(
            f"advanced.positions: {conditions.positions!r} is not supported by {card.family}; allowed: "
            + ", ".join(card.positions)
        )
    if conditions.attention not in card.attention:
        raise UnsupportedConditionError(
            f"advanced.attention: {conditions.attention!r} is not supported by {card.family}; allowed: auto, "
            + ", ".join(card.attention)
        )
    if conditions.styled and not card.style_image:
        raise UnsupportedConditionError(
            f"style.style_image: {card.family} takes no style from a picture; allowed: style.prompt"
        )
    for number, prompt in enumerate(conditions.prompts):
        if prompt.negative and not card.negative_prompt:
            place = f"regions.{number - 1}." if number else ""
            raise UnsupportedConditionError(
                f"{place}negative_prompt: {prompt.negative[:80]!r} would have no effect: guidance of "
                f"{card.family} uses no negative prompt; allowed: empty"
            )
    if conditions.guidance_scale != 1.0 and not card.guidance:
        raise UnsupportedConditionError(
            f"guidance_scale: {conditions.guidance_scale:g} would have no effect: {card.family} was "
            "trained to work without guidance; allowed: 1"
        )
    for kind in conditions.add_on_kinds:
        if kind not in card.supports:
            raise UnsupportedConditionError(
                f"{kind}: this {card.family} model takes none; add-ons that it takes: "
                + (", ".join(card.supports) or "none")
            )


def _find_supported(family: Family, settings: FolderSettings) -> tuple[AddOnKind, ...]:
    """What changes a model's own layers needs them plain; a ControlNet is a network of its own."""
    return tuple(kind for kind in family.defaults.add_ons if settings.is_plain or kind == "controlnet")


def _try_scheduler(family: Family, settings: FolderSettings) -> tuple[int, int]:
    """The fewest and the most steps that the folder's scheduler takes.

    Raises:
        UnsupportedSchedulerError: it does not work with this family.
    """
    scheduler, side = find_scheduler(family.pipe), family.shape.native_size_px // family.shape.scale
    tile = DenoisePlan(Plane(side, side), side, 0, 0, moving=False, seed=0)

    def use(steps: int) -> SchedulerUse:
        return family.use_scheduler(StagePlan(tile, steps))

    usual = settings.default_steps or family.defaults.steps
    least = find_least_steps(scheduler, use, usual)
    most = find_most_steps(scheduler, use, least, MAX_SCHEDULE_STEPS)
    require_working_scheduler(scheduler, use(min(usual, most)), family.name)
    return least, most

"""A model in closed form, for tests: instantaneous, deterministic, with a known right answer.

It knows the picture it wants (`target`), predicts exactly the way there, and paints latents by plain
enlargement. It brings its own scheduler: to import diffusers takes longer than all that the toy does.
"""

import hashlib
import math
import time
from dataclasses import dataclass, field, fields, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from api_schemas.catalog import ModelCard
from worker.adapters.errors import ModelFolderError
from worker.adapters.model import Conditions
from worker.adapters.preview_map import PreviewMap
from worker.adapters.source import AddOns
from worker.engine.attention import Clock
from worker.engine.ensemble import Batch
from worker.engine.plan import GenerationPlan, StagePlan
from worker.engine.scheduler import Scalars
from worker.engine.vae.operations import Decoder, Encoder, Local, Shrink

CHANNELS = 4
SCALE = 8
PERIOD = 32  # latent pixels after which every wave repeats


def target(prompt: str, top: int, left: int, height: int, width: int) -> Tensor:
    """What the toy wants to see there: waves whose length the prompt decides, (4, h, w)."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=CHANNELS * 2).digest()
    rows = torch.arange(top, top + height)[:, None] % PERIOD
    columns = torch.arange(left, left + width)[None, :] % PERIOD
    waves = [
        torch.sin(
            (rows * (1 + digest[2 * index] % 3) + columns * (1 + digest[2 * index + 1] % 3)) * math.pi / 16
        )
        for index in range(CHANNELS)
    ]
    return torch.stack(waves)


@dataclass(frozen=True, slots=True)
class ToyOptions:
    """What a test may ask for beside the plain toy; 0 is nothing.

    Args:
        name: on its card, so that one stack may have several.
        delay_ms: what each tile takes.
        oom_above: larger batches do not fit into memory.
        nan_at_step: in that step, tiles below the canvas' first row are not numbers.
        weights_gib: what it claims to weigh.
        style_image: its card says that it takes style pictures.
    """

    name: str = "toy"
    delay_ms: int = 0
    oom_above: int = 0
    nan_at_step: int = 0
    weights_gib: int = 0
    style_image: int = 0


class FlowEulerScheduler:
    """Euler's steps along x = (1 - σ) clean + σ noise (Lipman et al. 2023), the last of them a short one.

    Its state is the index of a step, which the loop counts: there is nothing to keep.
    """

    initial_scale = 1.0

    def __init__(self, steps: int) -> None:
        self._sigmas = [*(float(sigma) for sigma in torch.linspace(1, 0.01, steps)), 0.0]

    @property
    def timesteps(self) -> Tensor:
        return torch.tensor(self._sigmas[:-1]) * 1000

    def skip(self, steps: int) -> None:
        self._sigmas = self._sigmas[steps:]

    def add_noise(self, clean: Tensor, noise: Tensor, index: int = 0) -> Tensor:
        return (1 - self._sigmas[index]) * clean + self._sigmas[index] * noise

    def scale_input(self, latent: Tensor, index: int) -> Tensor:
        return latent

    def match_noise(self, index: int, share: float) -> Clock:
        sigma = self._sigmas[index]
        total = 1 - sigma + sigma * share
        return Clock(1 / total, torch.tensor(sigma * share / total * 1000))

    def estimate_clean(self, latent: Tensor, prediction: Tensor, index: int) -> Tensor:
        return latent - self._sigmas[index] * prediction

    def guide_clean(self, prediction: Tensor, change: Tensor, index: int) -> Tensor:
        return prediction - change / self._sigmas[index]

    def step(self, prediction: Tensor, index: int, latent: Tensor, generator: torch.Generator) -> Tensor:
        return latent + (self._sigmas[index + 1] - self._sigmas[index]) * prediction

    def capture(self) -> tuple[dict[str, Tensor], Scalars]:
        return {}, {}

    def restore(self, tensors: dict[str, Tensor], scalars: Scalars) -> None:
        return


@dataclass(frozen=True, slots=True)
class ToyReplica:
    """Predicts the velocity, so that the clean latent is `target`, pixel by pixel."""

    prompts: tuple[str, ...]
    scheduler: FlowEulerScheduler
    options: ToyOptions

    @property
    def branches(self) -> int:
        return 1

    def predict(self, batch: Batch) -> Tensor:
        crops, tiles, timestep = batch.crops, batch.tiles, batch.timesteps[0]
        time.sleep(self.options.delay_ms / 1000 * len(tiles))
        if self.options.oom_above and len(tiles) > self.options.oom_above:
            raise torch.OutOfMemoryError(f"the toy has no memory for {len(tiles)} tiles")
        wanted = torch.stack(
            [
                target(self.prompts[query.prompt], tile.top, tile.left, tile.height, tile.width)
                for query, tile in zip(batch.queries, tiles, strict=True)
            ]
        )
        predictions = (crops - wanted) / (timestep / 1000)
        if self._breaks_at(timestep):
            predictions[[tile.top > 0 for tile in tiles]] = torch.nan
        return predictions

    def guide(self, predictions: Tensor) -> Tensor:
        return predictions[0]

    def _breaks_at(self, timestep: Tensor) -> bool:
        step, timesteps = self.options.nan_at_step, self.scheduler.timesteps
        return 0 < step <= len(timesteps) and bool(timestep == timesteps[step - 1])


@dataclass(frozen=True, slots=True)
class PreparedToy:
    prompts: tuple[str, ...]
    options: ToyOptions

    @property
    def decoder(self) -> Decoder:
        return toy_decoder()

    @property
    def encoder(self) -> Encoder:
        return toy_encoder()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def sees_masks(self) -> bool:
        return False

    def make_replica(self, stage: StagePlan) -> ToyReplica:
        return ToyReplica(self.prompts, self.make_scheduler(stage), self.options)

    def make_scheduler(self, stage: StagePlan) -> FlowEulerScheduler:
        return FlowEulerScheduler(stage.steps)


@dataclass(frozen=True, slots=True)
class Toy:
    """The loaded model."""

    options: ToyOptions = ToyOptions()
    add_ons: AddOns = field(default_factory=AddOns)

    @property
    def card(self) -> ModelCard:
        return ModelCard(
            name=self.options.name,
            family="toy",
            description="Waves in closed form, for tests.",
            native_size_px=256,
            alignment_px=SCALE,
            latent_channels=CHANNELS,
            vae_scale=SCALE,
            tile_sizes_px=[128, 256, 512],
            default_steps=8,
            default_guidance_scale=1.0,
            style_image=bool(self.options.style_image),
            dtype="float32",
        ).model_copy(update=self.add_ons.announce())

    @property
    def decoder(self) -> Decoder:
        return toy_decoder()

    @property
    def preview_map(self) -> PreviewMap:
        return PreviewMap(_COLORS / 2, torch.full((3,), 0.5))

    def find_truncated_prompts(self, conditions: Conditions) -> list[str]:
        return []

    def find_new_shapes(self, plan: GenerationPlan) -> list[str]:
        return []

    def prepare(self, conditions: Conditions) -> PreparedToy:
        return PreparedToy(tuple(each.text for each in conditions.prompts), self.options)


# Each RGB channel shows one latent channel; the fourth dims all three.
_COLORS = torch.tensor([[0.7, 0.0, 0.0, 0.3], [0.0, 0.7, 0.0, 0.3], [0.0, 0.0, 0.7, 0.3]])

_LATENTS = cast(Tensor, torch.linalg.pinv(_COLORS))  # pyright: ignore[reportUnknownMemberType]


def toy_decoder() -> Decoder:
    """Colours, then plain enlargement."""
    colors = Local(lambda latent: torch.einsum("rc,bchw->brhw", _COLORS, latent))
    enlarge = Local(lambda image: F.interpolate(image, scale_factor=SCALE), scale=SCALE)
    return Decoder((colors, enlarge), (3, 3))


def toy_encoder() -> Encoder:
    """The mean of each latent pixel's colours, then the shortest latent that has them: three do not determine four."""
    mean = Shrink(lambda image: F.avg_pool2d(image, SCALE), SCALE)
    latent = Local(lambda image: torch.einsum("cr,brhw->bchw", _LATENTS, image))
    return Encoder((mean,), (latent,))


def load_toy(address: str, add_ons: AddOns) -> Toy:
    """`toy`, or with options: `toy:delay_ms=50,nan_at_step=3`.

    Raises:
        ModelFolderError: there is no such option.
    """
    return Toy(parse_toy(address), add_ons)


def parse_toy(address: str) -> ToyOptions:
    """The options in an address of `load_toy`.

    Raises:
        ModelFolderError: there is no such option.
    """
    known = [field.name for field in fields(ToyOptions)]
    options = ToyOptions()
    for option in filter(None, address.partition(":")[2].split(",")):
        key, _, value = option.partition("=")
        if key == "name" and value:
            options = replace(options, name=value)
        elif key in known and value.isdigit():
            options = replace(options, **{key: int(value)})
        else:
            raise ModelFolderError(f"toy takes {', '.join(f'{key}=…' for key in known)}, not {option!r}")
    return options

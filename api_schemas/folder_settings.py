"""What a model folder may say about itself beside diffusers' own files: `chorale.json`."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, ValidationError
from pydantic_core import ErrorDetails

from api_schemas.advanced import MAX_TILE_SIZE_PX, GuidanceInterval
from api_schemas.catalog import Dtype
from api_schemas.layout import Cascade
from api_schemas.model_files import SETTINGS, FolderError
from api_schemas.scenes import SceneWords

Offload = Literal["none", "model", "sequential", "group"]
Quantization = Literal["none", "int8", "float8", "float8_products"]


class LatentRgb(BaseModel):
    """RGB in [0, 1] = weight (3 rows of C) @ latent + bias."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: list[list[float]] = Field(min_length=3, max_length=3)
    bias: list[float] = Field(min_length=3, max_length=3)


class FolderSettings(BaseModel):
    """Every field may be left out; then the family's defaults and diffusers' configs count.

    Args:
        dtype: of weights and predictions; bfloat16 on a GPU and float32 on a CPU if left out.
        guidance_interval: default of `advanced.guidance_interval`; for models that are guided by two branches.
        cpu_bfloat16: without `dtype`, bfloat16 on CPUs that have instructions for it, too.
        offload: what waits in main memory until the GPU needs it: nothing, whole networks, or single
            layers (`sequential` slowest and smallest).
        quantization: of the denoiser's weights; int8 through torchao, float8 widened layer by layer;
            float8_products multiplies in eight bits too, in attention and feed-forward of transformer blocks: a third faster for
            FLUX's transformer, on GPUs from Hopper on.
        compile: the denoiser's repeated blocks, at the worker's start: a minute or two the first time on a GPU, less from
            then on, as PyTorch keeps them in TORCHINDUCTOR_CACHE_DIR by code, shapes, GPU and its own version. A job with
            tiles of a new shape compiles for them, and warns.
        graphs: record the denoiser's launches once for each small size of batch and play them back, on a GPU.
        cascade: `conditioned` says that the folder has `latent_upscaler/`, a UNet for the stages after the first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    description: str = ""
    license: str = ""
    native_size_px: int | None = Field(default=None, ge=1, le=MAX_TILE_SIZE_PX)
    tile_sizes_px: list[PositiveInt] = []
    default_steps: PositiveInt | None = None
    max_steps: PositiveInt = 200
    default_guidance_scale: NonNegativeFloat | None = None
    guidance_interval: GuidanceInterval | None = None
    default_num_modules: PositiveInt | None = None
    latent_rgb: LatentRgb | None = None
    dtype: Dtype | None = None
    cpu_bfloat16: bool = False
    offload: Offload = "none"
    quantization: Quantization = "none"
    compile: bool = False
    graphs: bool = False
    layout: Literal["cascade", "flat"] = "cascade"
    cascade: Cascade | None = None
    sync_strength: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    scene_words: SceneWords | None = None

    @property
    def is_plain(self) -> bool:
        """Whether layers are as they were trained, on the device, for others to change."""
        return self.has_common_weights and self.quantization == "none" and not (self.compile or self.graphs)

    @property
    def has_common_weights(self) -> bool:
        """Whether weights are tensors that lie where they are used: their memory layout can be changed."""
        return self.offload == "none" and self.quantization != "int8"


_PARTS = {"": FolderSettings, "cascade": Cascade, "latent_rgb": LatentRgb, "scene_words": SceneWords}


def read_folder_settings(folder: Path) -> FolderSettings:
    """Read `chorale.json`, if the folder has one.

    Raises:
        FolderError: a field is unknown, or of the wrong kind.
    """
    path = folder / SETTINGS
    if not path.exists():
        return FolderSettings()
    try:
        return FolderSettings.model_validate_json(path.read_bytes())
    except OSError as error:
        raise FolderError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise FolderError(f"{path}: {'; '.join(map(_describe, error.errors()))}") from error


def _describe(problem: ErrorDetails) -> str:
    """The field with its value and what is allowed."""
    *outer, name = names = [str(each) for each in problem["loc"]] or [""]
    if problem["type"] == "extra_forbidden":
        return f"{'.'.join(names)} is unknown; allowed are {', '.join(_PARTS[''.join(outer)].model_fields)}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{'.'.join(names)} {problem['input']!r}: {message}" if name else message

"""What a model folder may say about itself beside diffusers' own files: `chorale.json`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from api_schemas.advanced import MAX_TILE_SIZE_PX, GuidanceInterval
from api_schemas.catalog import Dtype
from api_schemas.fields import refuse_fields
from api_schemas.layout import Cascade, Steps
from api_schemas.model_files import SETTINGS, FolderError
from api_schemas.refused_values import tell_refused
from api_schemas.scenes import SceneWords
from api_schemas.sizes import MIN_SIDE_PX

TileSide = Annotated[int, Field(ge=MIN_SIDE_PX, le=MAX_TILE_SIZE_PX)]
Offload = Literal["none", "model", "sequential", "group"]
Quantization = Literal["none", "int8", "float8", "float8_products"]


_Finite = Annotated[float, Field(allow_inf_nan=False)]


def _require_alike(rows: list[list[float]]) -> list[list[float]]:
    if len(set(map(len, rows))) > 1:
        raise ValueError(
            f"three rows of one length; these have {', '.join(str(len(row)) for row in rows)} numbers"
        )
    return rows


class LatentRgb(BaseModel):
    """RGB in [0, 1] = weight (3 rows of C) @ latent + bias."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: Annotated[list[Annotated[list[_Finite], Field(min_length=1)]], AfterValidator(_require_alike)] = (
        Field(min_length=3, max_length=3)
    )
    bias: list[_Finite] = Field(min_length=3, max_length=3)


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

    name: str | None = Field(default=None, min_length=1, max_length=200)
    description: str = ""
    license: str = ""
    native_size_px: TileSide | None = None
    tile_sizes_px: list[TileSide] = []
    default_steps: Steps | None = None
    max_steps: Steps = 200
    default_guidance_scale: float | None = Field(default=None, ge=0, le=30, allow_inf_nan=False)
    guidance_interval: GuidanceInterval | None = None
    default_num_modules: int | None = Field(default=None, ge=1, le=64)
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

    @model_validator(mode="after")
    def _check_steps(self) -> "FolderSettings":
        if self.default_steps is not None and self.default_steps > self.max_steps:
            allowed = f"at most max_steps, which is {self.max_steps}"
            raise refuse_fields(("default_steps", self.default_steps, allowed))
        return self

    @property
    def is_plain(self) -> bool:
        """Whether layers are as they were trained, on the device, for others to change."""
        return self.has_common_weights and self.quantization == "none" and not (self.compile or self.graphs)

    @property
    def has_common_weights(self) -> bool:
        """Whether weights are tensors that lie where they are used: their memory layout can be changed."""
        return self.offload == "none" and self.quantization != "int8"


def read_folder_settings(folder: Path) -> FolderSettings:
    """Read `chorale.json`, if the folder has one.

    Raises:
        FolderError: names each field that is unknown, of the wrong kind or out of its limits, with what is allowed.
    """
    path = folder / SETTINGS
    if not path.exists():
        return FolderSettings()
    try:
        return FolderSettings.model_validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise FolderError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise FolderError(f"{path}: {tell_refused(error, FolderSettings)}") from error

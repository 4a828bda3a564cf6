"""IP-Adapters of the UNet families: an image that conditions the model beside the prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL.Image import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from worker.adapters.add_ons import IpAdapter, WeightsFile, find_weights, to_pil
from worker.adapters.errors import ModelFolderError
from worker.adapters.loading import load_with_report
from worker.adapters.unet_pipeline import UNetPipeline

_ENCODER = "image_encoder"


@dataclass(frozen=True, slots=True)
class ActiveAdapter:
    """The weights that a UNet has beside its own, and how strongly they count."""

    file: WeightsFile
    scale: float


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    """What conditions one picture beside its text: an IP-Adapter with the embeddings of an image, or nothing.

    Args:
        image_embeds: each (branches, 1, ...).
    """

    adapters: "IpAdapters"
    adapter: ActiveAdapter | None
    image_embeds: tuple[Tensor, ...] = ()

    def activate(self) -> None:
        """Give the UNet this adapter alone, whatever other pictures have made of it."""
        self.adapters.activate(self.adapter)


class IpAdapterPipeline(Protocol):
    """diffusers' loader of IP-Adapters, whose methods have no types."""

    def load_ip_adapter(self, folder: str, subfolder: str, weight_name: str, **options: object) -> None: ...

    def unload_ip_adapter(self) -> None: ...

    def set_ip_adapter_scale(self, scale: float) -> None: ...

    def prepare_ip_adapter_image_embeds(
        self, images: Sequence[Image], embeds: None, device: torch.device, per_prompt: int, guided: bool, /
    ) -> list[Tensor]: ...

    def register_modules(self, **modules: object) -> None: ...


class IpAdapters:
    """The IP-Adapters of one UNet, of which the last stays loaded until another, or none, is active."""

    def __init__(self, pipe: UNetPipeline) -> None:
        self._pipe, self._view = pipe, cast(IpAdapterPipeline, pipe)
        self._own_encoder = pipe.image_encoder
        self._loaded: WeightsFile | None = None
        self._active: ActiveAdapter | None = None

    def encode(self, chosen: IpAdapter | None, *, guided: bool) -> ImagePrompt:
        """Load the adapter and encode its picture.

        Raises:
            ModelFolderError: it is not for this model, or unreadable.
        """
        adapter = None if chosen is None else ActiveAdapter(find_weights(chosen.path), chosen.scale)
        self.activate(adapter)
        if chosen is None:
            return ImagePrompt(self, adapter)
        embeds = self._view.prepare_ip_adapter_image_embeds(
            [to_pil(chosen.picture)], None, self._pipe.device, 1, guided
        )
        return ImagePrompt(self, adapter, tuple(embed.to(self._pipe.unet.dtype) for embed in embeds))

    def activate(self, adapter: ActiveAdapter | None) -> None:
        """Load this adapter or none, at no cost where that is so already.

        Raises:
            ModelFolderError: it is not for this model, unreadable, or no longer the file that was chosen.
        """
        if adapter == self._active:
            return
        self._active = None
        if adapter is None:
            self._unload()
            return
        if self._loaded != adapter.file:
            self._unload()
            self._load(adapter.file)
        self._view.set_ip_adapter_scale(adapter.scale)
        self._active = adapter

    def _load(self, chosen: WeightsFile) -> None:
        chosen.require_unchanged()
        pipe, file, folder = self._pipe, chosen.path, chosen.path.parent / _ENCODER
        if self._own_encoder is None and not folder.is_dir():
            raise ModelFolderError(
                f"{file.name} needs a folder {_ENCODER} beside it, since the model has none"
            )
        self._loaded = chosen
        try:
            encoder = self._own_encoder or load_image_encoder(folder, pipe.dtype)
            check_ip_adapter(chosen, pipe.unet, encoder.config)
            self._view.register_modules(image_encoder=nn.Module.to(encoder, pipe.device))
            # Made with every weight, layers refuse keys that they do not know; else they are left out.
            self._view.load_ip_adapter(
                str(file.parent), "", file.name, local_files_only=True, low_cpu_mem_usage=False
            )
        except Exception as error:  # whatever a file of another model may raise in diffusers
            self._unload()
            raise ModelFolderError(
                f"{file.name} is no IP-Adapter for this model: {str(error)[:400]}"
            ) from error

    def _unload(self) -> None:
        if self._loaded is not None:
            self._view.unload_ip_adapter()
            self._view.register_modules(image_encoder=self._own_encoder, feature_extractor=None)
            self._loaded = None


Kind = Literal["plain", "plus", "full"]
# What a kind's file alone has; its second axis is as wide as what CLIP makes of a picture.
_WIDTHS: dict[Kind, str] = {
    "plain": "image_proj.proj.weight",
    "plus": "image_proj.proj_in.weight",
    "full": "image_proj.proj.0.weight",
}
SUPPORTED = "IP-Adapters, IP-Adapters Plus and IP-Adapters Full, not those of FaceID"


def check_ip_adapter(file: WeightsFile, unet: UNet2DConditionModel, encoder: CLIPVisionConfig) -> None:
    """Whether every key of a file has an effect on this UNet.

    Raises:
        ValueError: it is of another kind or width, or has keys for layers that the UNet does not have.
    """
    with file.open() as tensors:
        keys = tensors.keys()
        kind = _find_kind(keys)
        _require_known(keys, unet)
        width = tensors.get_slice(_WIDTHS[kind]).get_shape()[1]
    embedded = encoder.projection_dim if kind == "plain" else encoder.hidden_size
    if width != embedded:
        raise ValueError(f"it takes pictures as {width} numbers, its image encoder makes {embedded}")


def _find_kind(keys: list[str]) -> Kind:
    names = {key.removeprefix("image_proj.") for key in keys if key.startswith("image_proj.")}
    if "proj.weight" in names:
        return "plain"
    if "proj.3.weight" in names:
        return "full"
    if {"latents", "proj_in.weight", "proj_out.weight"} <= names:
        return "plus"
    first = f", the first is {keys[0][:120]!r}" if keys else ""
    raise ValueError(f"its {len(keys)} keys are of another kind{first}; supported: {SUPPORTED}")


def _require_known(keys: list[str], unet: UNet2DConditionModel) -> None:
    """Cross-attentions count 1, 3, 5 ..., in the order of the UNet's processors."""
    attentions = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    known = {
        f"ip_adapter.{2 * index + 1}.to_{each}_ip.weight" for index in range(len(attentions)) for each in "kv"
    }
    rest = [key for key in keys if key not in known and not key.startswith("image_proj.")]
    if rest:
        raise ValueError(
            f"{len(rest)} of {len(keys)} keys have no effect on this model, the first is {rest[0][:120]!r}; "
            f"supported: {SUPPORTED}"
        )


_OF_TEXT = ("text_", "logit_scale")  # a whole CLIP is often what lies there


def load_image_encoder(folder: Path, dtype: torch.dtype) -> CLIPVisionModelWithProjection:
    """Load the image encoder that lies beside an adapter.

    Raises:
        ValueError: it is not whole; transformers would invent what is missing.
    """
    encoder, report = load_with_report(CLIPVisionModelWithProjection, folder, dtype=dtype)
    left = (key for key in report["unexpected_keys"] if not key.startswith(_OF_TEXT))
    wrong = sorted([*report["missing_keys"], *(key for key in left if not key.endswith("position_ids"))])
    if wrong:
        raise ValueError(
            f"{folder.name}: {len(wrong)} keys are missing or unknown, the first is {wrong[0]!r}; supported: a "
            "whole CLIPVisionModelWithProjection"
        )
    return encoder

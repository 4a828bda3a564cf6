"""An IP-Adapter's file: of a kind that sees pictures through CLIP, and for this UNet."""

from pathlib import Path
from typing import Literal

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open
from transformers import CLIPVisionConfig

Kind = Literal["plain", "plus", "full"]
# What a kind's file alone has; its second axis is as wide as what CLIP makes of a picture.
_WIDTHS: dict[Kind, str] = {
    "plain": "image_proj.proj.weight",
    "plus": "image_proj.proj_in.weight",
    "full": "image_proj.proj.0.weight",
}
SUPPORTED = "IP-Adapters, IP-Adapters Plus and IP-Adapters Full, not those of FaceID"


def check_ip_adapter(file: Path, unet: UNet2DConditionModel, encoder: CLIPVisionConfig) -> None:
    """
    Raises:
        ValueError: it is of another kind or width, or has keys for layers that the UNet does not have.
    """
    with safe_open(file, "pt") as tensors:
        keys = list(tensors.keys())
        kind = _find_kind(keys)
        _require_known(keys, unet)
        width: int = tensors.get_slice(_WIDTHS[kind]).get_shape()[1]
    seen = encoder.projection_dim if kind == "plain" else encoder.hidden_size
    if width != seen:
        raise ValueError(f"it takes pictures as {width} numbers, its image encoder makes {seen}")


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

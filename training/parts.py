"""The networks that the stages leave to each other, in folders as diffusers and transformers write them."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

# Both libraries leave the options of their loaders untyped, hence an ignore in each function here.
_WRITERS = {
    "vae": "autoencoder",
    "text_encoder": "text_encoder",
    "tokenizer": "text_encoder",
    "unet_full": "denoiser",
    "unet": "distill",
}
ModuleT = TypeVar("ModuleT", bound=nn.Module)


class MissingPartError(Exception):
    """A stage has not what an earlier one writes; the message names the folder and that stage."""


def load_encoders(folder: Path, device: torch.device) -> tuple[AutoencoderTiny, CLIPTextModel, CLIPTokenizer]:
    """What the earlier stages wrote, in float32 on the device.

    Raises:
        MissingPartError: they did not.
    """
    vae = load_autoencoder(folder / "vae").requires_grad_(False)
    text = load_text_encoder(folder / "text_encoder")
    tokenizer = load_tokenizer(folder / "tokenizer")
    return place(vae, device, torch.channels_last).eval(), place(text, device).eval(), tokenizer


def load_autoencoder(folder: Path) -> AutoencoderTiny:
    """Our autoencoder, in float32.

    Raises:
        MissingPartError: no stage wrote it.
    """
    return AutoencoderTiny.from_pretrained(  # pyright: ignore[reportUnknownMemberType]
        require_part(folder), torch_dtype=torch.float32
    )


def load_prototype_autoencoder(folder: Path) -> AutoencoderKL:
    """The first prototype's autoencoder, in float32.

    Raises:
        MissingPartError: there is none.
    """
    return AutoencoderKL.from_pretrained(  # pyright: ignore[reportUnknownMemberType]
        require_part(folder), torch_dtype=torch.float32
    )


def load_denoiser(folder: Path) -> UNet2DConditionModel:
    """A denoiser, in float32.

    Raises:
        MissingPartError: no stage wrote it.
    """
    return UNet2DConditionModel.from_pretrained(  # pyright: ignore[reportUnknownMemberType]
        require_part(folder), torch_dtype=torch.float32
    )


def load_text_encoder(folder: Path) -> CLIPTextModel:
    """A text encoder, in float32.

    Raises:
        MissingPartError: no stage wrote it.
    """
    return CLIPTextModel.from_pretrained(  # pyright: ignore[reportUnknownMemberType]
        require_part(folder), dtype=torch.float32
    )


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of a text encoder.

    Raises:
        MissingPartError: no stage wrote it.
    """
    return cast(
        CLIPTokenizer,
        CLIPTokenizer.from_pretrained(require_part(folder)),  # pyright: ignore[reportUnknownMemberType]
    )


def require_part(folder: Path) -> Path:
    """The folder itself; diffusers would look for one that is not there in the network.

    Raises:
        MissingPartError: it is not there.
    """
    if folder.is_dir():
        return folder
    writer = _WRITERS.get(folder.name)
    hint = f": python -m training.{writer} writes it" if writer else ""
    raise MissingPartError(f"there is no folder {folder}{hint}")


def save_half(model: AutoencoderTiny | UNet2DConditionModel | CLIPTextModel, folder: Path) -> None:
    """Write the weights in fp16; the model itself becomes fp16 too."""
    model.half().save_pretrained(folder)  # pyright: ignore[reportUnknownMemberType]


def write_half(model: UNet2DConditionModel, folder: Path) -> None:
    """Write the weights in fp16; the model itself stays as it is."""
    save_half(copy_denoiser(model), folder)


def copy_denoiser(model: UNet2DConditionModel) -> UNet2DConditionModel:
    """Another one with the same weights, which does not tell from which folder they were loaded."""
    config = {name: value for name, value in model.config.items() if name != "_name_or_path"}
    copy = cast(
        UNet2DConditionModel,
        UNet2DConditionModel.from_config(config),  # pyright: ignore[reportUnknownMemberType]
    )
    copy.load_state_dict(model.state_dict())
    return copy


def place(
    module: ModuleT, device: torch.device, layout: torch.memory_format = torch.preserve_format
) -> ModuleT:
    """The module itself, moved to the device, its weights to the memory layout."""
    move = cast(Callable[..., ModuleT], module.to)  # no overload of it has both
    return move(device, memory_format=layout)


def freeze(module: ModuleT, device: torch.device) -> ModuleT:
    """Place it for use alone; on a GPU what `half_precision` computes in bfloat16 has its weights so for good."""
    place(module, device, torch.channels_last).requires_grad_(False)
    for layer in module.modules():
        if device.type == "cuda" and isinstance(layer, nn.Conv2d | nn.Linear):
            layer.to(torch.bfloat16)
    return module

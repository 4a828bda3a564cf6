"""LoRA layers that other programs save fused, as one matrix for q, k and v: diffusers' converters split them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from worker.adapters.extras.lora_file import FileLayer, Role

_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "lora_unet_")


class Converter(Protocol):
    """A diffusers pipeline with a loader for LoRAs."""

    def lora_state_dict(
        self, pretrained_model_name_or_path_or_dict: dict[str, Tensor]
    ) -> dict[str, Tensor] | tuple[dict[str, Tensor], ...]: ...


Spelling = Callable[[str, FileLayer, Role], str]


@dataclass(frozen=True, slots=True)
class Converted:
    """Tensors as diffusers names them, and for each the keys of the file that it comes from."""

    tensors: dict[str, Tensor]
    origins: dict[str, set[str]]


def convert_layers(pipe: Converter, layers: Mapping[str, FileLayer]) -> Iterator[Converted]:
    """Convert layers with diffusers' own converter, in each spelling that it may know.

    Which keys come out again is seen from a conversion of numbered tensors.

    Args:
        layers: whose alpha is their rank, if they have one.
    """
    for spell in (_spell_as_is, _spell_kohya, _spell_comfy):
        spelled = _spell_all(spell, layers)
        with suppress(Exception):  # whatever a name that it does not know may raise in diffusers
            origins = _trace(pipe, spelled)
            tensors = _convert(pipe, {key: layer.tensors[role] for key, (layer, role) in spelled.items()})
            yield Converted(tensors, origins)


def _spell_all(spell: Spelling, layers: Mapping[str, FileLayer]) -> dict[str, tuple[FileLayer, Role]]:
    return {spell(name, layer, role): (layer, role) for name, layer in layers.items() for role in layer.keys}


def _trace(pipe: Converter, spelled: Mapping[str, tuple[FileLayer, Role]]) -> dict[str, set[str]]:
    """Find which keys of the file each converted tensor comes from; alphas keep their values, since they divide."""
    numbered = {
        key: layer.tensors[role] if role == "alpha" else torch.full(layer.tensors[role].shape, float(number))
        for number, (key, (layer, role)) in enumerate(spelled.items(), 1)
    }
    keys = ["", *(layer.keys[role] for layer, role in spelled.values())]
    return {
        key: {keys[number] for number in _read_numbers(tensor)}
        for key, tensor in _convert(pipe, numbered).items()
    }


def _read_numbers(tensor: Tensor) -> set[int]:
    """Tensors are cut and joined along rows or columns, so that two edges show all."""
    matrix = tensor.flatten(1) if tensor.ndim > 1 else tensor[None]
    return {int(number) for number in torch.cat([matrix[0], matrix[:, 0]])}


def _convert(pipe: Converter, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    converted = pipe.lora_state_dict(tensors)
    return converted[0] if isinstance(converted, tuple) else converted


def _spell_as_is(name: str, layer: FileLayer, role: Role) -> str:
    return layer.keys[role]


def _spell_kohya(name: str, layer: FileLayer, role: Role) -> str:
    endings = {"down": "lora_down.weight", "up": "lora_up.weight"}
    return f"lora_unet_{_strip(name).replace('.', '_')}.{endings.get(role, role)}"


def _spell_comfy(name: str, layer: FileLayer, role: Role) -> str:
    endings = {"down": "lora_A.weight", "up": "lora_B.weight"}
    return f"diffusion_model.{_strip(name)}.{endings.get(role, role)}"


def _strip(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name
